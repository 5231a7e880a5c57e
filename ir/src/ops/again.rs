//! `again(x) {copy}`: x, as something that is computed from it once more reads it.

use super::{Case, Cost, OpDef, Tolerance, elementwise::operands};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x itself. Two equal expressions of x are one to the compiler; what reads `again(x)` stays apart, so that a value
    /// can be computed a second time in place of being kept, and as late as it is needed. Moves nothing.
    pub struct Again {
        /// Which copy of what is computed.
        pub copy: usize = 0usize,
    }
}

impl OpDef for Again {
    const NAME: &'static str = "again";

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

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        at.give(0, g)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2], vec![1.0, -2.0]);
        let wave = |dtype, shape: &[usize]| vec![Tensor::wave(dtype, shape, 1)];
        vec![
            Case::known("known", Self { copy: 0 }, vec![x.clone()], vec![x]),
            Case::new("rows_65", Self { copy: 1 }, wave(DType::F32, &[65, 3])),
            Case::new("bf16", Self { copy: 1 }, wave(DType::BF16, &[2, 63])),
        ]
    }
}
