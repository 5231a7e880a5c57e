//! From a model to a plan: import, recognise, bind, rewrite, fuse, plan.
//!
//! ```text
//! model ─▶ graph with symbols ─▶ recognise ─▶ per binding: bind ─▶ rewrite ─▶ fuse ─▶ graph ─┐
//!                                                                                             ├─▶ plan
//!                                                          weights, by reference ─────────────┘
//! ```
//!
//! Attentions are told apart before symbols are bound, because afterwards sizes could mislead: at one view, global
//! attention has the shape of frame attention. Every entry of a plan is rewritten by itself; weights are shared.
//!
//! **Architecture Invariant:** what runs, in which order and with which options is text ([`pipeline`]), so that a
//! command line can print it, stop in it, or replace it.

pub mod meta;
pub mod options;
pub mod pipeline;
pub mod report;
pub mod source;
mod trained;

use lite3r_ir::{
    Bindings, Graph,
    passes::{
        PassError, Step,
        attention_kinds::{Inventory, inventory},
        pipeline::{PipelineError, Selected, execute},
        specialize::free_symbols,
    },
};

pub use options::Options;
pub use source::Model;

use crate::{
    Error, Kind, Result,
    backend::Target,
    plan::{self, EntrySource, Meta, Plan},
    weights::Weights,
};

/// A model rewritten for every binding, not yet planned.
pub struct Compiled {
    /// What ran before symbols were bound.
    pub recognition: Vec<Step>,
    /// One per set of bindings.
    pub entries: Vec<Entry>,
    /// The weights of all entries.
    pub weights: Weights,
    /// What is known about the model.
    pub meta: Meta,
    /// Whether the caller stopped the pipeline before its end.
    pub stopped: bool,
}

/// A graph at one bound shape.
pub struct Entry {
    /// What the symbols are.
    pub bindings: Bindings,
    /// The rewritten graph.
    pub graph: Graph,
    /// What ran after the symbols were bound.
    pub steps: Vec<Step>,
    /// Its attentions, as they were recognised.
    pub inventory: Inventory,
}

/// Sees every executed pass with the graph that it left; answers whether to go on.
pub type Watch<'a> = dyn FnMut(&Bindings, &Step, &Graph) -> bool + 'a;

/// Imports or builds a model and rewrites it.
///
/// # Errors
/// Those of [`crate::onnx`] and [`crate::backbones`]; `compile.options` for options that contradict each other,
/// `compile.pass` for a pass that refuses the model, `compile.require` for recognitions that miss their count,
/// `compile.trained` for trained weights that the rewritten model does not read or has in another shape.
pub fn compile(model: &Model, options: &Options, watch: &mut Watch<'_>) -> Result<Compiled> {
    let mut compiled = bound(model, options, watch)?;
    for entry in &mut compiled.entries {
        if compiled.stopped {
            return Ok(compiled);
        }
        let passes = pipeline::rewriting(options)?;
        entry.steps.extend(drive(&mut entry.graph, &passes, &entry.bindings, watch, &mut compiled.stopped)?);
    }
    if !compiled.stopped {
        report::require(&compiled, &options.require)?;
        let graphs: Vec<&Graph> = compiled.entries.iter().map(|e| &e.graph).collect();
        trained::take(&graphs, &options.trained, &mut compiled.weights)?;
    }
    Ok(compiled)
}

