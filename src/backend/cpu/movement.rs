//! Operations that move elements without looking at them: any element type, by its size.

#![allow(unsafe_code)] // tasks write their own parts of one result

use bytemuck::Pod;
use lite3r_ir::{
    DType, Op, Tensor,
    ops::{
        gather::wrap,
        shape_rules::{strides, strides_for},
    },
};

use super::{
    Arg, ArgMut, Kernel,
    elementwise::Walk,
    floats::{cast, cast_mut, only, operand},
    lanes::{self, CHUNK, Shared},
    strided::Copy,
};

/// The row of an operation that moves elements.
pub const fn movement(name: &'static str, op: &'static str) -> Kernel {
    Kernel {
        name,
        op,
        dtypes: &DType::ALL,
        accepts: |_| Ok(()),
        lane: |_| 0,
        run: |op, args, results, _| run(op, args, results),
    }
}

fn run(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>]) -> Result<(), String> {
    // The condition of `where` is a boolean; what moves is what the result holds.
    match results.first().ok_or("has a result")?.dtype.size() {
        1 => sized::<u8>(op, args, results),
        2 => sized::<u16>(op, args, results),
        4 => sized::<u32>(op, args, results),
        _ => sized::<u64>(op, args, results),
    }
}

fn sized<T: Pod + Send + Sync>(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>]) -> Result<(), String> {
    match op {
        Op::Reshape(_) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let all = |len| Copy::new(&[len], (0, &[1]), (0, &[1]));
            all(x.bytes.len()).run(x.bytes, y.bytes)
        }
        Op::Transpose(op) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let own = strides(x.shape);
            let from: Vec<usize> = op.perm.iter().map(|p| own[*p]).collect();
            Copy::new(y.shape, (0, &from), (0, &strides(y.shape))).run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)
        }
        Op::Expand(_) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let from = strides_for(x.shape, y.shape);
            Copy::new(y.shape, (0, &from), (0, &strides(y.shape))).run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)
        }
        Op::Slice(op) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let mut from = strides(x.shape);
            let first = op.start.size().ok_or("needs static shapes")? * from[op.axis];
            from[op.axis] *= op.step;
            Copy::new(y.shape, (first, &from), (0, &strides(y.shape))).run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)
        }
        Op::Split(op) => {
            let x = operand(args, 0)?;
            let (from, mut first) = (strides(x.shape), 0);
            for y in results {
                let copy = Copy::new(y.shape, (first, &from), (0, &strides(y.shape)));
                copy.run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)?;
                first += y.shape[op.axis] * from[op.axis];
            }
            Ok(())
        }
        Op::Concat(op) => {
            let y = only(results)?;
            let (to, mut first) = (strides(y.shape), 0);
            for x in args {
                let copy = Copy::new(x.shape, (0, &strides(x.shape)), (first, &to));
                copy.run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)?;
                first += x.shape[op.axis] * to[op.axis];
            }
            Ok(())
        }
        Op::Pad(op) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let border = Tensor::from_f64(y.dtype, &[1], &[op.value]);
            let border: T = bytemuck::pod_read_unaligned(border.bytes());
            let to = strides(y.shape);
            let first = op.before.iter().zip(&to).map(|(before, step)| before * step).sum();
            let out: &mut [T] = cast_mut(y.bytes)?;
            out.fill(border);
            Copy::new(x.shape, (0, &strides(x.shape)), (first, &to)).run::<T>(cast(x.bytes)?, out)
        }
        Op::SplitHeads(op) => {
            let x = operand(args, 0)?;
            let &[b, n, c] = x.shape else { return Err("takes [B, N, C]".into()) };
            let (h, d) = (op.heads, c / (op.heads * op.parts).max(1));
            for (part, y) in results.iter_mut().enumerate() {
                let copy = Copy::new(&[b, h, n, d], (part * h * d, &[n * c, d, c, 1]), (0, &strides(y.shape)));
                copy.run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)?;
            }
            Ok(())
        }
        Op::MergeHeads(_) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let &[b, h, n, d] = x.shape else { return Err("takes [B, H, N, D]".into()) };
            let copy = Copy::new(&[b, n, h, d], (0, &[h * n * d, d, n * d, 1]), (0, &[n * h * d, h * d, d, 1]));
            copy.run::<T>(cast(x.bytes)?, cast_mut(y.bytes)?)
        }
        Op::Where(_) => choose::<T>(args, only(results)?),
        Op::Gather(op) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let (outer, size, inner) = around(x.shape, op.axis);
            let index = Indices::of(operand(args, 1)?)?;
            let count = index.len();
            rows::<T>(cast(x.bytes)?, cast_mut(y.bytes)?, inner, outer * count, |row| {
                Ok((row / count * size + wrap(index.at(row % count), size)?) * inner)
            })
        }
        Op::GatherNd(op) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let table = operand(args, 1)?;
            let index = Indices::of(table)?;
            let tuple = *table.shape.last().ok_or("indices need a dimension")?;
            let (b, own) = (op.batch_dims, strides(x.shape));
            let inner = x.shape[b + tuple..].iter().product();
            let batch: usize = x.shape[..b].iter().product();
            let count: usize = table.shape[..table.shape.len() - 1].iter().product();
            let per_batch: usize = x.shape[b..].iter().product();
            rows::<T>(cast(x.bytes)?, cast_mut(y.bytes)?, inner, count, |row| {
                let parts = (0..tuple).map(|k| Ok(wrap(index.at(row * tuple + k), x.shape[b + k])? * own[b + k]));
                Ok(row * batch / count * per_batch + parts.sum::<Result<usize, String>>()?)
            })
        }
        Op::GatherElements(op) => {
            let (x, y) = (operand(args, 0)?, only(results)?);
            let table = operand(args, 1)?;
            let index = Indices::of(table)?;
            let place = places(x.shape, table.shape, op.axis);
            rows::<T>(cast(x.bytes)?, cast_mut(y.bytes)?, 1, index.len(), |i| place(i, index.at(i)))
        }
        Op::ScatterElements(op) => {
            let (x, table, updates, y) = (operand(args, 0)?, operand(args, 1)?, operand(args, 2)?, only(results)?);
            y.bytes.copy_from_slice(x.bytes);
            let (index, place) = (Indices::of(table)?, places(x.shape, table.shape, op.axis));
            let (updates, out): (&[T], &mut [T]) = (cast(updates.bytes)?, cast_mut(y.bytes)?);
            for (i, update) in updates.iter().enumerate() {
                out[place(i, index.at(i))?] = *update;
            }
            Ok(())
        }
        Op::ScatterNd(_) => {
            let (x, table, updates, y) = (operand(args, 0)?, operand(args, 1)?, operand(args, 2)?, only(results)?);
            y.bytes.copy_from_slice(x.bytes);
            let index = Indices::of(table)?;
            let tuple = *table.shape.last().ok_or("indices need a dimension")?;
            let own = strides(x.shape);
            let inner: usize = x.shape[tuple..].iter().product();
            let (updates, out): (&[T], &mut [T]) = (cast(updates.bytes)?, cast_mut(y.bytes)?);
            for (row, update) in updates.chunks(inner.max(1)).enumerate() {
                let parts = (0..tuple).map(|k| Ok(wrap(index.at(row * tuple + k), x.shape[k])? * own[k]));
                let start = parts.sum::<Result<usize, String>>()?;
                out[start..start + inner].copy_from_slice(update);
            }
            Ok(())
        }
        other => Err(format!("is no kernel for {}", other.name())),
    }
}

