//! `dce`: an operation that no output depends on is removed. Inputs stay: they are the interface.

use std::collections::HashSet;

use super::{Effect, Options, Pass, PassError, Report};
use crate::{
    graph::{Graph, NodeId},
    ops::Op,
};

/// The pass.
pub const DCE: Pass = Pass { name: "dce", law: "what no output depends on goes", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let live = live(graph);
    let before = graph.len();
    let inputs: HashSet<NodeId> = graph.inputs().iter().copied().collect();
    graph.retain_nodes(|id| live.contains(&id) || inputs.contains(&id));
    Ok(Report::count("removed", before - graph.len()))
}

/// Every node that an output depends on.
pub fn live(graph: &Graph) -> HashSet<NodeId> {
    let mut live = HashSet::with_capacity(graph.len());
    let mut stack: Vec<NodeId> = graph.outputs().iter().map(|(_, value)| value.node).collect();
    while let Some(id) = stack.pop() {
        if live.insert(id) {
            stack.extend(graph.operands(id).into_iter().map(|v| v.node));
        }
    }
    live
}

/// Every node whose results depend on params and constants only: such values are computed when the plan is made. A
/// constant is, and so is a state by itself, but nothing that depends on it; an input is not.
pub fn weight_time(graph: &Graph) -> HashSet<NodeId> {
    let mut known = HashSet::new();
    let state = |id: NodeId| matches!(graph.op(id), Op::Param(param) if param.state);
    for id in graph.topological() {
        let fixed = match graph.op(id) {
            Op::Input(_) => false,
            _ => graph.operands(id).iter().all(|v| known.contains(&v.node) && !state(v.node)),
        };
        if fixed {
            known.insert(id);
        }
    }
    known
}
