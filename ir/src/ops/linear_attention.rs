//! `linear_attention(q, k, v, [idx, cnt], [w], [r]) {map, scope}`: attention through a feature map (Katharopoulos et
//! al. 2020).

use rayon::prelude::*;

use super::{
    Case, Cost, OpDef, Tolerance,
    attention::{Sizes, infer_qkv, merge},
    blocks::{Blocks, Head, checkered, dot, infer_lists, lists},
    linear_attention_vjp,
    softmax::softmax,
    traffic,
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::word_enum! {
    /// The feature map φ of queries and keys.
    pub enum FeatureMap {
        /// elu(x) + 1: x + 1 above zero, eˣ below.
        Elu1 = "elu1",
        /// Softmax over the head dimension.
        Softmax = "softmax",
    }
}

impl FeatureMap {
    /// Of one row.
    pub fn apply(self, row: &mut [f64]) {
        match self {
            Self::Elu1 => row.iter_mut().for_each(|x| *x = if *x > 0.0 { *x + 1.0 } else { x.exp() }),
            Self::Softmax => softmax(row),
        }
    }
}

crate::word_enum! {
    /// Which keys are summed.
    pub enum Scope {
        /// All.
        All = "all",
        /// Those outside the listed blocks.
        Rest = "rest",
    }
}

crate::attributes! {
    /// q [B, H, N, D], k [B, H, M, D], v [B, H, M, E] to [B, H, N, E]: φ(q)·H / (φ(q)·z + 1e-6) with H = Σⱼ φ(kⱼ)ᵀvⱼ
    /// and z = Σⱼ φ(kⱼ)ᵀ, wide. With `scope=rest` the lists of `block_route` follow v, and a row of query block i sums
    /// the keys outside list i; where none is left the result is zero. With `proj` the next operand is w [E, E],
    /// shared by heads, and the result is multiplied by wᵀ; a kernel may fold it into H. If `merged`, the result is
    /// [B, N, H·E], the heads side by side. With `residual` the last operand has the type of the result and is added
    /// to it.
    pub struct LinearAttention {
        /// The feature map.
        pub map: FeatureMap = FeatureMap::Elu1,
        /// Which keys are summed.
        pub scope: Scope = Scope::All,
        /// Whether there is an operand w.
        pub proj: bool = false,
        /// Tokens a query block; for `rest`.
        pub block_q: usize = 64usize,
        /// Tokens a key block; for `rest`.
        pub block_k: usize = 64usize,
        /// Lengths of the runs that no block crosses; the last is repeated; for `rest`. Empty: one run.
        pub runs: Vec<usize> = [],
        /// Whether the heads of the result stand side by side.
        pub merged: bool = false,
        /// Whether there is an operand that is added to the result.
        pub residual: bool = false,
    }
}

/// Added to the denominator.
pub const EPS: f64 = 1e-6;

/// H [D, E] and z [D] over some keys.
#[derive(Clone)]
struct State {
    h: Vec<f64>,
    z: Vec<f64>,
}

impl State {
    fn over(keys: impl Iterator<Item = usize>, phi: &[f64], v: &[f64], d: usize, e: usize) -> Self {
        let mut state = Self { h: vec![0.0; d * e], z: vec![0.0; d] };
        for j in keys {
            for (a, x) in phi[j * d..][..d].iter().enumerate() {
                state.z[a] += x;
                state.h[a * e..][..e].iter_mut().zip(&v[j * e..][..e]).for_each(|(h, v)| *h += x * v);
            }
        }
        state
    }

    fn add(&mut self, other: &Self) {
        self.h.iter_mut().zip(&other.h).for_each(|(a, b)| *a += b);
        self.z.iter_mut().zip(&other.z).for_each(|(a, b)| *a += b);
    }
}

impl LinearAttention {
    /// Which operand is w.
    pub fn weights_at(&self) -> Option<usize> {
        self.proj.then_some(if self.scope == Scope::Rest { 5 } else { 3 })
    }

    /// Which operand is added.
    pub fn residual_at(&self) -> Option<usize> {
        let lists = if self.scope == Scope::Rest { 2 } else { 0 };
        self.residual.then_some(3 + lists + usize::from(self.proj))
    }

    /// For every query block of one head, its state.
    fn states(&self, phi: &[f64], v: &[f64], s: &Sizes, keys: &Blocks, lists: &[Vec<usize>]) -> Vec<State> {
        let of = |range| State::over(range, phi, v, s.d, s.e);
        if self.scope == Scope::All {
            return vec![of(0..s.m)];
        }
        let blocks: Vec<State> = keys.tokens.iter().map(|t| of(t.clone())).collect();
        let rest = |list: &Vec<usize>| {
            let mut state = of(0..0);
            (0..blocks.len()).filter(|j| !list.contains(j)).for_each(|j| state.add(&blocks[j]));
            state
        };
        lists.iter().map(rest).collect()
    }
}

impl OpDef for LinearAttention {
    const NAME: &'static str = "linear_attention";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [q, k, v, extra @ ..] = inputs else { return Err("takes q, k and v at least".into()) };
        let out = merge(infer_qkv(q, k, v)?, self.merged);
        let (extra, residual) = extra.split_at(extra.len() - usize::from(self.residual && !extra.is_empty()));
        let (lists, w) = extra.split_at(extra.len() - usize::from(self.proj && !extra.is_empty()));
        match (self.residual, residual) {
            (false, []) => {}
            (true, [r]) if *r == out => {}
            _ => return Err(format!("a residual must be {out}")),
        }
        match (self.scope, lists) {
            (Scope::All, []) => {}
            (Scope::Rest, [idx, cnt]) => {
                Blocks::of(k, &self.runs, self.block_k)?;
                infer_lists(q, Blocks::of(q, &self.runs, self.block_q)?.len(), idx, cnt)?;
            }
            _ => return Err(format!("has {} operands behind v, its attributes say otherwise", extra.len())),
        }
        let square = [v.shape[3].clone(), v.shape[3].clone()];
        match (self.proj, w) {
            (false, []) => Ok(vec![out]),
            (true, [w]) if w.shape == square && w.dtype.is_float() => Ok(vec![out]),
            _ => Err(format!("w must be [{},{}]", square[0], square[1])),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let s = Sizes::of(inputs[0], inputs[1], inputs[2])?;
        let (queries, keys, lists) = match self.scope {
            Scope::All => (Blocks::cut(s.n, &[], s.n.max(1))?, Blocks::cut(s.m, &[], s.m.max(1))?, Vec::new()),
            Scope::Rest => {
                let keys = Blocks::cut(s.m, &self.runs, self.block_k)?;
                let lists = lists(inputs[3], inputs[4], keys.len())?;
                (Blocks::cut(s.n, &self.runs, self.block_q)?, keys, lists)
            }
        };
        let (mut q, mut k, v) = (inputs[0].to_f64(), inputs[1].to_f64(), inputs[2].to_f64());
        q.chunks_mut(s.d.max(1)).chain(k.chunks_mut(s.d.max(1))).for_each(|row| self.map.apply(row));
        let w = self.weights_at().map(|i| inputs[i].to_f64());
        let head = |head: usize| -> Vec<f64> {
            let Head { q, k, v } = Head::of(head, &s, &q, &k, &v);
            let lists = if lists.is_empty() { &[][..] } else { &lists[head * queries.len()..][..queries.len()] };
            let states = self.states(k, v, &s, &keys, lists);
            let mut out = Vec::with_capacity(s.n * s.e);
            for (tokens, State { h, z }) in queries.tokens.iter().zip(&states) {
                for row in tokens.clone() {
                    let phi = &q[row * s.d..][..s.d];
                    let norm = dot(phi, z) + EPS;
                    let mut o = vec![0.0; s.e];
                    for (a, x) in phi.iter().enumerate() {
                        o.iter_mut().zip(&h[a * s.e..][..s.e]).for_each(|(o, h)| *o += x * h / norm);
                    }
                    match &w {
                        Some(w) => out.extend(w.chunks(s.e.max(1)).map(|w| dot(&o, w))),
                        None => out.extend(o),
                    }
                }
            }
            out
        };
        let parts: Vec<Vec<f64>> = (0..s.b * s.h).into_par_iter().map(head).collect();
        let y = s.result(DType::F64, &parts.concat(), self.merged);
        let mut sum = y.to_f64();
        if let Some(at) = self.residual_at() {
            sum.iter_mut().zip(inputs[at].to_f64()).for_each(|(y, r)| *y += r);
        }
        Ok(vec![Tensor::from_f64(results[0].dtype, y.shape(), &sum)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let size = |t: &ValueType, at: usize| t.shape[at].size().unwrap_or(0) as f64;
        let (q, k, e) = (&inputs[0], &inputs[1], size(&inputs[2], 3));
        let tokens = size(q, 0) * size(q, 1) * (size(q, 2) + size(k, 2));
        Cost { flops: 2.0 * tokens * size(q, 3) * e, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 64.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        linear_attention_vjp::vjp(self, at)
    }

    fn cases() -> Vec<Case> {
        let all = |map, proj| Self {
            map,
            scope: Scope::All,
            proj,
            block_q: 64,
            block_k: 64,
            runs: Vec::new(),
            merged: false,
            residual: false,
        };
        let wave = |dtype, n: usize, seed| Tensor::wave(dtype, &[1, 2, n, 64], seed);
        let qkv = |dtype, n| vec![wave(dtype, n, 1), wave(dtype, n, 2), wave(dtype, n, 3)];
        let w = || Tensor::wave(DType::F32, &[64, 64], 4);
        let line = |v: Vec<f32>| Tensor::from_f32(&[1, 1, v.len(), 1], v);
        // φ(q) = 2, φ(k) = 2 and 1, so H = 2·3 + 1·6 = 12 and z = 3: the result is 24/(6 + 1e-6).
        let known = vec![line(vec![1.0]), line(vec![1.0, 0.0]), line(vec![3.0, 6.0])];
        let mut cases = vec![Case::known("known", all(FeatureMap::Elu1, false), known, vec![line(vec![4.0])])];
        for (name, n, map, proj) in [
            ("one", 1, FeatureMap::Elu1, false),
            ("below_64", 63, FeatureMap::Softmax, false),
            ("at_64", 64, FeatureMap::Elu1, true),
            ("above_64", 65, FeatureMap::Softmax, true),
            ("frame_1374", 1374, FeatureMap::Elu1, true),
        ] {
            let inputs = if proj { [qkv(DType::F32, n), vec![w()]].concat() } else { qkv(DType::F32, n) };
            cases.push(Case::new(name, all(map, proj), inputs));
        }
        for (name, n, map, proj, merged) in [
            ("bf16_one", 1, FeatureMap::Softmax, false, false),
            ("bf16_65", 65, FeatureMap::Elu1, false, true),
            ("bf16_1374", 1374, FeatureMap::Softmax, true, true),
        ] {
            let tail = if proj { vec![w()] } else { Vec::new() };
            let op = Self { merged, ..all(map, proj) };
            cases.push(Case::new(name, op, [qkv(DType::BF16, n), tail].concat()));
        }
        for (name, n, block_k, runs, proj, dtype) in [
            ("rest_65", 65, 16, &[][..], false, DType::F32),
            ("rest_frames", 190, 16, &[10, 60], true, DType::F32),
            ("rest_1374", 1374, 64, &[], true, DType::F32),
            ("rest_bf16", 130, 64, &[10, 60], true, DType::BF16),
        ] {
            let op = Self { scope: Scope::Rest, block_k, runs: runs.into(), ..all(FeatureMap::Elu1, proj) };
            let count = |size| Blocks::cut(n, runs, size).map_or(0, |b| b.len());
            let (idx, cnt) = checkered(2, count(64), count(block_k));
            let tail = if proj { vec![w()] } else { Vec::new() };
            cases.push(Case::new(name, op, [qkv(dtype, n), vec![idx, cnt], tail].concat()));
        }
        for (name, dtype, n, scope, merged, proj) in [
            ("residual", DType::F32, 65, Scope::All, false, true),
            ("residual_f16", DType::F16, 63, Scope::All, true, false),
            ("residual_bf16", DType::BF16, 1374, Scope::All, true, true),
            ("residual_rest", DType::BF16, 190, Scope::Rest, false, true),
        ] {
            let op = Self { scope, block_k: 16, merged, residual: true, ..all(FeatureMap::Elu1, proj) };
            let mut inputs = qkv(dtype, n);
            if scope == Scope::Rest {
                let (idx, cnt) = checkered(2, n.div_ceil(64), n.div_ceil(16));
                inputs.extend([idx, cnt]);
            }
            inputs.extend(proj.then(w));
            let shape = if merged { vec![1, n, 128] } else { vec![1, 2, n, 64] };
            inputs.push(Tensor::wave(dtype, &shape, 5));
            cases.push(Case::new(name, op, inputs));
        }
        // Everything is listed: nothing is left, the result is zero.
        let list = Tensor::from_i64(DType::I32, &[1, 2, 1, 1], &[0, 0]);
        let count = Tensor::from_i64(DType::I32, &[1, 2, 1], &[1, 1]);
        cases.push(Case::known(
            "rest_of_nothing",
            Self { scope: Scope::Rest, ..all(FeatureMap::Elu1, false) },
            [qkv(DType::F32, 63), vec![list, count]].concat(),
            vec![Tensor::from_f32(&[1, 2, 63, 64], vec![0.0; 2 * 63 * 64])],
        ));
        cases
    }
}
