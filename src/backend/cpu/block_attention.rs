//! `block_attention`: softmax attention over listed key blocks, by the steps of [`super::attention`].
//!
//! A task has the queries of one block (or of a part of a long one). Listed keys, and the centroids of what is not
//! listed, are gathered side by side in steps of up to [`KEYS`] whatever the size of blocks, so that every product is
//! large.

#![allow(unsafe_code)] // tasks write their own parts of one result

use std::ops::Range;

use lite3r_ir::{
    Op,
    ops::{BlockAttention, attention::Sizes, blocks::Blocks},
};

use super::{
    Arg, ArgMut, Kernel,
    attention::{KEYS, QUERIES, Rows, Softmax, qkv},
    floats::{FLOATS, Floats, cast, cast_mut, first_are_floats, operand},
    gemm::{View, multiply},
    lanes::{self, Shared},
    math::vectorised,
};
use crate::backend::Request;

/// `block_attention` by gathered keys.
pub const BLOCK_ATTENTION: Kernel = Kernel {
    name: "block_attention.gathered",
    op: "block_attention",
    dtypes: FLOATS,
    accepts,
    lane: |request| {
        let size = |operand: usize| request.operands[operand].shape[3].size().unwrap_or(0);
        lane(size(0), size(2))
    },
    run: |op, args, results, scratch| match op {
        Op::BlockAttention(op) => block_attention(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn accepts(request: &Request<'_>) -> Result<(), String> {
    if let Op::BlockAttention(op) = request.op {
        op.codes.none()?;
    }
    first_are_floats(request, 3)
}

/// Bytes a task: scores, result and queries of its rows; keys, values and biases of a step.
fn lane(d: usize, e: usize) -> usize {
    (QUERIES * (KEYS + e + d) + KEYS * (d + e + 1)) * size_of::<f32>()
}

/// The lists of `block_route` as they lie.
pub struct Lists<'a> {
    idx: &'a [i32],
    cnt: &'a [i32],
    width: usize,
    blocks: usize,
}

impl<'a> Lists<'a> {
    /// From idx and cnt, which name blocks below `blocks`.
    pub fn of(idx: &Arg<'a>, cnt: &Arg<'a>, blocks: usize) -> Result<Self, String> {
        let width = idx.shape.last().copied().unwrap_or(0);
        Ok(Self { idx: cast(idx.bytes)?, cnt: cast(cnt.bytes)?, width, blocks })
    }

    /// List `row`, checked.
    pub fn get(&self, row: usize) -> Result<impl Iterator<Item = usize> + Clone + use<'a>, String> {
        let count = usize::try_from(self.cnt[row]).ok().filter(|c| *c <= self.width);
        let count = count.ok_or_else(|| format!("a list of {} cannot hold {}", self.width, self.cnt[row]))?;
        let list = &self.idx[row * self.width..][..count];
        match list.iter().all(|j| (0..self.blocks as i64).contains(&(*j as i64))) {
            true => Ok(list.iter().map(|j| *j as usize)),
            false => Err(format!("list {row} names a block outside {}", self.blocks)),
        }
    }
}

/// Keys and values of one kind, of which rows are gathered.
pub struct Source<'a> {
    /// Keys.
    pub k: Floats<'a>,
    /// Values.
    pub v: Floats<'a>,
    /// Rows a head.
    pub rows: usize,
}

/// What a row of scores is made from: rows of a source of one head, and what is added to their scores.
pub struct Piece<'a, 'b> {
    /// Where they are.
    pub source: &'b Source<'a>,
    /// Which.
    pub rows: Range<usize>,
    /// What is added.
    pub bias: f32,
}

/// The centroids over `size` tokens of M, which are operands 5 and 6, if there are any.
pub fn centroids<'a>(
    size: usize,
    m: usize,
    runs: &[usize],
    args: &[Arg<'a>],
) -> Result<Option<(Source<'a>, Blocks)>, String> {
    if size == 0 {
        return Ok(None);
    }
    let blocks = Blocks::cut(m, runs, size)?;
    let (k, v) = (Floats::of(operand(args, 5)?)?, Floats::of(operand(args, 6)?)?);
    Ok(Some((Source { k, v, rows: blocks.len() }, blocks)))
}

/// Query blocks with their rows; blocks longer than a task's rows are cut.
pub fn query_parts(queries: &Blocks) -> Vec<(usize, Range<usize>)> {
    let part = |at: usize, end: usize| at..(at + QUERIES).min(end);
    let parts = |(i, t): (usize, &Range<usize>)| {
        let end = t.end;
        t.clone().step_by(QUERIES).map(move |at| (i, part(at, end)))
    };
    queries.tokens.iter().enumerate().flat_map(parts).collect()
}

