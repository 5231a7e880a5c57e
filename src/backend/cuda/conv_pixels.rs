//! `cuda/conv2d_pixels.cu`: convolutions on Hopper of images whose pixels keep their channels side by side, of 16-bit
//! elements or of e4m3 codes.

use lite3r_ir::{DType, Op, ops::images::ImageLayout};

use super::{
    Arch, Kernel,
    conv::{CODES, Geometry},
    dims,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, PixelMap, Pointer, Swizzle, TensorMap},
    product::activation,
    quantize_items::{self, Measures},
};
use crate::backend::Request;

/// The rows of this file: one group, strides up to eight, 16 bytes of channels or a multiple.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "conv2d.pixels_wgmma", op: "conv2d", dtypes: &[DType::F16, DType::BF16], lower },
    Kernel { name: "scaled_conv2d.pixels_wgmma", op: "scaled_conv2d", dtypes: CODES, lower },
];

/// See `cuda/conv2d_pixels.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Convolution {
    along: u32,
    parts: u32,
    tiles: u32,
    pixels: u32,
    size: [u32; 2],
    outputs: u32,
    kernel_w: u32,
    strides: [u32; 2],
    dilations: [u32; 2],
    pads: [u32; 2],
    slices_of_tap: u32,
    slices: u32,
    measures: u32,
}

/// A variant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    /// Output channels.
    channels: usize,
    /// Times 128 pixels.
    blocks: usize,
    stages: usize,
    /// Microseconds a slice of 128 bytes of channels, and what stands behind a tile, half as much more of codes. Fitted to
    /// runs on an H200 of 15 shapes of dense heads.
    slice: f32,
    behind: f32,
}

const fn tile(channels: usize, blocks: usize, stages: usize, slice: f32, behind: f32) -> Tile {
    Tile { channels, blocks, stages, slice, behind }
}

const TILES: [Tile; 7] = [
    tile(256, 1, 4, 0.66, 2.2),
    tile(128, 2, 4, 0.665, 2.2),
    tile(128, 1, 6, 0.345, 1.3),
    tile(64, 2, 5, 0.42, 1.2),
    tile(64, 1, 8, 0.211, 0.6),
    tile(32, 2, 6, 0.46, 0.4),
    tile(32, 1, 8, 0.235, 0.4),
];

/// Microseconds of a launch, of that which adds parts up, and of a megabyte of parts written and read.
const LAUNCH: f32 = 2.0;
const SUM: f32 = 2.5;
const SUM_MEGABYTE: f32 = 0.25;
/// Microseconds of codes by launches of their own, beyond what codes of a product cost that has measured them.
const MEASURE: f32 = 4.0;
/// And of a second result by a launch of its own.
const RELU: f32 = 3.0;
/// The share of a slice that an idle device saves.
const IDLE: f32 = 0.25;
/// The most parts of a sum, and the fewest slices of one.
const MOST_PARTS: usize = 8;
const LEAST_SLICES: usize = 4;

/// What is multiplied: pixels and channels of the result, slices of a sum, whether of codes.
#[derive(Clone, Copy, Debug)]
struct Size {
    pixels: usize,
    outputs: usize,
    slices: usize,
    codes: bool,
}

impl Tile {
    fn pixels(self) -> usize {
        128 * self.blocks
    }

    /// Bytes of shared memory: the ring, its barriers, and of both warpgroups scales and biases of columns and largest
    /// magnitudes.
    fn shared(self) -> usize {
        self.stages * ((self.pixels() + self.channels) * 128 + 16) + 2 * (2 * self.channels + 8) * size_of::<f32>()
    }

    /// Tiles of the pixels and along the channels.
    fn count(self, size: Size) -> [usize; 2] {
        [size.pixels.div_ceil(self.pixels()), size.outputs.div_ceil(self.channels)]
    }

    /// Microseconds with sums in so many parts.
    fn time(self, size: Size, parts: usize) -> f32 {
        let tiles = self.count(size).into_iter().product::<usize>() * parts;
        let busy = (tiles as f32 / PROCESSORS as f32).min(1.0);
        let slices = size.slices.div_ceil(parts) as f32 * self.slice * (1.0 - IDLE * (1.0 - busy));
        let behind = if size.codes && parts == 1 { 1.4 * self.behind } else { self.behind };
        let megabytes = (parts * size.pixels * size.outputs * size_of::<f32>()) as f32 / 1e6;
        let sum = if parts > 1 { SUM + SUM_MEGABYTE * megabytes } else { 0.0 };
        LAUNCH + tiles.div_ceil(PROCESSORS) as f32 * (slices + behind) + sum
    }
}

