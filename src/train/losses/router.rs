//! What a router with weights expects of attention against what attention does.
//!
//! With the queries i of a row s of the router (a query block of `pooled`, a sub-block of `sub16`) and the keys l of a key
//! block j:
//!
//! ```text
//! p[s, j] = meanᵢ Σₗ softmaxₗ(scale·qᵢ·kₗ)            the share of attention that a block gets, over all keys
//! r[s, j] = softmaxⱼ(scale·q̄ₛ W·k̄ⱼ)                   what the router scores it by
//! loss    = mean over layers, heads and s of Σⱼ p log(p/r)
//! ```
//!
//! q and k count as given, so that the loss moves W and nothing else; in W it is convex. p takes N×M numbers at a time,
//! those of one head. Law: the indexer of DeepSeek-V3.2, arXiv 2512.02556, 2025, over blocks in place of tokens.

use lite3r_ir::{
    Builder, DType, Graph, Op, Tensor, Value,
    ops::{
        BlockMean, BlockRoute, Clip, Concat, Exp, Log, MatMul, ReduceMax, Softmax, StopGradient, Transpose,
        block_route::Router, blocks::Blocks,
    },
    passes::sla,
};

use super::{Built, part, sum};

/// Shares count at least this in their own logarithms.
const SMALLEST: f64 = 1e-30;

/// A router with weights, and what it reads.
#[derive(Clone, Debug)]
pub struct Routed {
    op: BlockRoute,
    /// [B, H, N, D] and [B, H, M, D], as attention reads them.
    q: Value,
    k: Value,
    /// [H, D, D].
    w: Value,
}

impl Routed {
    /// All of a graph, in execution order.
    pub fn all(graph: &Graph) -> Vec<Self> {
        let routed = |id| {
            let Op::BlockRoute(op) = graph.op(id) else { return None };
            let operands = graph.operands(id);
            let (q, w) = sla::weighted(graph, operands[0])?;
            Some(Self { op: op.clone(), q, k: operands[1], w })
        };
        graph.topological().into_iter().filter_map(routed).collect()
    }

    /// Of one layer.
    fn loss(&self, b: &mut Builder<'_>) -> Built {
        let given = |b: &mut Builder<'_>, x: Value| {
            let x = b.cast(x, DType::F32)?;
            b.op(StopGradient {}, &[x])
        };
        let (q, k) = (given(b, self.q)?, given(b, self.k)?);
        let p = self.shares(b, q, k)?;
        let scores = self.scores(b, q, k)?;
        // −log r, from differences to the largest score.
        let top = b.op(ReduceMax { axes: vec![3], keep: true }, &[scores])?;
        let top = b.op(StopGradient {}, &[top])?;
        let scores = b.sub(scores, top)?;
        let all = b.op(Exp {}, &[scores])?;
        let all = b.sum(all, &[3])?;
        let all = b.op(Log {}, &[all])?;
        let surprise = b.sub(all, scores)?;
        let least = b.op(Clip { min: SMALLEST, max: 1.0 }, &[p])?;
        let own = b.op(Log {}, &[least])?;
        let excess = b.add(own, surprise)?;
        let divergence = b.mul(p, excess)?;
        let rows: usize = b.ty(p).dims().unwrap_or_default().iter().take(3).product();
        let total = b.total(divergence)?;
        b.times(total, 1.0 / rows.max(1) as f64)
    }

    /// p [B, H, S, T].
    fn shares(&self, b: &mut Builder<'_>, q: Value, k: Value) -> Built {
        let keys = self.key_blocks();
        let counts: Vec<f64> = Blocks::of(b.ty(k), &keys.runs, keys.block)
            .map_err(|problem| refuse(b, problem))?
            .tokens
            .iter()
            .map(|tokens| tokens.len() as f64)
            .collect();
        let counts = b.constant(Tensor::from_f64(DType::F32, &[counts.len(), 1], &counts));
        let heads = b.ty(q).shape[1].size().unwrap_or(1);
        let turn = Transpose { perm: vec![0, 1, 3, 2] };
        let mut shares = Vec::with_capacity(heads);
        for head in 0..heads {
            let (q, k) = (part(b, q, 1, head..head + 1)?, part(b, k, 1, head..head + 1)?);
            let q = b.times(q, self.op.scale)?;
            let p = b.op(MatMul { transpose_b: true }, &[q, k])?;
            let p = b.op(Softmax { axis: -1 }, &[p])?;
            let p = self.rows(b, p)?;
            let p = b.op(turn.clone(), &[p])?;
            let p = b.op(keys.clone(), &[p])?;
            let p = b.mul(p, counts)?;
            shares.push(b.op(turn.clone(), &[p])?);
        }
        if shares.len() == 1 { Ok(shares[0]) } else { b.op(Concat { axis: 1 }, &shares) }
    }

    /// The logarithms of r but for a number a row, [B, H, S, T].
    fn scores(&self, b: &mut Builder<'_>, q: Value, k: Value) -> Built {
        let (q, k) = (self.rows(b, q)?, b.op(self.key_blocks(), &[k])?);
        let w = b.cast(self.w, DType::F32)?;
        let q = b.op(MatMul { transpose_b: false }, &[q, w])?;
        let q = b.times(q, self.op.scale)?;
        b.op(MatMul { transpose_b: true }, &[q, k])
    }

    fn key_blocks(&self) -> BlockMean {
        BlockMean { block: self.op.block_k, runs: self.op.runs.clone() }
    }

    /// Means [B, H, S, …] over the queries of every row of the router.
    fn rows(&self, b: &mut Builder<'_>, x: Value) -> Built {
        let BlockRoute { block_q, runs, router, .. } = &self.op;
        let size = match router {
            Router::Pooled => *block_q,
            Router::Sub(size) => *size.min(block_q),
        };
        let mean = match block_q.is_multiple_of(size) {
            true => BlockMean { block: size, runs: runs.clone() },
            false => {
                // Each row is a run of its own.
                let blocks = Blocks::of(b.ty(x), runs, *block_q).map_err(|problem| refuse(b, problem))?;
                let cut = |tokens: &std::ops::Range<usize>| {
                    let end = tokens.end;
                    tokens.clone().step_by(size).map(move |start| size.min(end - start))
                };
                BlockMean { block: size, runs: blocks.tokens.iter().flat_map(cut).collect() }
            }
        };
        b.op(mean, &[x])
    }
}

