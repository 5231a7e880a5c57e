//! `channels_last`: convolutions and resizes, and the elementwise work between them, run on images whose pixels keep
//! their channels side by side.
//!
//! ```text
//! conv2d(x, w)        →   planes(conv2d(pixels(x), pixels(w)) {layout=nhwc})      1x1:  planes(linear(pixels(x), w))
//! resize(x)           →   planes(resize(pixels(x)) {layout=nhwc})
//! pixels(planes(x))   →   x, through elementwise operations, and where tokens or stamps were made to planes
//! ```
//!
//! `pixels` and `planes` are transposes. One walk in topological order remembers which planes have pixels already, so
//! that transposes stay at the borders only: where a network is given images, or asks for planes. Weights are turned
//! when the plan is made. Gradients of weights are taken from pixels and put into planes again, as the weights lie. Images of fewer than eight channels stay as they are, grouped convolutions too: no tensor
//! core reads their pixels.

use std::collections::{HashMap, HashSet};

use super::{Effect, Options, Pass, PassError, Report, dce::weight_time, uses::result};
use crate::{
    dim::Dim,
    graph::{Graph, NodeId, Value},
    ops::{
        Conv2d, Conv2dWeightGrad, Linear, Op, ReduceSum, Reshape, Resize, ResizeGrad, Transpose, images::ImageLayout,
    },
    patch::{Patch, PatchError},
};

/// The pass.
pub const CHANNELS_LAST: Pass = Pass {
    name: "channels_last",
    law: "convolutions and resizes run on images whose pixels keep their channels side by side",
    effect: Effect::Reassociates,
    run,
};

const TO_PIXELS: [usize; 4] = [0, 2, 3, 1];
const TO_PLANES: [usize; 4] = [0, 3, 1, 2];

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let mut walk = Walk { fixed: weight_time(graph), pixels: HashMap::new() };
    let (mut convolutions, mut linears, mut resizes) = (0, 0, 0);
    for id in graph.topological() {
        if walk.fixed.contains(&id) {
            continue;
        }
        match graph.op(id).clone() {
            Op::Conv2d(op) if turns(graph, id, &op) => match pointwise(graph, id, &op) {
                true => {
                    walk.linear(graph, id, op)?;
                    linears += 1;
                }
                false => {
                    walk.convolution(graph, id, op)?;
                    convolutions += 1;
                }
            },
            Op::Resize(op) if op.layout == ImageLayout::Planes && walk.has_pixels(graph, id) => {
                let op = Resize { layout: ImageLayout::Pixels, ..op };
                walk.replace(graph, id, op)?;
                resizes += 1;
            }
            Op::ResizeGrad(op) if op.layout == ImageLayout::Planes && walk.has_pixels(graph, id) => {
                let op = ResizeGrad { layout: ImageLayout::Pixels, ..op };
                walk.replace(graph, id, op)?;
                resizes += 1;
            }
            Op::Conv2dWeightGrad(op) if dense(&op) && walk.has_pixels(graph, id) => {
                walk.weights(graph, id, op)?;
                convolutions += 1;
            }
            Op::ReduceSum(op) if over_images(&op) && walk.pixels.contains_key(&graph.operands(id)[0]) => {
                walk.sum(graph, id)?;
            }
            Op::Transpose(op) => walk.transpose(graph, id, &op.perm)?,
            op if elementwise(&op) && walk.has_pixels(graph, id) => walk.replace(graph, id, op)?,
            _ => {}
        }
    }
    let counts = [("convolutions", convolutions), ("linears", linears), ("resizes", resizes)];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// Dense convolutions of images with channels enough.
fn turns(graph: &Graph, id: NodeId, op: &Conv2d) -> bool {
    let channels = graph.ty(graph.operands(id)[0]).shape[1].size();
    op.layout == ImageLayout::Planes && op.groups == 1 && channels.is_some_and(|c| c >= 8)
}

