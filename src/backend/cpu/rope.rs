//! `rope`: rotation of pairs by tables, row by row.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    Op,
    ops::{Rope, shape_rules::strides_for},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK, Shared},
    math::vectorised,
};
use crate::backend::Request;

/// `rope` by rows.
pub const ROPE: Kernel = Kernel {
    name: "rope.rows",
    op: "rope",
    dtypes: FLOATS,
    accepts,
    // A row of x, of each table, and of the result.
    lane: |request| 4 * 4 * request.operands[0].shape.last().and_then(|d| d.size()).unwrap_or(0),
    run: |op, args, results, scratch| match op {
        Op::Rope(op) => rope(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn accepts(request: &Request<'_>) -> Result<(), String> {
    all_floats(request)?;
    let width = |i: usize| request.operands.get(i).and_then(|t| t.shape.last());
    match width(0) == width(1) {
        true => Ok(()),
        false => Err("takes tables of the width of x".into()),
    }
}

fn rope(op: &Rope, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (x, table, y) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let (&d, outer) = x.shape.split_last().ok_or("x needs a dimension")?;
    if y.bytes.is_empty() {
        return Ok(());
    }
    let steps = strides_for(table.shape, x.shape);
    let (count, rows) = (outer.iter().product::<usize>(), (CHUNK / d).max(1));
    let (x, cos, sin) = (Floats::of(x)?, Floats::of(table)?, Floats::of(operand(args, 2)?)?);
    let (dtype, size, half) = (y.dtype, y.dtype.size(), d / op.segments / 2);
    let out = Shared::new(&mut *y.bytes);
    lanes::run(count.div_ceil(rows), 4 * 4 * d, scratch, |task, memory| {
        let mut parts = cast_mut::<f32>(memory)?.chunks_exact_mut(d);
        let mut part = || parts.next().ok_or("the scratch is too small");
        let (own, cosines, sines, rotated) = (part()?, part()?, part()?, part()?);
        for row in task * rows..(task * rows + rows).min(count) {
            let (mut rest, mut at) = (row, 0);
            for (size, step) in outer.iter().zip(&steps).rev() {
                at += rest % size * step;
                rest /= size;
            }
            rotate(x.view(row * d, own), cos.view(at, cosines), sin.view(at, sines), half, rotated);
            // SAFETY: every row belongs to one task.
            store(dtype, rotated, unsafe { out.slice(row * d * size, d * size) })?;
        }
        Ok(())
    })
}

/// y = x·cos + rot(x)·sin in segments of two halves.
#[inline]
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], half: usize, y: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let segments = x.chunks_exact(2 * half).zip(cos.chunks_exact(2 * half)).zip(sin.chunks_exact(2 * half));
            for (((x, cos), sin), y) in segments.zip(y.chunks_exact_mut(2 * half)) {
                let ((a, b), (c, d), (s, t)) = (x.split_at(half), cos.split_at(half), sin.split_at(half));
                let (y, z) = y.split_at_mut(half);
                for i in 0..half {
                    y[i] = a[i] * c[i] - b[i] * s[i];
                    z[i] = b[i] * d[i] + a[i] * t[i];
                }
            }
        },
    )
}
