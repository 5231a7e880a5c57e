//! `self_attention(x) {heads, scale}`: attention within a joint projection.

use super::{Attention, Case, Cost, MergeHeads, OpDef, SplitHeads, Tolerance, attention::AttentionKind, traffic};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// x [B, N, 3·heads·D] as [B, N, heads·D]: `split_heads {parts=3}`, `attention` of q, k and v, `merge_heads`;
    /// rounded once.
    pub struct SelfAttention {
        /// Heads.
        pub heads: usize,
        /// What the products are multiplied by, usually D^(−1/2).
        pub scale: f64,
        /// What it looks over.
        pub kind: AttentionKind = AttentionKind::Unknown,
        /// How many views the sequence joins.
        pub views: Dim = 1,
    }
}

impl OpDef for SelfAttention {
    const NAME: &'static str = "self_attention";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let parts = SplitHeads { parts: 3, heads: self.heads }.infer(inputs)?;
        MergeHeads {}.infer(&Attention::new(self.scale).infer(&parts)?)
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let x = inputs[0].cast(DType::F64);
        let split = SplitHeads { parts: 3, heads: self.heads };
        let parts = split.eval(&[&x], &split.infer(&[x.value_type()])?)?;
        let op = Attention::new(self.scale);
        let types: Vec<ValueType> = parts.iter().map(Tensor::value_type).collect();
        let y = op.eval(&parts.iter().collect::<Vec<_>>(), &op.infer(&types)?)?;
        let merged = MergeHeads {}.eval(&[&y[0]], &[results[0].with_dtype(DType::F64)])?;
        Ok(merged.into_iter().map(|y| y.cast(results[0].dtype)).collect())
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let tokens = inputs[0].shape[1].size().unwrap_or(0) as f64;
        let elements = results[0].elements().unwrap_or(0) as f64;
        Cost { flops: 4.0 * elements * tokens, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Attention::new(self.scale).tolerance(result)
    }

    fn cases() -> Vec<Case> {
        let of = |heads, scale| Self { heads, scale, kind: AttentionKind::Unknown, views: Dim::from(1) };
        // One key: its value, whatever the scores.
        let known = Case::known(
            "known",
            of(2, 1.0),
            vec![Tensor::from_f32(&[1, 1, 6], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])],
            vec![Tensor::from_f32(&[1, 1, 2], vec![5.0, 6.0])],
        );
        let mut cases = vec![known];
        for (name, [b, n, heads, d], dtype) in [
            ("cameras", [1, 2, 3, 128], DType::F32),
            ("ragged_65", [2, 65, 2, 64], DType::F32),
            ("views_33", [1, 33, 2, 40], DType::BF16),
            ("views_100", [1, 100, 1, 20], DType::F16),
        ] {
            let x = Tensor::wave(dtype, &[b, n, 3 * heads * d], 1);
            cases.push(Case::new(name, of(heads, (d as f64).powf(-0.5)), vec![x]));
        }
        cases
    }
}
