//! `block_attention_grad(q, k, v, idx, cnt, lists, [ck, cv], o, lse, do)`: the cotangents of the floating-point operands of
//! `block_attention`.

use rayon::prelude::*;

use super::{
    BlockAttention, BlockMean, BlockTranspose, Case, Cost, OpDef, Tolerance,
    attention::Sizes,
    attention_grad::{Query, by_heads, forward_of, infer_results, joined, tolerance},
    block_transpose::infer_transpose,
    blocks::{Blocks, checkered, dot, lists},
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// The operands q, k, v, idx, cnt of `block_attention`; the `block_transpose` of idx and cnt; ck and cv if it has
    /// centroids; its results o and lse; do, the cotangent of o. To dq, dk, dv, and dck, dcv if it has centroids, of the
    /// types of what they belong to, by the law of `attention_grad` over the keys that a query has there: those of listed
    /// blocks, and the centroids outside of them with ln n added to their scores.
    ///
    /// What k and v get by way of their means is not in dk and dv: that is the gradient of `block_mean`.
    pub struct BlockAttentionGrad {
        /// Tokens a query block.
        pub block_q: usize,
        /// Tokens a key block.
        pub block_k: usize,
        /// What the products are multiplied by.
        pub scale: f64,
        /// Lengths of the runs that no block crosses; the last is repeated. Empty: one run.
        pub runs: Vec<usize> = [],
        /// Tokens a centroid; 0: there are none.
        pub centroid: usize = 0usize,
        /// Whether the heads of o stand side by side.
        pub merged: bool = false,
    }
}

impl BlockAttentionGrad {
    /// Of an attention over the same lists.
    pub fn of(op: &BlockAttention) -> Self {
        let BlockAttention { block_q, block_k, scale, ref runs, centroid, merged, .. } = *op;
        Self { block_q, block_k, scale, runs: runs.clone(), centroid, merged }
    }

    /// The attention whose gradient this is.
    pub fn forward(&self) -> BlockAttention {
        let Self { block_q, block_k, scale, ref runs, centroid, merged } = *self;
        BlockAttention { runs: runs.clone(), centroid, merged, ..BlockAttention::new(block_q, block_k, scale) }
    }

    /// Which operand is o; lse and do follow.
    pub fn results_at(&self) -> usize {
        if self.centroid > 0 { 8 } else { 6 }
    }
}

