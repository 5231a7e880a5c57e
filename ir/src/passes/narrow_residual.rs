//! `bf16_residual`, `f16_residual`: the residual stream has 16 bits too, where [`super::narrow`] leaves it f32.
//!
//! ```text
//! linear(x, w, r) {residual, out=f32}   →   cast(linear(x, w, r) {residual, out=bf16})
//! ```
//!
//! Then norms and the next residual read the narrow value, movements move it, and casts that meet go. A sum is still
//! wide and rounded once; the stream is rounded at every layer. Camera heads stay as they are; `exclude=["…"]` leaves
//! what has one of these parts in its name, `include=["…"]` overrules the pass's own list.

use std::collections::VecDeque;

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::DCE,
    named::{Names, OPTIONS, Weights},
    narrow::WIDE,
    uses::result,
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Cast, Linear, Op, ScaledLinear, WeightScaledLinear},
    patch::{Patch, PatchError},
    types::DType,
};

/// Behind the pass `bf16`.
pub const BF16_RESIDUAL: Pass = Pass {
    name: "bf16_residual",
    law: "sums with a residual are rounded to bf16",
    effect: Effect::Approximates,
    run: |graph, options| run(graph, options, DType::BF16),
};

/// Behind the pass `f16`.
pub const F16_RESIDUAL: Pass = Pass {
    name: "f16_residual",
    law: "sums with a residual are rounded to f16",
    effect: Effect::Approximates,
    run: |graph, options| run(graph, options, DType::F16),
};

/// As patches are named.
fn name(to: DType) -> &'static str {
    if to == DType::F16 { F16_RESIDUAL.name } else { BF16_RESIDUAL.name }
}

fn run(graph: &mut Graph, options: &Options, to: DType) -> Result<Report, PassError> {
    options.only(&OPTIONS)?;
    let names = Names::read(options, &WIDE)?;
    let mut weights = Weights::of(graph);
    let mut casts = VecDeque::new();
    for id in graph.topological() {
        let Some(op) = narrow_sum(graph, id, to) else { continue };
        if weights.is_known(graph.operands(id)[0]) || names.excluded(&weights.names(graph, id)).is_some() {
            continue;
        }
        let operands = graph.operands(id);
        let mut patch = Patch::new(graph, name(to), result(id));
        let sum = patch.wire(op, &operands)?;
        casts.push_back(widened(patch, result(id), sum)?);
    }
    let sums = casts.len();
    // What was replaced still reads its operands.
    (DCE.run)(graph, &Options::default())?;
    while let Some(cast) = casts.pop_front() {
        for (reader, slot) in graph.users(cast) {
            if let Some(wide) = read_narrow(graph, cast, (reader, slot), to)? {
                casts.push_back(wide);
            }
        }
    }
    Ok(Report::count("sums", sums))
}

/// The product that adds a residual in f32, giving bf16.
fn narrow_sum(graph: &Graph, id: NodeId, to: DType) -> Option<Op> {
    let mut op = graph.op(id).clone();
    match &mut op {
        Op::Linear(Linear { residual: true, quantize: None, out, .. })
        | Op::WeightScaledLinear(WeightScaledLinear { residual: true, out, .. }) => *out = Some(to),
        Op::ScaledLinear(ScaledLinear { residual: true, quantize: None, out, .. }) => *out = to,
        _ => return None,
    }
    (graph.ty(result(id)).dtype == DType::F32).then_some(op)
}

/// Ends a patch with a cast of what replaces a wide value; the cast.
fn widened(mut patch: Patch<'_>, old: Value, narrow: Value) -> Result<Value, PatchError> {
    let wide = patch.wire(Cast { to: DType::F32 }, &[narrow])?;
    patch.shunt(old, wide)?;
    patch.apply();
    Ok(wide)
}

/// Lets a reader of a cast from bf16 read what was cast. The cast behind it, where it moves elements only.
fn read_narrow(
    graph: &mut Graph,
    cast: Value,
    (reader, slot): (NodeId, usize),
    to: DType,
) -> Result<Option<Value>, PatchError> {
    let source = |graph: &Graph, value: Value| match graph.op(value.node) {
        Op::Cast(_) => Some(graph.operands(value.node)[0]).filter(|x| graph.ty(*x).dtype == to),
        _ => None,
    };
    let Some(narrow) = source(graph, cast) else { return Ok(None) };
    let mut operands = graph.operands(reader);
    let mut op = graph.op(reader).clone();
    let last = slot + 1 == operands.len();
    let moves = match &mut op {
        Op::LayerNorm(norm) if slot == 0 => {
            norm.out = norm.out.or(Some(DType::F32));
            false
        }
        Op::LayerNormQuantize(_) if slot == 0 => false,
        Op::Linear(Linear { residual: true, .. })
        | Op::ScaledLinear(ScaledLinear { residual: true, .. })
        | Op::WeightScaledLinear(WeightScaledLinear { residual: true, .. })
            if last =>
        {
            false
        }
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => true,
        Op::Gather(_) if slot == 0 => true,
        Op::Concat(_) if operands.iter().all(|v| source(graph, *v).is_some()) => true,
        _ => return Ok(None),
    };
    if moves && matches!(op, Op::Concat(_)) {
        operands.iter_mut().for_each(|v| *v = source(graph, *v).unwrap_or(*v));
    } else {
        operands[slot] = narrow;
    }
    let old: Vec<Value> = graph.results(reader).collect();
    let mut patch = Patch::new(graph, name(to), result(reader));
    let new = patch.wire_all(op, &operands)?;
    if moves {
        return Ok(Some(widened(patch, old[0], new[0])?));
    }
    for (old, new) in old.into_iter().zip(new) {
        patch.shunt(old, new)?;
    }
    patch.apply();
    Ok(None)
}
