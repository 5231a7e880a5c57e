//! `qkv_heads`: a row of the projection at a time, every head of it normalised, rotated and rounded once.

#![allow(unsafe_code)] // tasks write their own parts of the results

use lite3r_ir::{
    DType, Op,
    ops::{QkvHeads, qkv_linear::turn_of, shape_rules::strides_for},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK, Shared},
    layer_norm::normalise,
    rope::rotate,
};
use crate::backend::Request;

/// `qkv_heads` by rows of x.
pub const QKV_HEADS: Kernel = Kernel {
    name: "qkv_heads.rows",
    op: "qkv_heads",
    dtypes: FLOATS,
    accepts: all_floats,
    lane,
    run: |op, args, results, scratch| match op {
        Op::QkvHeads(op) => qkv_heads(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn lane(request: &Request<'_>) -> usize {
    let d = request.results[0].dims().and_then(|d| d.last().copied()).unwrap_or(0);
    (1 + BESIDE) * 4 * d
}

fn qkv_heads(op: &QkvHeads, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let x = Floats::of(operand(args, 0)?)?;
    let (norms, tables) = op.parts(args);
    let split = Split::of(op, norms, tables, results)?;
    let (all, d) = (3 * split.heads, split.d);
    if split.rows * d == 0 {
        return Ok(());
    }
    let rows = (CHUNK / (all * d)).max(1);
    lanes::run(split.rows.div_ceil(rows), (1 + BESIDE) * 4 * d, scratch, |task, memory| {
        let (own, memory) = cast_mut::<f32>(memory)?.split_at_mut(d);
        for row in task * rows..(task * rows + rows).min(split.rows) {
            for head in 0..all {
                x.read((row * all + head) * d, own);
                // SAFETY: every head of every row belongs to one task.
                unsafe { split.write(row, head, own, memory)? };
            }
        }
        Ok(())
    })
}

/// What happens to the heads of a joint projection.
pub struct Split<'a> {
    /// Rows of the projection.
    pub rows: usize,
    /// Heads of q, as many as of k and v.
    pub heads: usize,
    /// Columns of a head.
    pub d: usize,
    tokens: usize,
    eps: f32,
    half: usize,
    norms: Vec<Floats<'a>>,
    /// cos and sin, or both in turn.
    tables: Vec<Floats<'a>>,
    steps: Vec<usize>,
    dtype: DType,
    out: [Shared<'a, u8>; 3],
}

/// Rows as long as a head that finishing one takes.
pub const BESIDE: usize = 6;

impl<'a> Split<'a> {
    /// With g and b of q and k, and the tables of `qkv_heads` or the turns of `qkv_linear`.
    pub fn of(
        op: &QkvHeads,
        norms: &'a [Arg<'a>],
        tables: &'a [Arg<'a>],
        results: &'a mut [ArgMut<'_>],
    ) -> Result<Self, String> {
        let [q, k, v] = results else { return Err("gives three results".into()) };
        let &[batch, heads, tokens, d] = q.shape else { return Err("gives results of rank 4".into()) };
        let floats = |args: &'a [Arg<'a>]| args.iter().map(Floats::of).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            rows: batch * tokens,
            heads,
            d,
            tokens,
            eps: op.eps as f32,
            half: d.checked_div(2 * op.segments).unwrap_or(0),
            norms: floats(norms)?,
            tables: floats(tables)?,
            steps: tables.first().map_or(Vec::new(), |table| strides_for(table.shape, q.shape)),
            dtype: q.dtype,
            out: [q, k, v].map(|r| Shared::new(&mut *r.bytes)),
        })
    }

    /// Finishes a head of a row, counted over q, k and v; `memory` holds [`BESIDE`] heads.
    ///
    /// # Safety
    /// No two tasks may write the same head of the same row.
    pub unsafe fn write(&self, row: usize, head: usize, own: &mut [f32], memory: &mut [f32]) -> Result<(), String> {
        let (which, head, d) = (head / self.heads, head % self.heads, self.d);
        let (image, token) = (row / self.tokens, row % self.tokens);
        let mut parts = memory.chunks_exact_mut(d);
        let mut part = || parts.next().ok_or("the scratch is too small");
        let (rotated, g, b, cosines, sines, turns) = (part()?, part()?, part()?, part()?, part()?, part()?);
        if let (Some([norm_g, norm_b]), true) = (self.norms.get(2 * which..2 * which + 2), which < 2) {
            normalise(own, Some((norm_g.view(0, g), norm_b.view(0, b))), self.eps);
        }
        let at = match self.steps[..] {
            [by_image, by_head, by_token, _] => image * by_image + head * by_head + token * by_token,
            _ => 0,
        };
        let tables = match &self.tables[..] {
            [cos, sin] => Some((cos.view(at, cosines), sin.view(at, sines))),
            [both] => {
                let turns = both.view(at, turns);
                for (column, (cos, sin)) in cosines.iter_mut().zip(sines.iter_mut()).enumerate() {
                    let from = turn_of(column, self.half);
                    (*cos, *sin) = (turns[from], turns[from + 1]);
                }
                Some((&*cosines, &*sines))
            }
            _ => None,
        };
        let mut done: &[f32] = own;
        if let Some((cos, sin)) = tables.filter(|_| which < 2) {
            rotate(own, cos, sin, self.half, rotated);
            done = rotated;
        }
        let size = self.dtype.size();
        let start = ((image * self.heads + head) * self.tokens + token) * d * size;
        // SAFETY: by the contract.
        store(self.dtype, done, unsafe { self.out[which].slice(start, d * size) })
    }
}
