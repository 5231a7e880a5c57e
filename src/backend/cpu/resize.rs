//! `resize`: separable, with the weights of every row and column computed once; columns first, into scratch memory,
//! then rows as sums of whole lines.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    Op,
    ops::{activation::Activation, images::ImageLayout},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::all_floats,
    lanes::{self, Shared},
    math::vectorised,
};
use crate::backend::Request;

/// `resize` by planes and strips of rows.
pub const RESIZE: Kernel = Kernel {
    name: "resize.separable",
    op: "resize",
    dtypes: FLOATS,
    accepts: |request| {
        all_floats(request)?;
        match request.op {
            Op::Resize(op) if op.layout == ImageLayout::Pixels => return Err("takes images in planes".into()),
            Op::Resize(op) if op.addends > 0 || op.activation != Activation::None => {
                return Err("takes nothing besides x".into());
            }
            _ => {}
        }
        match request.operands[0].elements() {
            Some(0) => Err("takes images with pixels".into()),
            _ => Ok(()),
        }
    },
    lane: |request| sizes(request).map_or(0, |s| s.lane()),
    run: |op, args, results, scratch| match op {
        Op::Resize(op) => resize(|axis, from, to| op.weights(axis, from, to), args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// `resize_grad` in the same way, with taps the other way round.
pub const RESIZE_GRAD: Kernel = Kernel {
    name: "resize_grad.separable",
    op: "resize_grad",
    dtypes: FLOATS,
    accepts: |request| {
        all_floats(request)?;
        match (request.op, request.results[0].elements()) {
            (Op::ResizeGrad(op), Some(1..)) if op.layout == ImageLayout::Planes => Ok(()),
            _ => Err("takes images with pixels, in planes".into()),
        }
    },
    lane: |request| sizes(request).map_or(0, |s| s.lane()),
    run: |op, args, results, scratch| match op {
        Op::ResizeGrad(op) => resize(|axis, from, to| op.weights(axis, to, from), args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Rows of y a task.
const STRIP: usize = 64;

/// Heights and widths of x and y.
struct Sizes {
    from: [usize; 2],
    to: [usize; 2],
}

fn sizes(request: &Request<'_>) -> Option<Sizes> {
    let (x, y) = (request.operands.first()?.dims()?, request.results.first()?.dims()?);
    Some(Sizes { from: *x.last_chunk()?, to: *y.last_chunk()? })
}

impl Sizes {
    /// All rows of x at the width of y, a row of x, and a row of y.
    fn lane(&self) -> usize {
        (self.from[0] * self.to[1] + self.from[1] + self.to[1]) * size_of::<f32>()
    }
}

/// Of the taps of an axis from a number of pixels to another.
fn resize(
    taps: impl Fn(usize, usize, usize) -> Vec<Vec<(usize, f64)>>,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let (x, y) = (operand(args, 0)?, only(results)?);
    let (Some(from), Some(to)) = (x.shape.last_chunk::<2>(), y.shape.last_chunk::<2>()) else {
        return Err("takes images".into());
    };
    let sizes = Sizes { from: *from, to: *to };
    let ([h, w], [oh, ow]) = (*from, *to);
    let planes: usize = x.shape[..x.shape.len() - 2].iter().product();
    let x = Floats::of(x)?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    let (rows, columns) = (Taps::new(&taps(0, h, oh)), Taps::new(&taps(1, w, ow)));
    // Many planes keep all cores busy by themselves; few large ones are cut into strips.
    let strip = if planes >= 64 { oh.max(1) } else { STRIP };
    let strips = oh.div_ceil(strip);
    let out = Shared::new(&mut *y.bytes);
    lanes::run(planes * strips, sizes.lane(), scratch, |task, memory| {
        let (plane, first) = (task / strips, task % strips * strip);
        let last = (first + strip).min(oh);
        let (narrow, rest) = cast_mut::<f32>(memory)?.split_at_mut(h * ow);
        let (line, sum) = rest.split_at_mut(w);
        let used = rows.range(first, last);
        for row in used {
            let source = x.view((plane * h + row) * w, line);
            columns.gather(source, &mut narrow[row * ow..][..ow]);
        }
        for row in first..last {
            rows.blend(row, narrow, sum);
            // SAFETY: every row of y belongs to one task.
            store(dtype, sum, unsafe { out.slice((plane * oh + row) * ow * size, ow * size) })?;
        }
        Ok(())
    })
}

/// Sources and weights along one axis, the same number for every result.
struct Taps {
    count: usize,
    sources: Vec<u32>,
    weights: Vec<f32>,
}

impl Taps {
    fn new(pixels: &[Vec<(usize, f64)>]) -> Self {
        let count = pixels.iter().map(Vec::len).max().unwrap_or(0);
        let padded = pixels.iter().flat_map(|taps| {
            let last = taps.last().map_or(0, |t| t.0);
            taps.iter().copied().chain(std::iter::repeat((last, 0.0))).take(count)
        });
        let (sources, weights) = padded.map(|(source, weight)| (source as u32, weight as f32)).unzip();
        Self { count, sources, weights }
    }

    /// The sources that results `first..last` read.
    fn range(&self, first: usize, last: usize) -> std::ops::Range<usize> {
        let used = &self.sources[first * self.count..last * self.count];
        let low = used.iter().min().copied().unwrap_or(0) as usize;
        low..used.iter().max().map_or(low, |top| *top as usize + 1)
    }

    /// out[i] = Σ weight·line[source].
    fn gather(&self, line: &[f32], out: &mut [f32]) {
        match self.count {
            1 => self.gather_fixed::<1>(line, out),
            2 => self.gather_fixed::<2>(line, out),
            4 => self.gather_fixed::<4>(line, out),
            _ => {
                let taps =
                    self.sources.chunks_exact(self.count.max(1)).zip(self.weights.chunks_exact(self.count.max(1)));
                for (out, (sources, weights)) in out.iter_mut().zip(taps) {
                    *out = sources.iter().zip(weights).map(|(s, w)| line[*s as usize] * w).sum();
                }
            }
        }
    }

    /// With the number of taps known to the compiler: nearest, linear and cubic.
    fn gather_fixed<const N: usize>(&self, line: &[f32], out: &mut [f32]) {
        let (sources, weights) = (self.sources.as_chunks::<N>().0, self.weights.as_chunks::<N>().0);
        for ((out, sources), weights) in out.iter_mut().zip(sources).zip(weights) {
            let mut sum = 0.0;
            for tap in 0..N {
                sum += line[sources[tap] as usize] * weights[tap];
            }
            *out = sum;
        }
    }

    /// out = Σ weight·line of result `row`, where lines have the length of `out`.
    fn blend(&self, row: usize, lines: &[f32], out: &mut [f32]) {
        let out_len = out.len();
        let line = |tap: usize| &lines[self.sources[tap] as usize * out_len..][..out_len];
        let taps = row * self.count..(row + 1) * self.count;
        vectorised(
            #[inline(always)]
            || {
                out.fill(0.0);
                for tap in taps {
                    let weight = self.weights[tap];
                    out.iter_mut().zip(line(tap)).for_each(|(o, x)| *o = x.mul_add(weight, *o));
                }
            },
        );
    }
}
