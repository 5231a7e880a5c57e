//! `cuda/conv2d_wgmma.cu`: convolutions of stride one on Hopper.
//!
//! Images are laid out into scratch memory some at a time, so that it does not grow with their number; a pointwise
//! convolution whose planes and weights are whole chunks of 16 bytes reads its operands as they are.

use lite3r_ir::{DType, Op, ops::images::ImageLayout};

use super::{
    Arch, Kernel,
    conv::Geometry,
    dims,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, Swizzle, TensorMap},
};
use crate::backend::Request;

/// The rows of this file: stride one, one group, eight channels and more.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "conv2d.wgmma", op: "conv2d", dtypes: &[DType::F16, DType::BF16], lower }];

/// Bytes of images that are laid out at a time, where one is not larger: about what the L2 cache holds.
const PORTION: usize = 32 << 20;

/// A variant of the kernels: the part of a result that a block computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Rows.
    m: usize,
    /// Columns.
    n: usize,
    /// Slices of the ring: as many as shared memory holds.
    stages: usize,
    /// Registers of producer and consumers; 0 leaves those of the launch.
    registers: (u32, u32),
}

const fn tile(m: usize, n: usize, stages: usize, registers: (u32, u32)) -> Tile {
    Tile { m, n, stages, registers }
}

/// Every variant: a panel is 64 pixels, and 128 channels are enough for two warpgroups.
const TILES: [Tile; 4] =
    [tile(128, 256, 4, (24, 240)), tile(128, 128, 6, (24, 240)), tile(64, 256, 5, (0, 0)), tile(64, 128, 8, (0, 0))];

impl Tile {
    /// Warpgroups that multiply.
    fn groups(self) -> usize {
        self.m / 64
    }

    /// Threads a block, the producer's warpgroup included.
    fn threads(self) -> u32 {
        128 * (self.groups() as u32 + 1)
    }

    /// Bytes of the ring and its barriers.
    fn ring(self) -> usize {
        self.stages * ((self.m + self.n) * 128 + 16)
    }

    /// Tiles of a result.
    fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// The macros of the kernels.
    fn define(self, module: Module) -> Module {
        module
            .define("TILE_M", self.m)
            .define("TILE_N", self.n)
            .define("STAGES", self.stages)
            .define("PRODUCER", self.registers.0)
            .define("CONSUMER", self.registers.1)
    }

    /// Clock cycles of so many tiles of so many slices of 128 bytes, `work` instructions an element behind them. A slice
    /// costs what is slowest of its products, its traffic in shared memory (128 bytes a cycle) and in the L2 cache (64
    /// bytes a cycle). Epilogues stand between tiles.
    fn cycles(self, tiles: usize, slices: usize, work: usize) -> usize {
        let products = 2 * self.n * self.groups();
        let shared = self.m + self.n + self.groups() * (64 + self.n);
        let cache = 2 * (self.m + self.n);
        let main = slices * products.max(shared).max(cache) * 20 / 17;
        // A lone warpgroup waits for its own loads.
        let lone = if self.groups() == 1 { 2 } else { 1 };
        let epilogue = 600 + lone * self.m * self.n * work / 128;
        tiles.div_ceil(PROCESSORS) * (main + epilogue) + 1500
    }
}

/// See `cuda/conv2d_wgmma.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Layout {
    images: u32,
    outputs: u32,
    height: u32,
    width: u32,
    pad_y: u32,
    pad_x: u32,
    rows: u32,
    pitch: u32,
    taps: u32,
    channels: u32,
    filled: u32,
}

/// See `cuda/conv2d_wgmma.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Planes {
    images: u32,
    outputs: u32,
    out_height: u32,
    out_width: u32,
    pitch: u32,
    kernel_h: u32,
    kernel_w: u32,
    dilation_y: u32,
    dilation_x: u32,
    slices: u32,
}

/// Planes as they lie in memory: rows of `pitch` pixels, padding included.
#[derive(Debug, PartialEq)]
struct Flat {
    rows: usize,
    pitch: usize,
    out: [usize; 2],
}

impl Flat {
    /// Of an image [height, width] padded above, left, below, right. The zeros before a row also stand behind the row
    /// above it.
    fn of([height, width]: [usize; 2], pads: [usize; 4], out: [usize; 2]) -> Self {
        let [above, left, below, right] = pads;
        Self { rows: above + height + below, pitch: (width + left.max(right)).next_multiple_of(8), out }
    }

    fn pixels(&self) -> usize {
        self.rows * self.pitch
    }

