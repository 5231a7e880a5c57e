//! `qkv_heads`: a row of the projection at a time, every head of it normalised, rotated and rounded once.

#![allow(unsafe_code)] // tasks write their own parts of the results

use lite3r_ir::{
    DType, Op,
    ops::{QkvHeads, shape_rules::strides_for},
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

/// A head, the head rotated, g and b, and a row of both tables.
fn lane(request: &Request<'_>) -> usize {
    let d = request.results[0].dims().and_then(|d| d.last().copied()).unwrap_or(0);
    6 * 4 * d
}

fn qkv_heads(op: &QkvHeads, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let x = Floats::of(operand(args, 0)?)?;
    let split = Split::of(op, args, results)?;
    let (all, d) = (3 * split.heads, split.d);
    if split.rows * d == 0 {
        return Ok(());
    }
    let rows = (CHUNK / (all * d)).max(1);
    lanes::run(split.rows.div_ceil(rows), 6 * 4 * d, scratch, |task, memory| {
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
    tables: Option<([Floats<'a>; 2], Vec<usize>)>,
    dtype: DType,
    out: [Shared<'a, u8>; 3],
}

impl<'a> Split<'a> {
    /// Of the operands of `qkv_heads`, the first of which is not looked at.
    pub fn of(op: &QkvHeads, args: &'a [Arg<'a>], results: &'a mut [ArgMut<'_>]) -> Result<Self, String> {
        let (norms, tables) = op.parts(args);
        let [q, k, v] = results else { return Err("gives three results".into()) };
        let &[batch, heads, tokens, d] = q.shape else { return Err("gives results of rank 4".into()) };
        let tables = match tables {
            [cos, sin] => Some(([Floats::of(cos)?, Floats::of(sin)?], strides_for(cos.shape, q.shape))),
            _ => None,
        };
        Ok(Self {
            rows: batch * tokens,
            heads,
            d,
            tokens,
            eps: op.eps as f32,
            half: d.checked_div(2 * op.segments).unwrap_or(0),
            norms: norms.iter().map(Floats::of).collect::<Result<_, _>>()?,
            tables,
            dtype: q.dtype,
            out: [q, k, v].map(|r| Shared::new(&mut *r.bytes)),
        })
    }

    /// Finishes a head of a row, counted over q, k and v; `memory` holds five heads.
    ///
    /// # Safety
    /// No two tasks may write the same head of the same row.
    pub unsafe fn write(&self, row: usize, head: usize, own: &mut [f32], memory: &mut [f32]) -> Result<(), String> {
        let (which, head, d) = (head / self.heads, head % self.heads, self.d);
        let (image, token) = (row / self.tokens, row % self.tokens);
        let mut parts = memory.chunks_exact_mut(d);
        let mut part = || parts.next().ok_or("the scratch is too small");
        let (rotated, g, b, cosines, sines) = (part()?, part()?, part()?, part()?, part()?);
        if let (Some([norm_g, norm_b]), true) = (self.norms.get(2 * which..2 * which + 2), which < 2) {
            normalise(own, Some((norm_g.view(0, g), norm_b.view(0, b))), self.eps);
        }
        let mut done: &[f32] = own;
        if let Some(([cos, sin], steps)) = self.tables.as_ref().filter(|_| which < 2) {
            let at = image * steps[0] + head * steps[1] + token * steps[2];
            rotate(own, cos.view(at, cosines), sin.view(at, sines), self.half, rotated);
            done = rotated;
        }
        let size = self.dtype.size();
        let start = ((image * self.heads + head) * self.tokens + token) * d * size;
        // SAFETY: by the contract.
        store(self.dtype, done, unsafe { self.out[which].slice(start, d * size) })
    }
}
