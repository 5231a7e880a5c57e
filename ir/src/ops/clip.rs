//! `clip(x) {min, max}`: x limited to an interval.

use super::{
    Case, Equal, OpDef, Where,
    elementwise::{infer_unary, map},
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// min(max(x, min), max), elementwise.
    pub struct Clip {
        /// The lower end.
        pub min: f64 = f64::NEG_INFINITY,
        /// The upper end.
        pub max: f64 = f64::INFINITY,
    }
}

impl OpDef for Clip {
    const NAME: &'static str = "clip";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        if self.min > self.max || self.min.is_nan() || self.max.is_nan() {
            return Err(format!("the interval from {} to {} is empty", self.min, self.max));
        }
        infer_unary(inputs, true)
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Ok(vec![map(inputs[0], results[0].dtype, |x| x.max(self.min).min(self.max))])
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, g) = (at.operand(0), at.cotangent()?);
        let inside = at.op(Self { min: self.min, max: self.max }, &[x])?;
        let inside = at.op(Equal {}, &[x, inside])?;
        let zero = at.number(g, 0.0);
        let part = at.op(Where {}, &[inside, g, zero])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[3], vec![-2.0, 0.5, 7.0]);
        vec![
            Case::known(
                "both",
                Self { min: 0.0, max: 1.0 },
                vec![x.clone()],
                vec![Tensor::from_f32(&[3], vec![0.0, 0.5, 1.0])],
            ),
            Case::known(
                "below",
                Self { min: 1e-6, max: f64::INFINITY },
                vec![x],
                vec![Tensor::from_f32(&[3], vec![1e-6, 0.5, 7.0])],
            ),
            Case::new("ragged_65", Self { min: -0.25, max: 0.25 }, vec![Tensor::wave(DType::F32, &[3, 65], 1)]),
        ]
    }
}