/// Imports or builds a model, recognises it and binds its symbols, and rewrites nothing: what training starts from.
///
/// # Errors
/// As [`compile`].
pub fn bound(model: &Model, options: &Options, watch: &mut Watch<'_>) -> Result<Compiled> {
    options::check(options)?;
    let bindings = options.entries();
    let mut source = source::open(model, options, &bindings)?;
    // What is built from its name has been built for its reference view.
    let settled = Options { reference_view: options::ReferenceView::Auto, ..options.clone() };
    let options = if matches!(model, Model::Arch { .. }) { &settled } else { options };
    let mut compiled = Compiled {
        recognition: Vec::new(),
        entries: Vec::new(),
        weights: std::mem::take(&mut source.weights),
        meta: Meta::default(),
        stopped: false,
    };
    let mut recognised = Vec::with_capacity(bindings.len());
    for (graph, bound) in source.graphs {
        let mut graph = graph;
        if !source.bound_early {
            known_symbols(&graph, model, &bound)?;
        }
        compiled.meta = meta::of(&graph, &compiled.weights, model, source.producer.as_deref());
        if source.bound_early {
            compiled.meta.provenance.insert("symbols".into(), "bound before the import".into());
        }
        let first = bound.first().cloned().unwrap_or_default();
        let passes = pipeline::recognition(options)?;
        compiled.recognition = drive(&mut graph, &passes, &first, watch, &mut compiled.stopped)?;
        if compiled.stopped {
            let inventory = inventory(&graph);
            compiled.entries.push(Entry { bindings: first, graph, steps: Vec::new(), inventory });
            return Ok(compiled);
        }
        recognised.extend(bound.into_iter().map(|b| (graph.clone(), b)));
    }
    for (mut graph, bindings) in recognised {
        let symbols = free_symbols(&graph);
        let used: Bindings =
            bindings.iter().filter(|(s, _)| symbols.contains(s)).map(|(s, n)| (s.clone(), *n)).collect();
        let steps = drive(&mut graph, &pipeline::binding(&used, options)?, &bindings, watch, &mut compiled.stopped)?;
        let inventory = inventory(&graph);
        compiled.entries.push(Entry { bindings, graph, steps, inventory });
        if compiled.stopped {
            return Ok(compiled);
        }
    }
    Ok(compiled)
}

/// Errors: `compile.bind` for symbols that the model does not have.
fn known_symbols(graph: &Graph, model: &Model, bindings: &[Bindings]) -> Result<()> {
    let known = free_symbols(graph);
    let first = bindings.first().into_iter().flat_map(Bindings::keys);
    let unknown: Vec<String> = match model {
        // What is built from its name has been built for its bindings.
        Model::Arch { .. } => Vec::new(),
        Model::Onnx { .. } => first.filter(|s| !known.contains(s)).cloned().collect(),
    };
    let have = if known.is_empty() { "the model has none".into() } else { format!("there are {}", known.join(", ")) };
    let problems: Vec<String> = unknown.into_iter().map(|s| format!("there is no symbol `{s}`; {have}")).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Usage, "compile.bind", problems)) }
}

/// Plans a compiled model for a target. Errors: those of [`plan::build()`].
pub fn plan(compiled: &Compiled, target: &dyn Target) -> Result<Plan> {
    let source = |e: &Entry| EntrySource { bindings: e.bindings.clone(), graph: e.graph.clone() };
    let entries: Vec<EntrySource> = compiled.entries.iter().map(source).collect();
    plan::build(&entries, &compiled.weights, target, compiled.meta.clone())
}

fn drive(
    graph: &mut Graph,
    passes: &[Selected],
    bindings: &Bindings,
    watch: &mut Watch<'_>,
    stopped: &mut bool,
) -> Result<Vec<Step>> {
    let mut after = |step: &Step, graph: &Graph| {
        tracing::info!(pass = step.pass, ms = step.time.as_secs_f64() * 1e3, nodes = step.nodes);
        let go_on = watch(bindings, step, graph);
        *stopped |= !go_on;
        go_on
    };
    execute(graph, passes, cfg!(debug_assertions), &mut after).map_err(refuse)
}

fn refuse(error: PipelineError) -> Error {
    match error {
        PipelineError::Pass { pass, source: PassError::Option(problem) } => {
            Error::usage("compile.option", format!("{pass}: {problem}"))
        }
        PipelineError::Pass { pass, source: PassError::Refused(problems) } => {
            let problems = problems.into_iter().map(|p| format!("{pass}: {p}")).collect();
            Error::all(Kind::Unsupported, "compile.pass", problems)
        }
        other => Error::unsupported("compile.pass", other.to_string()),
    }
}
