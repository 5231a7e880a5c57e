//! `attention(q, k, v) {scale, lse}`: softmax(scale·q kᵀ) v (Vaswani et al. 2017).

use rayon::prelude::*;

use super::{
    AttentionGrad, Case, Cost, OpDef, Tolerance,
    attention_codes::{self, Coded, Codes, blocks_of},
    elementwise::operands,
    softmax::softmax,
    traffic,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::word_enum! {
    /// What an attention of a reconstruction transformer looks over. Set by the pass `attention_kinds`; changes no
    /// result.
    pub enum AttentionKind {
        /// Not told apart yet, or a model without views.
        Unknown = "unknown",
        /// The tokens of one view in an image encoder without q/k norm and RoPE (DINOv2).
        Encoder = "encoder",
        /// The tokens of one view, with q/k norm or RoPE.
        Frame = "frame",
        /// The tokens of all views.
        Global = "global",
        /// One token a view: camera refinement.
        Camera = "camera",
    }
}

crate::attributes! {
    /// softmax(scale·q kᵀ) v: q [B, H, N, D], k [B, H, M, D], v [B, H, M, E], result [B, H, N, E], or
    /// [B, N, H·E] if `merged`; with `lse` also the natural logarithm of the sum of exponentials of every row of scores,
    /// f32 [B, H, N], from which a reverse pass has the weights again. No mask.
    pub struct Attention {
        /// What the products are multiplied by, usually D^(−1/2).
        pub scale: f64,
        /// What it looks over.
        pub kind: AttentionKind = AttentionKind::Unknown,
        /// How many views the sequence joins; its N tokens are `views` runs of N / `views`, special tokens first in
        /// each.
        pub views: Dim = 1,
        /// The runs of a sequence that the pass `token_layout` has ordered, as [`super::blocks`] reads them: all
        /// special tokens, then one run a view. Empty: as the model orders it. Changes no result; sparse attention
        /// cuts its blocks by it.
        pub runs: Vec<usize> = [],
        /// Whether the heads of the result stand side by side, as `merge_heads` puts them.
        pub merged: bool = false,
        /// What its products multiply, as [`super::attention_codes`] says; scales of keys are those of blocks of 128.
        pub codes: Codes = Codes::None,
        /// Whether the logarithms of the sums are a second result.
        pub lse: bool = false,
    }
}

impl Attention {
    /// Of unknown kind over one view.
    pub fn new(scale: f64) -> Self {
        Self {
            scale,
            kind: AttentionKind::Unknown,
            views: Dim::from(1),
            runs: Vec::new(),
            merged: false,
            codes: Codes::None,
            lse: false,
        }
    }
}

/// Sizes of an attention, checked.
pub struct Sizes {
    /// Batch.
    pub b: usize,
    /// Heads.
    pub h: usize,
    /// Queries.
    pub n: usize,
    /// Keys.
    pub m: usize,
    /// Width of queries and keys.
    pub d: usize,
    /// Width of values.
    pub e: usize,
}

impl Sizes {
    /// From q, k, v as evaluation sees them.
    pub fn of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self, String> {
        match (q.shape(), k.shape(), v.shape()) {
            (&[b, h, n, d], &[_, _, m, _], &[_, _, _, e]) => Ok(Self { b, h, n, m, d, e }),
            _ => Err("takes operands of rank 4".into()),
        }
    }

    /// A result, given as [B, H, N, E].
    pub fn result(&self, dtype: DType, out: &[f64], merged: bool) -> Tensor {
        let &Self { b, h, n, e, .. } = self;
        if !merged {
            return Tensor::from_f64(dtype, &[b, h, n, e], out);
        }
        let row = |at: usize| &out[((at / (n * h) * h + at % h) * n + at / h % n) * e..][..e];
        let out: Vec<f64> = (0..b * n * h).flat_map(|at| row(at).iter().copied()).collect();
        Tensor::from_f64(dtype, &[b, n, h * e], &out)
    }
}

/// The type of a result [B, H, N, E], or that of its heads side by side.
pub fn merge(out: ValueType, merged: bool) -> ValueType {
    match (out.shape.as_slice(), merged) {
        ([b, h, n, e], true) => out.with_shape([b.clone(), n.clone(), h.clone() * e.clone()]),
        _ => out,
    }
}

/// Checks q, k, v of any attention and returns [B, H, N, E].
pub fn infer_qkv(q: &ValueType, k: &ValueType, v: &ValueType) -> Result<ValueType, String> {
    let misfit = || format!("q [B,H,N,D], k [B,H,M,D], v [B,H,M,E] do not fit: {q}, {k}, {v}");
    if !q.dtype.is_float() || k.dtype != q.dtype || v.dtype != q.dtype {
        return Err(format!("q, k and v must share a floating-point type: {q}, {k}, {v}"));
    }
    let ([b, h, n, d], [bk, hk, m, dk], [bv, hv, mv, e]) = (q.shape.as_slice(), k.shape.as_slice(), v.shape.as_slice())
    else {
        return Err(misfit());
    };
    if [b, h, d] != [bk, hk, dk] || [bk, hk, m] != [bv, hv, mv] {
        return Err(misfit());
    }
    Ok(q.with_shape([b, h, n, e].map(Dim::clone)))
}

/// Refuses cotangents of logarithms of sums: they are for reverse passes alone.
pub fn residuals_only(at: &Vjp<'_>, slot: usize) -> Result<(), OpError> {
    match at.has_cotangent(slot) {
        true => Err(at.refuse("has no gradient of its logarithms of sums")),
        false => Ok(()),
    }
}

impl OpDef for Attention {
    const NAME: &'static str = "attention";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [q, k, v] = operands(inputs)?;
        let out = infer_qkv(q, k, v)?;
        let lse = ValueType::new(DType::F32, out.shape[..3].iter().cloned());
        let results = [merge(out, self.merged)].into_iter();
        Ok(results.chain(self.lse.then_some(lse)).collect())
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let s = Sizes::of(inputs[0], inputs[1], inputs[2])?;
        let Sizes { b, h, n, m, d, e } = s;
        let (mut q, mut k, mut v) = (inputs[0].to_f64(), inputs[1].to_f64(), inputs[2].to_f64());
        // What centring takes from the scores of a row.
        let mut taken = vec![0.0; b * h * n];
        if self.codes == Codes::E4m3 {
            let coded = Coded::of(&s, &q, &k, &v, &blocks_of(m, attention_codes::KEYS));
            taken = q.chunks(d.max(1)).enumerate().map(|(row, q)| self.scale * coded.taken(row / n, q)).collect();
            Coded { q, k, v, .. } = coded;
        }
        let (mut out, mut lse) = (vec![0.0; b * h * n * e], vec![0.0; b * h * n]);
        out.par_chunks_mut(e.max(1)).zip(&mut lse).enumerate().for_each(|(row, (o, lse))| {
            let (head, query) = (row / n, &q[row * d..][..d]);
            let key = |j: usize| &k[(head * m + j) * d..][..d];
            let mut p: Vec<f64> =
                (0..m).map(|j| self.scale * query.iter().zip(key(j)).map(|(a, b)| a * b).sum::<f64>()).collect();
            let top = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            *lse = top + p.iter().map(|p| (p - top).exp()).sum::<f64>().ln() + taken[row];
            softmax(&mut p);
            for (j, p) in p.iter().enumerate() {
                o.iter_mut().zip(&v[(head * m + j) * e..][..e]).for_each(|(o, v)| *o += p * v);
            }
        });
        let out = s.result(results[0].dtype, &out, self.merged);
        let lse = self.lse.then(|| Tensor::from_f64(DType::F32, &[b, h, n], &lse));
        Ok([out].into_iter().chain(lse).collect())
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let rows = results[0].elements().unwrap_or(0) as f64;
        let keys = inputs[1].shape[2].size().unwrap_or(0) as f64;
        let widths =
            inputs[1].shape[3].size().unwrap_or(0) as f64 / inputs[2].shape[3].size().unwrap_or(1).max(1) as f64;
        Cost { flops: 2.0 * rows * keys * (1.0 + widths), bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        match self.codes {
            Codes::None => Tolerance::ulps(result, 32.0),
            Codes::E4m3 => attention_codes::tolerance(),
        }
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        self.codes.none().map_err(|e| at.refuse(e))?;
        if !self.lse {
            return Err(at.refuse("needs its logarithms of sums for a gradient"));
        }
        residuals_only(at, 1)?;
        let [q, k, v] = [0, 1, 2].map(|i| at.operand(i));
        let (o, lse, g) = (at.result(0), at.result(1), at.cotangent()?);
        let op = AttentionGrad { scale: self.scale, merged: self.merged };
        let parts = at.ops(op, &[q, k, v, o, lse, g])?;
        parts.into_iter().enumerate().try_for_each(|(i, part)| at.give(i, part))
    }

    fn with_residuals(&self) -> Option<Self> {
        (!self.lse).then(|| Self { lse: true, ..self.clone() })
    }

    fn cases() -> Vec<Case> {
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        let qkv = |dtype, b, h, n, m, d| {
            vec![wave(dtype, &[b, h, n, d], 1), wave(dtype, &[b, h, m, d], 2), wave(dtype, &[b, h, m, d], 3)]
        };
        let uniform = vec![
            Tensor::from_f32(&[1, 1, 1, 1], vec![0.0]),
            Tensor::from_f32(&[1, 1, 2, 1], vec![5.0, -5.0]),
            Tensor::from_f32(&[1, 1, 2, 1], vec![1.0, 3.0]),
        ];
        let mean = Tensor::from_f32(&[1, 1, 1, 1], vec![2.0]);
        let both = vec![mean.clone(), Tensor::from_f32(&[1, 1, 1], vec![2f32.ln()])];
        let mut cases = vec![
            Case::known("known", Self::new(1.0), uniform.clone(), vec![mean]),
            Case::known("known_lse", Self { lse: true, ..Self::new(1.0) }, uniform, both),
        ];
        for (name, n, m, d) in [
            ("one", 1, 1, 64),
            ("below_64", 63, 63, 64),
            ("at_64", 64, 64, 64),
            ("above_64", 65, 65, 32),
            ("cross", 3, 130, 128),
            ("frame_1374", 1374, 1374, 32),
        ] {
            cases.push(Case::new(
                name,
                Self::new((d as f64).powf(-0.5)),
                qkv(DType::F32, 1, if n > 1000 { 1 } else { 2 }, n, m, d),
            ));
        }
        let merged = |scale| Self { merged: true, ..Self::new(scale) };
        cases.push(Case::new("merged", merged(0.2), qkv(DType::F32, 2, 3, 65, 63, 24)));
        for (name, n, m, d) in [("merged_bf16", 94, 1374, 64), ("merged_wide", 65, 130, 128), ("merged_few", 3, 70, 64)]
        {
            cases.push(Case::new(name, merged(0.125), qkv(DType::BF16, 2, 3, n, m, d)));
        }
        cases.push(Case::new("merged_f16", merged(0.125), qkv(DType::F16, 2, 2, 65, 65, 64)));
        cases.push(Case::new("bf16", Self::new(0.125), qkv(DType::BF16, 2, 1, 65, 65, 64)));
        cases.push(Case::new("bf16_1374", Self::new(0.125), qkv(DType::BF16, 1, 2, 1374, 1374, 64)));
        cases.push(Case::new("bf16_wide", Self::new(0.09), qkv(DType::BF16, 1, 2, 130, 257, 128)));
        cases.push(Case::new("f16", Self::new(0.125), qkv(DType::F16, 1, 2, 63, 70, 64)));
        for (name, dtype, n, m, d, merged) in [
            ("lse", DType::F32, 65, 130, 32, false),
            ("lse_bf16", DType::BF16, 94, 300, 64, true),
            ("lse_wide", DType::BF16, 63, 257, 128, false),
        ] {
            let op = Self { merged, lse: true, ..Self::new((d as f64).powf(-0.5)) };
            cases.push(Case::new(name, op, qkv(dtype, 1, 2, n, m, d)));
        }
        for (name, n, m, d, merged) in [
            ("codes_below_64", 63, 63, 64, false),
            ("codes_65", 65, 65, 64, true),
            ("codes_cross", 94, 300, 64, false),
            ("codes_1374", 1374, 1374, 64, true),
            ("codes_wide", 130, 257, 128, true),
        ] {
            let op = Self { merged, codes: Codes::E4m3, lse: !merged, ..Self::new((d as f64).powf(-0.5)) };
            let mut inputs = qkv(DType::BF16, if n > 1000 { 1 } else { 2 }, 2, n, m, d);
            // Keys that have something in common, as those of models do.
            let keys: Vec<f64> = inputs[1].to_f64().iter().enumerate().map(|(i, k)| k + (i % d % 5) as f64).collect();
            inputs[1] = Tensor::from_f64(DType::BF16, inputs[1].shape(), &keys);
            cases.push(Case::new(name, op, inputs));
        }
        cases
    }
}
