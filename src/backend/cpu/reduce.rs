//! Reductions over any axes, accumulated in f64; and the position of extremes along one axis.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{DType, Op, ops::shape_rules::strides};
use rayon::prelude::*;

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK},
    math::vectorised,
};

/// Values or results that are handled together.
const SEGMENT: usize = 256;

/// The row of a reduction.
pub const fn reduction(name: &'static str, op: &'static str) -> Kernel {
    Kernel {
        name,
        op,
        dtypes: FLOATS,
        accepts: all_floats,
        lane: |_| 0,
        run: |op, args, results, _| run(op, args, results),
    }
}

/// The row of a search for extremes.
pub const fn search(name: &'static str, op: &'static str) -> Kernel {
    Kernel {
        name,
        op,
        dtypes: FLOATS,
        accepts: |request| match request.operands.first().is_some_and(|t| FLOATS.contains(&t.dtype)) {
            true => Ok(()),
            false => Err("takes f32, f16 and bf16".into()),
        },
        lane: |_| 0,
        run: |op, args, results, _| run(op, args, results),
    }
}

fn run(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>]) -> Result<(), String> {
    let (x, y) = (operand(args, 0)?, only(results)?);
    match op {
        Op::ReduceSum(op) => reduce(
            x,
            y,
            &op.axes,
            0.0,
            #[inline(always)]
            |a, b| a + b,
            |sum, _| sum,
        ),
        Op::ReduceMean(op) => reduce(
            x,
            y,
            &op.axes,
            0.0,
            #[inline(always)]
            |a, b| a + b,
            |sum, n| sum / n as f64,
        ),
        Op::ReduceProd(op) => reduce(
            x,
            y,
            &op.axes,
            1.0,
            #[inline(always)]
            |a, b| a * b,
            |product, _| product,
        ),
        Op::ReduceMax(op) => reduce(x, y, &op.axes, f64::NEG_INFINITY, f64::max, |top, _| top),
        Op::ReduceMin(op) => reduce(x, y, &op.axes, f64::INFINITY, f64::min, |low, _| low),
        Op::ArgMax(op) => extreme(x, y, op.axis, |value, best| value > best),
        Op::ArgMin(op) => extreme(x, y, op.axis, |value, best| value < best),
        other => Err(format!("is no kernel for {}", other.name())),
    }
}

/// A dimension: size and stride in x.
type Axis = (usize, usize);

/// Dimensions that stay and dimensions that go, neighbours of one kind merged.
fn separate(shape: &[usize], axes: &[usize]) -> (Vec<Axis>, Vec<Axis>) {
    let own = strides(shape);
    let (mut kept, mut gone): (Vec<Axis>, Vec<Axis>) = (Vec::new(), Vec::new());
    for axis in (0..shape.len()).filter(|axis| shape[*axis] != 1) {
        let list = if axes.contains(&axis) { &mut gone } else { &mut kept };
        match list.last_mut() {
            Some((size, step)) if *step == shape[axis] * own[axis] => (*size, *step) = (*size * shape[axis], own[axis]),
            _ => list.push((shape[axis], own[axis])),
        }
    }
    (kept, gone)
}

/// The offset of element `index` of dimensions.
fn offset(axes: &[Axis], mut index: usize) -> usize {
    let mut at = 0;
    for (size, step) in axes.iter().rev() {
        at += index % size * step;
        index /= size;
    }
    at
}

fn reduce(
    x: &Arg<'_>,
    y: &mut ArgMut<'_>,
    axes: &[usize],
    start: f64,
    join: impl Fn(f64, f64) -> f64 + Sync,
    finish: impl Fn(f64, usize) -> f64 + Sync,
) -> Result<(), String> {
    let (mut kept, mut gone) = separate(x.shape, axes);
    let count: usize = axes.iter().map(|a| x.shape[*a]).product();
    let x = Floats::of(x)?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    // Whichever dimension is contiguous in x is walked innermost: results side by side, or the values of one result.
    let across = kept.last().is_some_and(|(_, step)| *step == 1).then(|| kept.pop()).flatten();
    let along = gone.last().is_some_and(|(_, step)| *step == 1).then(|| gone.pop()).flatten();
    let (row, run) = (across.map_or(1, |a| a.0), along.map_or(1, |a| a.0));
    let terms: usize = gone.iter().map(|a| a.0).product();
    let block = if row > 1 { SEGMENT } else { (CHUNK / count.max(1)).clamp(1, SEGMENT) };
    let chunk = |i: usize, out: &mut [u8]| {
        let mut buffer = [0f32; SEGMENT];
        let mut done = 0;
        let results = out.len() / size;
        while done < results {
            let flat = i * block + done;
            let (line, first) = (flat / row, flat % row);
            let width = (row - first).min(results - done);
            let base = offset(&kept, line) + first;
            let mut sums = [start; SEGMENT];
            if row > 1 {
                for term in 0..terms {
                    let values = x.view(base + offset(&gone, term), &mut buffer[..width]);
                    vectorised(
                        #[inline(always)]
                        || sums.iter_mut().zip(values).for_each(|(s, v)| *s = join(*s, *v as f64)),
                    );
                }
            } else {
                let mut lanes = [start; 16];
                for term in 0..terms {
                    let at = base + offset(&gone, term);
                    for from in (0..run).step_by(SEGMENT) {
                        let values = x.view(at + from, &mut buffer[..SEGMENT.min(run - from)]);
                        vectorised(
                            #[inline(always)]
                            || {
                                for part in values.chunks(16) {
                                    lanes.iter_mut().zip(part).for_each(|(s, v)| *s = join(*s, *v as f64));
                                }
                            },
                        );
                    }
                }
                sums[0] = lanes.into_iter().fold(start, &join);
            }
            let finished: [f32; SEGMENT] = std::array::from_fn(|j| finish(sums[j], count) as f32);
            store(dtype, &finished[..width], &mut out[done * size..(done + width) * size])?;
            done += width;
        }
        Ok(())
    };
    y.bytes.par_chunks_mut(block * size).enumerate().try_for_each(|(i, out)| chunk(i, out))
}

fn extreme(
    x: &Arg<'_>,
    y: &mut ArgMut<'_>,
    axis: usize,
    better: impl Fn(f32, f32) -> bool + Sync,
) -> Result<(), String> {
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    if y.dtype != DType::I64 {
        return Err(format!("positions are i64, not {}", y.dtype));
    }
    let x = Floats::of(x)?;
    let out = cast_mut::<i64>(y.bytes)?;
    let block = (CHUNK / n.max(1)).max(1);
    let out_len = out.len();
    let shared = lanes::Shared::new(out);
    lanes::run(out_len.div_ceil(block), 0, &mut [], |task, _| {
        for i in task * block..(task * block + block).min(out_len) {
            let start = i / inner * n * inner + i % inner;
            let (mut best, mut value) = (0, [0.0]);
            x.read(start, &mut value);
            let mut top = value[0];
            for j in 1..n {
                x.read(start + j * inner, &mut value);
                if better(value[0], top) {
                    (best, top) = (j, value[0]);
                }
            }
            // SAFETY: every result belongs to one task.
            unsafe { shared.slice(i, 1)[0] = best as i64 };
        }
        Ok(())
    })
}
