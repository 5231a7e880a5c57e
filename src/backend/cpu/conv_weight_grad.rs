//! `conv2d_weight_grad` as matrix products: cotangents [outputs, pixels] times columns [pixels, depth].
//!
//! A task owns a tile of dw: it goes over all pixels in order, gathers its part of their columns into its scratch lane
//! and adds a product for each block of them, so that sums do not depend on the number of threads.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    Op,
    ops::{Conv2d, Conv2dWeightGrad, images::ImageLayout},
};

use super::{
    Arg, ArgMut, Kernel,
    conv::Geometry,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::{View, all_floats, multiply},
    lanes::{self, Shared, part},
};

/// `conv2d_weight_grad` by tiles of dw, in planes and pixels.
pub const CONV2D_WEIGHT_GRAD: Kernel = Kernel {
    name: "conv2d_weight_grad.gemm",
    op: "conv2d_weight_grad",
    dtypes: FLOATS,
    accepts: all_floats,
    lane: |request| match request.op {
        Op::Conv2dWeightGrad(op) => {
            let shape = |i: usize| request.operands.get(i).and_then(|t| t.dims()).unwrap_or_default();
            let convolution = op.convolution();
            let sizes = request.results[0].dims().and_then(|dw| Sizes::of(op, &convolution, &shape(0), &shape(1), &dw));
            sizes.map_or(0, |s| s.lane().iter().sum::<usize>() * size_of::<f32>())
        }
        _ => 0,
    },
    run: |op, args, results, scratch| match op {
        Op::Conv2dWeightGrad(op) => run(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Pixels that are multiplied at a time.
const PIXELS: usize = 512;

/// All sizes.
struct Sizes<'a> {
    op: &'a Conv2d,
    layout: ImageLayout,
    images: usize,
    /// Channels, height and width of x.
    from: [usize; 3],
    /// Height and width of g.
    to: [usize; 2],
    outputs: usize,
    /// Input channels of a group.
    channels: usize,
    kernel: [usize; 2],
    /// Outputs of a tile, and how much of the depth it has.
    tile: [usize; 2],
    /// Pixels of a block.
    block: usize,
}

impl<'a> Sizes<'a> {
    fn of(op: &Conv2dWeightGrad, convolution: &'a Conv2d, x: &[usize], g: &[usize], dw: &[usize]) -> Option<Self> {
        let layout = op.layout;
        let ([images, all, h, w], [_, outputs, oh, ow]) = (layout.planes(x)?, layout.planes(g)?);
        let [_, channels, kh, kw] = layout.planes(dw)?;
        let depth = channels * kh * kw;
        let tile = [
            part(outputs / op.groups, 256, 8).min((outputs / op.groups).max(1)),
            part(depth, if depth < 1024 { 64 } else { 128 }, 16).min(depth.max(1)),
        ];
        let pixels = if layout == ImageLayout::Pixels { images * oh * ow } else { oh * ow };
        let block = part(pixels, PIXELS, 16).min(pixels.max(1));
        let (from, to, kernel) = ([all, h, w], [oh, ow], [kh, kw]);
        Some(Self { op: convolution, layout, images, from, to, outputs, channels, kernel, tile, block })
    }

    fn depth(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// Floats of columns, cotangents, sums, and a line of x.
    fn lane(&self) -> [usize; 4] {
        let [outputs, depth] = self.tile;
        [depth * self.block, outputs * self.block, outputs * depth, self.from[2]]
    }

    /// Blocks of pixels: image, first pixel, how many. Pixels side by side run through all images.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let pixels = self.to[0] * self.to[1];
        let (images, pixels) = match self.layout {
            ImageLayout::Planes => (self.images, pixels),
            ImageLayout::Pixels => (1, self.images * pixels),
        };
        let block = self.block;
        (0..images)
            .flat_map(move |n| (0..pixels).step_by(block).map(move |first| (n, first, block.min(pixels - first))))
    }

    /// Columns of pixels from `first`: [count, depth], a part of the depth from `start`.
    fn gather(&self, x: &Floats<'_>, channel: usize, first: usize, start: usize, part: usize, columns: &mut [f32]) {
        let ([all, h, w], [oh, ow]) = (self.from, self.to);
        for (pixel, column) in (first..).zip(columns.chunks_exact_mut(part)) {
            let (image, i, j) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let mut done = 0;
            while done < part {
                let (tap, c) = ((start + done) / self.channels, (start + done) % self.channels);
                let len = (self.channels - c).min(part - done);
                let (ky, kx) = (tap / self.kernel[1], tap % self.kernel[1]);
                let row = (i * self.op.strides[0] + ky * self.op.dilations[0]).wrapping_sub(self.op.pads[0]);
                let place = (j * self.op.strides[1] + kx * self.op.dilations[1]).wrapping_sub(self.op.pads[1]);
                let out = &mut column[done..done + len];
                match row < h && place < w {
                    true => x.read(((image * h + row) * w + place) * all + channel + c, out),
                    false => out.fill(0.0),
                }
                done += len;
            }
        }
    }
}

fn run(op: &Conv2dWeightGrad, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (x, g, dw) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let convolution = op.convolution();
    let sizes = Sizes::of(op, &convolution, x.shape, g.shape, dw.shape).ok_or("takes images")?;
    if dw.bytes.is_empty() {
        return Ok(());
    }
    let planes = (sizes.layout == ImageLayout::Planes)
        .then(|| Geometry::new(sizes.op, x.shape, dw.shape, g.shape))
        .transpose()?;
    let (x, g, dtype) = (Floats::of(x)?, Floats::of(g)?, dw.dtype);
    let (depth, pixels, within) = (sizes.depth(), sizes.to[0] * sizes.to[1], sizes.outputs / op.groups);
    let ([tile, part], lane) = (sizes.tile, sizes.lane());
    let (across, along) = (within.div_ceil(tile), depth.div_ceil(part));
    let out = Shared::new(&mut *dw.bytes);
    let bytes = lane.iter().sum::<usize>() * size_of::<f32>();
    lanes::run(op.groups * across * along, bytes, scratch, |task, memory| {
        let (group, first_output, start) = (task / along / across, task / along % across * tile, task % along * part);
        let (count, part) = (tile.min(within - first_output), part.min(depth - start));
        let (columns, rest) = cast_mut::<f32>(memory)?.split_at_mut(lane[0]);
        let (cotangents, rest) = rest.split_at_mut(lane[1]);
        let (sums, line) = rest.split_at_mut(lane[2]);
        let sums = &mut sums[..count * part];
        sums.fill(0.0);
        let output = group * within + first_output;
        for (image, first, len) in sizes.blocks() {
            let columns = &mut columns[..part * len];
            let right = match &planes {
                Some(geometry) => {
                    let plane = image * sizes.from[0] + group * sizes.channels;
                    geometry.gather(&x, plane, start, [first, len], columns, line);
                    View::rows(columns, part, len, len).t()
                }
                None => {
                    sizes.gather(&x, group * sizes.channels, first, start, part, columns);
                    View::rows(columns, len, part, part)
                }
            };
            let left = match (&planes, g.as_f32()) {
                (Some(_), Some(g)) => {
                    View::rows(&g[(image * sizes.outputs + output) * pixels + first..], count, len, pixels)
                }
                (Some(_), None) => {
                    for (o, row) in cotangents.chunks_exact_mut(len).take(count).enumerate() {
                        g.read((image * sizes.outputs + output + o) * pixels + first, row);
                    }
                    View::rows(cotangents, count, len, len)
                }
                (None, Some(g)) => View::rows(&g[first * sizes.outputs + output..], len, count, sizes.outputs).t(),
                (None, None) => {
                    for (pixel, row) in cotangents.chunks_exact_mut(count).take(len).enumerate() {
                        g.read((first + pixel) * sizes.outputs + output, row);
                    }
                    View::rows(cotangents, len, count, count).t()
                }
            };
            multiply(left, right, sums, part, true);
        }
        let size = dtype.size();
        for (o, row) in sums.chunks_exact(part).enumerate() {
            let at = (output + o) * depth + start;
            // SAFETY: every task has its own outputs or its own part of their depth.
            store(dtype, row, unsafe { out.slice(at * size, part * size) })?;
        }
        Ok(())
    })
}
