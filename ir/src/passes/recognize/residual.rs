//! `residual`: finds the additions of a branch to what the branch began with. Changes nothing; `fuse` puts them into
//! the products that end the branches.

use std::collections::HashSet;

use crate::{
    graph::{Graph, NodeId, Value},
    ops::Op,
    passes::{
        Effect, Options, Pass, PassError, Report,
        dce::weight_time,
        uses::{result, sole_reader},
    },
};

/// The pass.
pub const RESIDUAL: Pass =
    Pass { name: "residual", law: "counts x + branch(x) where a product ends the branch", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let residual = |id: &NodeId| {
        let [a, b] = graph.operands(*id)[..] else { return false };
        let same = graph.ty(a) == graph.ty(b) && graph.ty(a) == graph.ty(result(*id));
        same && [(a, b), (b, a)].iter().any(|(y, x)| ends_branch(graph, *y, &fixed) && !fixed.contains(&x.node))
    };
    let joined = graph
        .node_ids()
        .filter(|id| match graph.op(*id) {
            Op::Add(_) => residual(id),
            Op::Linear(op) => op.residual,
            Op::Conv2d(op) => op.residual,
            _ => false,
        })
        .count();
    Ok(Report::count("residual", joined))
}

/// A product that nothing else reads, or such a product times a factor known from weights.
fn ends_branch(graph: &Graph, value: Value, fixed: &HashSet<NodeId>) -> bool {
    if sole_reader(graph, value).is_none() {
        return false;
    }
    match graph.op(value.node) {
        Op::Linear(_) | Op::Conv2d(_) => true,
        Op::Mul(_) => graph
            .operands(value.node)
            .iter()
            .any(|v| !fixed.contains(&v.node) && matches!(graph.op(v.node), Op::Linear(_) | Op::Conv2d(_))),
        _ => false,
    }
}
