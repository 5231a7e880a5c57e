//! What reductions share: result types, and evaluation over any set of axes.

use super::{
    Cast, Equal, Expand,
    elementwise::{indices, operands},
    shape_rules::strides,
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::ValueType,
    vjp::Vjp,
};

/// Declares a reduction over `axes`: `reduction!(ReduceSum, "reduce_sum", doc, fold)`, where the function sees all
/// values of one result in row-major order; then the result of 1, 2, 3, 4, and what x gets from its axes, (x,
/// result, cotangent of the result) with all axes kept, and the number of values a result.
#[macro_export]
macro_rules! reduction {
    ($(#[$meta:meta])* $variant:ident, $name:literal, $of:expr, $known:literal, $vjp:expr) => {
        $crate::attributes! {
            $(#[$meta])*
            pub struct $variant {
                /// The axes that go; sorted, each once.
                pub axes: Vec<usize>,
                /// Whether they stay with size one.
                pub keep: bool = true,
            }
        }

        impl $crate::ops::OpDef for $variant {
            const NAME: &'static str = $name;

            fn infer(&self, inputs: &[$crate::types::ValueType]) -> Result<Vec<$crate::types::ValueType>, String> {
                $crate::ops::reduce::infer(inputs, &self.axes, self.keep)
            }

            fn eval(
                &self,
                inputs: &[&$crate::tensor::Tensor],
                results: &[$crate::types::ValueType],
            ) -> Result<Vec<$crate::tensor::Tensor>, String> {
                Ok(vec![$crate::ops::reduce::eval(inputs[0], &results[0], &self.axes, $of)?])
            }

            fn cost(
                &self,
                inputs: &[$crate::types::ValueType],
                results: &[$crate::types::ValueType],
            ) -> $crate::ops::Cost {
                let flops = inputs[0].elements().unwrap_or(0) as f64;
                $crate::ops::Cost { flops, bytes: $crate::ops::traffic(inputs, results) }
            }

            fn vjp(&self, at: &mut $crate::vjp::Vjp<'_>) -> Result<(), $crate::graph::OpError> {
                $crate::ops::reduce::vjp(at, &self.axes, $vjp)
            }

            fn cases() -> Vec<$crate::ops::Case> {
                use $crate::{ops::Case, tensor::Tensor, types::DType};
                let over = |axes: &[usize], keep| Self { axes: axes.to_vec(), keep };
                let x = Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
                vec![
                    Case::known("known", over(&[0, 1], false), vec![x], vec![Tensor::from_f32(&[], vec![$known])]),
                    Case::new("rows_65", over(&[1], true), vec![Tensor::wave(DType::F32, &[3, 65], 1)]),
                    Case::new("middle", over(&[1], false), vec![Tensor::wave(DType::F32, &[2, 63, 4], 2)]),
                    Case::new("outer_and_inner", over(&[0, 2], true), vec![Tensor::wave(DType::F32, &[2, 5, 64], 3)]),
                    Case::new("one_element", over(&[0], true), vec![Tensor::wave(DType::F16, &[1, 7], 4)]),
                ]
            }
        }
    };
}

/// Gives x what a function of axes, (x, result, cotangent) and the number of values a result says, with all axes kept.
pub fn vjp(
    at: &mut Vjp<'_>,
    axes: &[usize],
    of: impl Fn(&mut Vjp<'_>, &[usize], [Value; 3], usize) -> Result<Value, OpError>,
) -> Result<(), OpError> {
    let (x, y, g) = (at.operand(0), at.result(0), at.cotangent()?);
    let shape = at.dims(x)?;
    let kept: Vec<Dim> =
        shape.iter().enumerate().map(|(i, d)| Dim::from(if axes.contains(&i) { 1 } else { *d })).collect();
    let (y, g) = (at.reshape(y, &kept)?, at.reshape(g, &kept)?);
    let part = of(at, axes, [x, y, g], axes.iter().map(|a| shape[*a]).product())?;
    let whole = at.op(Expand { shape: shape.into_iter().map(Dim::from).collect() }, &[part])?;
    at.give(0, whole)
}

/// The cotangent of a largest or smallest value, in equal parts to all that are equal to it.
pub fn chosen(at: &mut Vjp<'_>, axes: &[usize], [x, y, g]: [Value; 3]) -> Result<Value, OpError> {
    let equal = at.op(Equal {}, &[x, y])?;
    let dtype = at.ty(g).dtype;
    let equal = at.op(Cast { to: dtype }, &[equal])?;
    let count = at.sum(equal, axes)?;
    let part = at.div(g, count)?;
    at.mul(part, equal)
}

/// One operand; the axes shrink to one or vanish.
pub fn infer(inputs: &[ValueType], axes: &[usize], keep: bool) -> Result<Vec<ValueType>, String> {
    let [x] = operands(inputs)?;
    if !axes.is_sorted_by(|a, b| a < b) || axes.iter().any(|a| *a >= x.rank()) {
        return Err(format!("{axes:?} are not sorted, distinct axes of {x}"));
    }
    let shape = x.shape.iter().enumerate().filter_map(|(i, d)| match (axes.contains(&i), keep) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::from(1)),
        (true, false) => None,
    });
    Ok(vec![x.with_shape(shape)])
}

/// `of` the values of each result.
pub fn eval(x: &Tensor, result: &ValueType, axes: &[usize], of: impl Fn(&[f64]) -> f64) -> Result<Tensor, String> {
    let shape = result.dims().ok_or("needs static shapes")?;
    let own = strides(x.shape());
    let pick = |inside: bool| -> (Vec<usize>, Vec<usize>) {
        (0..x.shape().len()).filter(|d| axes.contains(d) == inside).map(|d| (x.shape()[d], own[d])).unzip()
    };
    let ((outer, outer_strides), (inner, inner_strides)) = (pick(false), pick(true));
    let inside: Vec<usize> = indices(&inner, [inner_strides]).map(|[i]| i).collect();
    let data = x.to_f64();
    let values: Vec<f64> = indices(&outer, [outer_strides])
        .map(|[start]| of(&inside.iter().map(|i| data[start + i]).collect::<Vec<_>>()))
        .collect();
    Ok(Tensor::from_f64(result.dtype, &shape, &values))
}
