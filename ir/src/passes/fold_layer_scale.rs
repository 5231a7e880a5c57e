//! `fold_layer_scale`: a factor a column behind a linear moves into its weight and bias.
//!
//! linear(x, W, b)·γ = linear(x, diag(γ)·W, b·γ): the LayerScale of DINOv2 and its descendants (Touvron et al. 2021).
//! Only where nothing else reads the linear and W, b and γ are known when the plan is made.

use std::collections::HashSet;

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::weight_time,
    fold_layer_norm::as_type_of,
    uses::{result, sole_reader},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Mul, Op, Reshape, activation::Activation},
    patch::{Patch, PatchError},
};

/// The pass.
pub const FOLD_LAYER_SCALE: Pass = Pass {
    name: "fold_layer_scale",
    law: "linear(x, W, b)·γ = linear(x, diag(γ)·W, b·γ)",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let scales: Vec<NodeId> = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::Mul(_))).collect();
    let mut folded = 0;
    for id in scales {
        if let Some((linear, gamma)) = scaled_linear(graph, id, &fixed) {
            fold(graph, id, linear, gamma)?;
            folded += 1;
        }
    }
    Ok(Report::count("folded", folded))
}

/// The linear and the factor of a product that can be folded.
fn scaled_linear(graph: &Graph, mul: NodeId, fixed: &HashSet<NodeId>) -> Option<(NodeId, Value)> {
    let (linear, gamma) = column_scale(graph, mul, fixed)?;
    let Op::Linear(op) = graph.op(linear) else { return None };
    let plain = op.activation == Activation::None && !op.residual && op.quantize.is_none();
    let own = graph.operands(linear);
    (plain && own[1..].iter().all(|v| fixed.contains(&v.node))).then_some((linear, gamma))
}

/// A product of a linear that nothing else reads and of one factor a column (or one for all) known from weights.
pub(super) fn column_scale(graph: &Graph, mul: NodeId, fixed: &HashSet<NodeId>) -> Option<(NodeId, Value)> {
    let [a, b] = graph.operands(mul)[..] else { return None };
    let (y, gamma) = if fixed.contains(&a.node) { (b, a) } else { (a, b) };
    let (whole, factor) = (graph.ty(y), graph.ty(gamma));
    let (last, leading) = match factor.shape.split_last() {
        Some((last, leading)) => (last.is_one() || Some(last) == whole.shape.last(), leading),
        None => (true, [].as_slice()),
    };
    let fits = last && leading.iter().all(|d| d.is_one()) && graph.ty(result(mul)) == whole;
    let linear = matches!(graph.op(y.node), Op::Linear(_)) && sole_reader(graph, y).is_some();
    (fits && linear && fixed.contains(&gamma.node) && !fixed.contains(&y.node)).then_some((y.node, gamma))
}

fn fold(graph: &mut Graph, mul: NodeId, linear: NodeId, gamma: Value) -> Result<(), PatchError> {
    let (op, own) = (graph.op(linear).clone(), graph.operands(linear));
    let mut patch = Patch::new(graph, "fold_layer_scale", result(linear));
    let count = patch.graph().ty(gamma).shape.last().cloned().unwrap_or_else(|| 1.into());
    let column = as_type_of(&mut patch, gamma, own[1])?;
    let column = patch.wire(Reshape { shape: vec![count.clone(), 1.into()] }, &[column])?;
    let mut new = vec![own[0], patch.wire(Mul {}, &[own[1], column])?];
    if let Some(bias) = own.get(2) {
        let row = as_type_of(&mut patch, gamma, *bias)?;
        let row = patch.wire(Reshape { shape: vec![count] }, &[row])?;
        new.push(patch.wire(Mul {}, &[*bias, row])?);
    }
    let y = patch.wire(op, &new)?;
    patch.shunt(result(mul), y)?;
    patch.apply();
    Ok(())
}
