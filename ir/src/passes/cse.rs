//! `cse`: two operations with equal attributes and the same operands are one.

use std::collections::HashMap;

use super::{Effect, Options, Pass, PassError, Report};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::Op,
    patch::Patch,
};

/// The pass.
pub const CSE: Pass =
    Pass { name: "cse", law: "equal operations on the same operands are computed once", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let mut seen: HashMap<(u64, Vec<Value>), Vec<NodeId>> = HashMap::with_capacity(graph.len());
    let mut merged: HashMap<NodeId, NodeId> = HashMap::new();
    for id in graph.topological() {
        if matches!(graph.op(id), Op::Input(_)) {
            continue;
        }
        let resolve = |v: Value| Value { node: *merged.get(&v.node).unwrap_or(&v.node), slot: v.slot };
        let operands: Vec<Value> = graph.operands(id).into_iter().map(resolve).collect();
        let candidates = seen.entry((fingerprint(graph.op(id)), operands)).or_default();
        match candidates.iter().find(|other| graph.op(**other) == graph.op(id)) {
            Some(first) => drop(merged.insert(id, *first)),
            None => candidates.push(id),
        }
    }
    let mut pairs: Vec<(NodeId, NodeId)> = merged.into_iter().collect();
    pairs.sort_unstable();
    let count = pairs.len();
    for (duplicate, first) in pairs {
        let results: Vec<Value> = graph.results(duplicate).collect();
        let mut patch = Patch::new(graph, "cse", results[0]);
        for old in results {
            patch.shunt(old, Value { node: first, slot: old.slot })?;
        }
        patch.apply();
    }
    Ok(Report::count("merged", count))
}

/// Equal operations have equal fingerprints. Constants are told apart by their bytes.
fn fingerprint(op: &Op) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    op.name().hash(&mut hasher);
    match op {
        Op::Constant(c) => {
            c.value.value_type().hash(&mut hasher);
            c.value.bytes().hash(&mut hasher);
        }
        _ => {
            for (name, attr) in op.attrs() {
                name.hash(&mut hasher);
                attr.to_string().hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}
