//! `late_slices`: rows are cut away behind what is computed row by row, where few are cut away and rows become shorter.
//!
//! ```text
//! linear(layer_norm(slice(x)), w)   →   slice(linear(layer_norm(x), w))
//! ```
//!
//! A slice between operations is a copy. A head drops the few special tokens of a view; normalising and projecting them
//! costs less than copying all others in front of it.

use super::{Effect, Options, Pass, PassError, Report, uses::result};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Linear, Op, Reshape, Slice},
    patch::Patch,
};

/// The pass.
pub const LATE_SLICES: Pass = Pass {
    name: "late_slices",
    law: "rows are cut away behind what is computed row by row",
    effect: Effect::Exact,
    run,
};

/// Of so many rows one may be cut away.
const FEW: usize = 16;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let mut moved = 0;
    for id in graph.topological() {
        let by_rows = match graph.op(id) {
            Op::LayerNorm(_) => true,
            Op::Linear(Linear { residual, quantize, .. }) => !residual && quantize.is_none(),
            _ => false,
        };
        let operands = graph.operands(id);
        let Some((x, slice, shape)) = operands.first().filter(|_| by_rows).and_then(|x| cut(graph, *x)) else {
            continue;
        };
        let op = graph.op(id).clone();
        let mut patch = Patch::new(graph, "late_slices", result(id));
        let rows = patch.wire(op, &[&[x], &operands[1..]].concat())?;
        let mut y = patch.wire(slice, &[rows])?;
        if shape {
            let shape = patch.graph().ty(result(id)).shape.clone();
            y = patch.wire(Reshape { shape }, &[y])?;
        }
        patch.shunt(result(id), y)?;
        patch.apply();
        moved += 1;
    }
    Ok(Report::count("moved", moved))
}

/// What a few rows were cut away from, how, and whether what was left was given another shape, rows being whole.
fn cut(graph: &Graph, value: Value) -> Option<(Value, Slice, bool)> {
    let (at, shaped): (NodeId, bool) = match graph.op(value.node) {
        Op::Reshape(_) => (graph.operands(value.node)[0].node, true),
        _ => (value.node, false),
    };
    let Op::Slice(slice) = graph.op(at) else { return None };
    let x = graph.operands(at)[0];
    let (before, after) = (graph.ty(x), graph.ty(result(at)));
    let (all, kept) = (before.shape[slice.axis].size()?, after.shape[slice.axis].size()?);
    let whole_rows = slice.axis + 1 < before.shape.len() && graph.ty(value).shape.last() == before.shape.last();
    (whole_rows && (all - kept) * FEW <= all).then(|| (x, slice.clone(), shaped))
}
