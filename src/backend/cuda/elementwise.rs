//! `cuda/elementwise.cu`: operations that compute each element of the result from one element of each operand.

use lite3r_ir::{
    DType, Op,
    ops::{gelu::Approximate, pointwise::MOST_OPERANDS, shape_rules::strides_for},
};

use super::{
    Arch, Kernel, dims,
    floats::FLOATS,
    launch::{Arg, Launch, Lowered, Module, index_type},
};
use crate::backend::{
    Request,
    gpu::{
        elementwise::elementwise_rows,
        expression::expanded,
        walk::{Axis, join},
    },
};

/// Dimensions of a [`Shape`].
pub const MAX_RANK: usize = 6;

/// What elementwise kernels compute with.
const DTYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8, DType::Bool];

const fn row(name: &'static str, op: &'static str) -> Kernel {
    Kernel { name, op, dtypes: DTYPES, lower }
}

/// The rows of this file.
pub const KERNELS: &[Kernel] =
    elementwise_rows!(row; Kernel { name: "pointwise.elementwise", op: "pointwise", dtypes: FLOATS, lower });

/// A shape and the strides of an operand under it, as `cuda/include/strides.cuh` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Shape {
    rank: i32,
    dims: [u32; MAX_RANK],
}

/// See [`Shape`].
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Strides {
    of: [i64; MAX_RANK],
}

/// A walk over dimensions that are joined, and over `operands` operands.
pub fn pack(joined: &[Axis], operands: usize) -> Result<(Shape, Vec<Strides>), String> {
    if joined.len() > MAX_RANK {
        return Err(format!("takes up to {MAX_RANK} dimensions that do not join, not {}", joined.len()));
    }
    let mut result =
        (Shape { rank: joined.len() as i32, dims: [1; MAX_RANK] }, vec![Strides { of: [0; MAX_RANK] }; operands]);
    for (axis, (size, steps)) in joined.iter().enumerate() {
        result.0.dims[axis] = u32::try_from(*size).map_err(|_| "takes dimensions below 2^32")?;
        result.1.iter_mut().zip(steps).for_each(|(s, step)| s.of[axis] = *step);
    }
    Ok(result)
}

/// A walk over `shape`, and over each operand under its strides.
pub fn walk(shape: &[usize], strides: &[Vec<i64>]) -> Result<(Shape, Vec<Strides>), String> {
    pack(&join(shape, strides), strides.len())
}

/// Whether every operand is contiguous or constant within aligned groups of `count` results.
fn groups(joined: &[Axis], count: usize) -> bool {
    let whole = |step: &i64| step % count as i64 == 0;
    joined.split_last().is_some_and(|((size, steps), outer)| {
        let aligned = |(i, step): (usize, &i64)| match step {
            0 => true,
            1 => outer.iter().all(|(_, steps)| whole(&steps[i])),
            _ => false,
        };
        size % count == 0 && steps.iter().enumerate().all(aligned)
    })
}

/// Counts in groups of `count` elements. Returns a bit for every operand that advances within a group.
fn group(joined: &mut [Axis], count: usize) -> i32 {
    let Some((size, steps)) = joined.last_mut() else { return 0 };
    *size /= count;
    let bits = steps.iter().enumerate().map(|(i, step)| i32::from(*step != 0) << i).sum();
    steps.iter_mut().for_each(|step| *step *= count as i64);
    bits
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let (operands, result) = (request.operands, &request.results[0]);
    let integers = !operands[0].dtype.is_float();
    let narrow = |dtype| matches!(dtype, DType::F8E4M3 | DType::F8E5M2);
    let cast = matches!(request.op, Op::Cast(_));
    if let Some(odd) =
        operands.iter().chain(request.results).find(|t| !(DTYPES.contains(&t.dtype) || cast && narrow(t.dtype)))
    {
        return Err(format!("does not take {odd}"));
    }
    if arch == Arch::Sm80 && narrow(result.dtype) {
        return Err("sm_80 has no FP8 arithmetic; compile with --precision fp8w".into());
    }
    let expression = expression(request.op, integers)?;
    let shape = dims(result)?;
    let elements: usize = shape.iter().product();
    let strides = |i: usize| -> Result<Vec<i64>, String> {
        let own = operands.get(i).map(dims).transpose()?.unwrap_or_default();
        Ok(strides_for(&own, &shape).into_iter().map(|s| s as i64).collect())
    };
    let strides: Vec<Vec<i64>> = (0..operands.len()).map(strides).collect::<Result<_, String>>()?;
    let mut joined = join(&shape, &strides);
    let widest = operands.iter().chain([result]).map(|t| t.dtype.size()).max().unwrap_or(1);
    let vector = [if widest <= 2 { 8 } else { 4 }].into_iter().find(|v| groups(&joined, *v)).unwrap_or(1);
    let neighbours = group(&mut joined, vector);
    let (walked, steps) = pack(&joined, operands.len())?;
    let flat = operands.iter().all(|t| t.shape == result.shape);
    let mut module = Module::new("elementwise.cu").define("ARITY", operands.len());
    for (name, operand) in ["T0", "T1", "T2", "T3", "T4", "T5"].into_iter().zip(operands) {
        module = module.element(name, operand.dtype);
    }
    let module = module
        .element("TR", result.dtype)
        .define("INDEX", index_type(elements as u64))
        .define("FLAT", i32::from(flat))
        .define("VECTOR", vector)
        .define("EXPR", expression);
    let maybe = |i: usize| Arg::maybe((i < operands.len()).then_some(i));
    let sizes = [Arg::of(walked), Arg::Value(bytemuck::cast_slice(&steps).to_vec())];
    Ok(Launch::over(
        module,
        "elementwise",
        (elements / vector) as u64,
        (0..MOST_OPERANDS)
            .map(maybe)
            .chain([Arg::result(0)])
            .chain(sizes)
            .chain([Arg::of(neighbours), Arg::of((elements / vector) as i64)])
            .collect(),
    )
    .into())
}

