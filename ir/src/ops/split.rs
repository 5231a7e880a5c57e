//! `split(x) {axis, sizes}`: consecutive parts along an axis.

use super::{Case, Concat, OpDef, Slice, Tolerance, elementwise::operands};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// Consecutive parts along `axis`, one result a part.
    pub struct Split {
        /// The axis that is cut.
        pub axis: usize,
        /// The size of each part; they add up to the size of the axis.
        pub sizes: Vec<Dim>,
    }
}

impl OpDef for Split {
    const NAME: &'static str = "split";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        let size = x.shape.get(self.axis).ok_or_else(|| format!("axis {} is outside {x}", self.axis))?;
        let sum = self.sizes.iter().cloned().fold(Dim::from(0), |n, d| n + d);
        if sum != *size || self.sizes.is_empty() {
            return Err(format!("the parts add up to {sum}, axis {} of {x} has {size}", self.axis));
        }
        let part = |size: &Dim| {
            let mut shape = x.shape.clone();
            shape[self.axis] = size.clone();
            x.with_shape(shape)
        };
        Ok(self.sizes.iter().map(part).collect())
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let mut start = Dim::from(0);
        let parts = self.sizes.iter().zip(results).map(|(size, result)| {
            let end = start.clone() + size.clone();
            let slice = Slice { axis: self.axis, start: std::mem::replace(&mut start, end.clone()), end, step: 1 };
            Ok(slice.eval(inputs, std::slice::from_ref(result))?.remove(0))
        });
        parts.collect()
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let parts: Vec<Value> = (0..self.sizes.len()).map(|part| at.cotangent_of(part)).collect::<Result<_, _>>()?;
        let whole = at.op(Concat { axis: self.axis }, &parts)?;
        at.give(0, whole)
    }

    fn cases() -> Vec<Case> {
        let by = |axis, sizes: &[usize]| Self { axis, sizes: sizes.iter().map(|s| (*s).into()).collect() };
        let x = Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0]);
        let parts = vec![Tensor::from_f32(&[1], vec![1.0]), Tensor::from_f32(&[2], vec![2.0, 3.0])];
        vec![
            Case::known("known", by(0, &[1, 2]), vec![x], parts),
            Case::new("halves", by(3, &[32, 32]), vec![Tensor::wave(DType::F32, &[1, 2, 65, 64], 1)]),
            Case::new("qkv", by(0, &[1, 1, 1]), vec![Tensor::wave(DType::F16, &[3, 2, 5], 1)]),
        ]
    }
}
