//! Recognition: constructs that exporters spell out become the operations that they are.
//!
//! Each pass looks for the patterns of one construct (`patterns/*.ir`) from the last operations of the graph to the
//! first, so that the longest form wins, and replaces what it finds. What it nearly found is a note: the pattern that
//! came nearest, and the operation in the way. The passes expect canonical graphs ([`super::canonicalize`]) and keep
//! symbols.
//!
//! Convolutions that are products (`patch_conv`, `transposed_conv`, `conv1x1`), resizes, layer scales and residuals
//! are found by their attributes alone and need no pattern; they run once image sizes are numbers.

pub mod attention;
pub mod conv1x1;
pub mod dpt_resize;
pub mod gelu;
pub mod layer_norm;
pub mod layer_scale;
pub mod linear;
pub mod merge_heads;
pub mod patch_conv;
pub mod residual;
pub mod rope;
pub mod silu;
pub mod split_heads;
pub mod transposed_conv;

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use super::{
    Options, Pass, PassError, Report, Step, canonicalize::CANONICALIZE, cse::CSE, dce, dce::DCE, fold::FOLD, run,
};
use crate::{
    graph::{Graph, NodeId},
    pattern::{Match, NearMiss, Patterns},
};

/// The recognitions of this module in an order in which each finds what it needs.
pub const ALL: &[&Pass] = &[
    &linear::RECOGNIZE_LINEAR,
    &layer_norm::RECOGNIZE_LAYER_NORM,
    &gelu::RECOGNIZE_GELU,
    &silu::RECOGNIZE_SILU,
    &rope::RECOGNIZE_ROPE,
    &attention::RECOGNIZE_ATTENTION,
    &split_heads::RECOGNIZE_SPLIT_HEADS,
    &merge_heads::RECOGNIZE_MERGE_HEADS,
];

/// Brings a graph to its canonical form, recognises everything, and sweeps up.
pub fn recognize(graph: &mut Graph) -> Result<Vec<Step>, PassError> {
    let before = [&FOLD, &CANONICALIZE, &FOLD, &CSE, &DCE, &CANONICALIZE];
    let passes = before.into_iter().chain(ALL.iter().copied()).chain([&CSE, &DCE]);
    passes.map(|pass| run(pass, graph, &Options::default())).collect()
}

/// What became of a match.
enum Outcome {
    /// It has been replaced.
    Replaced,
    /// It is something else; nothing to say.
    Unrelated,
    /// It looks like the construct and is not, because of this.
    Refused(String),
}

/// Every match of `patterns` that `build` replaces, counted as `what`.
fn replace(
    graph: &mut Graph,
    what: &str,
    patterns: &Patterns,
    mut build: impl FnMut(&mut Graph, &Match, &HashSet<NodeId>) -> Result<Outcome, PassError>,
) -> Result<Report, PassError> {
    // What earlier patches left behind reads values, and would stand in the way of patterns.
    (DCE.run)(graph, &Options::default())?;
    let weights = dce::weight_time(graph);
    // What is replaced is no root of another match; what belongs to a match is no near miss.
    let mut used: HashSet<NodeId> = HashSet::new();
    let mut matched: HashSet<NodeId> = HashSet::new();
    let mut misses: HashMap<NodeId, NearMiss> = HashMap::new();
    let mut report = Report::count(what, 0);
    for root in patterns.roots(graph).into_iter().rev() {
        if used.contains(&root) {
            continue;
        }
        match patterns.find(graph, &weights, root) {
            Ok(found) => match build(graph, &found, &weights)? {
                Outcome::Replaced => {
                    used.extend(found.own_nodes());
                    matched.extend(found.nodes());
                    report.counts[0].1 += 1;
                }
                Outcome::Unrelated => {}
                Outcome::Refused(why) => {
                    let origin = &graph.node(root).origin;
                    report.notes.push(format!("not {what}: `{}` at `{origin}`: {why}", found.pattern));
                }
            },
            Err(Some(miss)) => {
                let deeper = misses.get(&miss.anchor).is_none_or(|m| m.matched < miss.matched);
                if deeper {
                    misses.insert(miss.anchor, miss);
                }
            }
            Err(None) => {}
        }
    }
    let mut misses: Vec<(NodeId, NearMiss)> =
        misses.into_iter().filter(|(anchor, _)| !matched.contains(anchor)).collect();
    misses.sort_unstable_by_key(|(anchor, _)| *anchor);
    report.notes.extend(misses.into_iter().map(|(_, miss)| format!("not {what}: {miss}")));
    Ok(report)
}

/// The f64 with the fewest digits that an f32 constant may have meant: 1e-6 and not 9.999999974752427e-7.
fn decimal(x: f64) -> f64 {
    let short: f64 = (x as f32).to_string().parse().unwrap_or(x);
    if (short as f32) as f64 == x { short } else { x }
}

/// Patterns that are part of this crate.
type Embedded = LazyLock<Patterns>;

/// Embedded patterns, parsed once.
macro_rules! patterns {
    ($($path:literal),* $(,)?) => {
        std::sync::LazyLock::new(|| {
            $crate::pattern::Patterns::parse(&[$(include_str!(concat!("../../../patterns/", $path, ".ir"))),*])
                .expect("the tests parse every embedded pattern")
        })
    };
}
use patterns;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_pattern_parses_under_a_name_of_its_own() {
        let all: [&Embedded; 9] = [
            &linear::PATTERNS,
            &layer_norm::PATTERNS,
            &layer_norm::AFFINE,
            &gelu::PATTERNS,
            &silu::PATTERNS,
            &rope::ONE,
            &rope::TWO,
            &attention::PATTERNS,
            &split_heads::PATTERNS,
        ];
        let names: Vec<&str> = all.iter().flat_map(|p| p.names()).chain(merge_heads::PATTERNS.names()).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:?}");
    }
}
