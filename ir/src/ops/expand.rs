//! `expand(x) {shape}`: x broadcast to a shape.

use super::{
    Case, OpDef, Tolerance,
    elementwise::{indices, operands},
    shape_rules::{broadcast, strides_for},
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x broadcast to `shape` (NumPy broadcast_to).
    pub struct Expand {
        /// The shape of the result.
        pub shape: Vec<Dim>,
    }
}

impl OpDef for Expand {
    const NAME: &'static str = "expand";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if broadcast(&[&x.shape, &self.shape])? != self.shape {
            return Err(format!("{x} does not broadcast to {}", x.with_shape(self.shape.clone())));
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let walk = indices(&shape, [strides_for(inputs[0].shape(), &shape)]);
        Ok(vec![inputs[0].pick(&shape, walk.map(|[i]| i))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        at.give(0, g)
    }

    fn cases() -> Vec<Case> {
        let to = |shape: &[usize]| Self { shape: shape.iter().map(|d| (*d).into()).collect() };
        let x = Tensor::from_f32(&[2, 1], vec![1.0, 2.0]);
        vec![
            Case::known("known", to(&[2, 2]), vec![x], vec![Tensor::from_f32(&[2, 2], vec![1.0, 1.0, 2.0, 2.0])]),
            Case::new("tokens", to(&[3, 5, 64]), vec![Tensor::wave(DType::F32, &[1, 5, 64], 1)]),
            Case::new("scalar", to(&[65]), vec![Tensor::wave(DType::F16, &[], 1)]),
            Case::new("empty", to(&[0, 4]), vec![Tensor::wave(DType::F32, &[1, 4], 1)]),
        ]
    }
}
