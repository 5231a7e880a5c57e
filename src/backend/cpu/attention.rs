//! `attention`: blocks of queries against blocks of keys with a running softmax (Dao et al. 2022), so that no N × M
//! matrix exists.
//!
//! For every block of keys: S = scale·Q Kᵀ; m' = max(m, rowmax S); P = e^(S − m'); l = l·e^(m − m') + rowsum P;
//! O = O·e^(m − m') + P V. At the end O is divided by l. Everything is f32; narrower operands are widened block by
//! block.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    DType, Op,
    ops::{Attention, attention::Sizes},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, operand, store},
    gemm::{View, all_floats, multiply},
    lanes::{self, Shared},
    layer_norm::sum,
    math::{exp, vectorised},
};

/// Queries a task.
pub const QUERIES: usize = 128;
/// Keys a step: a block of scores fits the L2 cache.
pub const KEYS: usize = 512;

/// `attention` by blocks.
pub const ATTENTION: Kernel = Kernel {
    name: "attention.flash",
    op: "attention",
    dtypes: FLOATS,
    accepts: |request| {
        if request.operands.get(1).is_some_and(|k| k.shape[2].size() == Some(0)) {
            return Err("takes one key at least".into());
        }
        if let Op::Attention(op) = request.op {
            op.codes.none()?;
        }
        all_floats(request)
    },
    lane: |request| {
        let size = |operand: usize, axis: usize| request.operands[operand].shape[axis].size().unwrap_or(0);
        Lane::new(size(0, 3), size(2, 3), size(1, 2), request.operands[0].dtype).bytes()
    },
    run: |op, args, results, scratch| match op {
        Op::Attention(op) => attention(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Floats of scratch that a task needs, in the order in which they lie.
struct Lane {
    scores: usize,
    output: usize,
    queries: usize,
    keys: usize,
    values: usize,
}

impl Lane {
    fn new(d: usize, e: usize, m: usize, dtype: DType) -> Self {
        let (keys, narrow) = (KEYS.min(m), (dtype != DType::F32) as usize);
        Self {
            scores: QUERIES * keys,
            output: QUERIES * e,
            queries: QUERIES * d,
            keys: narrow * keys * d,
            values: narrow * keys * e,
        }
    }

    fn bytes(&self) -> usize {
        (self.scores + self.output + self.queries + self.keys + self.values) * size_of::<f32>()
    }
}

/// q [B, H, N, D], k [B, H, M, D] and v [B, H, M, E], the first operands of every attention, and their sizes.
pub fn qkv<'a, 'b>(args: &'b [Arg<'a>]) -> Result<([&'b Arg<'a>; 3], Sizes), String> {
    let (q, k, v) = (operand(args, 0)?, operand(args, 1)?, operand(args, 2)?);
    match (q.shape, k.shape, v.shape) {
        (&[b, h, n, d], &[_, _, m, _], &[_, _, _, e]) => Ok(([q, k, v], Sizes { b, h, n, m, d, e })),
        _ => Err("takes operands of rank 4".into()),
    }
}

fn attention(op: &Attention, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let ([q, k, v], Sizes { b, h, n, m, d, e }) = qkv(args)?;
    let (q, k, v) = (Floats::of(q)?, Floats::of(k)?, Floats::of(v)?);
    let (y, lse) = match results {
        [y] => (y, None),
        [y, lse] => (y, Some(Shared::new(cast_mut::<f32>(lse.bytes)?))),
        _ => return Err("has one result, or two".into()),
    };
    let dtype = y.dtype;
    if y.bytes.is_empty() {
        return Ok(());
    }
    let lane = Lane::new(d, e, m, args[0].dtype);
    let blocks = n.div_ceil(QUERIES);
    let out = Shared::new(&mut *y.bytes);
    let rows = Rows { heads: h, n, e, merged: op.merged };
    lanes::run(b * h * blocks, lane.bytes(), scratch, |task, memory| {
        let (head, first) = (task / blocks, task % blocks * QUERIES);
        let count = QUERIES.min(n - first);
        let (scores, rest) = cast_mut::<f32>(memory)?.split_at_mut(lane.scores);
        let (output, rest) = rest.split_at_mut(lane.output);
        let (queries, rest) = rest.split_at_mut(lane.queries);
        let (keys, values) = rest.split_at_mut(lane.keys);
        let (queries, output) = (&mut queries[..count * d], &mut output[..count * e]);
        q.read((head * n + first) * d, queries);
        // Scaling the queries once is cheaper than scaling every score.
        queries.iter_mut().for_each(|x| *x *= op.scale as f32);
        output.fill(0.0);
        let mut state = Softmax::start();
        for start in (0..m).step_by(KEYS) {
            let width = KEYS.min(m - start);
            let key = match k.as_f32() {
                Some(k) => &k[(head * m + start) * d..][..width * d],
                None => k.view((head * m + start) * d, &mut keys[..width * d]),
            };
            let value = match v.as_f32() {
                Some(v) => &v[(head * m + start) * e..][..width * e],
                None => v.view((head * m + start) * e, &mut values[..width * e]),
            };
            let scores = &mut scores[..count * width];
            multiply(View::rows(queries, count, d, d), View::rows(key, width, d, d).t(), scores, width, false);
            state.absorb(scores, width, output, e);
            multiply(View::rows(scores, count, width, width), View::rows(value, width, e, e), output, e, true);
        }
        state.finish(output, e);
        if let Some(lse) = &lse {
            // SAFETY: every task has its own queries.
            state.logarithms(unsafe { lse.slice(head * n + first, count) });
        }
        // SAFETY: every task has its own queries.
        unsafe { rows.store(dtype, output, &out, head, first) }
    })
}

/// Where rows of a result lie: [B, H, N, E], or [B, N, H·E] if merged.
pub struct Rows {
    /// H.
    pub heads: usize,
    /// N.
    pub n: usize,
    /// E.
    pub e: usize,
    /// Whether the heads of a token stand side by side.
    pub merged: bool,
}

impl Rows {
    /// The first element of a row of a head, counted through all images.
    pub fn at(&self, head: usize, row: usize) -> usize {
        let &Self { heads, n, e, merged } = self;
        match merged {
            true => ((head / heads * n + row) * heads + head % heads) * e,
            false => (head * n + row) * e,
        }
    }

    /// Rows of a head, counted through all images, from row `first` on, as `dtype`.
    ///
    /// # Safety
    ///
    /// Nothing else reads or writes them meanwhile.
    pub unsafe fn store(
        &self,
        dtype: DType,
        values: &[f32],
        out: &Shared<'_, u8>,
        head: usize,
        first: usize,
    ) -> Result<(), String> {
        let (size, e) = (dtype.size(), self.e);
        if !self.merged {
            // SAFETY: as the caller promises.
            return store(dtype, values, unsafe { out.slice(self.at(head, first) * size, values.len() * size) });
        }
        for (i, row) in values.chunks_exact(e.max(1)).enumerate() {
            let at = self.at(head, first + i);
            // SAFETY: as the caller promises.
            store(dtype, row, unsafe { out.slice(at * size, e * size) })?;
        }
        Ok(())
    }
}

/// The running maximum and sum of every query of a block.
pub struct Softmax {
    /// The largest score so far.
    pub top: [f32; QUERIES],
    /// Σ e^(score − top) so far.
    pub total: [f32; QUERIES],
}

impl Softmax {
    /// Before the first key.
    pub fn start() -> Self {
        Self { top: [f32::NEG_INFINITY; QUERIES], total: [0.0; QUERIES] }
    }

    /// Turns scores [.., width] into weights against the new maximum, and rescales what `output` [.., e] has gathered.
    pub fn absorb(&mut self, scores: &mut [f32], width: usize, output: &mut [f32], e: usize) {
        let rows = scores.chunks_exact_mut(width).zip(self.top.iter_mut().zip(&mut self.total));
        vectorised(
            #[inline(always)]
            || {
                for (i, (row, (top, total))) in rows.enumerate() {
                    let now = maximum(row).max(*top);
                    row.iter_mut().for_each(|s| *s = exp(*s - now));
                    let rescale = exp(*top - now);
                    *total = total.mul_add(
                        rescale,
                        sum(
                            row,
                            #[inline(always)]
                            |p| p,
                        ),
                    );
                    if now > *top {
                        output[i * e..][..e].iter_mut().for_each(|o| *o *= rescale);
                    }
                    *top = now;
                }
            },
        )
    }

    /// The natural logarithm of the sum of exponentials of every row of `lse`.
    pub fn logarithms(&self, lse: &mut [f32]) {
        lse.iter_mut().zip(self.top.iter().zip(&self.total)).for_each(|(l, (top, total))| *l = top + total.ln());
    }

    /// Divides by the sums.
    pub fn finish(&self, output: &mut [f32], e: usize) {
        for (row, total) in output.chunks_exact_mut(e.max(1)).zip(&self.total) {
            row.iter_mut().for_each(|o| *o /= total);
        }
    }
}

/// The largest value, in 32 partial maxima.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    #[inline(always)]
    fn larger(a: f32, b: f32) -> f32 {
        if b > a { b } else { a }
    }
    let mut tops = [f32::NEG_INFINITY; 32];
    let mut blocks = values.chunks_exact(32);
    for block in &mut blocks {
        tops.iter_mut().zip(block).for_each(|(t, x)| *t = larger(*t, *x));
    }
    blocks.remainder().iter().chain(&tops).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}
