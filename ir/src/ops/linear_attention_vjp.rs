//! The gradient of `linear_attention` out of other operations, in f32.
//!
//! Let f = φ(q), p = φ(k), and of a query block H = Σ pᵀ v and z = Σ p over the keys that it sums. A row of the result,
//! ahead of w, is u = f H / n with n = f·z + 1e-6. From the cotangent g of u and δ = g·u:
//!
//! ```text
//! df = (g Hᵀ − δ z)/n        dH = Σ fᵀ g/n      dz = −Σ f δ/n, over the rows of the query block
//! dp = v dHᵀ + dz            dv = p dH          with dH and dz summed over the query blocks that sum the key
//! ```
//!
//! Tokens stand by blocks [B·H, blocks, tokens, width]. Which query block sums which key block is a matrix of zeros and
//! ones, so that nothing is taken off a sum: what a subtraction leaves of cancelled sums is larger than 1e-6.

use super::{
    Gather, LinearAttention, MatMul, Max, Min, Reshape, ScatterElements, Slice, SplitHeads,
    blocks::Blocks,
    linear_attention::{EPS, FeatureMap, Scope},
    shape_rules::transposed,
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    ops::{Exp, Softmax},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

/// A sequence by blocks of `size` tokens, the ragged ones filled up.
struct Cut {
    blocks: Blocks,
    size: usize,
}

impl Cut {
    fn of(at: &Vjp<'_>, tokens: usize, pattern: &[usize], size: usize) -> Result<Self, OpError> {
        let blocks = Blocks::cut(tokens, pattern, size).map_err(|e| at.refuse(e))?;
        let size = blocks.tokens.iter().map(|t| t.len()).max().unwrap_or(0);
        Ok(Self { blocks, size })
    }

    fn is_ragged(&self) -> bool {
        self.blocks.tokens.iter().any(|t| t.len() < self.size)
    }

    /// x [B, H, N, W] as [B·H, blocks, size, W]; the first token of a ragged block fills it up.
    fn apart(&self, at: &mut Vjp<'_>, x: Value) -> Result<Value, OpError> {
        let shape = at.dims(x)?;
        let mut x = at.reshape(x, &dims(&[shape[0] * shape[1], shape[2], shape[3]]))?;
        if self.is_ragged() {
            let from = |i: usize, t: &std::ops::Range<usize>| if i < t.len() { t.start + i } else { t.start };
            let table = self.blocks.tokens.iter().flat_map(|t| (0..self.size).map(move |i| from(i, t) as i64));
            x = gather(at, x, table.collect())?;
        }
        at.reshape(x, &dims(&[shape[0] * shape[1], self.blocks.len(), self.size, shape[3]]))
    }

    /// With zeros where a block was filled up.
    fn masked(&self, at: &mut Vjp<'_>, x: Value) -> Result<Value, OpError> {
        if !self.is_ragged() {
            return Ok(x);
        }
        let there = |t: &std::ops::Range<usize>| (0..self.size).map(|i| f64::from(i < t.len())).collect::<Vec<_>>();
        let mask: Vec<f64> = self.blocks.tokens.iter().flat_map(there).collect();
        let mask = Tensor::from_f64(at.ty(x).dtype, &[self.blocks.len(), self.size, 1], &mask);
        let mask = at.constant(mask);
        at.mul(x, mask)
    }

    /// x [B·H, blocks, size, W] as [B, H, N, W].
    fn together(&self, at: &mut Vjp<'_>, x: Value, [b, h]: [usize; 2]) -> Result<Value, OpError> {
        let width = at.dims(x)?[3];
        let mut x = at.reshape(x, &dims(&[b * h, self.blocks.len() * self.size, width]))?;
        if self.is_ragged() {
            let own = |(i, t): (usize, &std::ops::Range<usize>)| (0..t.len()).map(move |j| (i * self.size + j) as i64);
            x = gather(at, x, self.blocks.tokens.iter().enumerate().flat_map(own).collect())?;
        }
        let tokens = self.blocks.tokens.last().map_or(0, |t| t.end);
        at.reshape(x, &dims(&[b, h, tokens, width]))
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::from(*n)).collect()
}

/// Rows of x [G, N, W].
fn gather(at: &mut Vjp<'_>, x: Value, table: Vec<i64>) -> Result<Value, OpError> {
    let table = at.constant(Tensor::from_i64(DType::I32, &[table.len()], &table));
    at.op(Gather { axis: 1 }, &[x, table])
}

fn product(at: &mut Vjp<'_>, a: Value, b: Value, transpose_b: bool) -> Result<Value, OpError> {
    at.op(MatMul { transpose_b }, &[a, b])
}

/// φ of rows.
fn features(at: &mut Vjp<'_>, map: FeatureMap, x: Value) -> Result<Value, OpError> {
    match map {
        FeatureMap::Softmax => at.op(Softmax { axis: -1 }, &[x]),
        FeatureMap::Elu1 => {
            // max(x, 0) + e^min(x, 0): x + 1 above zero, eˣ below.
            let zero = at.number(x, 0.0);
            let (above, below) = (at.op(Max {}, &[x, zero])?, at.op(Min {}, &[x, zero])?);
            let below = at.op(Exp {}, &[below])?;
            at.add(above, below)
        }
    }
}

/// The cotangent of x from that of its features f.
fn back(at: &mut Vjp<'_>, map: FeatureMap, f: Value, g: Value) -> Result<Value, OpError> {
    match map {
        // The derivative is one above zero, eˣ = f ≤ 1 below.
        FeatureMap::Elu1 => {
            let one = at.number(f, 1.0);
            let slope = at.op(Min {}, &[f, one])?;
            at.mul(g, slope)
        }
        FeatureMap::Softmax => {
            let product = at.mul(f, g)?;
            let sum = at.sum(product, &[3])?;
            let centred = at.sub(g, sum)?;
            at.mul(f, centred)
        }
    }
}

/// One where a query block sums a key block, zero where its list holds it: [B·H, Tq, Tk] from idx [B, H, Tq, L], whose
/// entries behind the list are −1.
fn summed(at: &mut Vjp<'_>, idx: Value, keys: usize, dtype: DType) -> Result<Value, OpError> {
    let shape = at.dims(idx)?;
    let (heads, queries, longest) = (shape[0] * shape[1], shape[2], shape[3]);
    let idx = at.reshape(idx, &dims(&[heads, queries, longest]))?;
    // A column more takes what −1 sets.
    let ones = at.full(&ValueType::new(dtype, dims(&[heads, queries, keys + 1])), 1.0)?;
    let zeros = at.full(&ValueType::new(dtype, dims(&[heads, queries, longest])), 0.0)?;
    let all = at.op(ScatterElements { axis: 2 }, &[ones, idx, zeros])?;
    at.op(Slice { axis: 2, start: 0.into(), end: keys.into(), step: 1 }, &[all])
}

/// Sums states [G, T, R, C] over the blocks that a matrix [G, S, T] tells: [G, S, R, C].
fn gathered(at: &mut Vjp<'_>, sel: Option<Value>, x: Value) -> Result<Value, OpError> {
    let Some(sel) = sel else { return Ok(x) };
    let (shape, blocks) = (at.dims(x)?, at.dims(sel)?[1]);
    let flat = at.reshape(x, &dims(&[shape[0], shape[1], shape[2] * shape[3]]))?;
    let sums = product(at, sel, flat, false)?;
    at.reshape(sums, &dims(&[shape[0], blocks, shape[2], shape[3]]))
}

/// Gives q, k, v, w and the residual their parts.
pub fn vjp(op: &LinearAttention, at: &mut Vjp<'_>) -> Result<(), OpError> {
    let [q, k, v] = [0, 1, 2].map(|i| at.operand(i));
    let cotangent = at.cotangent()?;
    if let Some(residual) = op.residual_at() {
        at.give(residual, cotangent)?;
    }
    let (shape, m) = (at.dims(q)?, at.dims(k)?[2]);
    let heads = [shape[0], shape[1]];
    let wide = if at.ty(q).dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (queries, keys) = match op.scope {
        Scope::All => (Cut::of(at, shape[2], &[], shape[2].max(1))?, Cut::of(at, m, &[], m.max(1))?),
        Scope::Rest => (Cut::of(at, shape[2], &op.runs, op.block_q)?, Cut::of(at, m, &op.runs, op.block_k)?),
    };
    let (sel, turned) = match op.scope {
        Scope::All => (None, None),
        Scope::Rest => {
            let sel = summed(at, at.operand(3), keys.blocks.len(), wide)?;
            (Some(sel), Some(transposed(at, sel)?))
        }
    };
    let cast = |at: &mut Vjp<'_>, cut: &Cut, x: Value| {
        let x = at.cast(x, wide)?;
        cut.apart(at, x)
    };
    let (q, k, v) = (cast(at, &queries, q)?, cast(at, &keys, k)?, cast(at, &keys, v)?);
    let by_heads = if op.merged { at.op(SplitHeads { parts: 1, heads: heads[1] }, &[cotangent])? } else { cotangent };
    let out = cast(at, &queries, by_heads)?;
    let out = queries.masked(at, out)?;

    let f = features(at, op.map, q)?;
    let mapped = features(at, op.map, k)?;
    let p = keys.masked(at, mapped)?;
    let turn = transposed(at, p)?;
    let (state, norm) = (product(at, turn, v, false)?, at.sum(p, &[2])?);
    let (state, norm) = (gathered(at, sel, state)?, gathered(at, sel, norm)?);
    let weighted = at.mul(f, norm)?;
    let n = at.sum(weighted, &[3])?;
    let n = at.plus(n, EPS)?;
    let u = product(at, f, state, false)?;
    let u = at.div(u, n)?;
    let g = match op.weights_at() {
        None => out,
        Some(i) => {
            let w = at.operand(i);
            let w = at.cast(w, wide)?;
            let turn = transposed(at, out)?;
            let parts = product(at, turn, u, false)?;
            let sum = at.sum(parts, &[0, 1])?;
            let e = at.dims(w)?;
            let dw = at.op(Reshape { shape: dims(&e) }, &[sum])?;
            at.give(i, dw)?;
            product(at, out, w, false)?
        }
    };
    let along = at.mul(g, u)?;
    let delta = at.sum(along, &[3])?;
    let (g, delta) = (at.div(g, n)?, at.div(delta, n)?);

    let (own, taken) = (product(at, g, state, true)?, at.mul(delta, norm)?);
    let df = at.sub(own, taken)?;
    let dq = back(at, op.map, f, df)?;
    let dq = queries.together(at, dq, heads)?;
    at.give(0, dq)?;

    let turn = transposed(at, f)?;
    let dstate = product(at, turn, g, false)?;
    let shares = at.mul(f, delta)?;
    let dnorm = at.sum(shares, &[2])?;
    let (dstate, dnorm) = (gathered(at, turned, dstate)?, gathered(at, turned, dnorm)?);
    let own = product(at, v, dstate, true)?;
    let dp = at.sub(own, dnorm)?;
    let dk = back(at, op.map, mapped, dp)?;
    let dk = keys.together(at, dk, heads)?;
    at.give(1, dk)?;
    let dv = product(at, p, dstate, false)?;
    let dv = keys.together(at, dv, heads)?;
    at.give(2, dv)
}
