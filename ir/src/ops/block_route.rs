//! `block_route(q, k) {block_q, block_k, router, kept, scale}`: which key blocks every query block attends to.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Case, Cost, OpDef, Tolerance,
    attention::infer_qkv,
    blocks::{Blocks, dot, mean},
    elementwise::operands,
    softmax::softmax,
    traffic,
};
use crate::{
    attr::{Attr, AttrField},
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

/// How a key block is scored for a query block i; q̄ and k̄ are means, the mean of all keys is taken off every k̄.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Router {
    /// scale·q̄ᵢ·k̄ⱼ (SLA). Written `pooled`.
    Pooled,
    /// The rows of block i are cut into sub-blocks of so many; the score is the mean over them of
    /// softmaxⱼ(scale·q̄ₛ·k̄ⱼ). Written `sub16`.
    Sub(usize),
}

impl AttrField for Router {
    const EXPECTS: &'static str = "pooled, or sub and a number of rows: sub16";
    fn put(&self) -> Attr {
        Attr::Word(match self {
            Self::Pooled => "pooled".into(),
            Self::Sub(rows) => format!("sub{rows}"),
        })
    }
    fn take(attr: &Attr) -> Option<Self> {
        let Attr::Word(word) = attr else { return None };
        match word.strip_prefix("sub") {
            Some(rows) => rows.parse().ok().filter(|r| *r > 0).map(Self::Sub),
            None => (word == "pooled").then_some(Self::Pooled),
        }
    }
}

crate::word_enum! {
    /// Which key blocks near the query block are always kept.
    pub enum Own {
        /// None.
        None = "none",
        /// Those that hold a token of the query block.
        Block = "block",
        /// Those of its run: its view.
        Run = "run",
    }
}

crate::attributes! {
    /// q [B, H, N, D] and k [B, H, M, D] to lists idx i32 [B, H, Tq, L] and cnt i32 [B, H, Tq], Tq the number of query
    /// blocks. List i holds what is always kept, then the blocks with the highest scores until there are `kept`, equal
    /// scores by the lower number; if more than `kept` are always kept, all of those and no more. Its first `cnt`
    /// entries are block numbers in ascending order, the rest is −1; L is the longest list that the attributes allow.
    /// Scores are computed wide and compared as f32.
    pub struct BlockRoute {
        /// Tokens a query block.
        pub block_q: usize,
        /// Tokens a key block.
        pub block_k: usize,
        /// How key blocks are scored.
        pub router: Router,
        /// Key blocks a list, those that are always kept included.
        pub kept: usize,
        /// The scale of the attention.
        pub scale: f64,
        /// Lengths of the runs that no block crosses; the last is repeated. Empty: one run.
        pub runs: Vec<usize> = [],
        /// The runs whose key blocks are always kept: 0 for special tokens where they stand first.
        pub always: Vec<usize> = [],
        /// Which key blocks near the query block are always kept.
        pub own: Own = Own::None,
        /// Whether there is a third result f32 [B, H, Tq]: the sum of softmaxⱼ of the scores (of `sub`: of the scores
        /// themselves) over the blocks of the list.
        pub mass: bool = false,
    }
}

impl BlockRoute {
    /// Query and key blocks of N and M tokens.
    pub fn cut(&self, n: usize, m: usize) -> Result<(Blocks, Blocks), String> {
        let (q, k) = (Blocks::cut(n, &self.runs, self.block_q)?, Blocks::cut(m, &self.runs, self.block_k)?);
        if self.kept == 0 || self.kept > k.len() {
            return Err(format!("kept={} must be from 1 to the {} key blocks", self.kept, k.len()));
        }
        if self.own != Own::None && n != m {
            return Err(format!("own={} needs as many keys as queries, not {m} and {n}", self.own.word()));
        }
        match self.always.iter().find(|r| **r >= k.runs.len()) {
            Some(run) => Err(format!("always names run {run} of {}", k.runs.len())),
            None => Ok((q, k)),
        }
    }

    /// For every query block, the key blocks that are always kept: ascending, each once.
    pub fn always(&self, q: &Blocks, k: &Blocks) -> Vec<Vec<usize>> {
        let own = |i: usize| match self.own {
            Own::None => 0..0,
            Own::Block => k.overlapping(&q.tokens[i]),
            Own::Run => k.runs[q.run_of(i)].clone(),
        };
        let runs: Vec<Range<usize>> = self.always.iter().map(|r| k.runs[*r].clone()).collect();
        let list = |i| {
            let mut list: Vec<usize> = runs.iter().cloned().chain([own(i)]).flatten().collect();
            list.sort_unstable();
            list.dedup();
            list
        };
        (0..q.len()).map(list).collect()
    }

