//! `conv_transpose2d` where kernel and stride agree, as DPT heads have it: stamps do not overlap, so that every pixel
//! of x becomes a block of y through one matrix product. Of any other kernel, a task owns some planes of y, makes the
//! stamps of a strip of x through a product, and adds them up tap by tap.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{DType, Op, ValueType, ops::ConvTranspose2d};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::{View, all_floats, multiply},
    lanes::{self, Shared},
};
use crate::backend::Request;

/// `conv_transpose2d` without overlap.
pub const CONV_TRANSPOSE2D: Kernel = Kernel {
    name: "conv_transpose2d.blocks",
    op: "conv_transpose2d",
    dtypes: &[DType::F32],
    accepts,
    lane: |request| {
        let size = |operand: usize, axis: usize| request.operands[operand].shape[axis].size().unwrap_or(0);
        let stamps = size(1, 1) * size(1, 2) * size(1, 3);
        stamps * rows(size(0, 2), size(0, 3)) * size(0, 3) * size_of::<f32>()
    },
    run: |op, args, results, scratch| match op {
        Op::ConvTranspose2d(op) => conv_transpose2d(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// `conv_transpose2d` of any geometry.
pub const OVERLAPPING: Kernel = Kernel {
    name: "conv_transpose2d.stamps",
    op: "conv_transpose2d",
    dtypes: FLOATS,
    accepts: all_floats,
    lane: |request| {
        let dims = |t: Option<&ValueType>| t.and_then(ValueType::dims).unwrap_or_default();
        let (x, w, y) = (dims(request.operands.first()), dims(request.operands.get(1)), dims(request.results.first()));
        match request.op {
            Op::ConvTranspose2d(op) => Overlap::of(op, &x, &w, &y).map_or(0, |o| o.lane().iter().sum::<usize>() * 4),
            _ => 0,
        }
    },
    run: |op, args, results, scratch| match op {
        Op::ConvTranspose2d(op) => overlapping(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn accepts(request: &Request<'_>) -> Result<(), String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err("computes conv_transpose2d".into()) };
    if let Some(odd) = request.operands.iter().find(|t| t.dtype != DType::F32) {
        return Err(format!("takes f32, not {odd}"));
    }
    let kernel: Option<Vec<usize>> = request.operands[1].shape[2..].iter().map(|d| d.size()).collect();
    match op.groups == 1 && kernel.is_some_and(|kernel| op.stamps_lie_apart(&kernel)) {
        true => Ok(()),
        false => Err("takes kernels of the size of the stride, without groups, padding and dilation".into()),
    }
}

/// Rows of x a task: about 256 pixels.
fn rows(h: usize, w: usize) -> usize {
    (256 / w.max(1)).clamp(1, h.max(1))
}

fn conv_transpose2d(
    op: &ConvTranspose2d,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let (x, w, y) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let (&[images, channels, h, width], &[_, outputs, kh, kw]) = (x.shape, w.shape) else {
        return Err("takes images".into());
    };
    fn plain<'a>(arg: &Arg<'a>) -> Result<&'a [f32], String> {
        Floats::of(arg)?.as_f32().ok_or_else(|| format!("takes f32, not {}", arg.dtype))
    }
    let (x, w) = (plain(x)?, plain(w)?);
    let bias = op.bias.then(|| plain(operand(args, 2)?)).transpose()?;
    let out = Shared::new(cast_mut::<f32>(y.bytes)?);
    let (stamps, height) = (outputs * kh * kw, rows(h, width));
    let strips = h.div_ceil(height);
    let lane = stamps * height * width * size_of::<f32>();
    lanes::run(images * strips, lane, scratch, |task, memory| {
        let (image, first) = (task / strips, task % strips * height);
        let count = height.min(h - first) * width;
        let products = &mut cast_mut::<f32>(memory)?[..stamps * count];
        let pixels = View::rows(&x[(image * channels * h + first) * width..], channels, count, h * width);
        multiply(View::rows(w, channels, stamps, stamps).t(), pixels, products, count, false);
        for o in 0..outputs {
            let bias = bias.map_or(0.0, |b| b[o]);
            for (row, ky) in (0..count / width).flat_map(|r| (0..kh).map(move |ky| (r, ky))) {
                let line = ((image * outputs + o) * h * kh + (first + row) * kh + ky) * width * kw;
                // SAFETY: every row of y comes from one row of x.
                let line = unsafe { out.slice(line, width * kw) };
                for kx in 0..kw {
                    let stamp = &products[((o * kh + ky) * kw + kx) * count + row * width..][..width];
                    line.iter_mut().skip(kx).step_by(kw).zip(stamp).for_each(|(y, p)| *y = p + bias);
                }
            }
        }
        Ok(())
    })
}

/// Sizes of a transposed convolution whose stamps overlap.
struct Overlap<'a> {
    op: &'a ConvTranspose2d,
    /// Input channels of a group, height and width of x.
    from: [usize; 3],
    /// Outputs of a group, height and width of y.
    to: [usize; 3],
    kernel: [usize; 2],
    /// Outputs of a task, and rows of x that are multiplied at a time.
    tile: [usize; 2],
}

impl<'a> Overlap<'a> {
    fn of(op: &'a ConvTranspose2d, x: &[usize], w: &[usize], y: &[usize]) -> Option<Self> {
        let (&[_, channels, h, width], &[_, outputs, kh, kw], &[_, _, oh, ow]) = (x, w, y) else { return None };
        let (from, to, kernel) = ([channels / op.groups, h, width], [outputs, oh, ow], [kh, kw]);
        // Stamps of about a megabyte.
        let outputs = (128 / (kh * kw).max(1)).clamp(1, 32).min(outputs.max(1));
        let strip = ((1 << 18) / (outputs * kh * kw * width).max(1)).clamp(1, h.max(1));
        Some(Self { op, from, to, kernel, tile: [outputs, strip] })
    }

    /// Floats of stamps, sums, a strip of x and the weights of a task.
    fn lane(&self) -> [usize; 4] {
        let ([channels, _, width], [_, oh, ow], [outputs, strip]) = (self.from, self.to, self.tile);
        let stamps = outputs * self.kernel[0] * self.kernel[1];
        [stamps * strip * width, outputs * oh * ow, channels * strip * width, channels * stamps]
    }

    /// Adds the stamps of `count` rows of x from `first` to a plane of y, tap by tap.
    fn add(&self, stamps: &[f32], [first, count]: [usize; 2], plane: &mut [f32]) {
        let ([_, _, width], [_, oh, ow], op) = (self.from, self.to, self.op);
        for (tap, stamp) in stamps.chunks_exact(count * width).enumerate() {
            let shift = |axis: usize, tap: usize| tap * op.dilations[axis];
            let (down, right) = (shift(0, tap / self.kernel[1]), shift(1, tap % self.kernel[1]));
            for (row, line) in (first..).zip(stamp.chunks_exact(width)) {
                let i = (row * op.strides[0] + down).wrapping_sub(op.pads[0]);
                if i >= oh {
                    continue;
                }
                let line = line.iter().enumerate();
                let sums = &mut plane[i * ow..][..ow];
                for (column, value) in line {
                    let j = (column * op.strides[1] + right).wrapping_sub(op.pads[1]);
                    if let Some(sum) = sums.get_mut(j) {
                        *sum += value;
                    }
                }
            }
        }
    }
}

fn overlapping(
    op: &ConvTranspose2d,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let (x, w, y) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let sizes = Overlap::of(op, x.shape, w.shape, y.shape).ok_or("takes images")?;
    if y.bytes.is_empty() {
        return Ok(());
    }
    let ([channels, h, width], [outputs, oh, ow], [tile, strip]) = (sizes.from, sizes.to, sizes.tile);
    let (taps, lane) = (sizes.kernel[0] * sizes.kernel[1], sizes.lane());
    let (images, across) = (x.shape[0], outputs.div_ceil(tile));
    let (x, w) = (Floats::of(x)?, Floats::of(w)?);
    let bias = op.bias.then(|| Floats::of(operand(args, 2)?)).transpose()?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    let out = Shared::new(&mut *y.bytes);
    lanes::run(images * op.groups * across, lane.iter().sum::<usize>() * size_of::<f32>(), scratch, |task, memory| {
        let (image, group, first) = (task / across / op.groups, task / across % op.groups, task % across * tile);
        let count = tile.min(outputs - first);
        let (stamps, rest) = cast_mut::<f32>(memory)?.split_at_mut(lane[0]);
        let (sums, rest) = rest.split_at_mut(lane[1]);
        let (pixels, weights) = rest.split_at_mut(lane[2]);
        let (sums, weights) = (&mut sums[..count * oh * ow], &mut weights[..channels * count * taps]);
        let output = group * outputs + first;
        for (o, plane) in sums.chunks_exact_mut(oh * ow).enumerate() {
            let mut one = [0.0];
            if let Some(bias) = &bias {
                bias.read(output + o, &mut one);
            }
            plane.fill(one[0]);
        }
        for (c, row) in weights.chunks_exact_mut((count * taps).max(1)).enumerate() {
            w.read(((group * channels + c) * outputs + first) * taps, row);
        }
        let weights = View::rows(weights, channels, count * taps, count * taps).t();
        for top in (0..h).step_by(strip) {
            let rows = strip.min(h - top);
            for (c, row) in pixels.chunks_exact_mut(rows * width).take(channels).enumerate() {
                x.read((((image * op.groups + group) * channels + c) * h + top) * width, row);
            }
            let stamps = &mut stamps[..count * taps * rows * width];
            multiply(weights, View::rows(pixels, channels, rows * width, rows * width), stamps, rows * width, false);
            for (stamps, plane) in stamps.chunks_exact(taps * rows * width).zip(sums.chunks_exact_mut(oh * ow)) {
                sizes.add(stamps, [top, rows], plane);
            }
        }
        let at = (image * op.groups * outputs + output) * oh * ow;
        // SAFETY: every task has its own planes.
        store(dtype, sums, unsafe { out.slice(at * size, sums.len() * size) })
    })
}
