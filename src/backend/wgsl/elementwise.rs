//! `shaders/elementwise.wgsl`: operations that compute each element of the result from one element of each operand.

use lite3r_ir::{
    DType, Op,
    ops::{gelu::Approximate, pointwise::MOST_OPERANDS, shape_rules::strides_for},
};

use super::{
    Kernel, dims,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
};
use crate::backend::{
    Request,
    gpu::{
        elementwise::elementwise_rows,
        expression::expanded,
        walk::{Axis, join},
    },
};

/// Dimensions of a walk.
pub const MAX_RANK: usize = 8;

/// What elementwise kernels compute with.
pub const DTYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8, DType::Bool];

const fn row(name: &'static str, op: &'static str) -> Kernel {
    Kernel::plain(name, op, DTYPES, lower)
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = elementwise_rows!(row; row("pointwise.elementwise", "pointwise"));

/// Dimensions, padded to whole vectors; what the shader walks by.
pub fn packed(axes: &[Axis], operands: usize) -> Result<Vec<u32>, String> {
    if axes.len() > MAX_RANK {
        return Err(format!("takes up to {MAX_RANK} dimensions that do not join, not {}", axes.len()));
    }
    let padded = |values: Vec<i64>| {
        let words = values.into_iter().chain(std::iter::repeat(0)).take(MAX_RANK);
        words.map(|v| word(v as usize)).collect::<Result<Vec<u32>, String>>()
    };
    let mut words = padded(axes.iter().map(|a| a.0 as i64).collect())?;
    for operand in 0..operands {
        words.extend(padded(axes.iter().map(|a| a.1[operand]).collect())?);
    }
    Ok(words)
}

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let (operands, result) = (request.operands, &request.results[0]);
    let narrow = |dtype| matches!(dtype, DType::F8E4M3 | DType::F8E5M2);
    let cast = matches!(request.op, Op::Cast(_));
    let takes = |dtype| DTYPES.contains(&dtype) || cast && narrow(dtype) && (dtype != DType::F8E5M2);
    if let Some(odd) = operands.iter().chain(request.results).find(|t| !takes(t.dtype)) {
        return Err(format!("does not take {odd}"));
    }
    let integers = !operands[0].dtype.is_float();
    let expression = expression(request.op, integers)?;
    let shape = dims(result)?;
    let elements: usize = shape.iter().product();
    let strides = |i: usize| -> Result<Vec<i64>, String> {
        let own = operands.get(i).map(dims).transpose()?.unwrap_or_default();
        Ok(strides_for(&own, &shape).into_iter().map(|s| s as i64).collect())
    };
    let strides: Vec<Vec<i64>> = (0..operands.len()).map(strides).collect::<Result<_, String>>()?;
    let axes = join(&shape, &strides);
    let flat = operands.iter().all(|t| t.shape == result.shape);
    let groups = elements.div_ceil(4);
    let mut sizes = vec![word(groups)?, axes.len() as u32, u32::from(flat), 0];
    sizes.extend(packed(&axes, operands.len())?);
    sizes.resize(4 + MAX_RANK * (1 + MOST_OPERANDS), 0);
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut tensors = Tensors::default();
    let mut body = String::new();
    for (i, (name, operand)) in names.iter().zip(operands).enumerate() {
        tensors = tensors.read(name, operand.dtype);
        body += &format!("        let {name} = {name}_at(place(at, {i}u));\n");
    }
    let tensors = tensors.write("y", result.dtype).sizes();
    let value = if result.dtype.is_float() { "f32" } else { "i32" };
    body += &format!("        v[j] = {value}({expression});");
    let shader = Shader::new("elementwise.wgsl", &tensors)
        .splice("types", format!("alias Result = vec4<{value}>;"))
        .splice("body", body);
    Ok(Launch { shader, groups: folded(groups.div_ceil(THREADS))?, bindings: Binding::all(request), sizes }.into())
}

/// What is computed, over `a`, `b` and `c`, in WGSL.
fn expression(op: &Op, integers: bool) -> Result<String, String> {
    let text = match op {
        Op::Neg(_) => "-a",
        Op::Abs(_) => "abs(a)",
        Op::Exp(_) => "exponential(a)",
        Op::Log(_) => "log(a)",
        Op::Sqrt(_) => "sqrt(a)",
        Op::Reciprocal(_) => "1.0 / a",
        Op::Sin(_) => "sine(a)",
        Op::Cos(_) => "cosine(a)",
        Op::Tan(_) => "sine(a) / cosine(a)",
        Op::Atan(_) => "arc_tangent(a)",
        Op::Erf(_) => "error_function(a)",
        Op::Tanh(_) => "hyperbolic_tangent(a)",
        Op::Sigmoid(_) => "sigmoid(a)",
        Op::Silu(_) => "silu(a)",
        Op::Gelu(op) => match op.approximate {
            Approximate::None => "gelu(a)",
            Approximate::Tanh => "gelu_tanh(a)",
        },
        Op::Relu(_) if integers => "max(a, 0)",
        Op::Relu(_) => "maximum(a, 0.0)",
        Op::Sign(_) => "sign(a)",
        Op::Floor(_) => "floor(a)",
        Op::Ceil(_) => "ceil(a)",
        Op::Round(_) => "round(a)",
        Op::Clip(op) if !integers => {
            return Ok(format!("minimum(maximum(a, {}), {})", literal(op.min), literal(op.max)));
        }
        Op::Clip(op) => {
            let whole = |x: f64| format!("bitcast<i32>({:#x}u)", (x as i32) as u32);
            // Ends truncate towards zero, as results do.
            return Ok(format!("min(max(a, {}), {})", whole(op.min), whole(op.max)));
        }
        Op::Cast(op) => match (integers, op.to) {
            // Anything but zero is true, also what would truncate to zero.
            (false, DType::Bool) => "a != 0.0",
            (true, DType::Bool) => "a != 0",
            (false, DType::U8) => "clamp(a, 0.0, 255.0)",
            _ => "a",
        },
        Op::Not(_) => "a == 0",
        Op::Add(_) => "a + b",
        Op::Sub(_) => "a - b",
        Op::Mul(_) => "a * b",
        Op::Div(_) if integers => "select(a / b, 0, b == 0)",
        Op::Div(_) => "a / b",
        Op::Pow(_) if !integers => "power(a, b)",
        Op::Remainder(_) if integers => "floor_remainder_of_integers(a, b)",
        Op::Remainder(_) => "floor_remainder(a, b)",
        Op::Max(_) if integers => "max(a, b)",
        Op::Max(_) => "maximum(a, b)",
        Op::Min(_) if integers => "min(a, b)",
        Op::Min(_) => "minimum(a, b)",
        Op::Equal(_) => "a == b",
        Op::Less(_) => "a < b",
        Op::LessEqual(_) => "a <= b",
        Op::And(_) => "a != 0 && b != 0",
        Op::Or(_) => "a != 0 || b != 0",
        Op::Where(_) => "select(c, b, a != 0)",
        Op::Pointwise(op) => return expanded(&op.expr, &literal, &|op| expression(op, false)),
        other => return Err(format!("does not compute {} on integers", other.name())),
    };
    Ok(text.into())
}

/// An f32 with these bits.
fn literal(value: f64) -> String {
    format!("bitcast<f32>({:#x}u)", (value as f32).to_bits())
}
