//! `layer_norm`: row by row in f32, two passes over a row that stays in the cache.

#![allow(unsafe_code)] // tasks write their own parts of one result

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, only, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK},
    math::vectorised,
};
use lite3r_ir::{Op, ops::LayerNorm};

/// `layer_norm` by rows.
pub const LAYER_NORM: Kernel = Kernel {
    name: "layer_norm.rows",
    op: "layer_norm",
    dtypes: FLOATS,
    accepts: all_floats,
    // A row of x, of g and of b.
    lane: |request| 3 * 4 * request.operands[0].dims().and_then(|d| d.last().copied()).unwrap_or(0),
    run: |op, args, results, scratch| match op {
        Op::LayerNorm(op) => layer_norm(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn layer_norm(op: &LayerNorm, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let x = operand(args, 0)?;
    let c = x.shape.last().copied().ok_or("x needs a dimension")?;
    let (x, y) = (Floats::of(x)?, only(results)?);
    if y.bytes.is_empty() {
        return Ok(());
    }
    let affine = match args {
        [_, g, b] => Some((Floats::of(g)?, Floats::of(b)?)),
        _ => None,
    };
    let (dtype, row_bytes) = (y.dtype, c * y.dtype.size());
    let rows = (CHUNK / c).max(1);
    let tasks = y.bytes.len().div_ceil(rows * row_bytes);
    let out = lanes::Shared::new(&mut *y.bytes);
    let total = x.count() / c;
    lanes::run(tasks, 3 * 4 * c, scratch, |task, memory| {
        let memory = super::floats::cast_mut::<f32>(memory)?;
        let (row, rest) = memory.split_at_mut(c);
        let (g, b) = rest.split_at_mut(c);
        let affine = affine.as_ref().map(|(gs, bs)| (gs.view(0, g), bs.view(0, b)));
        for i in task * rows..(task * rows + rows).min(total) {
            x.read(i * c, row);
            normalise(row, affine, op.eps as f32);
            // SAFETY: every row belongs to one task.
            store(dtype, row, unsafe { out.slice(i * row_bytes, row_bytes) })?;
        }
        Ok(())
    })
}

/// (x − mean)/√(var + eps)·g + b in place.
pub fn normalise(row: &mut [f32], affine: Option<(&[f32], &[f32])>, eps: f32) {
    vectorised(
        #[inline(always)]
        || {
            let count = row.len() as f32;
            let mean = sum(
                row,
                #[inline(always)]
                |x| x,
            ) / count;
            let variance = sum(
                row,
                #[inline(always)]
                |x| (x - mean) * (x - mean),
            ) / count;
            let scale = 1.0 / (variance + eps).sqrt();
            match affine {
                Some((g, b)) => {
                    row.iter_mut().zip(g).zip(b).for_each(|((x, g), b)| *x = ((*x - mean) * scale).mul_add(*g, *b))
                }
                None => row.iter_mut().for_each(|x| *x = (*x - mean) * scale),
            }
        },
    )
}

/// Σ f(x) in 32 partial sums, which are then added in pairs: short chains of roundings, and vector code.
#[inline(always)]
pub fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; 32];
    let mut blocks = values.chunks_exact(32);
    for block in &mut blocks {
        sums.iter_mut().zip(block).for_each(|(s, x)| *s += f(*x));
    }
    sums.iter_mut().zip(blocks.remainder()).for_each(|(s, x)| *s += f(*x));
    let mut width = 16;
    while width > 0 {
        let (low, high) = sums.split_at_mut(width);
        low.iter_mut().zip(&high[..width]).for_each(|(a, b)| *a += b);
        width /= 2;
    }
    sums[0]
}
