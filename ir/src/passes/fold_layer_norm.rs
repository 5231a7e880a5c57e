//! `fold_layer_norm`: the affine part of a layer norm moves into the linear layers behind it.
//!
//! linear(x̂·g + β, W, b) = linear(x̂, W·diag(g), b + W β), x̂ the normalised rows. Only where every reader of the
//! norm is the input of such a linear, and W and b are known when the plan is made: the new weights are computed
//! there, once.

use std::collections::HashSet;

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::weight_time,
    uses::{is_output, result},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Add, Cast, LayerNorm, Linear, MatMul, Mul, Op, Reshape},
    patch::{Patch, PatchError},
    types::DType,
};

/// The pass.
pub const FOLD_LAYER_NORM: Pass = Pass {
    name: "fold_layer_norm",
    law: "linear(norm(x)·g + β, W, b) = linear(norm(x), W·diag(g), b + W·β)",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let norms: Vec<NodeId> = graph
        .node_ids()
        .filter(|id| matches!(graph.op(*id), Op::LayerNorm(_)) && graph.operands(*id).len() == 3)
        .collect();
    let (mut folded, mut left) = (0, 0);
    for id in norms {
        match readers(graph, id, &fixed) {
            Some(linears) => {
                fold(graph, id, &linears)?;
                folded += 1;
            }
            None => left += 1,
        }
    }
    let mut report = Report::count("folded", folded);
    if left > 0 {
        report
            .notes
            .push(format!("{left} layer norms keep their affine part: something else than a linear reads them"));
    }
    Ok(report)
}

/// The linears behind a norm, if nothing else reads it.
fn readers(graph: &Graph, norm: NodeId, fixed: &HashSet<NodeId>) -> Option<Vec<NodeId>> {
    let operands = graph.operands(norm);
    if is_output(graph, result(norm)) || !operands[1..].iter().all(|v| fixed.contains(&v.node)) {
        return None;
    }
    let users = graph.users(result(norm));
    let takes = |&(user, slot): &(NodeId, usize)| {
        let Op::Linear(linear) = graph.op(user) else { return None };
        let own = &graph.operands(user)[1..2 + usize::from(linear.bias)];
        (slot == 0 && linear.quantize.is_none() && own.iter().all(|v| fixed.contains(&v.node))).then_some(user)
    };
    users.iter().map(takes).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
}

fn fold(graph: &mut Graph, norm: NodeId, linears: &[NodeId]) -> Result<(), PatchError> {
    let Op::LayerNorm(op) = graph.op(norm).clone() else { return Ok(()) };
    let operands = graph.operands(norm);
    // Without g and β the result would take another default type than before only if x had another one: it has not.
    let mut patch = Patch::new(graph, "fold_layer_norm", result(norm));
    let rows = patch.wire(LayerNorm { ..op }, &operands[..1])?;
    patch.apply();
    for id in linears {
        let Op::Linear(linear) = graph.op(*id).clone() else { continue };
        let own = graph.operands(*id);
        let mut patch = Patch::new(graph, "fold_layer_norm", result(*id));
        let w = own[1];
        let g = as_type_of(&mut patch, operands[1], w)?;
        let beta = as_type_of(&mut patch, operands[2], w)?;
        let scaled = patch.wire(Mul {}, &[w, g])?;
        let [n, k] = [0, 1].map(|i| patch.graph().ty(w).shape[i].clone());
        let column = patch.wire(Reshape { shape: vec![k, 1.into()] }, &[beta])?;
        let shift = patch.wire(MatMul { transpose_b: false }, &[w, column])?;
        let mut bias = patch.wire(Reshape { shape: vec![n] }, &[shift])?;
        if linear.bias {
            bias = as_type_of(&mut patch, bias, own[2])?;
            bias = patch.wire(Add {}, &[own[2], bias])?;
        }
        let mut new = vec![rows, scaled, bias];
        new.extend_from_slice(&own[2 + usize::from(linear.bias)..]);
        let y = patch.wire(Linear { bias: true, ..linear }, &new)?;
        patch.shunt(result(*id), y)?;
        patch.apply();
    }
    Ok(())
}

/// `value` in the element type of `like`.
pub(super) fn as_type_of(patch: &mut Patch, value: Value, like: Value) -> Result<Value, PatchError> {
    let dtype: DType = patch.graph().ty(like).dtype;
    match patch.graph().ty(value).dtype == dtype {
        true => Ok(value),
        false => patch.wire(Cast { to: dtype }, &[value]),
    }
}
