//! `canonicalize`: what exporters write in many ways is written in one, before anything is recognised. Exact rewrites
//! only.
//!
//! The canonical form: nothing that changes nothing; chains of reshapes, of transposes and of slices are one; a split
//! is slices; an index known beforehand is a slice; the constant or weight-time operand of a commutative operation is
//! the second; a division by a power of two is a product; squares, roots and reciprocals are no powers; operands are
//! not expanded where the operation broadcasts by itself; a scatter over whole rows is a concatenation, and a gather
//! along unit dimensions a gather of rows.
//!
//! Each rule is a function in one of the three files below. Rounds over all nodes go on until no rule applies; should
//! two rules undo each other, the bound on rounds ends it and names them.

mod arithmetic;
mod indexing;
mod shape;

use std::collections::{BTreeMap, HashSet};

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::{live, weight_time},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::Op,
    patch::Patch,
};

/// The pass.
pub const CANONICALIZE: Pass =
    Pass { name: "canonicalize", law: "many ways of writing become one", effect: Effect::Exact, run };

/// What rules may know about the graph beyond the node at hand; as of the beginning of a round.
struct Context {
    weights: HashSet<NodeId>,
}

/// Rewrites the node if it applies, and says whether it did.
type Rule = fn(&Context, &mut Graph, NodeId) -> Result<bool, PassError>;

const RULES: &[(&str, Rule)] = &[
    ("identity", shape::identity),
    ("reshape_of_reshape", shape::reshape_of_reshape),
    ("transpose_of_transpose", shape::transpose_of_transpose),
    ("transpose_between_reshapes", shape::transpose_between_reshapes),
    ("expanded_operand", shape::expanded_operand),
    ("split_to_slices", indexing::split_to_slices),
    ("slice_of_slice", indexing::slice_of_slice),
    ("slice_of_concat", indexing::slice_of_concat),
    ("gather_to_slice", indexing::gather_to_slice),
    ("gather_nd_to_gather", indexing::gather_nd_to_gather),
    ("scatter_to_concat", indexing::scatter_to_concat),
    ("constant_second", arithmetic::constant_second),
    ("unit_factor", arithmetic::unit_factor),
    ("divide_by_power_of_two", arithmetic::divide_by_power_of_two),
    ("subtract_number", arithmetic::subtract_number),
    ("double_negation", arithmetic::double_negation),
    ("power", arithmetic::power),
];

/// Chains shrink from both ends at once, so the depth of a model does not count.
const ROUNDS: usize = 24;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        let round = round(graph)?;
        if round.is_empty() {
            let counts = counts.into_iter().map(|(name, n)| (name.to_string(), n)).collect();
            return Ok(Report { counts, notes: Vec::new() });
        }
        for (name, n) in &round {
            *counts.entry(name).or_default() += n;
        }
        last = round.into_keys().collect();
    }
    Err(PassError::NoFixedPoint { rounds: ROUNDS, patches: last.join(", ") })
}

/// Applies at most one rule to every node that an output depends on.
fn round(graph: &mut Graph) -> Result<BTreeMap<&'static str, usize>, PassError> {
    let context = Context { weights: weight_time(graph) };
    let live = live(graph);
    let mut applied = BTreeMap::new();
    for id in graph.topological() {
        // A rule may have left the node without readers; rewriting it again would never end.
        if !live.contains(&id) || graph.results(id).all(|v| graph.use_count(v) == 0) {
            continue;
        }
        for (name, rule) in RULES {
            if rule(&context, graph, id)? {
                *applied.entry(*name).or_default() += 1;
                break;
            }
        }
    }
    Ok(applied)
}

/// The first result of `id` is `op` on `operands` from now on.
fn rewrite(
    graph: &mut Graph,
    rule: &'static str,
    id: NodeId,
    op: impl Into<Op>,
    operands: &[Value],
) -> Result<bool, PassError> {
    let old = first(id);
    let mut patch = Patch::new(graph, rule, old);
    let new = patch.wire(op, operands)?;
    patch.shunt(old, new)?;
    patch.apply();
    Ok(true)
}

/// The first result of `id` is `new` from now on.
fn forward(graph: &mut Graph, rule: &'static str, id: NodeId, new: Value) -> Result<bool, PassError> {
    let mut patch = Patch::new(graph, rule, first(id));
    patch.shunt(first(id), new)?;
    patch.apply();
    Ok(true)
}

fn first(id: NodeId) -> Value {
    Value { node: id, slot: 0 }
}