    /// The scores of one query block, `means` [T, D] being the centred key means.
    fn scores(&self, q: &[f64], rows: Range<usize>, means: &[f64], d: usize) -> Vec<f64> {
        let products = |rows: Range<usize>| -> Vec<f64> {
            let q = mean(q, d, rows);
            means.chunks(d.max(1)).map(|k| self.scale * dot(&q, k)).collect()
        };
        let Router::Sub(size) = self.router else { return products(rows) };
        let parts = rows.len().div_ceil(size);
        let mut sum = vec![0.0; means.len() / d.max(1)];
        for start in rows.clone().step_by(size) {
            let mut p = products(start..(start + size).min(rows.end));
            softmax(&mut p);
            sum.iter_mut().zip(p).for_each(|(s, p)| *s += p / parts as f64);
        }
        sum
    }

    /// The list of one query block, and its mass.
    fn choose(&self, mut scores: Vec<f64>, always: &[usize]) -> (Vec<usize>, f64) {
        let mut order: Vec<usize> = (0..scores.len()).filter(|j| always.binary_search(j).is_err()).collect();
        order.sort_by(|a, b| (scores[*b] as f32).total_cmp(&(scores[*a] as f32)).then(a.cmp(b)));
        order.truncate(self.kept.saturating_sub(always.len()));
        order.extend(always);
        order.sort_unstable();
        if self.router == Router::Pooled {
            softmax(&mut scores);
        }
        let mass = order.iter().map(|j| scores[*j]).sum();
        (order, mass)
    }
}

impl OpDef for BlockRoute {
    const NAME: &'static str = "block_route";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [q, k] = operands(inputs)?;
        infer_qkv(q, k, k)?;
        let size =
            |t: &ValueType| t.shape[2].size().ok_or("blocks need a fixed number of tokens: bind the symbols first");
        let (qb, kb) = self.cut(size(q)?, size(k)?)?;
        let longest = self.always(&qb, &kb).iter().map(Vec::len).max().unwrap_or(0).max(self.kept);
        let rows = vec![q.shape[0].clone(), q.shape[1].clone(), Dim::from(qb.len())];
        let mut results = vec![
            ValueType::new(DType::I32, rows.iter().cloned().chain([Dim::from(longest)])),
            ValueType::new(DType::I32, rows.clone()),
        ];
        if self.mass {
            results.push(ValueType::new(DType::F32, rows));
        }
        Ok(results)
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let (&[b, h, n, d], &[_, _, m, _]) = (inputs[0].shape(), inputs[1].shape()) else {
            return Err("takes operands of rank 4".into());
        };
        let (qb, kb) = self.cut(n, m)?;
        let always = self.always(&qb, &kb);
        let (q, k) = (inputs[0].to_f64(), inputs[1].to_f64());
        let rows: Vec<(Vec<usize>, f64)> = (0..b * h)
            .into_par_iter()
            .flat_map_iter(|head| {
                let (q, k) = (&q[head * n * d..][..n * d], &k[head * m * d..][..m * d]);
                let all = mean(k, d, 0..m);
                let mut means = kb.means(k, d);
                means.iter_mut().enumerate().for_each(|(i, v)| *v -= all[i % d]);
                let list = |(i, rows): (usize, &Range<usize>)| {
                    self.choose(self.scores(q, rows.clone(), &means, d), &always[i])
                };
                qb.tokens.iter().enumerate().map(list).collect::<Vec<_>>()
            })
            .collect();
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let width = shape[3];
        let entry = |list: &[usize], at: usize| list.get(at).map_or(-1, |j| *j as i64);
        let idx: Vec<i64> = rows.iter().flat_map(|(list, _)| (0..width).map(move |at| entry(list, at))).collect();
        let cnt: Vec<i64> = rows.iter().map(|(list, _)| list.len() as i64).collect();
        let mass: Vec<f64> = rows.iter().map(|(_, mass)| *mass).collect();
        let mut out = vec![Tensor::from_i64(DType::I32, &shape, &idx), Tensor::from_i64(DType::I32, &shape[..3], &cnt)];
        if self.mass {
            out.push(Tensor::from_f64(DType::F32, &shape[..3], &mass));
        }
        Ok(out)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let per_block = match self.router {
            Router::Pooled => 1,
            Router::Sub(size) => self.block_q.div_ceil(size),
        };
        let rows = results[1].elements().unwrap_or(0) * per_block;
        let keys = Blocks::of(&inputs[1], &self.runs, self.block_k).map_or(0, |b| b.len());
        let d = inputs[0].shape[3].size().unwrap_or(0);
        let means = inputs.iter().filter_map(ValueType::elements).sum::<usize>();
        Cost { flops: (2 * rows * keys * d + means) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        if result.is_float() { Tolerance::ulps(result, 64.0) } else { Tolerance::EXACT }
    }