/// The fastest tile with the parts of sums; of equals the first.
fn fastest(size: Size, most_parts: usize, fits: impl Fn(&Tile) -> bool) -> Option<(Tile, usize)> {
    let parts = 1..=most_parts.min(size.slices / LEAST_SLICES).max(1);
    let all = TILES.into_iter().filter(fits).flat_map(|tile| parts.clone().map(move |parts| (tile, parts)));
    all.min_by(|a, b| a.0.time(size, a.1).total_cmp(&b.0.time(size, b.1)))
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    if arch != Arch::Sm90a {
        return Err("needs sm_90a".into());
    }
    let geometry = Geometry::of(request, arch)?;
    let (op, dtype) = (&geometry.op, request.operands[0].dtype);
    if op.layout != ImageLayout::Pixels {
        return Err("takes images whose pixels keep their channels side by side".into());
    }
    let (quantize, out) = match request.op {
        Op::ScaledConv2d(op) => (op.quantize, op.out),
        _ => (false, dtype),
    };
    if out.size() != 2 || geometry.epilogue.residual.is_some_and(|i| request.operands[i].dtype != out) {
        return Err("gives f16 and bf16, with a residual of the same type".into());
    }
    let (x, w) = (dims(&request.operands[0])?, dims(&request.operands[geometry.weights])?);
    let y = dims(&request.results[0])?;
    let (&[images, height, width, channels], &[outputs, kh, kw, _], &[_, oh, ow, _]) = (&x[..], &w[..], &y[..]) else {
        return Err("takes images".into());
    };
    if op.rectified && op.residual {
        return Err("gives two results without a residual".into());
    }
    if y.contains(&0) || op.groups != 1 || !(channels * dtype.size()).is_multiple_of(16) || !outputs.is_multiple_of(8) {
        return Err("takes one group, 16 bytes of channels or a multiple, and a multiple of eight outputs".into());
    }
    // As far as the copy engine walks over pixels.
    let reach = |axis: usize| op.dilations[axis] * ([kh, kw][axis] - 1);
    let near = |axis: usize| op.strides[axis] <= 8 && op.pads[axis].max(op.pads[axis + 2]).max(reach(axis)) <= 127;
    if !near(0) || !near(1) {
        return Err("takes strides up to 8, and pads and windows up to 127".into());
    }
    let depth = 128 / dtype.size();
    let slices = kh * kw * channels.div_ceil(depth);
    let size = Size { pixels: images * oh * ow, outputs, slices, codes: geometry.scales.is_some() };
    if size.pixels * outputs >= 1 << 31 {
        return Err("takes results of less than 2^31 elements".into());
    }
    // Parts are added up to one result.
    let most_parts = if op.rectified { 1 } else { MOST_PARTS };
    let (tile, parts) = if quantize {
        // A tile that measures reaches into two images at most, and has whole sums.
        let whole = fastest(size, 1, |tile| tile.pixels() <= oh * ow).ok_or("gives codes of larger images")?;
        let apart = fastest(size, MOST_PARTS, |_| true).map(|(tile, parts)| tile.time(size, parts));
        if apart.is_some_and(|time| time + MEASURE < whole.0.time(size, 1)) {
            return Err("sums in parts and codes apart are faster".into());
        }
        whole
    } else {
        let whole = fastest(size, most_parts, |_| true).ok_or("has no tile")?;
        let apart = fastest(size, MOST_PARTS, |_| true).map_or(f32::MAX, |(tile, parts)| tile.time(size, parts));
        if op.rectified && apart + RELU < whole.0.time(size, 1) {
            return Err("sums in parts and a second result apart are faster".into());
        }
        whole
    };
    let [down, along] = tile.count(size);
    let tiles = down * along * parts;

    let defined = |dtype: Option<usize>| dtype.map_or(DType::F32, |i| request.operands[i].dtype);
    let module = Module::new("conv2d_pixels.cu")
        .element("TX", dtype)
        .define("SCALED", i32::from(geometry.scales.is_some()))
        .element("TY", out)
        .element("TBIAS", defined(geometry.epilogue.bias))
        .define("BIAS", i32::from(geometry.epilogue.bias.is_some()))
        .define("RESIDUAL", i32::from(geometry.epilogue.residual.is_some()))
        .define("ACTIVATION", activation(op.activation, out, geometry.scales.is_some()))
        .define("TILE_N", tile.channels)
        .define("BLOCKS", tile.blocks)
        .define("STAGES", tile.stages)
        .define("PARTIAL", i32::from(parts > 1))
        .define("MEASURE", i32::from(quantize))
        .define("RECTIFIED", i32::from(op.rectified));

    let at = |base: Base| Pointer { base, offset: 0 };
    let panel = tile.channels.min(64);
    let matrix = |base: Base, rows: usize| {
        Arg::TensorMap(TensorMap {
            base: at(base),
            dtype: out,
            dims: vec![outputs as u64, size.pixels as u64],
            strides: vec![(outputs * out.size()) as u64],
            tile: vec![panel as u32, rows as u32],
            steps: vec![1; 2],
            swizzle: if panel == 64 { Swizzle::B128 } else { Swizzle::B64 },
        })
    };
    let weights = TensorMap {
        base: at(Base::Operand(geometry.weights)),
        dtype,
        dims: vec![channels as u64, (kh * kw) as u64, outputs as u64],
        strides: vec![(channels * dtype.size()) as u64, (kh * kw * channels * dtype.size()) as u64],
        tile: vec![depth as u32, 1, tile.channels as u32],
        steps: vec![1; 3],
        swizzle: Swizzle::B128,
    };
    let pixels = PixelMap {
        base: at(Base::Operand(0)),
        dtype,
        dims: [channels, width, height, images].map(|size| size as u64),
        first: [1, 0].map(|axis: usize| -(op.pads[axis] as i32)),
        last: [1, 0].map(|axis: usize| op.pads[axis + 2] as i32 - reach(axis) as i32),
        steps: [op.strides[1] as u32, op.strides[0] as u32],
        tile: [depth as u32, tile.pixels() as u32],
        swizzle: Swizzle::B128,
    };
    // Codes are made of a result in scratch memory; behind it stand its largest magnitudes. Parts of sums are alone there.
    let measures = Measures::new(images, oh * ow, tile.pixels(), along * 2);
    let measured_at = (size.pixels * outputs * out.size()).next_multiple_of(256);
    let result = if quantize { Base::Scratch } else { Base::Result(0) };
    let two = |pair: &[usize]| [pair[0] as u32, pair[1] as u32];
    let sizes = Convolution {
        along: along as u32,
        parts: parts as u32,
        tiles: tiles as u32,
        pixels: size.pixels as u32,
        size: [ow as u32, oh as u32],
        outputs: outputs as u32,
        kernel_w: kw as u32,
        strides: two(&op.strides),
        dilations: two(&op.dilations),
        pads: two(&op.pads),
        slices_of_tap: channels.div_ceil(depth) as u32,
        slices: slices as u32,
        measures: measures.room,
    };
    let [x_scales, w_scales, bias, residual] = geometry.extra_args();
    let scratch_if = |used: bool, offset: usize| if used { Arg::scratch(offset) } else { Arg::Null };
    let mut launches = vec![Launch {
        module: module.clone(),
        function: "conv2d_pixels",
        grid: [tiles.min(PROCESSORS) as u32, 1, 1],
        block: 384,
        shared: tile.shared() as u32,
        args: vec![
            Arg::PixelMap(pixels),
            Arg::TensorMap(weights),
            matrix(result, tile.pixels() / 2),
            match geometry.epilogue.residual {
                Some(residual) => matrix(Base::Operand(residual), tile.pixels()),
                // Without a second result, nobody writes this one.
                None => matrix(if op.rectified { Base::Result(1) } else { result }, tile.pixels() / 2),
            },
            x_scales.clone(),
            w_scales.clone(),
            bias.clone(),
            scratch_if(parts > 1, 0),
            scratch_if(quantize, measured_at),
            Arg::of(sizes),
        ],
    }];
    let mut scratch = 0;
    if parts > 1 {
        scratch = parts * size.pixels * outputs * size_of::<f32>();
        let chunks = (size.pixels * outputs / 8) as u64;
        let args = vec![Arg::scratch(0), x_scales, w_scales, bias, residual, Arg::result(0), Arg::of(sizes)];
        launches.push(Launch::over(module, "conv2d_sum", chunks, args));
    }
    if quantize {
        scratch = measured_at + measures.bytes(images);
        launches.push(quantize_items::encode(&y, out, Arg::scratch(0), Arg::scratch(measured_at), measures)?);
    }
    Ok(Lowered { launches, scratch })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Conv2d, ScaledConv2d, activation::Activation},
    };

    use super::*;
    use crate::backend::cuda::{conformance, launch::SHARED};

    #[test]
    fn rings_and_columns_fit_into_shared_memory() {
        assert!(TILES.iter().all(|tile| tile.shared() <= SHARED), "{:?}", TILES.map(Tile::shared));
    }

    /// Within 10 % of the fastest tile of a run on an H200.
    #[test]
    fn choices_are_those_that_were_measured() {
        for (images, size, channels, outputs, bf16, e4m3) in [
            (2, 148, 256, 256, (256, 1, 1), (256, 1, 1)),
            (8, 148, 256, 256, (256, 1, 1), (256, 1, 1)),
            (2, 296, 256, 128, (128, 1, 1), (128, 1, 1)),
            (1, 504, 128, 32, (32, 2, 1), (32, 2, 1)),
            (2, 74, 256, 256, (256, 1, 1), (64, 1, 1)),
            (2, 37, 256, 256, (64, 1, 1), (64, 1, 1)),
            (2, 37, 1024, 256, (128, 1, 3), (128, 1, 3)),
        ] {
            for (depth, want) in [(64, bf16), (128, e4m3)] {
                let slices = 9 * channels / depth;
                let size = Size { pixels: images * size * size, outputs, slices, codes: depth == 128 };
                let (tile, parts) = fastest(size, MOST_PARTS, |_| true).unwrap();
                assert_eq!((tile.channels, tile.blocks, parts), want, "{size:?}");
            }
        }
    }

    #[test]
    fn convolutions_of_heads_compile_without_spills() {
        let of = |shape: &[usize]| ValueType::new(DType::BF16, shape.iter().copied());
        let codes = |shape: &[usize]| {
            [of(shape).with_dtype(DType::F8E4M3), ValueType::new(DType::F32, shape[..1].iter().copied())]
        };
        let mut requests = Vec::new();
        for (images, channels, outputs, size, stride) in [
            (2, 256, 256, 148, 1),
            (2, 256, 256, 37, 1),
            (8, 256, 128, 296, 1),
            (2, 128, 32, 518, 1),
            (2, 1024, 1024, 37, 2),
            (1, 64, 64, 19, 1),
        ] {
            for residual in [false, true] {
                let op = Conv2d {
                    strides: vec![stride; 2],
                    activation: if residual { Activation::Relu } else { Activation::None },
                    residual,
                    layout: ImageLayout::Pixels,
                    ..Conv2d::same(1, true)
                };
                let out = (size - 1) / stride + 1;
                let (x, w) = ([images, size, size, channels], [outputs, 3, 3, channels]);
                let mut extra = vec![of(&[outputs])];
                extra.extend(residual.then(|| of(&[images, out, out, outputs])));
                let scaled = ScaledConv2d::of(&op, DType::BF16).expect("pixels in one group");
                for quantize in [false, true] {
                    let op = ScaledConv2d { quantize, ..scaled.clone() };
                    requests.push((Op::ScaledConv2d(op), [&codes(&x)[..], &codes(&w), &extra].concat()));
                }
                for rectified in [false, !residual] {
                    let op = Conv2d { rectified, ..op.clone() };
                    requests.push((Op::Conv2d(op), [&[of(&x), of(&w)], &extra[..]].concat()));
                }
            }
        }
        for variant in ["conv2d.pixels_wgmma", "conv2d.mma", "scaled_conv2d.quantize"] {
            conformance::compiles(&requests, variant);
        }
    }
}
