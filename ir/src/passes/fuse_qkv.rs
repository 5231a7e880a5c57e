//! `fuse_qkv{widths=[64,128]}`: a joint projection writes the heads of its attention itself.
//!
//! ```text
//! qkv_heads(linear(x, w, b), g, b, …, cos, sin)   →   qkv_linear(x, w, b, g, b, …, turns(cos, sin))
//! split_heads(linear(x, w, b)) {parts=3}          →   qkv_linear(x, w, b)
//! ```
//!
//! The same goes for `scaled_linear` with a scale a row. Nothing else may read the product, which has no activation and no
//! residual; heads have 16 bits and one of the `widths`, which tiles of products hold whole, and rows of x have whole 16
//! bytes. Tables are f32, one for all heads, known when the plan is made, and turn both halves of a segment alike, as
//! what they are made of shows; the turns are made from them with the plan. Numbers are rounded once.

use std::collections::HashSet;

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::{DCE, weight_time},
    uses::{result, sole_reader},
};
use crate::{
    dim::Dim,
    graph::{Graph, NodeId, Value},
    ops::{
        Concat, Gather, Linear, Op, QkvHeads, QkvLinear, Reshape, ScaledLinear, Slice, SplitHeads,
        activation::Activation, quantize::Granularity,
    },
    patch::{Patch, PatchError},
    types::DType,
};

/// The pass.
pub const FUSE_QKV: Pass = Pass {
    name: "fuse_qkv",
    law: "joint projections write heads, with QK norm, RoPE and rounding",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["widths"])?;
    let widths = options.get_or("widths", vec![64, 128])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let fixed = weight_time(graph);
    let nodes: Vec<NodeId> = graph.node_ids().collect();
    let mut fused = 0;
    for id in nodes {
        let Some(Whole { op, mut operands, tables }) = whole(graph, id, &fixed, &widths) else { continue };
        let results: Vec<Value> = graph.results(id).collect();
        let mut patch = Patch::new(graph, "fuse_qkv", results[0]);
        if let Some(tables) = tables {
            operands.push(turns(&mut patch, tables, op.segments)?);
        }
        for (old, new) in results.into_iter().zip(patch.wire_all(op, &operands)?) {
            patch.shunt(old, new)?;
        }
        patch.apply();
        fused += 1;
    }
    Ok(Report::count("attentions", fused))
}

/// A split into heads with the product in front of it.
struct Whole {
    op: QkvLinear,
    /// Those of the product, and the norms.
    operands: Vec<Value>,
    /// Of cos and sin.
    tables: Option<[Value; 2]>,
}

fn whole(graph: &Graph, split: NodeId, fixed: &HashSet<NodeId>, widths: &[usize]) -> Option<Whole> {
    let heads = match graph.op(split) {
        Op::QkvHeads(op) => op.clone(),
        Op::SplitHeads(SplitHeads { parts: 3, heads }) => {
            QkvHeads { heads: *heads, norm: false, eps: 1e-5, segments: 0, out: None }
        }
        _ => return None,
    };
    let ty = graph.ty(result(split));
    let d = ty.shape[3].size().filter(|d| widths.contains(d) && ty.dtype.size() == 2)?;
    let others = graph.operands(split);
    let joint = others[0];
    let (norms, tables) = heads.parts(&others);
    let tables = match *tables {
        [cos, sin] => {
            let one = graph.ty(cos).shape.iter().rev().nth(2).is_none_or(|heads| heads.size() == Some(1));
            let half = d / (2 * heads.segments);
            let known = |table: Value| graph.ty(table).dtype == DType::F32 && fixed.contains(&table.node);
            if !(one && half % 8 == 0 && [cos, sin].into_iter().all(|t| known(t) && alike(graph, t, half))) {
                return None;
            }
            Some([cos, sin])
        }
        _ => None,
    };
    let (bias, x_scale, w_scale) = match graph.op(joint.node) {
        Op::Linear(Linear { activation: Activation::None, bias, residual: false, quantize: None, .. }) => {
            (*bias, None, None)
        }
        Op::ScaledLinear(ScaledLinear {
            activation: Activation::None,
            bias,
            residual: false,
            quantize: None,
            x_scale: Granularity::Row,
            w_scale: Granularity::Row,
            ..
        }) => (*bias, Some(Granularity::Row), Some(Granularity::Row)),
        _ => return None,
    };
    let mut operands = graph.operands(joint.node);
    let x = graph.ty(operands[0]);
    let whole = x.shape.last().and_then(|k| k.size()).is_some_and(|k| k > 0 && (k * x.dtype.size()).is_multiple_of(16));
    let narrow = x.dtype.size() <= 2 && graph.ty(operands[if x_scale.is_some() { 2 } else { 1 }]).dtype == x.dtype;
    let norms_alike = norms.iter().all(|v| graph.ty(*v).dtype == graph.ty(norms[0]).dtype);
    operands.extend(norms);
    let QkvHeads { heads, norm, eps, segments, .. } = heads;
    let op = QkvLinear { heads, bias, norm, eps, segments, x_scale, w_scale, out: ty.dtype };
    let fits = whole && narrow && norms_alike && sole_reader(graph, joint).is_some();
    fits.then_some(Whole { op, operands, tables })
}

