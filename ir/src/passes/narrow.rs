//! `bf16`, `f16`: products and attention read elements of 16 bits; sums, the residual stream, norms, RoPE and softmax
//! stay f32. What follows says bf16 for either.
//!
//! Operands of linear layers, convolutions and attentions (dense, sparse, linear, their routers, with the products that
//! these read, and centroids), and what is quantised, are cast to bf16, weights when the plan is made. A linear layer gives f32 from its wide sum
//! (`out=f32`), so the residual stream is never rounded; attentions, convolutions and resizes give bf16, cast back to
//! f32. Then casts that meet go: movements and elementwise operations between what is read as bf16 alone and what is
//! bf16 already are done in bf16, and a linear layer or norm whose result is only read as bf16 gives bf16 itself; so
//! does the joint projection of an attention, whose heads are normalised and rotated in f32. Bias and the residual of
//! linear layers stay f32; convolutions and resizes add bf16.
//!
//! Camera heads stay f32 but for the weights of their linear layers, which are read again and again for a few tokens.
//! `exclude=["…"]` leaves what has one of these parts in its name in f32 altogether, `include=["…"]` makes of a camera
//! head what the rest is.

use std::collections::{HashMap, HashSet};

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::{DCE, weight_time},
    named::{Names, Weights},
    uses::sole_reader,
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Cast, LayerNorm, Linear, Op, ScaledLinear, SplitHeads, WeightScaledLinear},
    patch::{Patch, PatchError},
    types::DType,
};

/// Through bf16: eight bits of fraction, the range of f32.
pub const BF16: Pass = Pass {
    name: "bf16",
    law: "products and attention read bf16, sums and the residual stream stay f32",
    effect: Effect::Approximates,
    run: |graph, options| run(graph, options, DType::BF16),
};

/// Through f16: eleven bits, up to 65504.
pub const F16: Pass = Pass {
    name: "f16",
    law: "products and attention read f16, sums and the residual stream stay f32",
    effect: Effect::Approximates,
    run: |graph, options| run(graph, options, DType::F16),
};

/// Parts of the names of what computes in f32 by default.
pub const WIDE: [&str; 3] = ["camera_head", "cam_dec", "cam_enc"];

