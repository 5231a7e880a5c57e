//! `fuse_qkv`: a joint projection writes the heads of its attention itself.
//!
//! ```text
//! qkv_heads(linear(x, w, b), g, b, …, cos, sin)   →   qkv_linear(x, w, b, g, b, …, cos, sin)
//! split_heads(linear(x, w, b)) {parts=3}          →   qkv_linear(x, w, b)
//! ```
//!
//! The same goes for `scaled_linear`. Nothing else may read the product, which has no activation and no residual; heads
//! have 64 or 128 columns of 16 bits, which tiles of products hold whole. Numbers are rounded once.

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::DCE,
    uses::{result, sole_reader},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Linear, Op, QkvHeads, QkvLinear, ScaledLinear, SplitHeads, activation::Activation},
    patch::Patch,
};

/// The pass.
pub const FUSE_QKV: Pass = Pass {
    name: "fuse_qkv",
    law: "joint projections write heads, with QK norm, RoPE and rounding",
    effect: Effect::Reassociates,
    run,
};

/// Columns of heads that tiles of products hold whole.
const WIDTHS: [usize; 2] = [64, 128];

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let nodes: Vec<NodeId> = graph.node_ids().collect();
    let mut fused = 0;
    for id in nodes {
        let Some((op, operands)) = whole(graph, id) else { continue };
        let results: Vec<Value> = graph.results(id).collect();
        let mut patch = Patch::new(graph, "fuse_qkv", results[0]);
        for (old, new) in results.into_iter().zip(patch.wire_all(op, &operands)?) {
            patch.shunt(old, new)?;
        }
        patch.apply();
        fused += 1;
    }
    Ok(Report::count("attentions", fused))
}

/// A split into heads with the product in front of it, and the operands of both.
fn whole(graph: &Graph, split: NodeId) -> Option<(QkvLinear, Vec<Value>)> {
    let heads = match graph.op(split) {
        Op::QkvHeads(op) => op.clone(),
        Op::SplitHeads(SplitHeads { parts: 3, heads }) => {
            QkvHeads { heads: *heads, norm: false, eps: 1e-5, segments: 0, out: None }
        }
        _ => return None,
    };
    let ty = graph.ty(result(split));
    let fits = ty.dtype.size() == 2 && ty.shape[3].size().is_some_and(|d| WIDTHS.contains(&d));
    let others = graph.operands(split);
    let joint = others[0];
    let (bias, x_scale, w_scale) = match graph.op(joint.node) {
        Op::Linear(Linear { activation: Activation::None, bias, residual: false, quantize: None, .. }) => {
            (*bias, None, None)
        }
        Op::ScaledLinear(ScaledLinear {
            activation: Activation::None,
            bias,
            residual: false,
            quantize: None,
            x_scale,
            w_scale,
            ..
        }) => (*bias, Some(*x_scale), Some(*w_scale)),
        _ => return None,
    };
    let QkvHeads { heads, norm, eps, segments, .. } = heads;
    let op = QkvLinear { heads, bias, norm, eps, segments, x_scale, w_scale, out: ty.dtype };
    let mut operands = graph.operands(joint.node);
    operands.extend(&others[1..]);
    (fits && sole_reader(graph, joint).is_some()).then_some((op, operands))
}
