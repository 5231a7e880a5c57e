//! Rules for reshapes, transposes and expansions.

use super::{Context, first, forward, rewrite};
use crate::{
    dim::Dim,
    graph::{Graph, NodeId},
    ops::{Op, Reshape, Transpose},
    passes::PassError,
    patch::Patch,
};

/// An operation that changes nothing goes.
pub(super) fn identity(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let operands = graph.operands(id);
    let unchanged = match graph.op(id) {
        Op::Reshape(_) | Op::Expand(_) | Op::Cast(_) => true,
        // Of the same size, a range without gaps is the whole.
        Op::Slice(op) => op.step == 1,
        Op::Transpose(op) => op.perm.iter().enumerate().all(|(i, p)| i == *p),
        Op::Concat(_) => operands.len() == 1,
        Op::Split(op) => op.sizes.len() == 1,
        _ => false,
    };
    if !unchanged || graph.ty(operands[0]) != graph.ty(first(id)) {
        return Ok(false);
    }
    forward(graph, "identity", id, operands[0])
}

/// reshape(reshape(x)) = reshape(x).
pub(super) fn reshape_of_reshape(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Reshape(op) = graph.op(id) else { return Ok(false) };
    let inner = graph.operands(id)[0];
    if !matches!(graph.op(inner.node), Op::Reshape(_)) {
        return Ok(false);
    }
    let (op, x) = (op.clone(), graph.operands(inner.node)[0]);
    rewrite(graph, "reshape_of_reshape", id, op, &[x])
}

/// transpose(transpose(x)) = transpose(x).
pub(super) fn transpose_of_transpose(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Transpose(outer) = graph.op(id) else { return Ok(false) };
    let operand = graph.operands(id)[0];
    let Op::Transpose(inner) = graph.op(operand.node) else { return Ok(false) };
    let perm = outer.perm.iter().map(|p| inner.perm[*p]).collect();
    let x = graph.operands(operand.node)[0];
    rewrite(graph, "transpose_of_transpose", id, Transpose { perm }, &[x])
}

/// A transposed matrix under batch dimensions that were merged and are split again: reshape(x) [M, L, D] → [M, D, L] →
/// [.., D, L] is a reshape of x to [.., L, D] whose last dimensions change places.
pub(super) fn transpose_between_reshapes(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Reshape(_) = graph.op(id) else { return Ok(false) };
    let moved = graph.operands(id)[0];
    let Op::Transpose(transpose) = graph.op(moved.node) else { return Ok(false) };
    let merged = graph.operands(moved.node)[0];
    if transpose.perm != [0, 2, 1] || !matches!(graph.op(merged.node), Op::Reshape(_)) {
        return Ok(false);
    }
    let (between, mut shape) = (&graph.ty(merged).shape, graph.ty(first(id)).shape.clone());
    let rank = shape.len();
    if rank < 2 || shape[rank - 2..] != [between[2].clone(), between[1].clone()] {
        return Ok(false);
    }
    shape.swap(rank - 2, rank - 1);
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    let mut patch = Patch::new(graph, "transpose_between_reshapes", first(id));
    let split = patch.wire(Reshape { shape }, &[merged])?;
    let new = patch.wire(Transpose { perm }, &[split])?;
    patch.shunt(first(id), new)?;
    patch.apply();
    Ok(true)
}

/// Operations that broadcast by themselves need no expanded operands. A reshape that adds leading ones is as
/// superfluous.
pub(super) fn expanded_operand(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let broadcasts = matches!(
        graph.op(id),
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Pow(_) | Op::Max(_) | Op::Min(_) | Op::Where(_)
    );
    if !broadcasts {
        return Ok(false);
    }
    let operands = graph.operands(id);
    for i in 0..operands.len() {
        let source = match graph.op(operands[i].node) {
            Op::Expand(_) => graph.operands(operands[i].node)[0],
            Op::Reshape(Reshape { shape }) => {
                let source = graph.operands(operands[i].node)[0];
                let shorter = &graph.ty(source).shape;
                let added = shape.len().saturating_sub(shorter.len());
                if added == 0 || shape[added..] != shorter[..] || !shape[..added].iter().all(Dim::is_one) {
                    continue;
                }
                source
            }
            _ => continue,
        };
        let mut operands = operands.clone();
        operands[i] = source;
        let types: Vec<_> = operands.iter().map(|v| graph.ty(*v).clone()).collect();
        if graph.op(id).infer(&types).is_ok_and(|t| t == graph.node(id).types) {
            let op = graph.op(id).clone();
            return rewrite(graph, "expanded_operand", id, op, &operands);
        }
    }
    Ok(false)
}
