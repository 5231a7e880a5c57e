//! `patch_conv`: a convolution whose kernel is its stride is a linear layer over patches.
//!
//! Without overlap every pixel belongs to one patch: x [N, C, H, W] is cut into rows [N, h·w, C·kh·kw] (h = H/kh, w =
//! W/kw), a linear with the weight [O, C·kh·kw] makes tokens [N, h·w, O], and these are turned back into an image [N,
//! O, h, w]. Behind a patch embedding the turning back meets its inverse, and `layout` cancels both.

use crate::{
    graph::{Graph, NodeId},
    ops::{Conv2d, Linear, Op, Reshape, Transpose, activation::Activation},
    passes::{Effect, Options, Pass, PassError, Report, uses::result},
    patch::{Patch, PatchError},
};

/// The pass.
pub const PATCH_CONV: Pass = Pass {
    name: "patch_conv",
    law: "a convolution with kernel = stride is a linear over patches",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let ids: Vec<NodeId> = graph.node_ids().filter(|id| cuts_patches(graph, *id)).collect();
    for id in &ids {
        rewrite(graph, *id)?;
    }
    Ok(Report::count("patch_conv", ids.len()))
}

/// Kernel = stride > 1, no padding, and whole patches only.
fn cuts_patches(graph: &Graph, id: NodeId) -> bool {
    let Op::Conv2d(op) = graph.op(id) else { return false };
    let operands = graph.operands(id);
    let sizes = |i: usize| graph.ty(operands[i]).shape[2..].iter().map(|d| d.size()).collect::<Option<Vec<_>>>();
    let Some((image, kernel)) = sizes(0).zip(sizes(1)) else { return false };
    let plain = Conv2d { strides: kernel.clone(), ..Conv2d::same(0, op.bias) };
    let whole = image.iter().zip(&kernel).all(|(size, k)| *k > 0 && size % k == 0);
    whole && kernel.iter().any(|k| *k > 1) && *op == plain && op.activation == Activation::None
}

fn rewrite(graph: &mut Graph, id: NodeId) -> Result<(), PatchError> {
    let operands = graph.operands(id);
    let [x, w] = [0, 1].map(|i| graph.ty(operands[i]).shape.clone());
    let y = graph.ty(result(id)).shape.clone();
    let Op::Conv2d(op) = graph.op(id) else { return Ok(()) };
    let op = Linear::new(op.bias);
    let row = w[1].clone() * w[2].clone() * w[3].clone();
    let tokens = y[2].clone() * y[3].clone();

    let mut patch = Patch::new(graph, "patch_conv", result(id));
    let cut = vec![x[0].clone(), x[1].clone(), y[2].clone(), w[2].clone(), y[3].clone(), w[3].clone()];
    let cut = patch.wire(Reshape { shape: cut }, &operands[..1])?;
    let cut = patch.wire(Transpose { perm: vec![0, 2, 4, 1, 3, 5] }, &[cut])?;
    let rows = patch.wire(Reshape { shape: vec![x[0].clone(), tokens.clone(), row.clone()] }, &[cut])?;
    let weight = patch.wire(Reshape { shape: vec![w[0].clone(), row] }, &operands[1..2])?;
    let linear = patch.wire(op, &[&[rows, weight], &operands[2..]].concat())?;
    let channels = patch.wire(Transpose { perm: vec![0, 2, 1] }, &[linear])?;
    let image = patch.wire(Reshape { shape: y }, &[channels])?;
    patch.shunt(result(id), image)?;
    patch.apply();
    Ok(())
}
