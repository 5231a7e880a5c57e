//! Elementwise operations with one and two operands, in f32, as loops that the compiler turns into vector code.
//!
//! Broadcasting is reduced first: neighbouring dimensions along which both operands advance alike become one, so that
//! what is left is an innermost run in which each operand is either contiguous or constant.

use lite3r_ir::{
    DType, Op,
    ops::{gelu::Approximate, shape_rules::strides_for},
};
use rayon::prelude::*;

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, only, operand, store},
    gemm::all_floats,
    lanes::CHUNK,
    math::{self, vectorised},
};

/// Elements that are converted at a time where operands are narrower than f32.
const SEGMENT: usize = 512;

/// The row of an operation with one operand.
pub const fn unary(name: &'static str, op: &'static str) -> Kernel {
    Kernel {
        name,
        op,
        dtypes: FLOATS,
        accepts: all_floats,
        lane: |_| 0,
        run: |op, args, results, _| run_unary(op, args, results),
    }
}

/// The row of an operation with two operands.
pub const fn binary(name: &'static str, op: &'static str) -> Kernel {
    Kernel {
        name,
        op,
        dtypes: FLOATS,
        accepts: |request| match request.operands.first().is_some_and(|t| FLOATS.contains(&t.dtype)) {
            true => Ok(()),
            false => Err("takes f32, f16 and bf16".into()),
        },
        lane: |_| 0,
        run: |op, args, results, _| run_binary(op, args, results),
    }
}

fn run_unary(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>]) -> Result<(), String> {
    let (x, y) = (Floats::of(operand(args, 0)?)?, only(results)?);
    match op {
        Op::Neg(_) => map(
            x,
            y,
            #[inline(always)]
            |x| -x,
        ),
        Op::Abs(_) => map(x, y, f32::abs),
        Op::Exp(_) => map(x, y, math::exp),
        Op::Log(_) => map(x, y, f32::ln),
        Op::Sqrt(_) => map(x, y, f32::sqrt),
        Op::Reciprocal(_) => map(
            x,
            y,
            #[inline(always)]
            |x| 1.0 / x,
        ),
        Op::Sin(_) => map(x, y, f32::sin),
        Op::Cos(_) => map(x, y, f32::cos),
        Op::Tan(_) => map(x, y, f32::tan),
        Op::Atan(_) => map(x, y, f32::atan),
        Op::Erf(_) => map(x, y, math::erf),
        Op::Tanh(_) => map(x, y, math::tanh),
        Op::Sigmoid(_) => map(x, y, math::sigmoid),
        Op::Silu(_) => map(x, y, math::silu),
        Op::Gelu(op) => match op.approximate {
            Approximate::None => map(x, y, math::gelu),
            Approximate::Tanh => map(x, y, math::gelu_tanh),
        },
        Op::Relu(_) => map(x, y, math::relu),
        Op::Sign(_) => map(
            x,
            y,
            #[inline(always)]
            |x| if x == 0.0 { 0.0 } else { x.signum() },
        ),
        Op::Floor(_) => map(x, y, f32::floor),
        Op::Ceil(_) => map(x, y, f32::ceil),
        Op::Round(_) => map(x, y, f32::round_ties_even),
        Op::Clip(op) => {
            let (low, high) = (op.min as f32, op.max as f32);
            map(
                x,
                y,
                #[inline(always)]
                move |x| x.max(low).min(high),
            )
        }
        other => Err(format!("is no kernel for {}", other.name())),
    }
}

fn run_binary(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>]) -> Result<(), String> {
    let y = only(results)?;
    match op {
        Op::Add(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| a + b,
        ),
        Op::Sub(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| a - b,
        ),
        Op::Mul(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| a * b,
        ),
        Op::Div(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| a / b,
        ),
        Op::Pow(_) => zip(args, y, f32::powf),
        Op::Max(_) => zip(args, y, f32::max),
        Op::Min(_) => zip(args, y, f32::min),
        Op::Remainder(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| a - b * (a / b).floor(),
        ),
        Op::Equal(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| (a == b) as u8 as f32,
        ),
        Op::Less(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| (a < b) as u8 as f32,
        ),
        Op::LessEqual(_) => zip(
            args,
            y,
            #[inline(always)]
            |a, b| (a <= b) as u8 as f32,
        ),
        other => Err(format!("is no kernel for {}", other.name())),
    }
}

/// y = f(x).
fn map(x: Floats<'_>, y: &mut ArgMut<'_>, f: impl Fn(f32) -> f32 + Sync) -> Result<(), String> {
    let (dtype, size) = (y.dtype, y.dtype.size());
    y.bytes.par_chunks_mut(CHUNK * size).enumerate().try_for_each(|(i, out)| {
        let mut buffer = [0.0; SEGMENT];
        for (j, out) in out.chunks_mut(SEGMENT * size).enumerate() {
            let buffer = &mut buffer[..out.len() / size];
            x.read(i * CHUNK + j * SEGMENT, buffer);
            vectorised(
                #[inline(always)]
                || buffer.iter_mut().for_each(|x| *x = f(*x)),
            );
            store(dtype, buffer, out)?;
        }
        Ok(())
    })
}

