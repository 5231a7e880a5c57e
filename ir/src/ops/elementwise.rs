//! What elementwise operations share: result types under broadcasting, and evaluation.

use super::shape_rules::{broadcast, strides_for};
use crate::{
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

/// Declares an elementwise operation with one operand: `unary!(Exp, "exp", real, f64::exp, 4.0, [(x, y), ...], |at, x,
/// y, g| at.mul(g, y))`. `real` takes floating-point operands, `number` integers too; then the function, its cost in
/// operations, known values, and the cotangent of x from that of y; `flat` where the derivative is zero.
#[macro_export]
macro_rules! unary {
    ($(#[$meta:meta])* $variant:ident, $name:literal, $domain:ident, $scalar:expr, $flops:literal, [$($known:expr),* $(,)?], $($vjp:tt)+) => {
        $crate::attributes! { $(#[$meta])* pub struct $variant {} }

        impl $crate::ops::OpDef for $variant {
            const NAME: &'static str = $name;

            fn infer(&self, inputs: &[$crate::types::ValueType]) -> Result<Vec<$crate::types::ValueType>, String> {
                $crate::ops::elementwise::infer_unary(inputs, stringify!($domain) == "number")
            }

            fn eval(
                &self,
                inputs: &[&$crate::tensor::Tensor],
                results: &[$crate::types::ValueType],
            ) -> Result<Vec<$crate::tensor::Tensor>, String> {
                Ok(vec![$crate::ops::elementwise::map(inputs[0], results[0].dtype, $scalar)])
            }

            fn cost(
                &self,
                inputs: &[$crate::types::ValueType],
                results: &[$crate::types::ValueType],
            ) -> $crate::ops::Cost {
                $crate::ops::Cost {
                    flops: $flops * results[0].elements().unwrap_or(0) as f64,
                    bytes: $crate::ops::traffic(inputs, results),
                }
            }

            fn vjp(&self, at: &mut $crate::vjp::Vjp<'_>) -> Result<(), $crate::graph::OpError> {
                $crate::give_unless_flat!(unary_vjp, at, $($vjp)+)
            }

            fn cases() -> Vec<$crate::ops::Case> {
                $crate::ops::elementwise::unary_cases(Self {}.into(), &[$($known),*])
            }
        }
    };
}

/// Gives operands what a function says, or nothing where the derivative is `flat`.
#[macro_export]
macro_rules! give_unless_flat {
    ($give:ident, $at:expr, flat) => {{
        let _ = $at;
        Ok(())
    }};
    ($give:ident, $at:expr, $vjp:expr) => {
        $crate::ops::elementwise::$give($at, $vjp)
    };
}

/// Declares an elementwise operation with two operands of one type: `binary!(Add, "add", |a, b| a + b,
/// i64::wrapping_add, None, [(a, b, y), ...], |at, a, b, y, g| Ok([g, g]))`: the function of reals and of integers, the
/// element type of the result if it is another, known values, and the cotangents of a and b from that of y; `flat`
/// where the derivatives are zero.
#[macro_export]
macro_rules! binary {
    ($(#[$meta:meta])* $variant:ident, $name:literal, $real:expr, $integer:expr, $result:expr, [$($known:expr),* $(,)?], $($vjp:tt)+) => {
        $crate::attributes! { $(#[$meta])* pub struct $variant {} }

        impl $crate::ops::OpDef for $variant {
            const NAME: &'static str = $name;

            fn infer(&self, inputs: &[$crate::types::ValueType]) -> Result<Vec<$crate::types::ValueType>, String> {
                $crate::ops::elementwise::infer_binary(inputs, $result)
            }

            fn eval(
                &self,
                inputs: &[&$crate::tensor::Tensor],
                results: &[$crate::types::ValueType],
            ) -> Result<Vec<$crate::tensor::Tensor>, String> {
                $crate::ops::elementwise::zip(inputs[0], inputs[1], &results[0], $real, $integer).map(|t| vec![t])
            }

            fn vjp(&self, at: &mut $crate::vjp::Vjp<'_>) -> Result<(), $crate::graph::OpError> {
                $crate::give_unless_flat!(binary_vjp, at, $($vjp)+)
            }

            fn cases() -> Vec<$crate::ops::Case> {
                $crate::ops::elementwise::binary_cases(Self {}.into(), &[$($known),*])
            }
        }
    };
}

/// Gives the one operand x what a function of (x, y, cotangent of y) says.
pub fn unary_vjp(
    at: &mut Vjp<'_>,
    of: impl Fn(&mut Vjp<'_>, Value, Value, Value) -> Result<Value, OpError>,
) -> Result<(), OpError> {
    let (x, y, g) = (at.operand(0), at.result(0), at.cotangent()?);
    let part = of(at, x, y, g)?;
    at.give(0, part)
}

/// Gives the operands a and b what a function of (a, b, y, cotangent of y) says.
pub fn binary_vjp(
    at: &mut Vjp<'_>,
    of: impl Fn(&mut Vjp<'_>, Value, Value, Value, Value) -> Result<[Value; 2], OpError>,
) -> Result<(), OpError> {
    let (a, b, y, g) = (at.operand(0), at.operand(1), at.result(0), at.cotangent()?);
    for (operand, part) in of(at, a, b, y, g)?.into_iter().enumerate() {
        at.give(operand, part)?;
    }
    Ok(())
}

/// The cotangent of the larger of a and b, given to whichever it is; to a where they are equal.
pub fn shared(at: &mut Vjp<'_>, a: Value, b: Value, g: Value) -> Result<[Value; 2], OpError> {
    let smaller = at.op(super::Less {}, &[a, b])?;
    let zero = at.number(g, 0.0);
    Ok([at.op(super::Where {}, &[smaller, zero, g])?, at.op(super::Where {}, &[smaller, g, zero])?])
}

/// Exactly `N` operands.
pub fn operands<const N: usize>(inputs: &[ValueType]) -> Result<&[ValueType; N], String> {
    inputs.try_into().map_err(|_| format!("takes {N} operands, not {}", inputs.len()))
}

/// One floating-point operand, or an integer one where `integers` says so; the result has its type.
pub fn infer_unary(inputs: &[ValueType], integers: bool) -> Result<Vec<ValueType>, String> {
    let [x] = operands(inputs)?;
    if !x.dtype.is_float() && (!integers || x.dtype == DType::Bool) {
        return Err(format!("takes a floating-point operand, not {x}"));
    }
    Ok(vec![x.clone()])
}

/// Two operands of one element type, broadcast; the result has that type, or `result` where it is given.
pub fn infer_binary(inputs: &[ValueType], result: Option<DType>) -> Result<Vec<ValueType>, String> {
    let [a, b] = operands(inputs)?;
    if a.dtype != b.dtype {
        return Err(format!("operands must share an element type: {a} and {b}"));
    }
    Ok(vec![ValueType { dtype: result.unwrap_or(a.dtype), shape: broadcast(&[&a.shape, &b.shape])? }])
}

/// `f` of every element, rounded once.
pub fn map(x: &Tensor, dtype: DType, f: impl Fn(f64) -> f64) -> Tensor {
    let values: Vec<f64> = x.to_f64().into_iter().map(f).collect();
    Tensor::from_f64(dtype, x.shape(), &values)
}

/// `real` or `integer` of every pair under broadcasting. An integer function that answers `None` (a division by zero)
/// is an error.
pub fn zip(
    a: &Tensor,
    b: &Tensor,
    result: &ValueType,
    real: impl Fn(f64, f64) -> f64,
    integer: impl Fn(i64, i64) -> Option<i64>,
) -> Result<Tensor, String> {
    let shape = result.dims().ok_or("needs static shapes")?;
    let (sa, sb) = (strides_for(a.shape(), &shape), strides_for(b.shape(), &shape));
    let pairs = indices(&shape, [sa, sb]);
    if a.dtype().is_float() {
        let (x, y) = (a.to_f64(), b.to_f64());
        let values: Vec<f64> = pairs.map(|[i, j]| real(x[i], y[j])).collect();
        return Ok(Tensor::from_f64(result.dtype, &shape, &values));
    }
    let (x, y) = (a.to_i64(), b.to_i64());
    let values: Option<Vec<i64>> = pairs.map(|[i, j]| integer(x[i], y[j])).collect();
    Ok(Tensor::from_i64(result.dtype, &shape, &values.ok_or("is not defined for these integers")?))
}

/// Walks `shape` row-major and yields the offset into each operand under its strides.
pub fn indices<const N: usize>(shape: &[usize], strides: [Vec<usize>; N]) -> impl Iterator<Item = [usize; N]> + use<N> {
    let count: usize = shape.iter().product();
    let mut position = vec![0usize; shape.len()];
    let mut offsets = [0usize; N];
    let shape = shape.to_vec();
    (0..count).map(move |_| {
        let current = offsets;
        for axis in (0..shape.len()).rev() {
            position[axis] += 1;
            let wrapped = position[axis] == shape[axis];
            for (offset, stride) in offsets.iter_mut().zip(&strides) {
                *offset = if wrapped { *offset - stride[axis] * (shape[axis] - 1) } else { *offset + stride[axis] };
            }
            if !wrapped {
                break;
            }
            position[axis] = 0;
        }
        current
    })
}

/// Known values, and a wave at sizes around a vector width, in every width a backend may have.
pub fn unary_cases(op: super::Op, known: &[(f64, f64)]) -> Vec<super::Case> {
    use super::Case;
    let column = |pick: fn(&(f64, f64)) -> f64| {
        Tensor::from_f64(DType::F32, &[known.len()], &known.iter().map(pick).collect::<Vec<_>>())
    };
    let mut cases = vec![Case::known("known", op.clone(), vec![column(|p| p.0)], vec![column(|p| p.1)])];
    for (name, shape, dtype) in [
        ("scalar", vec![], DType::F32),
        ("empty", vec![0, 3], DType::F32),
        ("ragged_65", vec![3, 65], DType::F32),
        ("f16", vec![2, 63], DType::F16),
        ("bf16", vec![2, 64], DType::BF16),
    ] {
        // Shifted into (0, 2): inside the domain of every function here.
        let values: Vec<f64> = Tensor::wave(DType::F64, &shape, 7).to_f64().iter().map(|v| v + 1.0 + 1e-3).collect();
        cases.push(Case::new(name, op.clone(), vec![Tensor::from_f64(dtype, &shape, &values)]));
    }
    cases
}

/// Known values, and every form of broadcasting.
pub fn binary_cases(op: super::Op, known: &[(f64, f64, f64)]) -> Vec<super::Case> {
    use super::Case;
    let column = |pick: fn(&(f64, f64, f64)) -> f64| {
        Tensor::from_f64(DType::F32, &[known.len()], &known.iter().map(pick).collect::<Vec<_>>())
    };
    let inputs = vec![column(|p| p.0), column(|p| p.1)];
    let dtype = op.infer(&inputs.iter().map(Tensor::value_type).collect::<Vec<_>>()).map(|t| t[0].dtype);
    let expect = column(|p| p.2).cast(dtype.unwrap_or(DType::F32));
    let mut cases = vec![Case::known("known", op.clone(), inputs, vec![expect])];
    for (name, a, b, dtype) in [
        ("same", vec![3, 65], vec![3, 65], DType::F32),
        ("row", vec![3, 65], vec![65], DType::F32),
        ("column", vec![4, 1], vec![4, 63], DType::F32),
        ("both", vec![2, 1, 5], vec![3, 1], DType::F32),
        ("scalar", vec![2, 3], vec![], DType::F32),
        ("empty", vec![0, 3], vec![1, 3], DType::F32),
        ("f16", vec![2, 64], vec![64], DType::F16),
        ("bf16", vec![2, 64], vec![2, 1], DType::BF16),
    ] {
        let (a, b) = (Tensor::wave(dtype, &a, 1), Tensor::wave(dtype, &b, 2));
        cases.push(Case::new(name, op.clone(), vec![a, b]));
    }
    cases
}