fn run(graph: &mut Graph, options: &Options, to: DType) -> Result<Report, PassError> {
    options.only(&super::named::OPTIONS)?;
    let (names, wide_names) = (Names::read(options, &[])?, Names::read(options, &WIDE)?);
    let mut weights = Weights::of(graph);
    let mut narrow = HashMap::new();
    let (mut products, mut weights_alone, mut wide) = (0, 0, 0);
    for id in graph.topological() {
        let operands = graph.operands(id);
        let routes = maps_for_router(graph, id);
        if reads_narrow(graph.op(id), 0).is_none() && !routes {
            continue;
        }
        let f32s = operands.first().is_some_and(|v| graph.ty(*v).dtype == DType::F32);
        if !f32s || operands.iter().all(|v| weights.is_known(*v)) {
            continue;
        }
        let own = weights.names(graph, id);
        if wide_names.excluded(&own).is_none() {
            let op = graph.op(id).clone();
            rewrite(graph, id, |i| routes || reads_narrow(&op, i) == Some(true), (&mut narrow, to))?;
            products += 1;
        } else if names.excluded(&own).is_none() && narrows_weights(graph, id, &weights) {
            rewrite(graph, id, |i| i == 1, (&mut narrow, to))?;
            weights_alone += 1;
        } else {
            wide += 1;
        }
    }
    // What was replaced still reads its operands and would pass for a second reader.
    (DCE.run)(graph, &Options::default())?;
    let sunk = sink(graph, to)?;
    let counts = [
        ("operations", products),
        ("weights alone", weights_alone),
        ("left in f32", wide),
        (if to == DType::F16 { "results given in f16" } else { "results given in bf16" }, sunk),
    ];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// Whether an operation is a linear layer whose weights are known when the plan is made.
fn narrows_weights(graph: &Graph, id: NodeId, weights: &Weights) -> bool {
    matches!(graph.op(id), Op::Linear(_)) && weights.is_known(graph.operands(id)[1])
}

/// Whether an operation is the product that a router with weights reads, and nothing else does.
fn maps_for_router(graph: &Graph, id: NodeId) -> bool {
    let result = Value { node: id, slot: 0 };
    matches!(graph.op(id), Op::MatMul(_))
        && sole_reader(graph, result).is_some_and(|(reader, _)| matches!(graph.op(reader), Op::BlockRoute(_)))
}

/// Whether an operation reads an operand as bf16; `None` for what this pass does not touch.
fn reads_narrow(op: &Op, operand: usize) -> Option<bool> {
    match op {
        Op::Linear(_) | Op::ConvTranspose2d(_) => Some(operand < 2),
        Op::Conv2d(op) => Some(operand != 2 || !op.bias),
        Op::WeightScaledLinear(_) | Op::Quantize(_) | Op::SplitHeads(SplitHeads { parts: 3, .. }) => Some(operand == 0),
        Op::Attention(_) | Op::BlockRoute(_) | Op::BlockMean(_) | Op::Resize(_) => Some(true),
        Op::BlockAttention(_) => Some(!(3..=4).contains(&operand)),
        Op::LinearAttention(op) => Some(operand < 3 || op.residual_at() == Some(operand)),
        _ => None,
    }
}

fn rewrite(
    graph: &mut Graph,
    id: NodeId,
    read: impl Fn(usize) -> bool,
    (narrow, to): (&mut HashMap<Value, Value>, DType),
) -> Result<(), PassError> {
    let operands = graph.operands(id);
    let types = graph.node(id).types.clone();
    let mut op = graph.op(id).clone();
    match &mut op {
        Op::Linear(Linear { out, .. }) | Op::WeightScaledLinear(WeightScaledLinear { out, .. }) => {
            *out = out.or(Some(DType::F32));
        }
        _ => {}
    }
    let mut patch = Patch::new(graph, to.name(), Value { node: id, slot: 0 });
    let mut inputs = Vec::with_capacity(operands.len());
    for (i, operand) in operands.into_iter().enumerate() {
        let f32s = patch.graph().ty(operand).dtype == DType::F32;
        inputs.push(if read(i) && f32s { as_narrow(&mut patch, operand, (&mut *narrow, to))? } else { operand });
    }
    let results = patch.wire_all(op, &inputs)?;
    for (slot, (new, ty)) in results.into_iter().zip(types).enumerate() {
        let old = Value { node: id, slot: slot as u32 };
        let new = if *patch.graph().ty(new) == ty { new } else { patch.wire(Cast { to: ty.dtype }, &[new])? };
        patch.shunt(old, new)?;
    }
    patch.apply();
    Ok(())
}

/// An f32 value as bf16: what it was cast from, the same through movements, or a cast. Made once.
fn as_narrow(
    patch: &mut Patch<'_>,
    value: Value,
    (narrow, to): (&mut HashMap<Value, Value>, DType),
) -> Result<Value, PatchError> {
    if let Some(known) = narrow.get(&value) {
        return Ok(*known);
    }
    let graph = patch.graph();
    // Downwards through movements to a cast from bf16.
    let mut path = vec![value];
    let source = loop {
        let at = path[path.len() - 1];
        let operands = graph.operands(at.node);
        match graph.op(at.node) {
            Op::Cast(_) if graph.ty(operands[0]).dtype == to => break Some(operands[0]),
            Op::MergeHeads(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Gather(_) | Op::Slice(_) if path.len() < 16 => {
                path.push(operands[0]);
            }
            _ => break None,
        }
    };
    let made = match source {
        None => patch.wire(Cast { to }, &[value])?,
        Some(source) => {
            path.pop();
            let mut at = source;
            for moved in path.into_iter().rev() {
                let op = patch.graph().op(moved.node).clone();
                let operands = patch.graph().operands(moved.node);
                at = patch.wire(op, &[&[at], &operands[1..]].concat())?;
            }
            at
        }
    };
    narrow.insert(value, made);
    Ok(made)
}

/// A cast to bf16 goes up through movements and elementwise operations that nobody else reads, where everything above
/// is bf16 already or a product or norm that can give bf16; nothing is rounded twice as coarsely for it.
fn sink(graph: &mut Graph, to: DType) -> Result<usize, PassError> {
    let fixed = weight_time(graph);
    let casts: Vec<NodeId> =
        graph.node_ids().filter(|id| matches!(graph.op(*id), Op::Cast(cast) if cast.to == to)).collect();
    let mut sunk = 0;
    for cast in casts {
        let x = graph.operands(cast)[0];
        if fixed.contains(&cast) || is_cast(graph, x, to) || !narrows(graph, &fixed, x, (8, to)) {
            continue;
        }
        let mut patch = Patch::new(graph, if to == DType::F16 { "f16_sink" } else { "bf16_sink" }, x);
        let new = narrowed(&mut patch, &fixed, x, to)?;
        patch.shunt(Value { node: cast, slot: 0 }, new)?;
        patch.apply();
        sunk += 1;
    }
    Ok(sunk)
}

/// Whether an f32 value is a cast of a bf16 one.
fn is_cast(graph: &Graph, value: Value, to: DType) -> bool {
    matches!(graph.op(value.node), Op::Cast(_)) && graph.ty(graph.operands(value.node)[0]).dtype == to
}

/// Whether `narrowed` makes a value without another pass over it. Looks `depth` operations up.
fn narrows(graph: &Graph, fixed: &HashSet<NodeId>, value: Value, (depth, to): (usize, DType)) -> bool {
    if fixed.contains(&value.node) || is_cast(graph, value, to) {
        return true;
    }
    if depth == 0 || value.slot != 0 || graph.use_count(value) != 1 || graph.ty(value).dtype != DType::F32 {
        return false;
    }
    match graph.op(value.node) {
        Op::Linear(_) | Op::WeightScaledLinear(_) | Op::ScaledLinear(_) | Op::LayerNorm(_) => true,
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Relu(_) | Op::Add(_) => {
            graph.operands(value.node).iter().all(|v| narrows(graph, fixed, *v, (depth - 1, to)))
        }
        _ => false,
    }
}

/// A value that [`narrows`], in bf16.
fn narrowed(patch: &mut Patch<'_>, fixed: &HashSet<NodeId>, value: Value, to: DType) -> Result<Value, PatchError> {
    let operands = patch.graph().operands(value.node);
    if fixed.contains(&value.node) {
        return patch.wire(Cast { to }, &[value]);
    }
    let mut op = patch.graph().op(value.node).clone();
    match &mut op {
        Op::Cast(_) => return Ok(operands[0]),
        Op::Linear(Linear { out, .. })
        | Op::WeightScaledLinear(WeightScaledLinear { out, .. })
        | Op::LayerNorm(LayerNorm { out, .. }) => *out = Some(to),
        Op::ScaledLinear(ScaledLinear { out, .. }) => *out = to,
        _ => {
            let mut inputs = Vec::with_capacity(operands.len());
            for operand in operands {
                inputs.push(narrowed(patch, fixed, operand, to)?);
            }
            return patch.wire(op, &inputs);
        }
    }
    patch.wire(op, &operands)
}
