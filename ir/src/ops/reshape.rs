//! `reshape(x) {shape}`: the same elements in the same order under another shape.

use super::{Case, Cost, OpDef, elementwise::operands};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// The same elements in row-major order under another shape of equal size. Moves nothing.
    pub struct Reshape {
        /// The new shape, without wildcards.
        pub shape: Vec<Dim>,
    }
}

impl OpDef for Reshape {
    const NAME: &'static str = "reshape";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        let count = |shape: &[Dim]| shape.iter().cloned().fold(Dim::from(1usize), |n, d| n * d);
        if count(&x.shape) != count(&self.shape) {
            return Err(format!("{x} has {} elements, the new shape {}", count(&x.shape), count(&self.shape)));
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        Ok(vec![inputs[0].reshaped(&shape).ok_or("element counts differ")?])
    }

    fn cost(&self, _: &[ValueType], _: &[ValueType]) -> Cost {
        Cost::default()
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (shape, g) = (at.ty(at.operand(0)).shape.clone(), at.cotangent()?);
        let part = at.reshape(g, &shape)?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let to = |shape: &[usize]| Self { shape: shape.iter().map(|d| (*d).into()).collect() };
        let x = Tensor::wave(DType::F32, &[3, 4, 5], 1);
        vec![
            Case::known("merge", to(&[12, 5]), vec![x.clone()], vec![x.reshaped(&[12, 5]).expect("12·5 = 60")]),
            Case::new("to_scalar", to(&[]), vec![Tensor::wave(DType::F16, &[1, 1], 2)]),
            Case::new("empty", to(&[0, 7]), vec![Tensor::wave(DType::I64, &[7, 0], 3)]),
        ]
    }
}
