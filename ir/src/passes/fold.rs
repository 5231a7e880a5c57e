//! `fold`: an operation on constants is a constant, unless that would make the graph larger than `limit` elements a
//! value (default 1 Mi). What depends on params is left: it is computed when the plan is made.

use std::collections::HashMap;

use super::{Effect, Options, Pass, PassError, Report};
use crate::{
    graph::{Graph, NodeId},
    ops::{Constant, Op},
    patch::Patch,
    tensor::Tensor,
};

/// The pass.
pub const FOLD: Pass =
    Pass { name: "fold", law: "an operation on constants is a constant", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["limit"])?;
    let limit = options.get_or("limit", 1usize << 20)?;
    let mut known: HashMap<NodeId, Vec<Tensor>> = HashMap::new();
    let mut folded = Vec::new();
    let mut notes = Vec::new();
    for id in graph.topological() {
        if let Op::Constant(constant) = graph.op(id) {
            known.insert(id, vec![constant.value.clone()]);
            continue;
        }
        let operands = graph.operands(id);
        let source = operands.is_empty() && !matches!(graph.op(id), Op::Range(_));
        if source || !operands.iter().all(|v| known.contains_key(&v.node)) {
            continue;
        }
        let node = graph.node(id);
        if node.types.iter().any(|t| t.elements().is_none_or(|n| n > limit)) {
            continue;
        }
        let tensors: Vec<&Tensor> = operands.iter().map(|v| &known[&v.node][v.slot as usize]).collect();
        match node.op.eval(&tensors, &node.types) {
            Ok(results) => {
                known.insert(id, results);
                folded.push(id);
            }
            Err(problem) => notes.push(format!("{} at `{}` stays: {problem}", node.op.name(), node.origin)),
        }
    }
    let count = folded.len();
    for id in folded {
        let results: Vec<_> = graph.results(id).collect();
        // Only what something else than a folded operation reads becomes a constant of its own.
        for (value, tensor) in results.into_iter().zip(known[&id].clone()) {
            let read = graph.outputs().iter().any(|(_, v)| *v == value)
                || graph.users(value).iter().any(|(user, _)| !known.contains_key(user));
            if read {
                let mut patch = Patch::new(graph, "fold", value);
                let constant = patch.wire(Constant { value: tensor }, &[])?;
                patch.shunt(value, constant)?;
                patch.apply();
            }
        }
    }
    Ok(Report { notes, ..Report::count("folded", count) })
}