/// Dimensions before an axis, the axis, and behind it.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// y's rows of `inner` elements, row r from x at `start(r)`.
fn rows<T: Pod + Send + Sync>(
    x: &[T],
    y: &mut [T],
    inner: usize,
    count: usize,
    start: impl Fn(usize) -> Result<usize, String> + Sync,
) -> Result<(), String> {
    let block = (CHUNK / inner.max(1)).max(1);
    let out = Shared::new(y);
    lanes::run(count.div_ceil(block), 0, &mut [], |task, _| {
        for row in task * block..(task * block + block).min(count) {
            let at = start(row)?;
            // SAFETY: every row belongs to one task.
            unsafe { out.slice(row * inner, inner) }.copy_from_slice(&x[at..at + inner]);
        }
        Ok(())
    })
}

/// The flat offset in a tensor of `shape` for an element of `indices` whose value replaces the position on `axis`.
fn places<'a>(
    shape: &'a [usize],
    indices: &'a [usize],
    axis: usize,
) -> impl Fn(usize, i64) -> Result<usize, String> + Sync + use<'a> {
    let (own, small) = (strides(shape), strides(indices));
    move |flat, index| {
        (0..shape.len())
            .map(|d| Ok(own[d] * if d == axis { wrap(index, shape[d])? } else { flat / small[d] % indices[d] }))
            .sum()
    }
}

/// Integer operands of either width.
pub enum Indices<'a> {
    /// i64.
    Long(&'a [i64]),
    /// i32.
    Short(&'a [i32]),
}

impl<'a> Indices<'a> {
    /// Of an operand.
    pub fn of(arg: &Arg<'a>) -> Result<Self, String> {
        match arg.dtype {
            DType::I64 => Ok(Self::Long(cast(arg.bytes)?)),
            DType::I32 => Ok(Self::Short(cast(arg.bytes)?)),
            other => Err(format!("indices must be i64 or i32, not {other}")),
        }
    }

    /// How many.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        match self {
            Self::Long(v) => v.len(),
            Self::Short(v) => v.len(),
        }
    }

    /// The index `i`.
    pub fn at(&self, i: usize) -> i64 {
        match self {
            Self::Long(v) => v[i],
            Self::Short(v) => v[i] as i64,
        }
    }
}

/// a where the condition holds, b elsewhere.
fn choose<T: Pod + Send + Sync>(args: &[Arg<'_>], y: &mut ArgMut<'_>) -> Result<(), String> {
    let (condition, a, b) = (operand(args, 0)?, operand(args, 1)?, operand(args, 2)?);
    let walk = Walk::new(y.shape, [condition.shape, a.shape, b.shape]);
    let (condition, a, b): (&[u8], &[T], &[T]) = (condition.bytes, cast(a.bytes)?, cast(b.bytes)?);
    let step = walk.contiguous.map(usize::from);
    let count = y.shape.iter().product::<usize>();
    let out = Shared::new(cast_mut::<T>(y.bytes)?);
    lanes::run(count.div_ceil(CHUNK), 0, &mut [], |task, _| {
        let start = task * CHUNK;
        walk.runs(start, CHUNK.min(count - start), CHUNK, |at, len, [ic, ia, ib]| {
            // SAFETY: runs do not overlap.
            for (i, o) in unsafe { out.slice(at, len) }.iter_mut().enumerate() {
                let holds = condition[ic + i * step[0]] != 0;
                *o = if holds { a[ia + i * step[1]] } else { b[ib + i * step[2]] };
            }
            Ok(())
        })
    })
}