impl OpDef for BlockAttentionGrad {
    const NAME: &'static str = "block_attention_grad";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let at = self.results_at();
        if inputs.len() != at + 3 {
            return Err(format!("takes {} operands, not {}", at + 3, inputs.len()));
        }
        let centroids = &inputs[6..at];
        self.forward().infer(&[&inputs[..5], centroids].concat())?;
        infer_results(
            [&inputs[0], &inputs[1], &inputs[2]],
            [&inputs[at], &inputs[at + 1], &inputs[at + 2]],
            self.merged,
        )?;
        let transpose = infer_transpose(&inputs[3], Blocks::of(&inputs[1], &self.runs, self.block_k)?.len())?;
        if inputs[5] != transpose {
            return Err(format!("the transpose of the lists must be {transpose}, not {}", inputs[5]));
        }
        Ok([&inputs[..3], centroids].concat())
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let s = Sizes::of(inputs[0], inputs[1], inputs[2])?;
        let Sizes { b, h, n, m, d, e } = s;
        let at = self.results_at();
        let queries = Blocks::cut(n, &self.runs, self.block_q)?;
        let keys = Blocks::cut(m, &self.runs, self.block_k)?;
        let lists = lists(inputs[3], inputs[4], keys.len())?;
        let [q, k, v, lse] = [0, 1, 2, at + 1].map(|at| inputs[at].to_f64());
        let [o, g] = [at, at + 2].map(|at| by_heads(inputs[at], &s, self.merged));
        let coarse = match self.centroid {
            0 => Blocks::cut(0, &[], 1)?,
            size => Blocks::cut(m, &self.runs, size)?,
        };
        let centroid = |at: usize| if self.centroid > 0 { inputs[at].to_f64() } else { Vec::new() };
        let (ck, cv, c) = (centroid(6), centroid(7), coarse.len());
        let head = |head: usize| {
            let zeros = [n * d, m * d, m * e, c * d, c * e].map(|size| vec![0.0; size]);
            let [mut dq, mut dk, mut dv, mut dck, mut dcv] = zeros;
            for (block, tokens) in queries.tokens.iter().enumerate() {
                let list = &lists[head * queries.len() + block];
                let mut skipped = vec![true; c];
                list.iter().flat_map(|j| coarse.overlapping(&keys.tokens[*j])).for_each(|c| skipped[c] = false);
                for i in tokens.clone() {
                    let row = head * n + i;
                    let (o, g) = (&o[row * e..][..e], &g[row * e..][..e]);
                    let query = Query { q: &q[row * d..][..d], g, lse: lse[row], delta: dot(o, g) };
                    for j in list.iter().flat_map(|j| keys.tokens[*j].clone()) {
                        let (k, v) = (&k[(head * m + j) * d..][..d], &v[(head * m + j) * e..][..e]);
                        let to = [&mut dq[i * d..][..d], &mut dk[j * d..][..d], &mut dv[j * e..][..e]];
                        query.give(self.scale, 0.0, [k, v], to);
                    }
                    for j in (0..c).filter(|j| skipped[*j]) {
                        let (k, v) = (&ck[(head * c + j) * d..][..d], &cv[(head * c + j) * e..][..e]);
                        let to = [&mut dq[i * d..][..d], &mut dck[j * d..][..d], &mut dcv[j * e..][..e]];
                        query.give(self.scale, (coarse.tokens[j].len() as f64).ln(), [k, v], to);
                    }
                }
            }
            [dq, dk, dv, dck, dcv]
        };
        joined(&(0..b * h).into_par_iter().map(head).collect::<Vec<_>>(), results)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let size = |t: &ValueType, at: usize| t.shape[at].size().unwrap_or(0) as f64;
        let centroids = if self.centroid > 0 { size(&inputs[6], 2) } else { 0.0 };
        let keys = (size(&inputs[3], 3) * self.block_k as f64).min(size(&inputs[1], 2)) + centroids;
        let rows = size(&inputs[0], 0) * size(&inputs[0], 1) * size(&inputs[0], 2);
        let widths = 3.0 * size(&inputs[0], 3) + 2.0 * size(&inputs[2], 3);
        Cost { flops: 2.0 * rows * keys * widths, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        tolerance(result)
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (name, dtype, [n, d], [block_q, block_k], runs, centroid, merged) in [
            ("one", DType::F32, [1, 64], [64, 64], &[][..], 0, false),
            ("below_64", DType::F32, [63, 64], [64, 16], &[], 0, true),
            ("at_64", DType::F32, [64, 64], [64, 16], &[], 16, false),
            ("above_64", DType::F32, [65, 32], [64, 64], &[], 0, false),
            ("centroids_65", DType::F32, [65, 64], [64, 16], &[5, 20], 16, true),
            ("fine_centroids", DType::F32, [190, 64], [64, 64], &[10, 90], 16, false),
            ("narrow_queries", DType::F32, [130, 24], [32, 16], &[10, 60], 8, true),
            ("frame_1374_centroids", DType::F32, [1374, 32], [64, 16], &[5, 1369], 16, false),
            ("bf16_runs", DType::BF16, [605, 64], [64, 64], &[5, 300], 0, true),
            ("bf16_centroids", DType::BF16, [605, 64], [64, 64], &[5, 100], 16, false),
            ("bf16_wide", DType::BF16, [190, 128], [128, 32], &[], 32, true),
            ("f16", DType::F16, [130, 64], [64, 16], &[10, 60], 16, true),
        ] {
            let op = Self { block_q, block_k, scale: (d as f64).powf(-0.5), runs: runs.into(), centroid, merged };
            let wave = |shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
            let count = |size| Blocks::cut(n, runs, size).map_or(0, |b| b.len());
            let (idx, cnt) = checkered(2, count(block_q), count(block_k));
            let transpose = forward_of(&BlockTranspose { blocks: count(block_k) }, &[idx.clone(), cnt.clone()]);
            let mut inputs: Vec<Tensor> = (1..4).map(|seed| wave(&[1, 2, n, d], seed)).collect();
            let mean = BlockMean { block: centroid, runs: runs.into() };
            let means = |x: &Tensor| if centroid > 0 { forward_of(&mean, std::slice::from_ref(x)) } else { Vec::new() };
            let centroids = [means(&inputs[1]), means(&inputs[2])].concat();
            inputs.extend([idx, cnt]);
            let results = forward_of(&op.forward(), &[inputs.clone(), centroids.clone()].concat());
            let cotangent = wave(results[0].shape(), 4);
            cases.push(Case::new(name, op, [inputs, transpose, centroids, results, vec![cotangent]].concat()));
        }
        cases
    }
}
