//! `resize_after_conv1x1`: a pointwise convolution of an enlarged image is computed on the small one.
//!
//! A resize takes weighted means of pixels, the same for every channel, whose weights add up to one; a 1x1 convolution
//! mixes channels, the same for every pixel. Both are linear and act on different axes, so they commute, bias
//! included. Done before the resize, the convolution costs a quarter in the fusion stages of DPT (Ranftl et al. 2021),
//! which double both sides.

use super::{
    Effect, Options, Pass, PassError, Report,
    uses::{result, sole_reader},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Conv2d, Op, activation::Activation},
    patch::Patch,
    types::ValueType,
};

/// The pass.
pub const RESIZE_AFTER_CONV1X1: Pass = Pass {
    name: "resize_after_conv1x1",
    law: "conv1x1(resize(x)) = resize(conv1x1(x)) where the resize enlarges",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let convolutions: Vec<NodeId> = graph.node_ids().filter(|id| pointwise(graph, *id).is_some()).collect();
    let mut moved = 0;
    for id in convolutions {
        let operands = graph.operands(id);
        let large = operands[0];
        let Op::Resize(resize) = graph.op(large.node).clone() else { continue };
        let small = graph.operands(large.node)[0];
        if sole_reader(graph, large).is_none() || !enlarges(graph, small, id) {
            continue;
        }
        let Some(op) = pointwise(graph, id) else { continue };
        let mut patch = Patch::new(graph, "resize_after_conv1x1", result(id));
        let mixed = patch.wire(op, &[&[small], &operands[1..]].concat())?;
        let y = patch.wire(resize, &[mixed])?;
        patch.shunt(result(id), y)?;
        patch.apply();
        moved += 1;
    }
    Ok(Report::count("moved", moved))
}

/// A dense 1x1 convolution that does nothing but mix channels.
pub(super) fn pointwise(graph: &Graph, id: NodeId) -> Option<Conv2d> {
    let Op::Conv2d(op) = graph.op(id) else { return None };
    let kernel = &graph.ty(graph.operands(id)[1]).shape[2..];
    let plain = Conv2d { dilations: op.dilations.clone(), ..Conv2d::same(0, op.bias) };
    let dense = kernel.iter().all(|d| d.is_one()) && *op == plain && op.activation == Activation::None;
    dense.then(|| op.clone())
}

/// Whether the result has more pixels than `small`, so that less is computed before than behind the resize.
fn enlarges(graph: &Graph, small: Value, conv: NodeId) -> bool {
    let pixels = |ty: &ValueType| Some(ty.shape[2].size()? * ty.shape[3].size()?);
    pixels(graph.ty(small)).zip(pixels(graph.ty(result(conv)))).is_some_and(|(before, after)| after > before)
}
