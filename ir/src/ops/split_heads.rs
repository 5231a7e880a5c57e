//! `split_heads(x) {parts, heads}`: the result of a joint projection as one tensor a part, heads in front.

use super::{
    Case, Concat, Cost, MergeHeads, OpDef, Tolerance,
    elementwise::{indices, operands},
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x [B, N, parts·heads·D], columns ordered (part, head, d), as `parts` results [B, heads, N, D].
    pub struct SplitHeads {
        /// How many tensors the projection holds: 3 for q, k, v.
        pub parts: usize,
        /// Heads.
        pub heads: usize,
    }
}

impl OpDef for SplitHeads {
    const NAME: &'static str = "split_heads";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        let [b, n, c] = x.shape.as_slice() else { return Err(format!("takes [B, N, C], not {x}")) };
        let d = c.divide(&Dim::from(self.parts * self.heads)).filter(|_| self.parts * self.heads > 0);
        let d = d.ok_or_else(|| format!("{c} columns are not {} parts of {} heads", self.parts, self.heads))?;
        let part = x.with_shape([b.clone(), Dim::from(self.heads), n.clone(), d]);
        Ok(vec![part; self.parts])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let [_, h, n, d] = shape[..] else { return Err("takes [B, N, C]".into()) };
        let row = self.parts * h * d;
        let part = |p: usize| {
            inputs[0].pick(&shape, indices(&shape, [vec![n * row, d, row, 1]]).map(move |[i]| i + p * h * d))
        };
        Ok((0..self.parts).map(part).collect())
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 0.0, bytes: super::traffic(inputs, results) }
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let parts: Vec<Value> = (0..self.parts).map(|part| at.cotangent_of(part)).collect::<Result<_, _>>()?;
        let merged: Vec<Value> = parts.iter().map(|part| at.op(MergeHeads {}, &[*part])).collect::<Result<_, _>>()?;
        let whole = if merged.len() == 1 { merged[0] } else { at.op(Concat { axis: 2 }, &merged)? };
        at.give(0, whole)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let part = |v: Vec<f32>| Tensor::from_f32(&[1, 1, 2, 1], v);
        vec![
            Case::known(
                "known",
                Self { parts: 2, heads: 1 },
                vec![x],
                vec![part(vec![1.0, 3.0]), part(vec![2.0, 4.0])],
            ),
            Case::new("qkv", Self { parts: 3, heads: 3 }, vec![Tensor::wave(DType::F32, &[2, 65, 576], 1)]),
            Case::new("one_token", Self { parts: 3, heads: 2 }, vec![Tensor::wave(DType::F16, &[1, 1, 192], 1)]),
        ]
    }
}
