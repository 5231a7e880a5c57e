//! `block_attention(q, k, v, idx, cnt, [ck, cv]) {block_q, block_k, scale}`: softmax attention over listed key blocks.

use rayon::prelude::*;

use super::{
    BlockAttentionGrad, BlockTranspose, Case, Cost, OpDef, Tolerance,
    attention::{AttentionKind, Sizes, infer_qkv, merge, residuals_only},
    attention_codes::{self, Coded, Codes},
    block_mean::BlockMean,
    blocks::{Blocks, Head, checkered, dot, infer_lists, lists},
    traffic,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// q [B, H, N, D], k [B, H, M, D], v [B, H, M, E] and the lists of `block_route` to o [B, H, N, E] and lse f32
    /// [B, H, N]. A row of query block i takes the softmax of scale·q·k over the keys of the blocks in list i and the
    /// mean of their values under it; lse is the natural logarithm of its sum of exponentials.
    ///
    /// With `centroid` = c there are operands ck [B, H, C, D] and cv [B, H, C, E], the `block_mean` of k and v over
    /// blocks of c tokens under the same runs. Every centroid outside the listed key blocks enters the same softmax as
    /// one more key with score scale·q·ck + ln n and value cv, n the number of tokens in it. c divides `block_k`, so a
    /// centroid is wholly inside or outside.
    pub struct BlockAttention {
        /// Tokens a query block.
        pub block_q: usize,
        /// Tokens a key block.
        pub block_k: usize,
        /// What the products are multiplied by.
        pub scale: f64,
        /// Lengths of the runs that no block crosses; the last is repeated. Empty: one run.
        pub runs: Vec<usize> = [],
        /// Tokens a centroid; 0: there are none, and what is not listed is left out.
        pub centroid: usize = 0usize,
        /// What the attention looks over, as `attention` says it; changes no result.
        pub kind: AttentionKind = AttentionKind::Unknown,
        /// Whether o is [B, N, H·E], the heads side by side.
        pub merged: bool = false,
        /// What its products multiply, as [`super::attention_codes`] says; scales of keys are those of key blocks.
        pub codes: Codes = Codes::None,
    }
}

impl BlockAttention {
    /// Over one run, without centroids.
    pub fn new(block_q: usize, block_k: usize, scale: f64) -> Self {
        Self {
            block_q,
            block_k,
            scale,
            runs: Vec::new(),
            centroid: 0,
            kind: AttentionKind::Unknown,
            merged: false,
            codes: Codes::None,
        }
    }

    /// Centroid blocks of M tokens, and for every key block its centroids.
    fn centroids(&self, m: usize, keys: &Blocks) -> Result<(Blocks, Vec<std::ops::Range<usize>>), String> {
        let blocks = Blocks::cut(m, &self.runs, self.centroid)?;
        let inside = keys.tokens.iter().map(|t| blocks.overlapping(t)).collect();
        Ok((blocks, inside))
    }
}

