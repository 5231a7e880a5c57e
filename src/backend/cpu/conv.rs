//! `conv2d` as matrix products: weights [O, I·kh·kw] times a tile of columns [I·kh·kw, pixels].
//!
//! A task gathers the columns of some hundred neighbouring pixels into its scratch lane (im2col), multiplies, and
//! applies bias, activation and residual while the tile is in the cache; memory stays bounded whatever the image.
//! Where kernel and stride are one, the image itself is the matrix of columns and nothing is gathered.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{Conv2d, images::ImageLayout},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::{View, all_floats, multiply, multiply_into},
    lanes::{self, Shared},
    math::{activate, vectorised},
};

/// `conv2d` by tiles of pixels.
pub const CONV2D: Kernel = Kernel {
    name: "conv2d.gemm",
    op: "conv2d",
    dtypes: FLOATS,
    accepts: |request| {
        all_floats(request)?;
        match request.op {
            Op::Conv2d(op) if op.layout == ImageLayout::Pixels => Err("takes images in planes".into()),
            _ => Ok(()),
        }
    },
    lane: |request| match request.op {
        Op::Conv2d(op) => {
            let dims = |t: Option<&ValueType>| t.and_then(ValueType::dims).unwrap_or_default();
            let (x, w, y) =
                (dims(request.operands.first()), dims(request.operands.get(1)), dims(request.results.first()));
            Geometry::new(op, &x, &w, &y).map_or(0, |g| g.lane(request.operands[0].dtype).bytes())
        }
        _ => 0,
    },
    run: |op, args, results, scratch| match op {
        Op::Conv2d(op) => conv2d(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// All sizes of a convolution.
pub struct Geometry<'a> {
    op: &'a Conv2d,
    images: usize,
    channels: usize,
    /// Height and width of x.
    from: [usize; 2],
    outputs: usize,
    /// Input channels of a group.
    depth: usize,
    kernel: [usize; 2],
    /// Height and width of y.
    to: [usize; 2],
    /// Pixels a task.
    tile: usize,
}

/// Floats of scratch that a task needs, in the order in which they lie.
struct Lane {
    columns: usize,
    weights: usize,
    products: usize,
    line: usize,
}

impl Lane {
    fn bytes(&self) -> usize {
        (self.columns + self.weights + self.products + self.line) * size_of::<f32>()
    }
}

impl<'a> Geometry<'a> {
    /// From the shapes of x, w and y.
    pub fn new(op: &'a Conv2d, x: &[usize], w: &[usize], y: &[usize]) -> Result<Self, String> {
        let (&[images, channels, h, width], &[outputs, depth, kh, kw], &[_, _, oh, ow]) = (x, w, y) else {
            return Err("takes images".into());
        };
        let pixels = oh * ow;
        // Columns of about two megabytes, but enough tasks for several cores.
        let most = (1 << 19) / (depth * kh * kw).max(1);
        let tile = most.clamp(64, 1024).min((images * pixels).div_ceil(8).max(64));
        let tile = lanes::part(pixels, tile, 16).min(pixels.max(1));
        let (from, kernel, to) = ([h, width], [kh, kw], [oh, ow]);
        Ok(Self { op, images, channels, from, outputs, depth, kernel, to, tile })
    }

    /// The inner dimension of the product.
    fn inner(&self) -> usize {
        self.depth * self.kernel[0] * self.kernel[1]
    }

    /// Whether the image itself is the matrix of columns.
    fn pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.op.strides == [1, 1] && self.op.pads == [0; 4]
    }

    fn lane(&self, dtype: DType) -> Lane {
        let narrow = dtype != DType::F32;
        let on = |need: bool, floats: usize| if need { floats } else { 0 };
        Lane {
            columns: on(narrow || !self.pointwise(), self.inner() * self.tile),
            weights: on(narrow, self.outputs / self.op.groups.max(1) * self.inner()),
            products: on(narrow, self.outputs / self.op.groups.max(1) * self.tile),
            line: on(!self.pointwise() && (narrow || self.op.strides[1] != 1), self.from[1]),
        }
    }

    /// Writes the columns of `count` pixels from `first`: rows (channel, ky, kx) from `top` on, `count` values each.
    pub fn gather(
        &self,
        x: &Floats<'_>,
        plane: usize,
        top: usize,
        [first, count]: [usize; 2],
        columns: &mut [f32],
        line: &mut [f32],
    ) {
        let ([h, w], [kh, kw], width) = (self.from, self.kernel, self.to[1]);
        for (row, out) in (top..self.inner()).zip(columns.chunks_exact_mut(count)) {
            let (channel, ky, kx) = (row / (kh * kw), row / kw % kh, row % kw);
            let mut done = 0;
            while done < count {
                let (oy, ox) = ((first + done) / width, (first + done) % width);
                let len = (width - ox).min(count - done);
                let out = &mut out[done..done + len];
                let iy = (oy * self.op.strides[0] + ky * self.op.dilations[0]).wrapping_sub(self.op.pads[0]);
                if iy < h {
                    let at = ((plane + channel) * h + iy) * w;
                    self.gather_line(x, at, ox, kx * self.op.dilations[1], out, line);
                } else {
                    out.fill(0.0);
                }
                done += len;
            }
        }
    }

    /// One row of x under one tap: out[i] = x[(ox + i)·stride + shift − pad], zero outside.
    fn gather_line(&self, x: &Floats<'_>, at: usize, ox: usize, shift: usize, out: &mut [f32], line: &mut [f32]) {
        let (w, stride, pad) = (self.from[1], self.op.strides[1], self.op.pads[1]);
        // The pixels whose tap lies inside: low ≤ i < high.
        let low = pad.saturating_sub(shift).div_ceil(stride).saturating_sub(ox).min(out.len());
        let high = (w + pad).saturating_sub(shift).div_ceil(stride).saturating_sub(ox).clamp(low, out.len());
        out[..low].fill(0.0);
        out[high..].fill(0.0);
        if low == high {
            return;
        }
        let start = (ox + low) * stride + shift - pad;
        if stride == 1 {
            return x.read(at + start, &mut out[low..high]);
        }
        let source = match x.as_f32() {
            Some(x) => &x[at..at + w],
            None => x.view(at, &mut line[..w]),
        };
        out[low..high].iter_mut().zip(source[start..].iter().step_by(stride)).for_each(|(o, x)| *o = *x);
    }
}

fn conv2d(op: &Conv2d, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (x, w, y) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let geometry = Geometry::new(op, x.shape, w.shape, y.shape)?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    if y.bytes.is_empty() {
        return Ok(());
    }
    let (x, w) = (Floats::of(x)?, Floats::of(w)?);
    let bias = op.bias.then(|| Floats::of(operand(args, 2)?)).transpose()?;
    let residual = op.residual.then(|| Floats::of(operand(args, 2 + op.bias as usize)?)).transpose()?;
    let lane = geometry.lane(dtype);
    let (pixels, groups, inner) = (geometry.to[0] * geometry.to[1], op.groups, geometry.inner());
    let (tiles, outputs) = (pixels.div_ceil(geometry.tile), geometry.outputs / groups);
    let bytes = match dtype {
        DType::F32 => Out::F32(Shared::new(cast_mut(y.bytes)?)),
        _ => Out::Narrow(Shared::new(&mut *y.bytes)),
    };
    lanes::run(geometry.images * groups * tiles, lane.bytes(), scratch, |task, memory| {
        let (image, group, first) = (task / tiles / groups, task / tiles % groups, task % tiles * geometry.tile);
        let count = geometry.tile.min(pixels - first);
        let (columns, rest) = cast_mut::<f32>(memory)?.split_at_mut(lane.columns);
        let (weights, rest) = rest.split_at_mut(lane.weights);
        let (products, line) = rest.split_at_mut(lane.products);
        let plane = image * geometry.channels + group * geometry.depth;
        let columns = match x.as_f32() {
            Some(x) if geometry.pointwise() => View::rows(&x[plane * pixels + first..], inner, count, pixels),
            _ => {
                geometry.gather(&x, plane, 0, [first, count], columns, line);
                View::rows(columns, inner, count, count)
            }
        };
        let start = group * outputs * inner;
        let weights = match w.as_f32() {
            Some(w) => &w[start..start + outputs * inner],
            None => w.view(start, weights),
        };
        let weights = View::rows(weights, outputs, inner, inner);
        let at = |o: usize| (image * geometry.outputs + group * outputs + o) * pixels + first;
        let finish = |o: usize, values: &mut [f32]| {
            let mut one = [0.0];
            if let Some(bias) = &bias {
                bias.read(group * outputs + o, &mut one);
            }
            finish(op, values, one[0], residual.as_ref(), at(o));
        };
        match &bytes {
            Out::F32(out) => {
                let (start, len) = out.tail(at(0));
                // SAFETY: every task has its own pixels of its own planes.
                unsafe { multiply_into(weights, columns, start, len, pixels, false) };
                // SAFETY: as above.
                (0..outputs).for_each(|o| finish(o, unsafe { out.slice(at(o), count) }));
            }
            Out::Narrow(out) => {
                let products = &mut products[..outputs * count];
                multiply(weights, columns, products, count, false);
                for (o, values) in products.chunks_exact_mut(count).enumerate() {
                    finish(o, values);
                    // SAFETY: as above.
                    store(dtype, values, unsafe { out.slice(at(o) * size, count * size) })?;
                }
            }
        }
        Ok(())
    })
}

/// Where products go: to their place, or through scratch memory to be rounded.
enum Out<'a> {
    F32(Shared<'a, f32>),
    Narrow(Shared<'a, u8>),
}

/// act(values + bias) + residual; `at` is the flat index of the first value.
fn finish(op: &Conv2d, values: &mut [f32], bias: f32, residual: Option<&Floats<'_>>, at: usize) {
    if bias != 0.0 {
        vectorised(
            #[inline(always)]
            || values.iter_mut().for_each(|y| *y += bias),
        );
    }
    activate(op.activation, values);
    if let Some(residual) = residual {
        let mut buffer = [0.0; 256];
        for (i, values) in values.chunks_mut(256).enumerate() {
            let other = residual.view(at + i * 256, &mut buffer[..values.len()]);
            values.iter_mut().zip(other).for_each(|(y, r)| *y += r);
        }
    }
}
