//! `attention_grad(q, k, v, o, lse, do) {scale, merged}`: the cotangents of q, k and v of `attention` (Dao et al. 2022).

use rayon::prelude::*;

use super::{
    Attention, Case, Cost, OpDef, Tolerance,
    attention::{Sizes, infer_qkv, merge},
    blocks::dot,
    elementwise::operands,
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// q [B, H, N, D], k [B, H, M, D], v [B, H, M, E]; o [B, H, N, E], or [B, N, H·E] if `merged`, and lse f32
    /// [B, H, N], the results of `attention` of them; do, the cotangent of o and of its type. To dq, dk and dv of the
    /// types of q, k and v: with P = exp(scale·q kᵀ − lse), δ = rowsum(do ∘ o) and dS = P ∘ (do vᵀ − δ),
    ///
    /// dq = scale·dS k, dk = scale·dSᵀ q, dv = Pᵀ do.
    ///
    /// Sums are wide.
    pub struct AttentionGrad {
        /// What the products are multiplied by.
        pub scale: f64,
        /// Whether the heads of o stand side by side.
        pub merged: bool = false,
    }
}

/// Checks o, lse and do behind q, k, v of any attention.
pub fn infer_results(qkv: [&ValueType; 3], [o, lse, g]: [&ValueType; 3], merged: bool) -> Result<(), String> {
    let result = infer_qkv(qkv[0], qkv[1], qkv[2])?;
    let sums = ValueType::new(DType::F32, result.shape[..3].iter().cloned());
    let result = merge(result, merged);
    match (o == &result, g == &result, lse == &sums) {
        (true, true, true) => Ok(()),
        _ => Err(format!("o and do must be {result} and lse {sums}, not {o}, {g} and {lse}")),
    }
}

/// A result of attention as [B, H, N, E].
pub fn by_heads(x: &Tensor, s: &Sizes, merged: bool) -> Vec<f64> {
    let (x, &Sizes { b, h, n, e, .. }) = (x.to_f64(), s);
    if !merged {
        return x;
    }
    let row = |at: usize| &x[((at / (h * n) * n + at % n) * h + at / n % h) * e..][..e];
    (0..b * h * n).flat_map(|at| row(at).iter().copied()).collect()
}

/// One query with what comes back to it.
pub struct Query<'a> {
    /// Its row of q.
    pub q: &'a [f64],
    /// Its row of do.
    pub g: &'a [f64],
    /// Its logarithm of the sum of exponentials.
    pub lse: f64,
    /// δ, the product of its rows of do and o.
    pub delta: f64,
}

impl Query<'_> {
    /// Adds to dq, dk and dv what comes from one key, whose score has `bias` added.
    pub fn give(&self, scale: f64, bias: f64, [k, v]: [&[f64]; 2], [dq, dk, dv]: [&mut [f64]; 3]) {
        let add = |to: &mut [f64], weight: f64, x: &[f64]| to.iter_mut().zip(x).for_each(|(t, x)| *t += weight * x);
        let p = (scale * dot(self.q, k) + bias - self.lse).exp();
        let ds = scale * p * (dot(self.g, v) - self.delta);
        add(dq, ds, k);
        add(dk, ds, self.q);
        add(dv, p, self.g);
    }
}

/// Of gradients of attentions. Weights and their cotangents may be rounded to the type of operands ahead of a product; and
/// where a query has one key, dS is what rounding leaves of a difference of equals.
pub fn tolerance(result: DType) -> Tolerance {
    let relative = Tolerance::ulps(result, if result == DType::F32 { 64.0 } else { 16.0 }).relative;
    Tolerance { absolute: relative / 8.0, relative }
}

