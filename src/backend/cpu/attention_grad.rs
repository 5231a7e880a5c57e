//! `attention_grad`: blocks of queries against blocks of keys, as in [`super::attention`], so that no N × M matrix exists.
//!
//! For every block of queries and of keys: P = e^(scale·Q Kᵀ − lse); dS = P ∘ (dO Vᵀ − δ); dQ += dS K; dK += dSᵀ Q;
//! dV += Pᵀ dO. A task has a head, whose dK and dV are f32 in its scratch memory: five products, each sum in one order.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    DType, Op,
    ops::{AttentionGrad, attention::Sizes},
};

use super::{
    Arg, ArgMut, Kernel,
    attention::{KEYS, QUERIES, Rows, qkv},
    floats::{FLOATS, Floats, cast, cast_mut, operand},
    gemm::{View, all_floats, multiply},
    lanes::{self, Shared},
    math::{exp, vectorised},
};

/// `attention_grad` by blocks.
pub const ATTENTION_GRAD: Kernel = Kernel {
    name: "attention_grad.flash",
    op: "attention_grad",
    dtypes: FLOATS,
    accepts: all_floats,
    lane: |request| {
        let size = |operand: usize, axis: usize| request.operands[operand].shape[axis].size().unwrap_or(0);
        let (d, e, m) = (size(0, 3), size(2, 3), size(1, 2));
        let narrow = if request.operands[0].dtype == DType::F32 { 0 } else { KEYS.min(m) * (d + e) };
        (Block::floats(d, e) + m * (d + e) + narrow) * size_of::<f32>()
    },
    run: |op, args, results, scratch| match op {
        Op::AttentionGrad(op) => attention_grad(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Hands out parts of a lane of scratch memory.
pub struct Parts<'a>(&'a mut [f32]);

impl<'a> Parts<'a> {
    /// Of a lane.
    pub fn of(memory: &'a mut [u8]) -> Result<Self, String> {
        cast_mut(memory).map(Self)
    }

    /// The next `len` floats.
    pub fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (part, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        part
    }
}

/// What a reverse pass reads of the results of an attention.
pub struct Back<'a> {
    q: Floats<'a>,
    o: Floats<'a>,
    g: Floats<'a>,
    lse: &'a [f32],
    rows: Rows,
    scale: f32,
}

impl<'a> Back<'a> {
    /// Of q, and of o, lse and do, which are operands `first` and on.
    pub fn of(args: &[Arg<'a>], first: usize, rows: Rows, scale: f64) -> Result<Self, String> {
        let floats = |at: usize| operand(args, at).and_then(Floats::of);
        let lse = cast(operand(args, first + 1)?.bytes)?;
        Ok(Self { q: floats(0)?, o: floats(first)?, g: floats(first + 2)?, lse, rows, scale: scale as f32 })
    }

    /// Rows of o or do of a head from row `first` on.
    fn read(&self, x: &Floats<'_>, head: usize, first: usize, out: &mut [f32]) {
        let e = self.rows.e;
        if !self.rows.merged {
            return x.read(self.rows.at(head, first), out);
        }
        out.chunks_exact_mut(e.max(1)).enumerate().for_each(|(i, row)| x.read(self.rows.at(head, first + i), row));
    }
}

/// Up to [`QUERIES`] queries of a head with what comes back to them, and room for what they make of some keys.
pub struct Block<'a> {
    d: usize,
    e: usize,
    scale: f32,
    count: usize,
    scores: &'a mut [f32],
    slopes: &'a mut [f32],
    query: &'a mut [f32],
    back: &'a mut [f32],
    dq: &'a mut [f32],
    row: &'a mut [f32],
    lse: [f32; QUERIES],
    delta: [f32; QUERIES],
}

impl<'a> Block<'a> {
    /// Floats of memory that it needs.
    pub fn floats(d: usize, e: usize) -> usize {
        2 * QUERIES * KEYS + QUERIES * (2 * d + e) + e
    }

    /// Without queries yet.
    pub fn new(parts: &mut Parts<'a>, d: usize, e: usize, scale: f32) -> Self {
        let (scores, slopes) = (parts.take(QUERIES * KEYS), parts.take(QUERIES * KEYS));
        let (query, back, dq) = (parts.take(QUERIES * d), parts.take(QUERIES * e), parts.take(QUERIES * d));
        let (row, none) = (parts.take(e), [0.0; QUERIES]);
        Self { d, e, scale, count: 0, scores, slopes, query, back, dq, row, lse: none, delta: none }
    }

    /// Takes `count` queries of a head from row `first` on.
    pub fn load(&mut self, from: &Back<'_>, head: usize, first: usize, count: usize) {
        let (d, e, n) = (self.d, self.e, from.rows.n);
        self.count = count;
        from.q.read((head * n + first) * d, &mut self.query[..count * d]);
        // Scaling the queries once is cheaper than scaling every score.
        self.query[..count * d].iter_mut().for_each(|x| *x *= from.scale);
        self.lse[..count].copy_from_slice(&from.lse[head * n + first..][..count]);
        let back = &mut self.back[..count * e];
        from.read(&from.g, head, first, back);
        for (i, (delta, g)) in self.delta.iter_mut().zip(back.chunks_exact(e.max(1))).enumerate() {
            from.read(&from.o, head, first + i, self.row);
            *delta = self.row.iter().zip(g).map(|(o, g)| o * g).sum();
        }
        self.dq[..count * d].fill(0.0);
    }

    /// Adds to dq, and to dk and dv [width, ..], what comes from `width` keys, to whose scores biases are added.
    pub fn give(&mut self, [key, value]: [&[f32]; 2], bias: Option<&[f32]>, [dk, dv]: [&mut [f32]; 2], width: usize) {
        let (d, e, count) = (self.d, self.e, self.count);
        let (scores, slopes) = (&mut self.scores[..count * width], &mut self.slopes[..count * width]);
        let (query, back) = (View::rows(self.query, count, d, d), View::rows(self.back, count, e, e));
        let key = View::rows(key, width, d, d);
        multiply(query, key.t(), scores, width, false);
        multiply(back, View::rows(value, width, e, e).t(), slopes, width, false);
        let rows = scores.chunks_exact_mut(width).zip(slopes.chunks_exact_mut(width));
        vectorised(
            #[inline(always)]
            || {
                for ((scores, slopes), (lse, delta)) in rows.zip(self.lse.iter().zip(&self.delta)) {
                    if let Some(bias) = bias {
                        scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                    }
                    scores.iter_mut().zip(slopes).for_each(|(s, g)| {
                        *s = exp(*s - lse);
                        *g = *s * (*g - delta);
                    });
                }
            },
        );
        let (scores, slopes) = (View::rows(scores, count, width, width), View::rows(slopes, count, width, width));
        multiply(slopes, key, &mut self.dq[..count * d], d, true);
        multiply(slopes.t(), query, dk, d, true);
        multiply(scores.t(), back, dv, e, true);
    }

    /// dq of its queries.
    pub fn finish(&mut self) -> &[f32] {
        let dq = &mut self.dq[..self.count * self.d];
        dq.iter_mut().for_each(|x| *x *= self.scale);
        dq
    }
}

/// A result [heads, tokens, width] that tasks of heads write.
pub struct Out<'a> {
    dtype: DType,
    rows: Rows,
    bytes: Shared<'a, u8>,
}

