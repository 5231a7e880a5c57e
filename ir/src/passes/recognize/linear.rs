//! `linear`: a product with a weight-time matrix, and the bias behind it, is a linear layer.
//!
//! matmul(x, W [K, N]) + b becomes linear(x, Wᵀ, b): checkpoints and kernels hold [N, K], and the transpose is done
//! when the plan is made.

use super::{Embedded, Outcome, patterns, replace};
use crate::{
    dim::Dim,
    graph::{Graph, Value},
    ops::{Expand, Linear, MatMul, Op, Reshape, Transpose},
    passes::{Effect, Options, Pass, PassError, Report},
    patch::Patch,
    pattern::Match,
};

/// The pass.
pub const RECOGNIZE_LINEAR: Pass = Pass {
    name: "linear",
    law: "a product with a weight, and its bias, is a linear layer",
    effect: Effect::Reassociates,
    run,
};

pub(super) static PATTERNS: Embedded = patterns!("linear");

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    replace(graph, "linear", &PATTERNS, |graph, found, weights| {
        // Tables that are products of tables are computed when the plan is made.
        if weights.contains(&found.value("x").node) {
            return Ok(Outcome::Unrelated);
        }
        build(graph, found)
    })
}

fn build(graph: &mut Graph, found: &Match) -> Result<Outcome, PassError> {
    let (x, w, product) = (found.value("x"), found.value("w"), found.value("m"));
    let Op::MatMul(MatMul { transpose_b }) = *graph.op(product.node) else { return Ok(Outcome::Unrelated) };
    if graph.ty(w).rank() != 2 {
        return Ok(Outcome::Refused(format!("the weight must be a matrix, not {}", graph.ty(w))));
    }
    let columns = graph.ty(product).shape[graph.ty(product).rank() - 1].clone();
    let bias = (found.pattern != "linear").then(|| found.value("b"));
    let bias = match bias {
        Some(bias) => {
            let shape = graph.ty(bias).shape.clone();
            let row = shape.iter().rev().skip(1).all(Dim::is_one)
                && shape.last().is_none_or(|n| n.is_one() || *n == columns)
                && graph.ty(found.root).shape.last() == Some(&columns)
                && shape.len() <= graph.ty(found.root).rank();
            if !row {
                return Ok(Outcome::Unrelated); // the product by itself is found next
            }
            Some((bias, shape))
        }
        None => None,
    };
    let result = graph.ty(found.root).shape.clone();
    let mut patch = Patch::new(graph, "linear", found.root);
    let w = match transpose_b {
        true => w,
        false => transposed(&mut patch, w)?,
    };
    let mut operands = vec![x, w];
    if let Some((bias, shape)) = bias {
        operands.push(row(&mut patch, bias, shape, columns)?);
    }
    let linear = patch.wire(Linear::new(operands.len() == 3), &operands)?;
    let new = match patch.graph().ty(linear).shape == result {
        true => linear,
        false => patch.wire(Reshape { shape: result }, &[linear])?,
    };
    patch.shunt(found.root, new)?;
    patch.apply();
    Ok(Outcome::Replaced)
}

/// wᵀ, which is there already if w is a transpose.
fn transposed(patch: &mut Patch, w: Value) -> Result<Value, PassError> {
    match patch.graph().op(w.node) {
        Op::Transpose(_) => Ok(patch.graph().operands(w.node)[0]),
        _ => Ok(patch.wire(Transpose { perm: vec![1, 0] }, &[w])?),
    }
}

/// A bias as [N].
fn row(patch: &mut Patch, bias: Value, shape: Vec<Dim>, columns: Dim) -> Result<Value, PassError> {
    let mut bias = bias;
    if shape.len() > 1 {
        let last = shape[shape.len() - 1].clone();
        bias = patch.wire(Reshape { shape: vec![last] }, &[bias])?;
    }
    if patch.graph().ty(bias).shape != [columns.clone()] {
        bias = patch.wire(Expand { shape: vec![columns] }, &[bias])?;
    }
    Ok(bias)
}
