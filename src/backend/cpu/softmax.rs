//! `softmax` along any axis: whole rows where the axis is the last, otherwise many neighbouring columns at once.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    Op,
    ops::{Softmax, shape_rules},
};

use super::{
    Arg, ArgMut, Kernel,
    attention::maximum,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK, Shared},
    layer_norm::sum,
    math::{exp, vectorised},
};

/// Columns at once.
const COLUMNS: usize = 128;

/// `softmax` by rows or columns.
pub const SOFTMAX: Kernel = Kernel {
    name: "softmax.rows",
    op: "softmax",
    dtypes: FLOATS,
    accepts: all_floats,
    lane: |request| match request.op {
        Op::Softmax(op) => {
            let shape = request.operands[0].dims().unwrap_or_default();
            shape_rules::axis(op.axis, shape.len()).map_or(0, |axis| lane(&shape, axis))
        }
        _ => 0,
    },
    run: |op, args, results, scratch| match op {
        Op::Softmax(op) => softmax(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Bytes a task: one row, or the values of some columns.
fn lane(shape: &[usize], axis: usize) -> usize {
    let inner: usize = shape[axis + 1..].iter().product();
    shape[axis] * inner.min(COLUMNS) * size_of::<f32>()
}

fn softmax(op: &Softmax, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (x, y) = (operand(args, 0)?, only(results)?);
    let axis = shape_rules::axis(op.axis, x.shape.len())?;
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    if y.bytes.is_empty() {
        return Ok(());
    }
    let (lane, outer) = (lane(x.shape, axis), x.shape[..axis].iter().product::<usize>());
    let x = Floats::of(x)?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    let out = Shared::new(&mut *y.bytes);
    if inner == 1 {
        let rows = (CHUNK / n).max(1);
        return lanes::run(outer.div_ceil(rows), lane, scratch, |task, memory| {
            let row = cast_mut::<f32>(memory)?;
            for i in task * rows..(task * rows + rows).min(outer) {
                x.read(i * n, row);
                normalise(row);
                // SAFETY: every row belongs to one task.
                store(dtype, row, unsafe { out.slice(i * n * size, n * size) })?;
            }
            Ok(())
        });
    }
    let strips = inner.div_ceil(COLUMNS);
    lanes::run(outer * strips, lane, scratch, |task, memory| {
        let (block, first) = (task / strips, task % strips * COLUMNS);
        let width = COLUMNS.min(inner - first);
        let values = &mut cast_mut::<f32>(memory)?[..n * width];
        for (i, row) in values.chunks_exact_mut(width).enumerate() {
            x.read((block * n + i) * inner + first, row);
        }
        normalise_columns(values, width);
        for (i, row) in values.chunks_exact(width).enumerate() {
            // SAFETY: every column belongs to one task.
            store(dtype, row, unsafe { out.slice(((block * n + i) * inner + first) * size, width * size) })?;
        }
        Ok(())
    })
}

/// eˣ/Σeˣ in place.
pub fn normalise(row: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let top = maximum(row);
            row.iter_mut().for_each(|x| *x = exp(*x - top));
            let scale = 1.0
                / sum(
                    row,
                    #[inline(always)]
                    |x| x,
                );
            row.iter_mut().for_each(|x| *x *= scale);
        },
    )
}

/// eˣ/Σeˣ of every column of rows of `width`, in place.
fn normalise_columns(values: &mut [f32], width: usize) {
    let (mut tops, mut sums) = ([f32::NEG_INFINITY; COLUMNS], [0f32; COLUMNS]);
    vectorised(
        #[inline(always)]
        || {
            for row in values.chunks_exact(width) {
                tops.iter_mut().zip(row).for_each(|(t, x)| *t = if *x > *t { *x } else { *t });
            }
            for row in values.chunks_exact_mut(width) {
                for ((x, top), sum) in row.iter_mut().zip(&tops).zip(&mut sums) {
                    *x = exp(*x - top);
                    *sum += *x;
                }
            }
            for row in values.chunks_exact_mut(width) {
                row.iter_mut().zip(&sums).for_each(|(x, sum)| *x /= sum);
            }
        },
    )
}
