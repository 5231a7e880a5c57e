//! `cast(x) {to}`: the same numbers in another element type.

use super::{Case, OpDef, Tolerance, elementwise::operands};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// The same numbers in another element type: floats round to nearest even (saturating in the 8-bit formats),
    /// floats to integers truncate, anything but zero is true.
    pub struct Cast {
        /// The new element type.
        pub to: DType,
    }
}

impl OpDef for Cast {
    const NAME: &'static str = "cast";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        Ok(vec![x.with_dtype(self.to)])
    }

    fn eval(&self, inputs: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Ok(vec![inputs[0].cast(self.to)])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        at.give(0, g)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[4], vec![-1.5, 0.0, 2.75, 300.0]);
        let known =
            |name, to, y: &[f64]| Case::known(name, Self { to }, vec![x.clone()], vec![Tensor::from_f64(to, &[4], y)]);
        vec![
            known("to_i64", DType::I64, &[-1.0, 0.0, 2.0, 300.0]),
            known("to_bool", DType::Bool, &[1.0, 0.0, 1.0, 1.0]),
            known("to_f8e4m3", DType::F8E4M3, &[-1.5, 0.0, 2.75, 288.0]),
            Case::new("f32_to_bf16", Self { to: DType::BF16 }, vec![Tensor::wave(DType::F32, &[1374], 1)]),
            Case::new("f32_to_f16", Self { to: DType::F16 }, vec![Tensor::wave(DType::F32, &[65], 2)]),
            Case::new("bf16_to_f32", Self { to: DType::F32 }, vec![Tensor::wave(DType::BF16, &[63], 3)]),
            Case::new("i64_to_f32", Self { to: DType::F32 }, vec![Tensor::from_i64(DType::I64, &[2], &[3, -4])]),
        ]
    }
}