/// Whether a convolution mixes the channels of a pixel and nothing else.
fn pointwise(graph: &Graph, id: NodeId, op: &Conv2d) -> bool {
    let kernel = &graph.ty(graph.operands(id)[1]).shape[2..];
    kernel.iter().all(Dim::is_one) && op.strides == [1, 1] && op.pads == [0; 4]
}

/// Whether a gradient of weights is that of a dense convolution in planes.
fn dense(op: &Conv2dWeightGrad) -> bool {
    op.layout == ImageLayout::Planes && op.groups == 1
}

/// Whether a sum leaves one number a channel.
fn over_images(op: &ReduceSum) -> bool {
    op.axes == ImageLayout::Planes.beside_channels() && !op.keep
}

fn elementwise(op: &Op) -> bool {
    matches!(
        op,
        Op::Relu(_) | Op::Gelu(_) | Op::Silu(_) | Op::Sigmoid(_) | Op::Tanh(_) | Op::Exp(_) | Op::Clip(_) | Op::Cast(_)
    ) || matches!(op, Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_))
        || matches!(op, Op::Neg(_) | Op::Erf(_) | Op::Less(_) | Op::Where(_))
}

struct Walk {
    /// What is computed when the plan is made.
    fixed: HashSet<NodeId>,
    /// Planes [N, C, H, W] whose pixels [N, H, W, C] are at hand.
    pixels: HashMap<Value, Value>,
}

impl Walk {
    /// Whether an operation on images reads some whose pixels are at hand, or can be had without moving anything.
    fn has_pixels(&self, graph: &Graph, id: NodeId) -> bool {
        let operands = graph.operands(id);
        let images = graph.ty(result(id)).shape.len() == 4
            && operands.iter().all(|v| graph.ty(*v).shape.len() == 4 || graph.ty(*v).shape.is_empty());
        images && operands.iter().any(|v| self.pixels.contains_key(v))
    }

    /// The pixels of planes; numbers without dimensions stay.
    fn turned(&mut self, patch: &mut Patch<'_>, planes: Value) -> Result<Value, PatchError> {
        if patch.graph().ty(planes).shape.is_empty() {
            return Ok(planes);
        }
        if let Some(known) = self.pixels.get(&planes) {
            return Ok(*known);
        }
        let made = match before_planes(patch.graph(), planes) {
            Some((x, perm, shape)) => {
                let moved = patch.wire(Transpose { perm }, &[x])?;
                patch.wire(Reshape { shape }, &[moved])?
            }
            None => patch.wire(Transpose { perm: TO_PIXELS.into() }, &[planes])?,
        };
        self.pixels.insert(planes, made);
        Ok(made)
    }

    /// Everybody who reads planes reads them made of these pixels.
    fn shunt(&mut self, mut patch: Patch<'_>, id: NodeId, pixels: Value) -> Result<(), PatchError> {
        let planes = patch.wire(Transpose { perm: TO_PLANES.into() }, &[pixels])?;
        self.pixels.insert(planes, pixels);
        patch.shunt(result(id), planes)?;
        patch.apply();
        Ok(())
    }

    /// The same operation on the pixels of every operand.
    fn replace(&mut self, graph: &mut Graph, id: NodeId, op: impl Into<Op>) -> Result<(), PatchError> {
        let operands = graph.operands(id);
        let mut patch = Patch::new(graph, "channels_last", result(id));
        let mut turned = Vec::with_capacity(operands.len());
        for operand in operands {
            turned.push(self.turned(&mut patch, operand)?);
        }
        let y = patch.wire(op, &turned)?;
        self.shunt(patch, id, y)
    }

    fn convolution(&mut self, graph: &mut Graph, id: NodeId, op: Conv2d) -> Result<(), PatchError> {
        let operands = graph.operands(id);
        let mut patch = Patch::new(graph, "channels_last", result(id));
        let x = self.turned(&mut patch, operands[0])?;
        let w = patch.wire(Transpose { perm: TO_PIXELS.into() }, &operands[1..2])?;
        let mut inputs = [&[x, w], &operands[2..]].concat();
        if op.residual {
            let last = inputs.len() - 1;
            inputs[last] = self.turned(&mut patch, inputs[last])?;
        }
        let y = patch.wire(Conv2d { layout: ImageLayout::Pixels, ..op }, &inputs)?;
        self.shunt(patch, id, y)
    }

