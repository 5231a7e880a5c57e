//! Pipelines: passes chosen by text, run in order, verified between, watched by the caller.
//!
//! `canonicalize,fold,sla{keep=0.1,block_k=16}` names passes of a table with their options. [`execute`] runs them one
//! after the other; after each the caller sees the graph and says whether to go on, which is all that printing and
//! stopping after a pass need.

use super::{Options, Pass, PassError, Step, run};
use crate::{
    graph::Graph,
    text::{self, ParseErrors},
    verify::{VerifyErrors, verify},
};

/// A pass with its options.
#[derive(Clone)]
pub struct Selected {
    /// What runs.
    pub pass: &'static Pass,
    /// How.
    pub options: Options,
}

impl Selected {
    /// A pass with default options.
    pub fn plain(pass: &'static Pass) -> Self {
        Self { pass, options: Options::default() }
    }
}

impl std::fmt::Debug for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.pass.name, self.options)
    }
}

/// Why a text names no pipeline.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SelectError {
    /// It cannot be read.
    #[error(transparent)]
    Syntax(#[from] ParseErrors),
    /// It names passes that the table does not have.
    #[error("no such pass: {}; known: {}", .unknown.join(", "), .known.join(", "))]
    Unknown {
        /// What was asked for.
        unknown: Vec<String>,
        /// What there is.
        known: Vec<&'static str>,
    },
}

/// The passes of `table` that a text names, in its order.
pub fn select(source: &str, table: &[&'static Pass]) -> Result<Vec<Selected>, SelectError> {
    let calls = text::parse_calls(source)?;
    let find = |name: &str| table.iter().find(|p| p.name == name).copied();
    let unknown: Vec<String> = calls.iter().filter(|(n, _)| find(n).is_none()).map(|(n, _)| n.clone()).collect();
    if !unknown.is_empty() {
        return Err(SelectError::Unknown { unknown, known: table.iter().map(|p| p.name).collect() });
    }
    let selected = |(name, attrs): (String, _)| Some(Selected { pass: find(&name)?, options: Options(attrs) });
    Ok(calls.into_iter().filter_map(selected).collect())
}

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A pass refused or failed.
    #[error("pass `{pass}`: {source}")]
    Pass {
        /// Which.
        pass: &'static str,
        /// Why.
        source: PassError,
    },
    /// A pass left a graph that does not hold: a defect of the pass.
    #[error("after pass `{pass}` the graph does not hold:\n{source}")]
    Verify {
        /// Which.
        pass: &'static str,
        /// Every fault.
        source: VerifyErrors,
    },
}

/// Runs `passes` in order. With `check`, the graph is verified after each. `after` sees every step and the graph, and
/// answers whether to go on.
pub fn execute(
    graph: &mut Graph,
    passes: &[Selected],
    check: bool,
    after: &mut dyn FnMut(&Step, &Graph) -> bool,
) -> Result<Vec<Step>, PipelineError> {
    let mut steps = Vec::with_capacity(passes.len());
    for Selected { pass, options } in passes {
        let step = run(pass, graph, options).map_err(|source| PipelineError::Pass { pass: pass.name, source })?;
        if check {
            verify(graph).map_err(|source| PipelineError::Verify { pass: pass.name, source })?;
        }
        let go_on = after(&step, graph);
        steps.push(step);
        if !go_on {
            break;
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::{cse::CSE, dce::DCE, fold::FOLD};

    const TABLE: &[&Pass] = &[&CSE, &DCE, &FOLD];

    #[test]
    fn text_selects_passes_with_options() {
        let selected = select("fold{limit=7}, cse;dce", TABLE).unwrap();
        assert_eq!(format!("{selected:?}"), "[fold{limit=7}, cse, dce]");
        assert!(select("", TABLE).unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let error = select("fold,nope,dce,neither", TABLE).unwrap_err();
        assert_eq!(error.to_string(), "no such pass: nope, neither; known: cse, dce, fold");
        assert!(matches!(select("fold{limit", TABLE), Err(SelectError::Syntax(_))));
    }

    #[test]
    fn the_caller_watches_and_stops() {
        let source = "graph @g(%x: f32[2]) -> (y: f32[2]) {\n  %0 = exp(%x)\n  %1 = exp(%x)\n  return y=%0\n}";
        let mut graph: Graph = source.parse().unwrap();
        let mut seen = Vec::new();
        let passes = select("cse,dce,fold", TABLE).unwrap();
        let steps = execute(&mut graph, &passes, true, &mut |step, graph| {
            seen.push((step.pass, graph.len()));
            step.pass != "dce"
        });
        assert_eq!(steps.unwrap().len(), 2);
        assert_eq!(seen, [("cse", 3), ("dce", 2)]);
    }

    #[test]
    fn a_failing_pass_is_named() {
        let mut graph = Graph::new("g");
        let passes = select("fold{limit=x}", TABLE).unwrap();
        let error = execute(&mut graph, &passes, false, &mut |_, _| true).unwrap_err();
        assert_eq!(error.to_string(), "pass `fold`: `limit` must be an integer, not `x`");
    }
}