    /// Columns of the product, those included that belong to no pixel.
    fn columns(&self) -> usize {
        self.out[0] * self.pitch
    }
}

fn tile_for(outputs: usize, images: usize, columns: usize, slices: usize) -> Option<Tile> {
    TILES.into_iter().min_by_key(|t| t.cycles(t.count(outputs, columns) * images, slices, 4))
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::Conv2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    if op.layout != ImageLayout::Planes {
        return Err("takes images in planes".into());
    }
    let geometry = Geometry::of(request, arch)?;
    let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    let (&[images, channels, height, width], &[outputs, _, kh, kw], &[_, _, oh, ow]) = (&x[..], &w[..], &y[..]) else {
        return Err("takes images".into());
    };
    let dtype = request.operands[0].dtype;
    if arch != Arch::Sm90a {
        return Err("needs sm_90a".into());
    }
    if dtype.size() != 2 {
        return Err(format!("multiplies f16 and bf16, not {dtype}"));
    }
    if y.contains(&0) {
        return Err("takes no empty images".into());
    }
    if op.groups != 1 || op.strides != [1, 1] || channels < 8 {
        return Err("takes stride one, one group, eight channels and more".into());
    }
    let &[above, left, below, right] = &op.pads[..] else { return Err("takes four pads".into()) };
    let pointwise = [kh, kw] == [1, 1] && [above, left, below, right] == [0; 4];
    let (image, out) = match pointwise {
        true => ([1, height * width], [1, oh * ow]),
        false => ([height, width], [oh, ow]),
    };
    let flat = Flat::of(image, [above, left, below, right], out);
    let in_place = pointwise && (height * width).is_multiple_of(8) && channels.is_multiple_of(8);
    if pointwise && !in_place && outputs < 16 {
        return Err("lays images out for 16 output channels and more only".into());
    }
    if out[1] > flat.pitch {
        return Err("takes padding of less than a kernel".into());
    }
    let filled = if in_place { channels } else { channels.next_multiple_of(64) };
    let slices = channels.div_ceil(64);

    let image_bytes = filled * flat.pixels() * 2;
    let portion = if in_place { images } else { (PORTION / image_bytes.max(1)).clamp(1, images) };
    let weights_at = if in_place { 0 } else { (portion * image_bytes).next_multiple_of(256) };
    let weights = outputs * kh * kw * filled;
    let chunks = (portion * filled * flat.pixels() + weights) / 8;
    let most = 1 << 31;
    if chunks >= most || flat.columns() >= most || images * outputs >= most {
        return Err("takes images of less than 2^34 elements".into());
    }
    let tile = tile_for(outputs, portion, flat.columns(), kh * kw * slices).ok_or("has no tile")?;
    let module = tile.define(Module::new("conv2d_wgmma.cu").element("TX", dtype).define("PLANAR", i32::from(in_place)));
    let module = module.define("XSCALE", "NONE").define("WSCALE", "NONE");
    let module = geometry.epilogue.define(module, request, false);

    let (planes_base, weights_base) = match in_place {
        true => (Base::Operand(0), Base::Operand(1)),
        false => (Base::Scratch, Base::Scratch),
    };
    let map = |base: Base, offset: usize, sizes: &[usize], boxes: &[usize]| {
        let strides = sizes.iter().scan(2, |bytes, size| {
            *bytes *= *size as u64;
            Some(*bytes)
        });
        Arg::TensorMap(TensorMap {
            base: Pointer { base, offset: offset as u64 },
            dtype,
            dims: sizes.iter().map(|s| *s as u64).collect(),
            strides: strides.take(sizes.len() - 1).collect(),
            tile: boxes.iter().map(|s| *s as u32).collect(),
            steps: vec![1; boxes.len()],
            swizzle: Swizzle::B128,
        })
    };
    let at =
        |base: Base, elements: usize, size: usize| Arg::Pointer(Pointer { base, offset: (elements * size) as u64 });

    let mut launches = Vec::new();
    for first in (0..images).step_by(portion) {
        let images = portion.min(images - first);
        if !in_place {
            let laid = Layout {
                images: images as u32,
                outputs: if first == 0 { outputs as u32 } else { 0 },
                height: image[0] as u32,
                width: image[1] as u32,
                pad_y: above as u32,
                pad_x: left as u32,
                rows: flat.rows as u32,
                pitch: flat.pitch as u32,
                taps: (kh * kw) as u32,
                channels: channels as u32,
                filled: filled as u32,
            };
            let source = at(Base::Operand(0), first * channels * height * width, 2);
            launches.push(Launch::over(
                module.clone(),
                "conv2d_layout",
                chunks as u64,
                vec![source, Arg::operand(1), Arg::scratch(0), Arg::scratch(weights_at), Arg::of(laid)],
            ));
        }
        let sizes = Planes {
            images: images as u32,
            outputs: outputs as u32,
            out_height: out[0] as u32,
            out_width: out[1] as u32,
            pitch: flat.pitch as u32,
            kernel_h: kh as u32,
            kernel_w: kw as u32,
            dilation_y: op.dilations[0] as u32,
            dilation_x: op.dilations[1] as u32,
            slices: slices as u32,
        };
        let done = first * outputs * oh * ow;
        let residual = geometry.epilogue.residual;
        let tiles = tile.count(outputs, flat.columns()) * images;
        launches.push(Launch {
            module: module.clone(),
            function: "conv2d_wgmma",
            grid: [tiles.min(PROCESSORS) as u32, 1, 1],
            block: tile.threads(),
            shared: tile.ring() as u32,
            args: vec![
                map(weights_base, weights_at, &[kh * kw * filled, outputs], &[64, tile.m]),
                match in_place {
                    true => map(planes_base, 0, &[flat.pixels(), channels, images], &[64, 64, 1]),
                    false => map(planes_base, 0, &[filled, flat.pixels(), images], &[64, tile.n, 1]),
                },
                at(Base::Result(0), done, 2),
                Arg::maybe(geometry.epilogue.bias),
                residual.map_or(Arg::Null, |i| at(Base::Operand(i), done, request.operands[i].dtype.size())),
                Arg::of(sizes),
            ],
        });
    }
    Ok(Lowered { launches, scratch: if in_place { 0 } else { weights_at + weights * 2 } })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Conv2d, activation::Activation},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    /// Every tap of every pixel, read from a flat plane, is the pixel that the law names, or a zero.
    #[test]
    fn shifts_of_flat_planes_are_taps() {
        for (height, width, pads, [kh, kw], [dy, dx]) in [
            (5, 7, [1, 1, 1, 1], [3, 3], [1, 1]),
            (4, 8, [0, 2, 1, 0], [2, 3], [1, 1]),
            (6, 5, [2, 1, 2, 3], [3, 3], [2, 2]),
            (3, 15, [0, 0, 0, 0], [1, 1], [1, 1]),
        ] {
            let [above, left, below, right] = pads;
            let (oh, ow) = (height + above + below - dy * (kh - 1), width + left + right - dx * (kw - 1));
            let flat = Flat::of([height, width], pads, [oh, ow]);
            assert!(ow <= flat.pitch);
            let mut plane = vec![0; flat.pixels()];
            for (row, column) in (0..height * width).map(|i| (i / width, i % width)) {
                plane[(row + above) * flat.pitch + column + left] = 1 + row * width + column;
            }
            for (oy, ox) in (0..oh * ow).map(|i| (i / ow, i % ow)) {
                for (ky, kx) in (0..kh * kw).map(|t| (t / kw, t % kw)) {
                    let (row, column) = ((oy + ky * dy).wrapping_sub(above), (ox + kx * dx).wrapping_sub(left));
                    let want = if row < height && column < width { 1 + row * width + column } else { 0 };
                    let at = oy * flat.pitch + ox + ky * dy * flat.pitch + kx * dx;
                    assert_eq!(plane.get(at).copied().unwrap_or(0), want, "{height}x{width} {oy} {ox} {ky} {kx}");
                }
            }
        }
    }

    #[test]
    fn convolutions_of_heads_compile_without_spills() {
        let of = |shape: &[usize]| ValueType::new(DType::BF16, shape.iter().copied());
        let mut requests = Vec::new();
        for (images, channels, outputs, size, kernel) in [
            (2, 256, 256, 148, 3),
            (2, 256, 256, 37, 3),
            (8, 256, 128, 296, 3),
            (2, 128, 32, 518, 3),
            (2, 1024, 256, 37, 1),
            (1, 64, 64, 19, 3),
        ] {
            for residual in [false, true] {
                let activation = Activation::Relu;
                let op = Conv2d { activation, residual, ..Conv2d::same(kernel / 2, true) };
                let x = of(&[images, channels, size, size]);
                let mut operands = vec![x, of(&[outputs, channels, kernel, kernel]), of(&[outputs])];
                operands.extend(residual.then(|| of(&[images, outputs, size, size])));
                requests.push((Op::Conv2d(op), operands));
            }
        }
        for variant in ["conv2d.wgmma", "conv2d.mma"] {
            conformance::compiles(&requests, variant);
        }
    }
}