/// The keys of listed blocks, then the centroids outside of them.
pub fn pieces<'a, 'b>(
    list: impl Iterator<Item = usize> + Clone,
    keys: &Blocks,
    dense: &'b Source<'a>,
    coarse: Option<&'b (Source<'a>, Blocks)>,
) -> Vec<Piece<'a, 'b>> {
    let listed = |j: usize| Piece { source: dense, rows: keys.tokens[j].clone(), bias: 0.0 };
    let mut pieces: Vec<Piece<'_, '_>> = list.clone().map(listed).collect();
    if let Some((source, blocks)) = coarse {
        let mut skipped = vec![true; blocks.len()];
        list.flat_map(|j| blocks.overlapping(&keys.tokens[j])).for_each(|c| skipped[c] = false);
        let central = |c: usize| Piece { source, rows: c..c + 1, bias: (blocks.tokens[c].len() as f32).ln() };
        pieces.extend((0..blocks.len()).filter(|c| skipped[*c]).map(central));
    }
    pieces
}

fn block_attention(
    op: &BlockAttention,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let ([q, k, v], Sizes { b, h, n, m, d, e }) = qkv(args)?;
    let [y, lse] = results else { return Err("has two results".into()) };
    let queries = Blocks::cut(n, &op.runs, op.block_q)?;
    let keys = Blocks::cut(m, &op.runs, op.block_k)?;
    let lists = Lists::of(operand(args, 3)?, operand(args, 4)?, keys.len())?;
    let (q, dense) = (Floats::of(q)?, Source { k: Floats::of(k)?, v: Floats::of(v)?, rows: m });
    let coarse = centroids(op.centroid, m, &op.runs, args)?;
    let parts = query_parts(&queries);
    let (dtype, places) = (y.dtype, Rows { heads: h, n, e, merged: op.merged });
    let (out, sums) = (Shared::new(&mut *y.bytes), Shared::new(cast_mut::<f32>(lse.bytes)?));
    lanes::run(b * h * parts.len(), lane(d, e), scratch, |task, memory| {
        let (head, (block, rows)) = (task / parts.len(), &parts[task % parts.len()]);
        let count = rows.len();
        let mut memory = cast_mut::<f32>(memory)?;
        let mut take = |len: usize| {
            let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            part
        };
        let (scores, output, query) = (take(QUERIES * KEYS), take(count * e), take(count * d));
        let (key, value, bias) = (take(KEYS * d), take(KEYS * e), take(KEYS));
        q.read((head * n + rows.start) * d, query);
        query.iter_mut().for_each(|x| *x *= op.scale as f32);
        output.fill(0.0);
        let mut state = Softmax::start();
        let list = lists.get(head * queries.len() + block)?;
        let mut pieces = pieces(list, &keys, &dense, coarse.as_ref());
        let mut filled = 0;
        let mut step = |width: usize, key: &[f32], value: &[f32], bias: &[f32]| {
            let scores = &mut scores[..count * width];
            multiply(View::rows(query, count, d, d), View::rows(key, width, d, d).t(), scores, width, false);
            if coarse.is_some() {
                vectorised(
                    #[inline(always)]
                    || {
                        for row in scores.chunks_exact_mut(width) {
                            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                        }
                    },
                );
            }
            state.absorb(scores, width, output, e);
            multiply(View::rows(scores, count, width, width), View::rows(value, width, e, e), output, e, true);
        };
        for Piece { source, rows, bias: weight } in &mut pieces {
            while rows.start < rows.end {
                let len = rows.len().min(KEYS - filled);
                let at = head * source.rows + rows.start;
                source.k.read(at * d, &mut key[filled * d..][..len * d]);
                source.v.read(at * e, &mut value[filled * e..][..len * e]);
                bias[filled..filled + len].fill(*weight);
                (rows.start, filled) = (rows.start + len, filled + len);
                if filled == KEYS {
                    step(KEYS, key, value, bias);
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            step(filled, key, value, bias);
        }
        state.finish(output, e);
        let first = head * n + rows.start;
        // SAFETY: every task has its own queries.
        state.logarithms(unsafe { sums.slice(first, count) });
        // SAFETY: as above.
        unsafe { places.store(dtype, output, &out, head, rows.start) }
    })
}
