//! `gelu(x) {approximate}`: the Gaussian error linear unit (Hendrycks and Gimpel 2016).

use super::{
    Case, Cost, OpDef,
    activation::Activation,
    elementwise::{infer_unary, map},
    traffic,
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::word_enum! {
    /// How Φ is computed.
    pub enum Approximate {
        /// By the error function.
        None = "none",
        /// By tanh(√(2/π) (x + 0.044715 x³)).
        Tanh = "tanh",
    }
}

crate::attributes! {
    /// x Φ(x), elementwise, Φ the normal distribution function.
    pub struct Gelu {
        /// How Φ is computed.
        pub approximate: Approximate = Approximate::None,
    }
}

impl Gelu {
    fn form(&self) -> Activation {
        match self.approximate {
            Approximate::None => Activation::Gelu,
            Approximate::Tanh => Activation::GeluTanh,
        }
    }
}

impl OpDef for Gelu {
    const NAME: &'static str = "gelu";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        infer_unary(inputs, false)
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let form = self.form();
        Ok(vec![map(inputs[0], results[0].dtype, |x| form.apply(x))])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 10.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, g) = (at.operand(0), at.cotangent()?);
        let part = self.form().vjp(at, x, g)?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = || Tensor::from_f32(&[3], vec![0.0, 1.0, -2.0]);
        let y = |v: [f64; 3]| vec![Tensor::from_f64(DType::F32, &[3], &v)];
        let known = [0.0, 0.841_344_746_068_542_9, -0.045_500_263_896_358_42];
        let tanh = [0.0, 0.841_191_990_608_276_6, -0.045_402_305_912_224_94];
        vec![
            Case::known("known", Self { approximate: Approximate::None }, vec![x()], y(known)),
            Case::known("known_tanh", Self { approximate: Approximate::Tanh }, vec![x()], y(tanh)),
            Case::new(
                "ragged_65",
                Self { approximate: Approximate::None },
                vec![Tensor::wave(DType::F32, &[3, 65], 1)],
            ),
            Case::new("bf16", Self { approximate: Approximate::Tanh }, vec![Tensor::wave(DType::BF16, &[2, 64], 2)]),
        ]
    }
}
