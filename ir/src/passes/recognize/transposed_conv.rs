//! `transposed_conv`: a transposed convolution whose kernel is its stride is a linear layer and a shuffle of pixels.
//!
//! Stamps do not overlap, so every pixel [C] of x becomes its own tile [kh, kw, O]: a linear with the weight [kh·kw·O,
//! C] and the bias repeated over the tile. The tiles are then laid side by side.

use crate::{
    dim::Dim,
    graph::{Graph, NodeId},
    ops::{ConvTranspose2d, Expand, Linear, Op, Reshape, Transpose},
    passes::{Effect, Options, Pass, PassError, Report, uses::result},
    patch::{Patch, PatchError},
};

/// The pass.
pub const TRANSPOSED_CONV: Pass = Pass {
    name: "transposed_conv",
    law: "a transposed convolution with kernel = stride is a linear and a pixel shuffle",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let all: Vec<NodeId> = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::ConvTranspose2d(_))).collect();
    let (ids, left): (Vec<NodeId>, Vec<NodeId>) = all.into_iter().partition(|id| stamps_apart(graph, *id));
    for id in &ids {
        rewrite(graph, *id)?;
    }
    let note = |id: &NodeId| format!("conv_transpose2d at `{}` overlaps, is padded or grouped", graph.node(*id).origin);
    Ok(Report { notes: left.iter().map(note).collect(), ..Report::count("transposed_conv", ids.len()) })
}

fn stamps_apart(graph: &Graph, id: NodeId) -> bool {
    let Op::ConvTranspose2d(op) = graph.op(id) else { return false };
    let w = &graph.ty(graph.operands(id)[1]).shape;
    let Some(kernel) = w[2..].iter().map(Dim::size).collect::<Option<Vec<_>>>() else { return false };
    let plain = ConvTranspose2d {
        strides: kernel,
        pads: vec![0; 4],
        output_padding: vec![0; 2],
        dilations: vec![1; 2],
        groups: 1,
        bias: op.bias,
    };
    *op == plain
}

fn rewrite(graph: &mut Graph, id: NodeId) -> Result<(), PatchError> {
    let operands = graph.operands(id);
    let Op::ConvTranspose2d(op) = graph.op(id).clone() else { return Ok(()) };
    let [x, w] = [0, 1].map(|i| graph.ty(operands[i]).shape.clone());
    let y = graph.ty(result(id)).shape.clone();
    let [o, kh, kw] = [1, 2, 3].map(|i| w[i].clone());
    let tile = o.clone() * kh.clone() * kw.clone();

    let mut patch = Patch::new(graph, "transposed_conv", result(id));
    let pixels = patch.wire(Transpose { perm: vec![0, 2, 3, 1] }, &operands[..1])?;
    let weight = patch.wire(Transpose { perm: vec![2, 3, 1, 0] }, &operands[1..2])?;
    let weight = patch.wire(Reshape { shape: vec![tile.clone(), w[0].clone()] }, &[weight])?;
    let mut inputs = vec![pixels, weight];
    if op.bias {
        let row = patch.wire(Reshape { shape: vec![1.into(), o.clone()] }, &operands[2..])?;
        let repeated = patch.wire(Expand { shape: vec![kh.clone() * kw.clone(), o.clone()] }, &[row])?;
        inputs.push(patch.wire(Reshape { shape: vec![tile] }, &[repeated])?);
    }
    let tiles = patch.wire(Linear::new(op.bias), &inputs)?;
    let tiles = patch.wire(Reshape { shape: vec![x[0].clone(), x[2].clone(), x[3].clone(), kh, kw, o] }, &[tiles])?;
    let shuffled = patch.wire(Transpose { perm: vec![0, 5, 1, 3, 2, 4] }, &[tiles])?;
    let image = patch.wire(Reshape { shape: y }, &[shuffled])?;
    patch.shunt(result(id), image)?;
    patch.apply();
    Ok(())
}
