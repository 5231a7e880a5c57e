//! `gather(x, indices) {axis}`: slices of x along an axis, by index.

use super::{Case, Less, OpDef, ScatterAdd, Tolerance, Where, elementwise::operands};
use crate::{
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// NumPy take: the axis is replaced by the dimensions of `indices`; negative indices count from the end.
    pub struct Gather {
        /// The axis that is indexed.
        pub axis: usize,
    }
}

/// A possibly negative index as an offset below `size`.
pub fn wrap(index: i64, size: usize) -> Result<usize, String> {
    let at = if index < 0 { index + size as i64 } else { index };
    usize::try_from(at).ok().filter(|i| *i < size).ok_or_else(|| format!("index {index} is outside {size} elements"))
}

/// Possibly negative indices as offsets below `size`, in the graph.
pub fn wrapped(at: &mut Vjp<'_>, indices: Value, size: usize) -> Result<Value, OpError> {
    let zero = at.number(indices, 0.0);
    let from_end = at.op(Less {}, &[indices, zero])?;
    let moved = at.plus(indices, size as f64)?;
    at.op(Where {}, &[from_end, moved, indices])
}

/// Refuses anything but i64 and i32.
pub fn integer(indices: &ValueType) -> Result<(), String> {
    match indices.dtype {
        DType::I64 | DType::I32 => Ok(()),
        _ => Err(format!("indices must be i64 or i32, not {indices}")),
    }
}

impl OpDef for Gather {
    const NAME: &'static str = "gather";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, indices] = operands(inputs)?;
        integer(indices)?;
        if self.axis >= x.rank() {
            return Err(format!("axis {} is outside {x}", self.axis));
        }
        Ok(vec![x.with_shape([&x.shape[..self.axis], &indices.shape, &x.shape[self.axis + 1..]].concat())])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (x, size) = (inputs[0], inputs[0].shape()[self.axis]);
        let inner: usize = x.shape()[self.axis + 1..].iter().product();
        let outer: usize = x.shape()[..self.axis].iter().product();
        let rows: Vec<usize> = inputs[1].to_i64().into_iter().map(|i| wrap(i, size)).collect::<Result<_, _>>()?;
        let walk = (0..outer).flat_map(|o| rows.iter().map(move |r| (o * size + r) * inner));
        Ok(vec![x.pick(&shape, walk.flat_map(|start| start..start + inner))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (g, indices) = (at.cotangent()?, at.operand(1));
        let size = at.ty(at.operand(0)).shape[self.axis].clone();
        let part = at.op(ScatterAdd { axis: self.axis, size }, &[g, indices])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let index = |shape: &[usize], v: &[i64]| Tensor::from_i64(DType::I64, shape, v);
        let x = Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0]);
        vec![
            Case::known(
                "known",
                Self { axis: 0 },
                vec![x, index(&[2], &[2, -3])],
                vec![Tensor::from_f32(&[2], vec![3.0, 1.0])],
            ),
            Case::new("drop_axis", Self { axis: 1 }, vec![Tensor::wave(DType::F32, &[2, 5, 7], 1), index(&[], &[3])]),
            Case::new(
                "table",
                Self { axis: 0 },
                vec![
                    Tensor::wave(DType::F32, &[38, 32], 1),
                    index(&[1, 65], &(0..65).map(|i| i % 38).collect::<Vec<_>>()),
                ],
            ),
            Case::new(
                "half",
                Self { axis: 2 },
                vec![Tensor::wave(DType::F16, &[2, 1, 9], 1), index(&[4], &[0, 8, 8, -1])],
            ),
        ]
    }
}