/// y = f(a, b) under broadcasting; booleans are written where y holds them.
fn zip(args: &[Arg<'_>], y: &mut ArgMut<'_>, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<(), String> {
    let (a, b) = (operand(args, 0)?, operand(args, 1)?);
    let walk = Walk::new(y.shape, [a.shape, b.shape]);
    let (a, b) = (Floats::of(a)?, Floats::of(b)?);
    let (dtype, size) = (y.dtype, y.dtype.size());
    y.bytes.par_chunks_mut(CHUNK * size).enumerate().try_for_each(|(i, out)| {
        let (mut left, mut right) = ([0.0; SEGMENT], [0.0; SEGMENT]);
        let start = i * CHUNK;
        walk.runs(start, out.len() / size, SEGMENT, |at, len, [ia, ib]| {
            let (left, right) = (&mut left[..len], &mut right[..len]);
            load(&a, ia, walk.contiguous[0], left);
            load(&b, ib, walk.contiguous[1], right);
            vectorised(
                #[inline(always)]
                || left.iter_mut().zip(&*right).for_each(|(a, b)| *a = f(*a, *b)),
            );
            let out = &mut out[(at - start) * size..][..len * size];
            match dtype {
                DType::Bool => out.iter_mut().zip(&*left).for_each(|(o, v)| *o = *v as u8),
                _ => store(dtype, left, out)?,
            }
            Ok(())
        })
    })
}

/// A run of elements from `at`, or one for all.
pub fn load(source: &Floats<'_>, at: usize, contiguous: bool, out: &mut [f32]) {
    if contiguous {
        source.read(at, out);
    } else {
        let mut one = [0.0];
        source.read(at, &mut one);
        out.fill(one[0]);
    }
}

/// A row-major walk over a result in runs along which every operand is contiguous or constant.
pub struct Walk<const N: usize> {
    /// Sizes of the merged dimensions but the last, and each operand's strides there.
    outer: Vec<(usize, [usize; N])>,
    /// The length of a run.
    inner: usize,
    /// Whether an operand advances along a run.
    pub contiguous: [bool; N],
}

impl<const N: usize> Walk<N> {
    /// Over `shape`, to which `operands` broadcast.
    pub fn new(shape: &[usize], operands: [&[usize]; N]) -> Self {
        let strides = operands.map(|o| strides_for(o, shape));
        let mut dims: Vec<(usize, [usize; N])> = Vec::with_capacity(shape.len().max(1));
        for (axis, size) in shape.iter().copied().enumerate().filter(|(_, size)| *size != 1) {
            let step = std::array::from_fn(|i| strides[i][axis]);
            match dims.last_mut() {
                // The dimension before advances by exactly this whole one: they are one.
                Some((before, by)) if (0..N).all(|i| by[i] == size * step[i]) => {
                    (*before, *by) = (*before * size, step)
                }
                _ => dims.push((size, step)),
            }
        }
        let (inner, step) = dims.pop().unwrap_or((1, [1; N]));
        Self { outer: dims, inner, contiguous: step.map(|s| s != 0) }
    }

    /// Calls `f(flat index, length, offset into every operand)` for `count` elements from `start`, in runs of at most
    /// `most`.
    pub fn runs(
        &self,
        start: usize,
        count: usize,
        most: usize,
        mut f: impl FnMut(usize, usize, [usize; N]) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mut at, end) = (start, start + count);
        while at < end {
            let (mut row, along) = (at / self.inner, at % self.inner);
            let len = most.min(end - at).min(self.inner - along);
            let mut offsets: [usize; N] = std::array::from_fn(|i| if self.contiguous[i] { along } else { 0 });
            for (size, by) in self.outer.iter().rev() {
                (0..N).for_each(|i| offsets[i] += row % size * by[i]);
                row /= size;
            }
            f(at, len, offsets)?;
            at += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Walk;

    #[test]
    fn dimensions_that_advance_alike_are_merged() {
        let same = Walk::new(&[3, 4, 5], [&[3, 4, 5], &[3, 4, 5]]);
        assert_eq!((same.outer.len(), same.inner, same.contiguous), (0, 60, [true, true]));
        let scalar = Walk::new(&[3, 4, 5], [&[3, 4, 5], &[]]);
        assert_eq!((scalar.outer.len(), scalar.inner, scalar.contiguous), (0, 60, [true, false]));
        let channel = Walk::new(&[2, 4, 5, 5], [&[2, 4, 5, 5], &[4, 1, 1]]);
        assert_eq!((channel.outer.len(), channel.inner, channel.contiguous), (2, 25, [true, false]));
        let row = Walk::new(&[2, 4, 5], [&[2, 4, 5], &[5]]);
        assert_eq!((row.outer.len(), row.inner), (1, 5));
    }
}