impl OpDef for BlockAttention {
    const NAME: &'static str = "block_attention";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [q, k, v, idx, cnt, centroids @ ..] = inputs else {
            return Err("takes q, k, v, idx and cnt at least".into());
        };
        let out = infer_qkv(q, k, v)?;
        infer_lists(q, Blocks::of(q, &self.runs, self.block_q)?.len(), idx, cnt)?;
        Blocks::of(k, &self.runs, self.block_k)?;
        match (self.centroid, centroids) {
            (0, []) => {}
            (0, _) => return Err("has centroids, centroid=0 says otherwise".into()),
            (c, [ck, cv]) if self.block_k.is_multiple_of(c) => {
                let count = Dim::from(Blocks::of(k, &self.runs, c)?.len());
                let like =
                    |t: &ValueType| t.with_shape([&t.shape[..2], std::slice::from_ref(&count), &t.shape[3..]].concat());
                if (ck, cv) != (&like(k), &like(v)) {
                    return Err(format!("centroids must be {} and {}, not {ck} and {cv}", like(k), like(v)));
                }
            }
            (c, [_, _]) => return Err(format!("centroid={c} does not divide block_k={}", self.block_k)),
            (_, _) => return Err("centroid needs two operands, mean keys and mean values".into()),
        }
        let lse = ValueType::new(DType::F32, out.shape[..3].iter().cloned());
        Ok(vec![merge(out, self.merged), lse])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let s = Sizes::of(inputs[0], inputs[1], inputs[2])?;
        let queries = Blocks::cut(s.n, &self.runs, self.block_q)?;
        let keys = Blocks::cut(s.m, &self.runs, self.block_k)?;
        let lists = lists(inputs[3], inputs[4], keys.len())?;
        let mut real: Vec<Vec<f64>> =
            inputs.iter().map(|t| if t.dtype().is_float() { t.to_f64() } else { Vec::new() }).collect();
        let centroids = if self.centroid > 0 { Some(self.centroids(s.m, &keys)?) } else { None };
        // What centring took from the scores of every row.
        let mut taken = vec![0.0; s.b * s.h * s.n];
        if self.codes == Codes::E4m3 {
            let coded = Coded::of(&s, &real[0], &real[1], &real[2], &keys.tokens);
            let rows = real[0].chunks(s.d.max(1)).enumerate();
            taken = rows.map(|(row, q)| self.scale * coded.taken(row / s.n, q)).collect();
            if let Some((blocks, _)) = &centroids {
                (real[5], real[6]) = coded.centroids(&s, blocks.len(), &real[5], &real[6]);
            }
            [real[0], real[1], real[2]] = [coded.q, coded.k, coded.v];
        }
        let block = |at: usize| -> (Vec<f64>, Vec<f64>) {
            let (head, i) = (at / queries.len(), at % queries.len());
            let Head { q, k, v } = Head::of(head, &s, &real[0], &real[1], &real[2]);
            // Every key as (key, value, ln of how many tokens it stands for).
            let mut pool: Vec<(&[f64], &[f64], f64)> = Vec::new();
            for j in lists[at].iter().flat_map(|j| keys.tokens[*j].clone()) {
                pool.push((&k[j * s.d..][..s.d], &v[j * s.e..][..s.e], 0.0));
            }
            if let Some((blocks, inside)) = &centroids {
                let mut skipped = vec![true; blocks.len()];
                lists[at].iter().flat_map(|j| inside[*j].clone()).for_each(|c| skipped[c] = false);
                for c in (0..blocks.len()).filter(|c| skipped[*c]) {
                    let row = head * blocks.len() + c;
                    let weight = (blocks.tokens[c].len() as f64).ln();
                    pool.push((&real[5][row * s.d..][..s.d], &real[6][row * s.e..][..s.e], weight));
                }
            }
            let (mut out, mut lse) = (Vec::new(), Vec::new());
            for row in queries.tokens[i].clone() {
                let query = &q[row * s.d..][..s.d];
                let scores: Vec<f64> = pool.iter().map(|(k, _, bias)| self.scale * dot(query, k) + bias).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|x| (x - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut o = vec![0.0; s.e];
                for ((_, v, _), w) in pool.iter().zip(&weights) {
                    o.iter_mut().zip(*v).for_each(|(o, v)| *o += w / sum * v);
                }
                out.extend(o);
                lse.push(top + sum.ln() + taken[head * s.n + row]);
            }
            (out, lse)
        };
        let parts: Vec<_> = (0..s.b * s.h * queries.len()).into_par_iter().map(block).collect();
        let (out, lse): (Vec<Vec<f64>>, Vec<Vec<f64>>) = parts.into_iter().unzip();
        Ok(vec![
            s.result(results[0].dtype, &out.concat(), self.merged),
            Tensor::from_f64(DType::F32, &[s.b, s.h, s.n], &lse.concat()),
        ])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let size = |t: &ValueType, at: usize| t.shape[at].size().unwrap_or(0) as f64;
        let rows = results[1].elements().unwrap_or(0) as f64;
        let centroids = inputs.get(5).map_or(0.0, |c| size(c, 2));
        let keys = (size(&inputs[3], 3) * self.block_k as f64).min(size(&inputs[1], 2)) + centroids;
        let widths = size(&inputs[0], 3) + size(&inputs[2], 3);
        Cost { flops: 2.0 * rows * keys * widths, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        match self.codes {
            Codes::None => Tolerance::ulps(result, 32.0),
            Codes::E4m3 => attention_codes::tolerance(),
        }
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        self.codes.none().map_err(|e| at.refuse(e))?;
        residuals_only(at, 1)?;
        let mut operands = at.operands().to_vec();
        let keys = Blocks::of(at.ty(operands[1]), &self.runs, self.block_k).map_err(|e| at.refuse(e))?;
        let transpose = at.op(BlockTranspose { blocks: keys.len() }, &operands[3..5])?;
        operands.insert(5, transpose);
        operands.extend([at.result(0), at.result(1), at.cotangent()?]);
        let parts = at.ops(BlockAttentionGrad::of(self), &operands)?;
        // Behind q, k, v stand the lists, then the centroids.
        [0, 1, 2, 5, 6].into_iter().zip(parts).try_for_each(|(i, part)| at.give(i, part))
    }

    fn cases() -> Vec<Case> {
        let of =
            |block_k, runs: &[usize], centroid| Self { runs: runs.into(), centroid, ..Self::new(64, block_k, 0.125) };
        let inputs = |op: &Self, dtype, n: usize| {
            let wave = |seed| Tensor::wave(dtype, &[1, 2, n, 64], seed);
            let count = |size| Blocks::cut(n, &op.runs, size).map_or(0, |b| b.len());
            let (idx, cnt) = checkered(2, count(op.block_q), count(op.block_k));
            let (k, v) = (wave(2), wave(3));
            let mean = |x: &Tensor| {
                let mean = BlockMean { block: op.centroid, runs: op.runs.clone() };
                let types = mean.infer(&[x.value_type()]).expect("cases fit");
                mean.eval(&[x], &types).expect("cases fit").remove(0)
            };
            let centroids = if op.centroid > 0 { vec![mean(&k), mean(&v)] } else { Vec::new() };
            [vec![wave(1), k, v, idx, cnt], centroids].concat()
        };
        // One query, keys in blocks of one; list [2], centroids of the others weigh as themselves: lse = ln 3, o =
        // mean.
        let line = |v: Vec<f32>| Tensor::from_f32(&[1, 1, v.len(), 1], v);
        let list = |v: i64, shape: &[usize]| Tensor::from_i64(DType::I32, shape, &[v]);
        let values = line(vec![3.0, 6.0, 9.0]);
        let known = vec![
            line(vec![0.0]),
            line(vec![1.0, 2.0, 3.0]),
            values.clone(),
            list(2, &[1, 1, 1, 1]),
            list(1, &[1, 1, 1]),
        ];
        let lse = |v: f32| Tensor::from_f32(&[1, 1, 1], vec![v]);
        let one = Self::new(1, 1, 1.0);
        let mut cases = vec![
            Case::known("known", one.clone(), known.clone(), vec![line(vec![9.0]), lse(0.0)]),
            Case::known(
                "known_centroids",
                Self { centroid: 1, ..one },
                [known, vec![line(vec![1.0, 2.0, 3.0]), values]].concat(),
                vec![line(vec![6.0]), lse(3f32.ln())],
            ),
        ];
        for (name, n, block_k, runs, centroid) in [
            ("one", 1, 64, &[][..], 0),
            ("below_64", 63, 16, &[], 0),
            ("at_64", 64, 16, &[], 16),
            ("above_64", 65, 64, &[], 0),
            ("centroids_65", 65, 16, &[5, 20], 16),
            ("fine_centroids", 190, 64, &[10, 90], 16),
            ("frame_1374", 1374, 64, &[], 0),
            ("frame_1374_centroids", 1374, 16, &[5, 1369], 16),
        ] {
            let op = of(block_k, runs, centroid);
            cases.push(Case::new(name, op.clone(), inputs(&op, DType::F32, n)));
        }
        for (name, block_k, runs, centroid) in
            [("bf16_64", 64, &[5, 300][..], 0), ("bf16_32", 32, &[], 16), ("bf16_centroids", 64, &[5, 100], 16)]
        {
            let op = of(block_k, runs, centroid);
            cases.push(Case::new(name, op.clone(), inputs(&op, DType::BF16, 605)));
        }
        for (name, dtype, merged) in [
            ("bf16", DType::BF16, false),
            ("f16", DType::F16, false),
            ("merged", DType::F32, true),
            ("merged_bf16", DType::BF16, true),
            ("merged_f16", DType::F16, true),
        ] {
            let op = Self { merged, ..of(16, &[10, 60], 16) };
            cases.push(Case::new(name, op.clone(), inputs(&op, dtype, 130)));
        }
        for (name, n, block_k, runs, centroid, merged) in [
            ("codes_65", 65, 64, &[][..], 0, false),
            ("codes_runs", 605, 64, &[5, 300], 0, true),
            ("codes_32", 605, 32, &[], 0, false),
            ("codes_centroids", 605, 16, &[5, 100], 16, false),
            ("codes_1374_centroids", 1374, 16, &[5, 1369], 16, true),
        ] {
            let op = Self { merged, codes: Codes::E4m3, ..of(block_k, runs, centroid) };
            cases.push(Case::new(name, op.clone(), inputs(&op, DType::BF16, n)));
        }
        cases
    }
}
