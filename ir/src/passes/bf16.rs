//! `bf16`: products and attention read bf16; sums, the residual stream, norms, RoPE and softmax stay f32.
//!
//! Operands of linear layers, convolutions and attentions (dense, sparse, linear, their routers and centroids), and what
//! is quantised, are cast to bf16, weights when the plan is made. A linear layer gives f32 from its wide sum (`out=f32`), so the
//! residual stream is never rounded; attentions and convolutions give bf16, cast back to f32. Then casts that meet go:
//! a movement between two casts is done in bf16, and a linear layer or norm whose result is only read as bf16 gives
//! bf16 itself; so does the joint projection of an attention, whose heads are normalised and rotated in f32. Bias and
//! residual stay f32.
//!
//! Camera heads stay f32 but for the weights of their linear layers, which are read again and again for a few tokens.
//! `exclude=["…"]` leaves what has one of these parts in its name in f32 altogether, `include=["…"]` makes of a camera
//! head what the rest is.

use std::collections::HashMap;

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::DCE,
    named::{Names, Weights},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Cast, LayerNorm, Linear, Op, ScaledLinear, SplitHeads, WeightScaledLinear},
    patch::{Patch, PatchError},
    types::DType,
};

/// The pass.
pub const BF16: Pass = Pass {
    name: "bf16",
    law: "products and attention read bf16, sums and the residual stream stay f32",
    effect: Effect::Approximates,
    run,
};

/// Parts of the names of what computes in f32 by default.
pub const WIDE: [&str; 3] = ["camera_head", "cam_dec", "cam_enc"];

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&super::named::OPTIONS)?;
    let (names, wide_names) = (Names::read(options, &[])?, Names::read(options, &WIDE)?);
    let mut weights = Weights::of(graph);
    let mut narrow = HashMap::new();
    let (mut products, mut weights_alone, mut wide) = (0, 0, 0);
    for id in graph.topological() {
        let operands = graph.operands(id);
        let Some(read) = narrow_operands(graph.op(id)) else { continue };
        let f32s = operands.first().is_some_and(|v| graph.ty(*v).dtype == DType::F32);
        if !f32s || operands.iter().all(|v| weights.is_known(*v)) {
            continue;
        }
        let own = weights.names(graph, id);
        if wide_names.excluded(&own).is_none() {
            rewrite(graph, id, read, &mut narrow)?;
            products += 1;
        } else if names.excluded(&own).is_none() && narrows_weights(graph, id, &weights) {
            rewrite(graph, id, |i| i == 1, &mut narrow)?;
            weights_alone += 1;
        } else {
            wide += 1;
        }
    }
    // What was replaced still reads its operands and would pass for a second reader.
    (DCE.run)(graph, &Options::default())?;
    let sunk = sink(graph)?;
    let counts = [
        ("operations", products),
        ("weights alone", weights_alone),
        ("left in f32", wide),
        ("results given in bf16", sunk),
    ];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// Whether an operation is a linear layer whose weights are known when the plan is made.
fn narrows_weights(graph: &Graph, id: NodeId, weights: &Weights) -> bool {
    matches!(graph.op(id), Op::Linear(_)) && weights.is_known(graph.operands(id)[1])
}

/// Which operands an operation reads as bf16; `None` for what this pass does not touch.
fn narrow_operands(op: &Op) -> Option<fn(usize) -> bool> {
    match op {
        Op::Linear(_) | Op::Conv2d(_) | Op::ConvTranspose2d(_) => Some(|i| i < 2),
        Op::WeightScaledLinear(_) | Op::Quantize(_) | Op::SplitHeads(SplitHeads { parts: 3, .. }) => Some(|i| i == 0),
        Op::Attention(_) | Op::BlockRoute(_) | Op::BlockMean(_) => Some(|_| true),
        Op::BlockAttention(_) => Some(|i| !(3..=4).contains(&i)),
        Op::LinearAttention(_) => Some(|i| i < 3),
        _ => None,
    }
}

fn rewrite(
    graph: &mut Graph,
    id: NodeId,
    read: fn(usize) -> bool,
    narrow: &mut HashMap<Value, Value>,
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
    let mut patch = Patch::new(graph, "bf16", Value { node: id, slot: 0 });
    let mut inputs = Vec::with_capacity(operands.len());
    for (i, operand) in operands.into_iter().enumerate() {
        let f32s = patch.graph().ty(operand).dtype == DType::F32;
        inputs.push(if read(i) && f32s { as_bf16(&mut patch, operand, narrow)? } else { operand });
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
fn as_bf16(patch: &mut Patch<'_>, value: Value, narrow: &mut HashMap<Value, Value>) -> Result<Value, PatchError> {
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
            Op::Cast(_) if graph.ty(operands[0]).dtype == DType::BF16 => break Some(operands[0]),
            Op::MergeHeads(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Gather(_) | Op::Slice(_) if path.len() < 16 => {
                path.push(operands[0]);
            }
            _ => break None,
        }
    };
    let made = match source {
        None => patch.wire(Cast { to: DType::BF16 }, &[value])?,
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

/// cast(product {out=f32}) {to=bf16} = product {out=bf16}, where nobody else reads the product.
fn sink(graph: &mut Graph) -> Result<usize, PassError> {
    let casts: Vec<NodeId> =
        graph.node_ids().filter(|id| matches!(graph.op(*id), Op::Cast(Cast { to: DType::BF16 }))).collect();
    let mut sunk = 0;
    for cast in casts {
        let x = graph.operands(cast)[0];
        if x.slot != 0 || graph.use_count(x) != 1 || graph.ty(x).dtype != DType::F32 {
            continue;
        }
        let mut op = graph.op(x.node).clone();
        match &mut op {
            Op::Linear(Linear { out, .. })
            | Op::WeightScaledLinear(WeightScaledLinear { out, .. })
            | Op::LayerNorm(LayerNorm { out, .. }) => *out = Some(DType::BF16),
            Op::ScaledLinear(ScaledLinear { out, .. }) => *out = DType::BF16,
            _ => continue,
        }
        let operands = graph.operands(x.node);
        let mut patch = Patch::new(graph, "bf16_sink", x);
        let new = patch.wire(op, &operands)?;
        patch.shunt(Value { node: cast, slot: 0 }, new)?;
        patch.apply();
        sunk += 1;
    }
    Ok(sunk)
}