    /// Lists are integers, and what the lists hold of the weights counts as given.
    fn vjp(&self, _: &mut Vjp<'_>) -> Result<(), OpError> {
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let of = |block_q, block_k, router, kept| Self {
            block_q,
            block_k,
            router,
            kept,
            scale: 0.125,
            runs: Vec::new(),
            always: Vec::new(),
            own: Own::None,
            mass: false,
        };
        let wave = |dtype, n, seed| Tensor::wave(dtype, &[1, 2, n, 64], seed);
        let qk = |n| vec![wave(DType::F32, n, 1), wave(DType::F32, n, 2)];
        // Keys 0, 5, 0, 5, 1 in blocks of one: the two fives tie and stand by number; then the one; −1 fills.
        let line = |v: Vec<f32>| Tensor::from_f32(&[1, 1, v.len(), 1], v);
        let lists = |width: usize, v: &[i64]| Tensor::from_i64(DType::I32, &[1, 1, v.len() / width, width], v);
        let count = |v: &[i64]| Tensor::from_i64(DType::I32, &[1, 1, v.len()], v);
        let keys = line(vec![0.0, 5.0, 0.0, 5.0, 1.0]);
        let mut cases = vec![
            Case::known(
                "ties_by_number",
                of(2, 1, Router::Pooled, 3),
                vec![line(vec![1.0, 1.0, -1.0]), keys.clone()],
                vec![lists(3, &[1, 3, 4, 0, 2, 4]), count(&[3, 3])],
            ),
            Case::known(
                "always_exceeds_kept",
                Self { runs: vec![1, 2], always: vec![0], own: Own::Run, ..of(1, 1, Router::Pooled, 2) },
                vec![keys.clone(), keys],
                vec![lists(3, &[0, 1, -1, 0, 1, 2, 0, 1, 2, 0, 3, 4, 0, 3, 4]), count(&[2, 3, 3, 3, 3])],
            ),
        ];
        for (name, n, block_k, router, kept) in [
            ("one", 1, 64, Router::Pooled, 1),
            ("below_64", 63, 16, Router::Sub(16), 2),
            ("at_64", 64, 16, Router::Pooled, 3),
            ("above_64", 65, 64, Router::Sub(16), 1),
            ("frame_1374", 1374, 64, Router::Pooled, 6),
            ("sub_1374", 1374, 16, Router::Sub(16), 25),
        ] {
            cases.push(Case::new(name, of(64, block_k, router, kept), qk(n)));
        }
        cases.push(Case::new("all_kept", of(64, 64, Router::Pooled, 3), qk(130)));
        cases.push(Case::new(
            "frames_mass",
            Self {
                runs: vec![10, 60],
                always: vec![0, 1],
                own: Own::Block,
                mass: true,
                ..of(64, 16, Router::Sub(16), 7)
            },
            qk(190),
        ));
        cases.push(Case::new("pooled_mass", Self { mass: true, ..of(64, 16, Router::Pooled, 3) }, qk(190)));
        let pairs = |n| vec![wave(DType::BF16, n, 1), wave(DType::BF16, n, 2)];
        for (name, n, block_k, router, kept) in [
            ("bf16", 130, 16, Router::Sub(16), 2),
            ("bf16_few", 65, 64, Router::Pooled, 1),
            ("bf16_pooled", 1374, 64, Router::Pooled, 6),
            ("bf16_halves", 190, 16, Router::Sub(32), 5),
        ] {
            cases.push(Case::new(name, of(64, block_k, router, kept), pairs(n)));
        }
        for (name, router, own) in [("bf16_own", Router::Sub(16), Own::Block), ("bf16_run", Router::Pooled, Own::Run)] {
            let runs = Self { runs: vec![10, 60], always: vec![0, 1], own, mass: true, ..of(64, 16, router, 9) };
            cases.push(Case::new(name, runs, pairs(190)));
        }
        cases
    }
}