impl OpDef for AttentionGrad {
    const NAME: &'static str = "attention_grad";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [q, k, v, o, lse, g] = operands(inputs)?;
        infer_results([q, k, v], [o, lse, g], self.merged)?;
        Ok(vec![q.clone(), k.clone(), v.clone()])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let s = Sizes::of(inputs[0], inputs[1], inputs[2])?;
        let Sizes { b, h, n, m, d, e } = s;
        let [q, k, v, lse] = [0, 1, 2, 4].map(|at| inputs[at].to_f64());
        let [o, g] = [3, 5].map(|at| by_heads(inputs[at], &s, self.merged));
        let head = |head: usize| {
            let (mut dq, mut dk, mut dv) = (vec![0.0; n * d], vec![0.0; m * d], vec![0.0; m * e]);
            for i in 0..n {
                let row = head * n + i;
                let (o, g) = (&o[row * e..][..e], &g[row * e..][..e]);
                let query = Query { q: &q[row * d..][..d], g, lse: lse[row], delta: dot(o, g) };
                for j in 0..m {
                    let (k, v) = (&k[(head * m + j) * d..][..d], &v[(head * m + j) * e..][..e]);
                    let to = [&mut dq[i * d..][..d], &mut dk[j * d..][..d], &mut dv[j * e..][..e]];
                    query.give(self.scale, 0.0, [k, v], to);
                }
            }
            [dq, dk, dv]
        };
        let heads: Vec<[Vec<f64>; 3]> = (0..b * h).into_par_iter().map(head).collect();
        joined(&heads, results)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let size = |at: usize| inputs[2].shape[at].size().unwrap_or(0) as f64;
        let scores = inputs[4].elements().unwrap_or(0) as f64 * size(2);
        let d = inputs[0].shape[3].size().unwrap_or(0) as f64;
        Cost { flops: 2.0 * scores * (3.0 * d + 2.0 * size(3)), bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        tolerance(result)
    }

    fn cases() -> Vec<Case> {
        let line = |v: Vec<f32>| Tensor::from_f32(&[1, 1, v.len(), 1], v);
        let known = vec![
            line(vec![0.0]),
            line(vec![5.0, -5.0]),
            line(vec![1.0, 3.0]),
            line(vec![2.0]),
            Tensor::from_f32(&[1, 1, 1], vec![2f32.ln()]),
            line(vec![1.0]),
        ];
        let expect = vec![line(vec![-5.0]), line(vec![0.0, 0.0]), line(vec![0.5, 0.5])];
        let mut cases = vec![Case::known("known", Self { scale: 1.0, merged: false }, known, expect)];
        for (name, dtype, [b, h, n, m, d, e], merged) in [
            ("one", DType::F32, [1, 2, 1, 1, 64, 64], false),
            ("below_64", DType::F32, [1, 2, 63, 63, 64, 64], true),
            ("at_64", DType::F32, [1, 2, 64, 64, 64, 64], false),
            ("above_64", DType::F32, [2, 2, 65, 65, 32, 32], true),
            ("cross", DType::F32, [1, 2, 3, 130, 128, 128], false),
            ("narrow_values", DType::F32, [1, 1, 65, 70, 24, 20], false),
            ("frame_1374", DType::F32, [1, 1, 1374, 1374, 32, 32], false),
            ("bf16", DType::BF16, [2, 1, 65, 65, 64, 64], false),
            ("bf16_one", DType::BF16, [1, 2, 1, 1, 64, 64], true),
            ("bf16_at_64", DType::BF16, [1, 1, 64, 63, 64, 64], false),
            ("bf16_heads", DType::BF16, [45, 3, 129, 65, 64, 64], true),
            ("bf16_merged", DType::BF16, [2, 3, 94, 300, 64, 64], true),
            ("bf16_wide", DType::BF16, [1, 2, 130, 257, 128, 128], false),
            ("bf16_32", DType::BF16, [1, 2, 63, 129, 32, 32], true),
            ("bf16_1374", DType::BF16, [1, 1, 1374, 1374, 64, 64], true),
            ("f16", DType::F16, [1, 2, 63, 70, 64, 64], true),
        ] {
            let op = Self { scale: (d as f64).powf(-0.5), merged };
            let wave = |shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
            let mut inputs = vec![wave(&[b, h, n, d], 1), wave(&[b, h, m, d], 2), wave(&[b, h, m, e], 3)];
            let forward = Attention { merged, lse: true, ..Attention::new(op.scale) };
            inputs.extend(forward_of(&forward, &inputs));
            inputs.push(wave(inputs[3].shape(), 4));
            cases.push(Case::new(name, op, inputs));
        }
        cases
    }
}

/// The results of an operation, for cases of its gradient.
pub fn forward_of(op: &impl OpDef, inputs: &[Tensor]) -> Vec<Tensor> {
    let types: Vec<ValueType> = inputs.iter().map(Tensor::value_type).collect();
    let results = op.infer(&types).expect("cases fit");
    op.eval(&inputs.iter().collect::<Vec<_>>(), &results).expect("cases fit")
}

/// The parts of all heads, one after the other, as results.
pub fn joined<const N: usize>(heads: &[[Vec<f64>; N]], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
    let part = |(slot, ty): (usize, &ValueType)| {
        let values: Vec<f64> = heads.iter().flat_map(|parts| parts[slot].iter().copied()).collect();
        Ok(Tensor::from_f64(ty.dtype, &ty.dims().ok_or("needs static shapes")?, &values))
    };
    results.iter().enumerate().map(part).collect()
}
