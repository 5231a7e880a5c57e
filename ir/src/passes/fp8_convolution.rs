//! `fp8_convolution{outputs=128, flops=8000000000}`: convolutions over e4m3 codes of weights and of activations.
//!
//! ```text
//! conv2d(x, w, …) {layout=nhwc}         →   scaled_conv2d(quantize_items(x), quantize_items(w), …)
//! conv2d(relu(x), w, …) {layout=nhwc}   →   scaled_conv2d(quantize_items(x) {activation=relu}, quantize_items(w), …)
//! ```
//!
//! An image has one scale and so has an output channel: taps of different pixels are added up. Runs behind
//! `channels_last`, and behind `bf16`, so that what is quantised and what is added are narrow already; bias, activation
//! and residual go along. `fuse_quantize` afterwards lets a convolution give the codes of the next one.
//!
//! Options. Fewer `outputs` than this stay wide, and fewer operations than `flops`: making codes takes longer than they
//! save. So do images whose channels are not a multiple of 16, and what `exclude=["…"]` names, unless `include=["…"]` does.

use std::collections::HashMap;

use super::{
    Effect, Options, Pass, PassError, Report,
    named::{Names, Weights},
    uses::result,
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Conv2d, Op, QuantizeItems, ScaledConv2d, activation::Activation},
    patch::{Patch, PatchError},
    types::DType,
};

/// The pass.
pub const FP8_CONVOLUTION: Pass = Pass {
    name: "fp8_convolution",
    law: "convolutions multiply e4m3 codes of weights and activations",
    effect: Effect::Approximates,
    run,
};

/// Channels that a tensor core takes at once.
const GRANULE: usize = 16;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["outputs", "flops", "exclude", "include"])?;
    let (outputs, flops) = (options.get_or("outputs", 128usize)?, options.get_or("flops", 8_000_000_000i64)?);
    let names = Names::read(options, &[])?;
    let mut weights = Weights::of(graph);
    let mut made: HashMap<(Value, Activation), Vec<Value>> = HashMap::new();
    let (mut coded, mut small, mut wide) = (0, 0, 0);
    for id in graph.topological() {
        let Op::Conv2d(op) = graph.op(id).clone() else { continue };
        let operands = graph.operands(id);
        if weights.is_known(operands[0]) {
            continue; // Computed when the plan is made.
        }
        let Some(new) = codes(graph, id, &op).filter(|_| weights.is_known(operands[1])) else {
            wide += 1;
            continue;
        };
        if names.excluded(&weights.names(graph, id)).is_some() {
            wide += 1;
            continue;
        }
        if is_small(graph, id, outputs, flops) {
            small += 1;
            continue;
        }
        let (x, activation) = activated(graph, operands[0]);
        let w = unrounded(graph, operands[1]);
        let mut patch = Patch::new(graph, "fp8_convolution", result(id));
        let x = quantized(&mut patch, x, activation, &mut made)?;
        let w = quantized(&mut patch, w, Activation::None, &mut made)?;
        let y = patch.wire(new, &[&x, &w, &operands[2..]].concat())?;
        patch.shunt(result(id), y)?;
        patch.apply();
        coded += 1;
    }
    let counts = [("convolutions", coded), ("small", small), ("wide", wide)];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// The convolution of codes, where the image has pixels in one group and channels enough.
fn codes(graph: &Graph, id: NodeId, op: &Conv2d) -> Option<ScaledConv2d> {
    let x = graph.ty(graph.operands(id)[0]);
    let whole = x.shape.last()?.size().is_some_and(|channels| channels % GRANULE == 0);
    let y = graph.ty(result(id)).dtype;
    if whole && x.dtype.size() > 1 && y.size() < 8 { ScaledConv2d::of(op, y) } else { None }
}

/// Whether making codes of the image takes longer than multiplying them saves.
fn is_small(graph: &Graph, id: NodeId, outputs: usize, flops: i64) -> bool {
    let node = graph.node(id);
    let types: Vec<_> = graph.operands(id).into_iter().map(|v| graph.ty(v).clone()).collect();
    let few = node.types[0].shape.last().and_then(|d| d.size()).is_none_or(|own| own < outputs);
    few || graph.op(id).cost(&types, &node.types).flops < flops as f64
}

/// What an activation that codes can do themselves was applied to.
fn activated(graph: &Graph, x: Value) -> (Value, Activation) {
    match graph.op(x.node) {
        Op::Relu(_) => (graph.operands(x.node)[0], Activation::Relu),
        _ => (x, Activation::None),
    }
}

/// Weights before they were rounded to 16 bits.
fn unrounded(graph: &Graph, w: Value) -> Value {
    match graph.op(w.node) {
        Op::Cast(_) => Some(graph.operands(w.node)[0]).filter(|wide| graph.ty(*wide).dtype == DType::F32).unwrap_or(w),
        _ => w,
    }
}

/// Codes and scales of a value; made once.
fn quantized(
    patch: &mut Patch<'_>,
    x: Value,
    activation: Activation,
    made: &mut HashMap<(Value, Activation), Vec<Value>>,
) -> Result<Vec<Value>, PatchError> {
    if let Some(known) = made.get(&(x, activation)) {
        return Ok(known.clone());
    }
    let new = patch.wire_all(QuantizeItems { activation }, &[x])?;
    made.insert((x, activation), new.clone());
    Ok(new)
}
