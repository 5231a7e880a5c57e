//! `conv1x1`: a pointwise convolution of tokens that were turned into an image is a linear layer over the tokens.
//!
//! conv1x1(image(tokens)) = image(linear(tokens)), image = reshape ∘ transpose. What then is turned has fewer
//! channels, and the product is one that every fast kernel and every precision knows. Other pointwise convolutions
//! stay as they are: their pixels would have to be moved twice.

use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Linear, Op, Reshape, Transpose},
    passes::{Effect, Options, Pass, PassError, Report, resize_after_conv1x1::pointwise, uses::result},
    patch::Patch,
};

/// The pass.
pub const CONV1X1: Pass = Pass {
    name: "conv1x1",
    law: "a 1x1 convolution of tokens seen as an image is a linear over tokens",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let ids: Vec<NodeId> = graph.node_ids().filter(|id| pointwise(graph, *id).is_some()).collect();
    let mut count = 0;
    for id in ids {
        let operands = graph.operands(id);
        let Some(tokens) = tokens_of(graph, operands[0]) else { continue };
        let w = graph.ty(operands[1]).shape[..2].to_vec();
        let y = graph.ty(result(id)).shape.clone();
        let mut patch = Patch::new(graph, "conv1x1", result(id));
        let weight = patch.wire(Reshape { shape: w }, &operands[1..2])?;
        let linear = Linear::new(operands.len() == 3);
        let rows = patch.wire(linear, &[&[tokens, weight], &operands[2..]].concat())?;
        let channels = patch.wire(Transpose { perm: vec![0, 2, 1] }, &[rows])?;
        let image = patch.wire(Reshape { shape: y }, &[channels])?;
        patch.shunt(result(id), image)?;
        patch.apply();
        count += 1;
    }
    Ok(Report::count("conv1x1", count))
}

/// The tokens [N, h·w, C] that an image [N, C, h, w] was made of.
fn tokens_of(graph: &Graph, image: Value) -> Option<Value> {
    let Op::Reshape(_) = graph.op(image.node) else { return None };
    let channels = graph.operands(image.node)[0];
    let Op::Transpose(turn) = graph.op(channels.node) else { return None };
    let (flat, seen) = (&graph.ty(channels).shape, &graph.ty(image).shape);
    (turn.perm == [0, 2, 1] && flat[..2] == seen[..2]).then(|| graph.operands(channels.node)[0])
}
