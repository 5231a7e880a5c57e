//! Rules for sums, products and powers.

use super::{Context, first, forward, rewrite};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Add, Constant, Mul, Neg, Op, Reciprocal, Sqrt},
    passes::PassError,
    patch::Patch,
    pattern::number,
    tensor::Tensor,
};

/// The constant or weight-time operand of a commutative operation is the second.
pub(super) fn constant_second(context: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    if !matches!(graph.op(id), Op::Add(_) | Op::Mul(_) | Op::Max(_) | Op::Min(_)) {
        return Ok(false);
    }
    let operands = graph.operands(id);
    let rank = |v: Value| match graph.op(v.node) {
        Op::Constant(_) => 2,
        _ => context.weights.contains(&v.node) as u8,
    };
    if rank(operands[0]) <= rank(operands[1]) {
        return Ok(false);
    }
    let op = graph.op(id).clone();
    rewrite(graph, "constant_second", id, op, &[operands[1], operands[0]])
}

/// x·1 = x/1 = x; x·(−1) = −x.
pub(super) fn unit_factor(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    if !matches!(graph.op(id), Op::Mul(_) | Op::Div(_)) {
        return Ok(false);
    }
    let [x, factor] = graph.operands(id)[..] else { return Ok(false) };
    if graph.ty(x) != graph.ty(first(id)) {
        return Ok(false);
    }
    match (number(graph, factor), graph.ty(x).dtype.is_float()) {
        (Some(1.0), _) => forward(graph, "unit_factor", id, x),
        (Some(-1.0), true) => rewrite(graph, "unit_factor", id, Neg {}, &[x]),
        _ => Ok(false),
    }
}

/// x/2ⁿ = x·2⁻ⁿ, both exact.
pub(super) fn divide_by_power_of_two(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Div(_) = graph.op(id) else { return Ok(false) };
    let [x, divisor] = graph.operands(id)[..] else { return Ok(false) };
    // Within this range neither the divisor nor its reciprocal is subnormal, in f16 either.
    let exact = |d: f64| d != 0.0 && d.to_bits().trailing_zeros() >= 52 && (-14.0..=14.0).contains(&d.abs().log2());
    match number(graph, divisor) {
        Some(d) if exact(d) && graph.ty(x).dtype.is_float() => {
            with_number(graph, "divide_by_power_of_two", id, Mul {}.into(), x, divisor, 1.0 / d)
        }
        _ => Ok(false),
    }
}

/// x − c = x + (−c) for a number c.
pub(super) fn subtract_number(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Sub(_) = graph.op(id) else { return Ok(false) };
    let [x, c] = graph.operands(id)[..] else { return Ok(false) };
    match number(graph, c) {
        Some(value) if graph.ty(x).dtype.is_float() => {
            with_number(graph, "subtract_number", id, Add {}.into(), x, c, -value)
        }
        _ => Ok(false),
    }
}

/// −(−x) = x.
pub(super) fn double_negation(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Neg(_) = graph.op(id) else { return Ok(false) };
    let inner = graph.operands(id)[0];
    if !matches!(graph.op(inner.node), Op::Neg(_)) {
        return Ok(false);
    }
    let x = graph.operands(inner.node)[0];
    forward(graph, "double_negation", id, x)
}

/// x² = x·x, x^½ = √x, x⁻¹ = 1/x, x¹ = x. (Signs of zero and infinity aside, which pow treats differently under the
/// root.)
pub(super) fn power(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Pow(_) = graph.op(id) else { return Ok(false) };
    let [x, exponent] = graph.operands(id)[..] else { return Ok(false) };
    if graph.ty(x) != graph.ty(first(id)) || !graph.ty(x).dtype.is_float() {
        return Ok(false);
    }
    match number(graph, exponent) {
        Some(2.0) => rewrite(graph, "power", id, Mul {}, &[x, x]),
        Some(0.5) => rewrite(graph, "power", id, Sqrt {}, &[x]),
        Some(-1.0) => rewrite(graph, "power", id, Reciprocal {}, &[x]),
        Some(1.0) => forward(graph, "power", id, x),
        _ => Ok(false),
    }
}

/// `op(x, c)` with c like `old`, but everywhere `value`.
fn with_number(
    graph: &mut Graph,
    rule: &'static str,
    id: NodeId,
    op: Op,
    x: Value,
    old: Value,
    value: f64,
) -> Result<bool, PassError> {
    let ty = graph.ty(old).clone();
    let Some(shape) = ty.dims() else { return Ok(false) };
    let count = shape.iter().product();
    let mut patch = Patch::new(graph, rule, first(id));
    let constant = Constant { value: Tensor::from_f64(ty.dtype, &shape, &vec![value; count]) };
    let constant = patch.wire(constant, &[])?;
    let new = patch.wire(op, &[x, constant])?;
    patch.shunt(first(id), new)?;
    patch.apply();
    Ok(true)
}
