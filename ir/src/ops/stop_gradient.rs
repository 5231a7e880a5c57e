//! `stop_gradient(x)`: x, as something that counts as given.

use super::{Case, Cost, OpDef, Tolerance, elementwise::operands};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x itself, through which no gradient goes. Moves nothing.
    pub struct StopGradient {}
}

impl OpDef for StopGradient {
    const NAME: &'static str = "stop_gradient";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, _: &[ValueType], _: &[ValueType]) -> Cost {
        Cost::default()
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<(), OpError> {
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2], vec![1.0, -2.0]);
        let wave = |dtype, shape: &[usize]| vec![Tensor::wave(dtype, shape, 1)];
        vec![
            Case::known("known", Self {}, vec![x.clone()], vec![x]),
            Case::new("rows_65", Self {}, wave(DType::F32, &[65, 3])),
            Case::new("bf16", Self {}, wave(DType::BF16, &[2, 63])),
        ]
    }
}