/// What is computed, over `a`, `b` and `c`, in C++ without spaces.
fn expression(op: &Op, integers: bool) -> Result<String, String> {
    let text = match op {
        Op::Neg(_) => "-a",
        Op::Abs(_) => "absolute(a)",
        Op::Exp(_) => "expf(a)",
        Op::Log(_) => "logf(a)",
        Op::Sqrt(_) => "sqrtf(a)",
        Op::Reciprocal(_) => "1.f/a",
        Op::Sin(_) => "sinf(a)",
        Op::Cos(_) => "cosf(a)",
        Op::Tan(_) => "tanf(a)",
        Op::Atan(_) => "atanf(a)",
        Op::Erf(_) => "erff(a)",
        Op::Tanh(_) => "tanhf(a)",
        Op::Sigmoid(_) => "sigmoid(a)",
        Op::Silu(_) => "silu(a)",
        Op::Gelu(op) => match op.approximate {
            Approximate::None => "gelu(a)",
            Approximate::Tanh => "gelu_tanh(a)",
        },
        Op::Relu(_) if integers => "maximum(a,i64(0))",
        Op::Relu(_) => "maximum(a,0.f)",
        Op::Sign(_) => "sign(a)",
        Op::Floor(_) => "floorf(a)",
        Op::Ceil(_) => "ceilf(a)",
        Op::Round(_) => "rintf(a)",
        Op::Clip(op) if !integers => {
            return Ok(format!("minimum(maximum(a,{}),{})", literal(op.min), literal(op.max)));
        }
        Op::Clip(op) => {
            let whole = |x: f64| if x <= i64::MIN as f64 { "i64(1ull<<63)".into() } else { format!("{}ll", x as i64) };
            // Ends truncate towards zero, as results do.
            return Ok(format!("minimum(maximum(a,{}),{})", whole(op.min), whole(op.max)));
        }
        Op::Cast(op) => match (integers, op.to) {
            // Anything but zero is true, also what would truncate to zero.
            (false, DType::Bool) => "i64(a!=0.f)",
            (false, DType::I64) => "truncated(a,i64(1ull<<63),i64(~0ull>>1))",
            (false, DType::I32) => "truncated(a,-2147483648ll,2147483647ll)",
            (false, DType::U8) => "truncated(a,0ll,255ll)",
            _ => "a",
        },
        Op::Not(_) => "i64(!a)",
        Op::Add(_) => "a+b",
        Op::Sub(_) => "a-b",
        Op::Mul(_) => "a*b",
        Op::Div(_) if integers => "quotient(a,b)",
        Op::Div(_) => "a/b",
        Op::Pow(_) if integers => "power(a,b)",
        Op::Pow(_) => "powf(a,b)",
        Op::Remainder(_) => "remainder(a,b)",
        Op::Max(_) => "maximum(a,b)",
        Op::Min(_) => "minimum(a,b)",
        Op::Equal(_) => "i64(a==b)",
        Op::Less(_) => "i64(a<b)",
        Op::LessEqual(_) => "i64(a<=b)",
        Op::And(_) => "i64(a&&b)",
        Op::Or(_) => "i64(a||b)",
        Op::Where(_) => "a?b:c",
        Op::Pointwise(op) => return expanded(&op.expr, &literal, &|op| expression(op, false)),
        other => return Err(format!("does not compute {} on integers", other.name())),
    };
    Ok(text.into())
}

/// An f32 with these bits.
fn literal(value: f64) -> String {
    format!("__uint_as_float({:#x})", (value as f32).to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_contiguous_or_constant() {
        let joined = |shape: &[usize], operands: &[&[usize]]| {
            let strides = |own: &&[usize]| strides_for(own, shape).into_iter().map(|s| s as i64).collect();
            join(shape, &operands.iter().map(strides).collect::<Vec<_>>())
        };
        // A row and a column beside a matrix.
        let mut bias = joined(&[6, 64], &[&[6, 64], &[64], &[6, 1]]);
        assert!(groups(&bias, 8));
        assert_eq!(group(&mut bias, 8), 0b011);
        assert_eq!(bias, [(6, vec![64, 0, 1]), (8, vec![8, 8, 0])]);
        // Flat, but not a multiple; rows that are not aligned; an innermost dimension that is shorter than a group.
        assert!(!groups(&joined(&[3, 65], &[&[3, 65]]), 4));
        assert!(groups(&joined(&[4, 65], &[&[4, 65]]), 4));
        assert!(!groups(&joined(&[4, 65], &[&[4, 65], &[65]]), 4));
        assert!(!groups(&joined(&[8, 2], &[&[8, 2], &[2]]), 4));
        assert!(!groups(&joined(&[], &[&[]]), 4));
    }
}
