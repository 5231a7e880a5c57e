//! `cuda/conv2d_pixels.cu`: convolutions on Hopper of images whose pixels keep their channels side by side.

use lite3r_ir::{DType, Op, ops::images::ImageLayout};

use super::{
    Arch, Kernel,
    conv::Geometry,
    dims,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, Swizzle, TensorMap},
};
use crate::backend::Request;

/// The rows of this file: one group, strides up to eight, multiples of eight channels.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "conv2d.pixels_wgmma", op: "conv2d", dtypes: &[DType::F16, DType::BF16], lower }];

/// See `cuda/conv2d_pixels.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Convolution {
    across: u32,
    down: u32,
    along: u32,
    tiles: u32,
    tile: [u32; 2],
    outputs: u32,
    kernel: [u32; 2],
    strides: [u32; 2],
    dilations: [u32; 2],
    pads: [u32; 2],
    slices: u32,
}

/// A variant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    /// Output channels.
    channels: usize,
    /// Times 128 pixels.
    blocks: usize,
    stages: usize,
}

const fn tile(channels: usize, blocks: usize, stages: usize) -> Tile {
    Tile { channels, blocks, stages }
}

const TILES: [Tile; 7] =
    [tile(256, 1, 4), tile(128, 2, 4), tile(128, 1, 6), tile(64, 2, 5), tile(64, 1, 8), tile(32, 2, 6), tile(32, 1, 8)];

impl Tile {
    fn pixels(self) -> usize {
        128 * self.blocks
    }

    /// Bytes of a slice of 64 channels, pixels and weights.
    fn stage(self) -> usize {
        (self.pixels() + self.channels) * 128
    }

    /// Bytes of the ring and its barriers.
    fn ring(self) -> usize {
        self.stages * (self.stage() + 16)
    }

    /// Columns and rows of pixels: what covers the image with the fewest tiles, of equals the widest. A warpgroup has
    /// whole rows.
    fn shape(self, [height, width]: [usize; 2]) -> [usize; 2] {
        let shapes = [64, 32, 16, 8].map(|w| [w, self.pixels() / w]);
        let count = |[w, h]: [usize; 2]| width.div_ceil(w) * height.div_ceil(h);
        shapes.into_iter().min_by_key(|shape| count(*shape)).expect("there are four")
    }

    /// Tiles of images of that size.
    fn count(self, images: usize, outputs: usize, size: [usize; 2]) -> [usize; 4] {
        let [w, h] = self.shape(size);
        [size[1].div_ceil(w), size[0].div_ceil(h), outputs.div_ceil(self.channels), images]
    }

    /// Clock cycles of so many tiles of so many slices: products at the rate that was measured, or traffic in the L2
    /// cache (60 bytes a cycle), and what stands behind a slice and a tile.
    fn cycles(self, tiles: usize, slices: usize) -> usize {
        let products = self.pixels() * self.channels / 32;
        let main = slices * ((products * 117 / 100).max(self.stage() / 60) + 40);
        tiles.div_ceil(PROCESSORS) * (main + 600 + self.pixels() * self.channels / 32)
    }
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::Conv2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    if arch != Arch::Sm90a {
        return Err("needs sm_90a".into());
    }
    if op.layout != ImageLayout::Pixels {
        return Err("takes images whose pixels keep their channels side by side".into());
    }
    let geometry = Geometry::of(request)?;
    let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    let (&[images, height, width, channels], &[outputs, kh, kw, _], &[_, oh, ow, _]) = (&x[..], &w[..], &y[..]) else {
        return Err("takes images".into());
    };
    let dtype = request.operands[0].dtype;
    if dtype.size() != 2 || geometry.epilogue.residual.is_some_and(|i| request.operands[i].dtype != dtype) {
        return Err("takes f16 and bf16, and a residual of the same type".into());
    }
    if y.contains(&0) || op.groups != 1 || !channels.is_multiple_of(8) || !outputs.is_multiple_of(8) {
        return Err("takes one group and multiples of eight channels".into());
    }
    let most_stride = 8;
    if op.strides.iter().any(|s| *s > most_stride) {
        return Err(format!("takes strides up to {most_stride}"));
    }
    let slices = kh * kw * channels.div_ceil(64);
    let count = |tile: &Tile| tile.count(images, outputs, [oh, ow]);
    let reach = |tile: &Tile| {
        let [tw, th] = tile.shape([oh, ow]);
        (tw * op.strides[1]).max(th * op.strides[0])
    };
    let fitting = TILES.into_iter().filter(|tile| reach(tile) <= 256);
    let tile =
        fitting.min_by_key(|tile| tile.cycles(count(tile).into_iter().product(), slices)).ok_or("has no tile")?;
    let [across, down, along, _] = count(&tile);
    let tiles = across * down * along * images;
    if tiles >= 1 << 31 {
        return Err("takes less than 2^31 tiles".into());
    }
    let [tile_w, tile_h] = tile.shape([oh, ow]);