    fn linear(&mut self, graph: &mut Graph, id: NodeId, op: Conv2d) -> Result<(), PatchError> {
        let operands = graph.operands(id);
        let shape = graph.ty(operands[1]).shape[..2].to_vec();
        let mut patch = Patch::new(graph, "channels_last", result(id));
        let x = self.turned(&mut patch, operands[0])?;
        let w = patch.wire(Reshape { shape }, &operands[1..2])?;
        let mut inputs = [&[x, w], &operands[2..]].concat();
        if op.residual {
            let last = inputs.len() - 1;
            inputs[last] = self.turned(&mut patch, inputs[last])?;
        }
        let Conv2d { activation, bias, residual, .. } = op;
        let y = patch.wire(Linear { activation, residual, ..Linear::new(bias) }, &inputs)?;
        self.shunt(patch, id, y)
    }

    /// The pixels of x and of cotangents give the weights as these lie in pixels.
    fn weights(&mut self, graph: &mut Graph, id: NodeId, op: Conv2dWeightGrad) -> Result<(), PatchError> {
        let operands = graph.operands(id);
        let mut patch = Patch::new(graph, "channels_last", result(id));
        let x = self.turned(&mut patch, operands[0])?;
        let g = self.turned(&mut patch, operands[1])?;
        let turned = patch.wire(Conv2dWeightGrad { layout: ImageLayout::Pixels, ..op }, &[x, g])?;
        let planes = patch.wire(Transpose { perm: TO_PLANES.into() }, &[turned])?;
        patch.shunt(result(id), planes)?;
        patch.apply();
        Ok(())
    }

    /// What is left of images for each channel.
    fn sum(&mut self, graph: &mut Graph, id: NodeId) -> Result<(), PatchError> {
        let planes = graph.operands(id)[0];
        let mut patch = Patch::new(graph, "channels_last", result(id));
        let x = self.turned(&mut patch, planes)?;
        let axes = ImageLayout::Pixels.beside_channels().to_vec();
        let sum = patch.wire(ReduceSum { axes, keep: false }, &[x])?;
        patch.shunt(result(id), sum)?;
        patch.apply();
        Ok(())
    }

    /// A transpose to planes tells where their pixels are; one back is nothing.
    fn transpose(&mut self, graph: &mut Graph, id: NodeId, perm: &[usize]) -> Result<(), PatchError> {
        let x = graph.operands(id)[0];
        if perm == TO_PLANES {
            self.pixels.insert(result(id), x);
        } else if let Some(pixels) = self.pixels.get(&x).copied().filter(|_| perm == TO_PIXELS) {
            let mut patch = Patch::new(graph, "channels_last", result(id));
            patch.shunt(result(id), pixels)?;
            patch.apply();
        }
        Ok(())
    }
}

/// Where planes are a reshape of a transpose that put the channels second (tokens seen as an image, stamps laid side by
/// side): what was transposed, the order that puts the channels last instead, and the shape of the pixels.
fn before_planes(graph: &Graph, planes: Value) -> Option<(Value, Vec<usize>, Vec<Dim>)> {
    let Op::Reshape(_) = graph.op(planes.node) else { return None };
    let moved = graph.operands(planes.node)[0];
    let Op::Transpose(turn) = graph.op(moved.node) else { return None };
    let ([n, c, h, w], [first, second, ..]) = (&graph.ty(planes).shape[..], &graph.ty(moved).shape[..]) else {
        return None;
    };
    if first != n || second != c {
        return None;
    }
    let mut perm = turn.perm.clone();
    let channel = perm.remove(1);
    perm.push(channel);
    Some((graph.operands(moved.node)[0], perm, vec![n.clone(), h.clone(), w.clone(), c.clone()]))
}
