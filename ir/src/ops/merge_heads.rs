//! `merge_heads(x)`: heads side by side again.

use super::{
    Case, Cost, OpDef, SplitHeads, Tolerance,
    elementwise::{indices, operands},
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x [B, H, N, D] as [B, N, H·D].
    pub struct MergeHeads {}
}

impl OpDef for MergeHeads {
    const NAME: &'static str = "merge_heads";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        let [b, h, n, d] = x.shape.as_slice() else { return Err(format!("takes [B, H, N, D], not {x}")) };
        Ok(vec![x.with_shape([b.clone(), n.clone(), h.clone() * d.clone()])])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let &[b, h, n, d] = inputs[0].shape() else { return Err("takes [B, H, N, D]".into()) };
        let walk = indices(&[b, n, h, d], [vec![h * n * d, d, n * d, 1]]);
        Ok(vec![inputs[0].pick(&results[0].dims().ok_or("needs static shapes")?, walk.map(|[i]| i))])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 0.0, bytes: super::traffic(inputs, results) }
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (heads, g) = (at.dims(at.operand(0))?[1], at.cotangent()?);
        let part = at.op(SplitHeads { parts: 1, heads }, &[g])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[1, 2, 2, 1], vec![1.0, 2.0, 3.0, 4.0]);
        vec![
            Case::known("known", Self {}, vec![x], vec![Tensor::from_f32(&[1, 2, 2], vec![1.0, 3.0, 2.0, 4.0])]),
            Case::new("tokens_65", Self {}, vec![Tensor::wave(DType::F32, &[2, 3, 65, 64], 1)]),
            Case::new("bf16", Self {}, vec![Tensor::wave(DType::BF16, &[1, 2, 1, 32], 1)]),
        ]
    }
}
