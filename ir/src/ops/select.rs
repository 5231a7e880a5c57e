//! `where(condition, a, b)`: a where the condition holds, b elsewhere, with broadcasting.

use super::{
    Case, OpDef,
    elementwise::{indices, operands},
    shape_rules::{broadcast, strides_for},
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// a where the condition holds, b elsewhere, with NumPy broadcasting over all three.
    pub struct Where {}
}

impl OpDef for Where {
    const NAME: &'static str = "where";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [condition, a, b] = operands(inputs)?;
        if condition.dtype != DType::Bool || a.dtype != b.dtype {
            return Err(format!("takes a boolean and two operands of one type, not {condition}, {a}, {b}"));
        }
        Ok(vec![a.with_shape(broadcast(&[&condition.shape, &a.shape, &b.shape])?)])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let condition = inputs[0].to_i64();
        // Both branches in one pool, so that one selection of elements serves every type.
        let pool = Tensor::concat_flat(&[inputs[1], inputs[2]]);
        let walk = indices(&shape, [0, 1, 2].map(|i| strides_for(inputs[i].shape(), &shape)));
        let first = inputs[1].len();
        Ok(vec![pool.pick(&shape, walk.map(|[c, a, b]| if condition[c] != 0 { a } else { first + b }))])
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (condition, g) = (at.operand(0), at.cotangent()?);
        let zero = at.number(g, 0.0);
        let (a, b) = (at.op(Self {}, &[condition, g, zero])?, at.op(Self {}, &[condition, zero, g])?);
        at.give(1, a)?;
        at.give(2, b)
    }

    fn cases() -> Vec<Case> {
        let condition = Tensor::from_i64(DType::Bool, &[2, 1], &[1, 0]);
        let (a, b) = (Tensor::from_f32(&[2], vec![1.0, 2.0]), Tensor::from_f32(&[], vec![9.0]));
        let expect = Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 9.0, 9.0]);
        let mask = Tensor::from_i64(DType::Bool, &[65], &(0..65).map(|i| i % 3 % 2).collect::<Vec<_>>());
        vec![
            Case::known("known", Self {}, vec![condition, a, b], vec![expect]),
            Case::new(
                "f16",
                Self {},
                vec![mask, Tensor::wave(DType::F16, &[3, 65], 1), Tensor::wave(DType::F16, &[65], 2)],
            ),
        ]
    }
}