fn refuse(b: &Builder<'_>, problem: String) -> lite3r_ir::OpError {
    lite3r_ir::OpError { op: "block_route", origin: b.origin().clone(), problem }
}

/// The loss of routers with weights.
pub fn loss(b: &mut Builder<'_>, routers: &[Routed]) -> Built {
    let mut terms = Vec::with_capacity(routers.len());
    for router in routers {
        terms.push(router.loss(b)?);
    }
    let total = sum(b, &terms)?;
    b.times(total, 1.0 / routers.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lite3r_ir::{interpret::interpret, passes::grad::grad};

    use super::*;

    const HEADS: usize = 2;
    const TOKENS: usize = 37;
    const WIDTH: usize = 4;

    /// A router of `router` over views of 5 and 16 tokens, and its loss.
    fn graph(router: &str) -> (Graph, Vec<Value>) {
        let text = format!(
            "graph @g(%q: f32[1,{HEADS},{TOKENS},{WIDTH}], %k: f32[1,{HEADS},{TOKENS},{WIDTH}]) {{
  param $layer.router.w: f32[{HEADS},{WIDTH},{WIDTH}]
  %r = matmul(%q, $layer.router.w)
  %i, %c = block_route(%r, %k) {{block_q=8,block_k=6,router={router},kept=2,scale=0.7,runs=[5,16]}}
  return i=%i
}}"
        );
        let mut graph: Graph = text.parse().unwrap_or_else(|e| panic!("{e}"));
        let routers = Routed::all(&graph);
        let [Routed { q, k, w, .. }] = routers[..] else { panic!("one router") };
        let value = loss(&mut Builder::new(&mut graph, "loss"), &routers).unwrap();
        graph.retain_outputs(|_| false);
        graph.output("loss", value);
        (graph, vec![w, q, k])
    }

    fn values() -> [Tensor; 3] {
        let of = |shape: &[usize], seed, factor| {
            let wave = Tensor::wave(DType::F32, shape, seed).to_f64();
            Tensor::from_f64(DType::F32, shape, &wave.iter().map(|v| factor * v).collect::<Vec<_>>())
        };
        let tokens = [1, HEADS, TOKENS, WIDTH];
        [of(&tokens, 1, 3.0), of(&tokens, 2, 3.0), of(&[HEADS, WIDTH, WIDTH], 3, 1.0)]
    }

    fn evaluate(graph: &Graph, w: &Tensor) -> BTreeMap<String, Tensor> {
        let [q, k, _] = values();
        let inputs = BTreeMap::from([("q".to_string(), q), ("k".to_string(), k)]);
        interpret(graph, &inputs, &|_| Some(w.clone())).unwrap()
    }

    /// The formulas above in f64, written out once more.
    fn by_definition(sub: usize, w: &Tensor) -> f64 {
        let (q, k, w) = (values()[0].to_f64(), values()[1].to_f64(), w.to_f64());
        let cut = |size| Blocks::cut(TOKENS, &[5, 16], size).unwrap().tokens;
        let row = |x: &[f64], head: usize, i: usize| x[(head * TOKENS + i) * WIDTH..][..WIDTH].to_vec();
        let mean = |x: &[f64], head: usize, tokens: &std::ops::Range<usize>| -> Vec<f64> {
            let sum = |c: usize| tokens.clone().map(|i| row(x, head, i)[c]).sum::<f64>() / tokens.len() as f64;
            (0..WIDTH).map(sum).collect()
        };
        let softmax = |scores: Vec<f64>| -> Vec<f64> {
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            scores.iter().map(|s| s.exp() / sum).collect()
        };
        let dot = |a: &[f64], b: &[f64]| 0.7 * a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let rows: Vec<std::ops::Range<usize>> =
            cut(8).into_iter().flat_map(|t| t.clone().step_by(sub).map(move |s| s..(s + sub).min(t.end))).collect();
        let mut total = 0.0;
        for (head, rows_of) in (0..HEADS).flat_map(|h| rows.iter().map(move |r| (h, r))) {
            let attend = |i: usize| softmax((0..TOKENS).map(|l| dot(&row(&q, head, i), &row(&k, head, l))).collect());
            let attention: Vec<Vec<f64>> = rows_of.clone().map(attend).collect();
            let middle = mean(&q, head, rows_of);
            let w = &w[head * WIDTH * WIDTH..][..WIDTH * WIDTH];
            let mapped: Vec<f64> = (0..WIDTH).map(|c| (0..WIDTH).map(|a| middle[a] * w[a * WIDTH + c]).sum()).collect();
            let r = softmax(cut(6).iter().map(|block| dot(&mapped, &mean(&k, head, block))).collect());
            for (block, r) in cut(6).into_iter().zip(r) {
                let p: f64 = attention.iter().map(|a| a[block.clone()].iter().sum::<f64>()).sum();
                let p = p / attention.len() as f64;
                total += p * (p / r).ln();
            }
        }
        total / (HEADS * rows.len()) as f64
    }

    #[test]
    fn the_loss_is_the_divergence_of_what_routers_expect() {
        let [.., w] = values();
        for (router, sub) in [("pooled", 8), ("sub4", 4), ("sub3", 3), ("sub16", 8)] {
            let (graph, _) = graph(router);
            let (got, want) = (evaluate(&graph, &w)["loss"].item().unwrap(), by_definition(sub, &w));
            assert!((got - want).abs() < 1e-5 * want.abs().max(0.1), "{router}: {got} for {want}");
        }
    }

    #[test]
    fn its_gradient_is_that_of_the_weights_alone() {
        let [.., w] = values();
        for (router, sub) in [("pooled", 8), ("sub3", 3)] {
            let (mut graph, sources) = graph(router);
            let loss = graph.outputs()[0].1;
            let gradients = grad(&mut graph, loss, &sources).unwrap();
            assert!(gradients[0].is_some() && gradients[1..].iter().all(Option::is_none), "{router}");
            graph.output("grad", gradients[0].unwrap());
            let gradient = evaluate(&graph, &w)["grad"].to_f64();
            for i in 0..gradient.len() {
                let at = |by: f64| {
                    let mut moved = w.to_f64();
                    moved[i] += by;
                    by_definition(sub, &Tensor::from_f64(DType::F64, w.shape(), &moved))
                };
                let want = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!(
                    (gradient[i] - want).abs() < 1e-4 * want.abs().max(0.1),
                    "{router} {i}: {} {want}",
                    gradient[i]
                );
            }
        }
    }
}