/// Whether both halves of every segment of the last dimension are the same: in constants, in rows that were put together
/// so, and in what moves whole rows or changes all elements alike.
fn alike(graph: &Graph, table: Value, half: usize) -> bool {
    let operands = graph.operands(table.node);
    let width = |value: Value| graph.ty(value).shape.last().and_then(|n| n.size()).unwrap_or(0);
    let rows = |moved: Value| width(moved) == width(table) && alike(graph, moved, half);
    let last = |axis: usize| axis + 1 == graph.ty(operands[0]).rank();
    match graph.op(table.node) {
        Op::Constant(constant) => {
            let bytes = half * constant.value.dtype().size();
            let segments = constant.value.bytes().chunks(2 * bytes);
            width(table).is_multiple_of(2 * half) && segments.into_iter().all(|s| s[..bytes] == s[bytes..])
        }
        Op::Concat(Concat { axis }) if last(*axis) => match operands[..] {
            [lower, upper] if lower == upper && width(lower) == half => true,
            _ => operands.iter().all(|part| width(*part).is_multiple_of(2 * half) && alike(graph, *part, half)),
        },
        Op::Concat(_) => operands.iter().all(|part| rows(*part)),
        Op::Gather(Gather { axis }) | Op::Slice(Slice { axis, .. }) => !last(*axis) && rows(operands[0]),
        Op::Reshape(_) | Op::Expand(_) | Op::Cast(_) | Op::Cos(_) | Op::Sin(_) => rows(operands[0]),
        _ => false,
    }
}

/// cos and sin [.., D] of the lower halves of all segments in turn, [.., D].
fn turns(patch: &mut Patch<'_>, tables: [Value; 2], segments: usize) -> Result<Value, PatchError> {
    let shape = patch.graph().ty(tables[0]).shape.clone();
    let (rank, d) = (shape.len(), shape[shape.len() - 1].size().unwrap_or(0));
    let with = |last: &[usize]| -> Vec<Dim> {
        shape[..rank - 1].iter().cloned().chain(last.iter().map(|n| Dim::from(*n))).collect()
    };
    let mut columns = Vec::with_capacity(2);
    for table in tables {
        let cut = patch.wire(Reshape { shape: with(&[segments, 2, d / (2 * segments)]) }, &[table])?;
        let lower = patch.wire(Slice { axis: rank, start: Dim::from(0), end: Dim::from(1), step: 1 }, &[cut])?;
        columns.push(patch.wire(Reshape { shape: with(&[d / 2, 1]) }, &[lower])?);
    }
    let both = patch.wire(Concat { axis: rank }, &columns)?;
    patch.wire(Reshape { shape }, &[both])
}
