//! product(x) + r = product{residual}(x, r), for linear layers of every precision, conv2d and linear attention.

use std::collections::HashMap;

use crate::{
    graph::{Graph, NodeId, Value},
    ops::Op,
    passes::{
        dce::weight_time,
        uses::{result, sole_reader},
    },
    patch::{Patch, PatchError},
};

/// Fuses all and says how many. Of two products that are added, the later one takes the other as its residual: at that
/// time both are there.
pub fn fuse(graph: &mut Graph) -> Result<usize, PatchError> {
    let order = graph.topological();
    let position: HashMap<NodeId, usize> = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let fixed = weight_time(graph);
    let mut fused = 0;
    for id in order.into_iter().filter(|id| !fixed.contains(id)) {
        if !matches!(graph.op(id), Op::Add(_)) {
            continue;
        }
        let [a, b] = graph.operands(id)[..] else { continue };
        if graph.ty(a) != graph.ty(b) {
            continue;
        }
        let candidates = [(a, b), (b, a)].into_iter().filter_map(|(y, r)| Some((y, r, adding(graph, y)?)));
        // A product that was fused in this walk already is younger than all that stand in the table.
        let late = |y: Value| position.get(&y.node).copied().unwrap_or(usize::MAX);
        let Some((y, r, op)) = candidates.max_by_key(|(y, _, _)| late(*y)) else { continue };
        let operands = [graph.operands(y.node), vec![r]].concat();
        let mut patch = Patch::new(graph, "fuse_residual", y);
        let sum = patch.wire(op, &operands)?;
        patch.shunt(result(id), sum)?;
        patch.apply();
        fused += 1;
    }
    Ok(fused)
}

/// The product with room for a residual, if nothing else reads it.
fn adding(graph: &Graph, y: Value) -> Option<Op> {
    let mut op = graph.op(y.node).clone();
    let residual = match &mut op {
        Op::Linear(op) if op.quantize.is_none() => &mut op.residual,
        Op::ScaledLinear(op) if op.quantize.is_none() => &mut op.residual,
        Op::WeightScaledLinear(op) => &mut op.residual,
        Op::Conv2d(op) => &mut op.residual,
        Op::LinearAttention(op) => &mut op.residual,
        _ => return None,
    };
    if *residual || sole_reader(graph, y).is_none() {
        return None;
    }
    *residual = true;
    Some(op)
}