    let module = Module::new("conv2d_pixels.cu")
        .element("TX", dtype)
        .define("TILE_N", tile.channels)
        .define("BLOCKS", tile.blocks)
        .define("STAGES", tile.stages)
        .define("XSCALE", "NONE")
        .define("WSCALE", "NONE");
    let module = geometry.epilogue.define(module, request, false);

    // Dimensions innermost first, dense.
    let map = |base: Base, sizes: &[usize], boxes: &[usize], steps: &[usize], swizzle: Swizzle| {
        let strides = sizes.iter().scan(2, |bytes, size| {
            *bytes *= *size as u64;
            Some(*bytes)
        });
        Arg::TensorMap(TensorMap {
            base: Pointer { base, offset: 0 },
            dtype,
            dims: sizes.iter().map(|s| *s as u64).collect(),
            strides: strides.take(sizes.len() - 1).collect(),
            tile: boxes.iter().map(|s| *s as u32).collect(),
            steps: steps.iter().map(|s| *s as u32).collect(),
            swizzle,
        })
    };
    let panel = tile.channels.min(64);
    let swizzle = if panel == 64 { Swizzle::B128 } else { Swizzle::B64 };
    let result =
        |base: Base, rows: usize| map(base, &[outputs, ow, oh, images], &[panel, tile_w, rows, 1], &[1; 4], swizzle);
    let [stride_y, stride_x] = [op.strides[0], op.strides[1]];
    let two = |pair: &[usize]| [pair[0] as u32, pair[1] as u32];
    let sizes = Convolution {
        across: across as u32,
        down: down as u32,
        along: along as u32,
        tiles: tiles as u32,
        tile: [tile_w as u32, tile_h as u32],
        outputs: outputs as u32,
        kernel: two(&[kh, kw]),
        strides: two(&op.strides),
        dilations: two(&op.dilations),
        pads: two(&op.pads),
        slices: channels.div_ceil(64) as u32,
    };
    Ok(Launch {
        module,
        function: "conv2d_pixels",
        grid: [tiles.min(PROCESSORS) as u32, 1, 1],
        block: 384,
        shared: tile.ring() as u32,
        args: vec![
            map(
                Base::Operand(0),
                &[channels, width, height, images],
                &[64, tile_w * stride_x, tile_h * stride_y, 1],
                &[1, stride_x, stride_y, 1],
                Swizzle::B128,
            ),
            map(Base::Operand(1), &[channels, kh * kw, outputs], &[64, 1, tile.channels], &[1; 3], Swizzle::B128),
            result(Base::Result(0), tile_h / 2),
            // Without a residual, nobody reads this one.
            result(geometry.epilogue.residual.map_or(Base::Result(0), Base::Operand), tile_h),
            Arg::maybe(geometry.epilogue.bias),
            Arg::of(sizes),
        ],
    }
    .into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Conv2d, activation::Activation},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    #[test]
    fn rings_fit_and_warpgroups_have_whole_rows() {
        for tile in TILES {
            assert!(tile.ring() <= 232_448, "{tile:?}: {}", tile.ring());
            for size in [[37, 37], [148, 148], [5, 1], [1, 518]] {
                let [w, h] = tile.shape(size);
                assert!(w * h == tile.pixels() && h.is_multiple_of(2), "{tile:?} {size:?}: {w}x{h}");
            }
        }
        assert_eq!(tile(256, 1, 4).shape([148, 148]), [32, 4], "five tiles by 37");
    }

    /// The fastest of the variants as measured on an H200.
    #[test]
    fn tiles_fill_the_device() {
        for (images, size, channels, outputs, want) in [
            (2, 148, 256, 256, (256, 1)),
            (8, 148, 256, 256, (256, 1)),
            (2, 296, 256, 128, (128, 1)),
            (2, 74, 256, 256, (256, 1)),
            (2, 37, 256, 256, (64, 1)),
            (2, 37, 1024, 256, (64, 1)),
        ] {
            let cycles =
                |t: &Tile| t.cycles(t.count(images, outputs, [size; 2]).into_iter().product(), 9 * channels / 64);
            let best = TILES.into_iter().min_by_key(cycles).unwrap();
            assert_eq!((best.channels, best.blocks), want, "{images}x{size}x{size}, {channels} -> {outputs}");
        }
    }

    #[test]
    fn convolutions_of_heads_compile_without_spills() {
        let of = |shape: &[usize]| ValueType::new(DType::BF16, shape.iter().copied());
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
                    activation: Activation::Relu,
                    residual,
                    layout: ImageLayout::Pixels,
                    ..Conv2d::same(1, true)
                };
                let out = (size - 1) / stride + 1;
                let x = of(&[images, size, size, channels]);
                let mut operands = vec![x, of(&[outputs, 3, 3, channels]), of(&[outputs])];
                operands.extend(residual.then(|| of(&[images, out, out, outputs])));
                requests.push((Op::Conv2d(op), operands));
            }
        }
        for variant in ["conv2d.pixels_wgmma", "conv2d.mma"] {
            conformance::compiles(&requests, variant);
        }
    }
}