impl<'a> Out<'a> {
    /// Over a result [B, H, N, E].
    pub fn of(result: &'a mut ArgMut<'_>) -> Result<Self, String> {
        let &[_, heads, n, e] = result.shape else { return Err("gives results of rank 4".into()) };
        Ok(Self {
            dtype: result.dtype,
            rows: Rows { heads, n, e, merged: false },
            bytes: Shared::new(&mut *result.bytes),
        })
    }

    /// Writes rows of a head from row `first` on.
    ///
    /// # Safety
    ///
    /// Nothing else reads or writes them meanwhile.
    pub unsafe fn store(&self, values: &[f32], head: usize, first: usize) -> Result<(), String> {
        // SAFETY: as the caller promises.
        unsafe { self.rows.store(self.dtype, values, &self.bytes, head, first) }
    }
}

fn attention_grad(
    op: &AttentionGrad,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let ([_, k, v], Sizes { b, h, n, m, d, e }) = qkv(args)?;
    let from = Back::of(args, 3, Rows { heads: h, n, e, merged: op.merged }, op.scale)?;
    let (k, v) = (Floats::of(k)?, Floats::of(v)?);
    let [dq, dk, dv] = results else { return Err("has three results".into()) };
    let (dq, dk, dv) = (Out::of(dq)?, Out::of(dk)?, Out::of(dv)?);
    let narrow = if k.as_f32().is_some() { 0 } else { KEYS.min(m) };
    let lane = (Block::floats(d, e) + (m + narrow) * (d + e)) * size_of::<f32>();
    lanes::run(b * h, lane, scratch, |head, memory| {
        let mut parts = Parts::of(memory)?;
        let mut block = Block::new(&mut parts, d, e, op.scale as f32);
        let (keys, values) = (parts.take(m * d), parts.take(m * e));
        let (key, value) = (parts.take(narrow * d), parts.take(narrow * e));
        keys.fill(0.0);
        values.fill(0.0);
        for first in (0..n).step_by(QUERIES) {
            block.load(&from, head, first, QUERIES.min(n - first));
            for start in (0..m).step_by(KEYS) {
                let width = KEYS.min(m - start);
                let key = match k.as_f32() {
                    Some(k) => &k[(head * m + start) * d..][..width * d],
                    None => k.view((head * m + start) * d, &mut key[..width * d]),
                };
                let value = match v.as_f32() {
                    Some(v) => &v[(head * m + start) * e..][..width * e],
                    None => v.view((head * m + start) * e, &mut value[..width * e]),
                };
                let to = [&mut keys[start * d..][..width * d], &mut values[start * e..][..width * e]];
                block.give([key, value], None, to, width);
            }
            // SAFETY: every head belongs to one task.
            unsafe { dq.store(block.finish(), head, first)? };
        }
        // SAFETY: as above.
        unsafe {
            dk.store(keys, head, 0)?;
            dv.store(values, head, 0)
        }
    })
}
