//! `cuda/conv2d_weight_grad_wgmma.cu`: what the weights of convolutions of stride one get back, on Hopper.

use lite3r_ir::{DType, ops::images::ImageLayout};

use super::{
    Arch, Kernel,
    conv_weight_grad::{add_parts, geometry},
    dims,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, SHARED, Swizzle, TensorMap},
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "conv2d_weight_grad.wgmma", op: "conv2d_weight_grad", dtypes: &[DType::F16, DType::BF16], lower }];

/// Columns and rows of a box of pixels.
const SIDE: usize = 8;
/// The most stages that are of use.
const MOST_STAGES: usize = 8;
/// Clock cycles a microsecond, and bytes that reach a block in one.
const CYCLES: f32 = 1600.0;
const CACHE: f32 = 42.0;
/// Microseconds of the launch that adds parts up, and of one part a thread; bytes of parts a microsecond.
const LAUNCH: f32 = 2.0;
const PART: f32 = 0.05;
const PART_BYTES: f32 = 3e6;

/// A variant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Rows and columns of taps.
    kernel: usize,
    /// Whether two rows of up to 32 outputs stand beside one another.
    paired: bool,
    /// Channels of a panel, and panels.
    channels: usize,
    panels: usize,
    /// Warpgroups that multiply.
    groups: usize,
}

impl Tile {
    /// Of windows of one pixel as even shares of all outputs and channels as there are; for 3x3, what registers hold.
    fn of(kernel: usize, outputs: usize, channels: usize) -> Self {
        let share = |all: usize, most: usize| all.div_ceil(64).div_ceil(all.div_ceil(64 * most));
        let paired = kernel == 3 && outputs <= 32;
        let (panels, groups) = if kernel == 3 { (1, 3) } else { (share(channels, 4), share(outputs, 2)) };
        Self { kernel, paired, channels: if paired || channels <= 32 { 32 } else { 64 }, panels, groups }
    }

    /// Outputs that a warpgroup multiplies at a time.
    fn outputs(self) -> usize {
        if self.paired { 32 } else { 64 }
    }

    /// Tiles along outputs and channels.
    fn count(self, outputs: usize, channels: usize) -> [usize; 2] {
        let apart = if self.kernel == 3 { 1 } else { self.groups };
        [outputs.div_ceil(self.outputs() * apart), channels.div_ceil(self.channels * self.panels)]
    }

    /// Bytes of a slice.
    fn slice(self) -> usize {
        2 * SIDE * (self.groups * SIDE * self.outputs() + self.panels * (SIDE + self.kernel - 1) * self.channels)
    }

    fn stages(self) -> usize {
        (SHARED / (self.slice() + 16)).min(MOST_STAGES)
    }

    /// Microseconds of a slice: what is slower of its products and of its way through the cache.
    fn time(self) -> f32 {
        let (beside, steps) = match (self.kernel, self.paired) {
            (3, true) => (4, 2),
            (3, false) => (3, 4),
            _ => (self.panels, 4),
        };
        let products = (self.groups * steps * beside * self.channels / 2) as f32;
        products.max(self.slice() as f32 / CACHE) / CYCLES
    }

    /// The number of parts that slices are cut into with the least time, where a tile writes `copies` sums of each.
    fn parts(self, tiles: usize, slices: usize, elements: usize) -> usize {
        let time = |parts: usize| {
            let sums = parts * self.copies();
            let bytes = (sums * elements * 2 * size_of::<f32>()) as f32;
            let add = if sums > 1 { LAUNCH + sums as f32 * PART + bytes / PART_BYTES } else { 0.0 };
            (tiles * parts).div_ceil(PROCESSORS) as f32 * slices.div_ceil(parts) as f32 * self.time() + add
        };
        let most = slices.min((2 * PROCESSORS).div_ceil(tiles));
        (1..=most).min_by(|a, b| time(*a).total_cmp(&time(*b))).unwrap_or(1)
    }

    /// Sums of a part that are added up.
    fn copies(self) -> usize {
        1 + usize::from(self.paired)
    }
}

/// See `cuda/conv2d_weight_grad_wgmma.cu`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Sums {
    along: u32,
    tiles: u32,
    parts: u32,
    slices: u32,
    across: u32,
    down: u32,
    pads: [u32; 2],
    outputs: u32,
    channels: u32,
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    if arch != Arch::Sm90a {
        return Err("needs sm_90a".into());
    }
    let geometry = geometry(request, arch)?;
    let (op, dtype) = (&geometry.op, request.operands[0].dtype);
    if dtype.size() != 2 {
        return Err(format!("multiplies f16 and bf16, not {dtype}"));
    }
    if op.layout != ImageLayout::Pixels {
        return Err("takes images whose pixels keep their channels side by side".into());
    }
    let (x, g) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let (&[images, height, width, channels], &[_, oh, ow, outputs]) = (&x[..], &g[..]) else {
        return Err("takes images".into());
    };
    if op.groups != 1 || op.strides != [1, 1] || op.dilations != [1, 1] {
        return Err("takes stride one, one group, no dilation".into());
    }
    let kernel = match geometry.kernel {
        [3, 3] => 3,
        [1, 1] => 1,
        _ => return Err("takes windows of 3x3 and of one pixel".into()),
    };
    let whole = channels.is_multiple_of(8) && outputs.is_multiple_of(8);
    if x.contains(&0) || g.contains(&0) || !whole {
        return Err("takes images with multiples of eight channels and outputs".into());
    }
    let tile = Tile::of(kernel, outputs, channels);
    let [along, rest] = tile.count(outputs, channels);
    let [across, down] = [width, oh].map(|n| n.div_ceil(SIDE));
    let (tiles, slices, elements) = (along * rest, images * down * across, outputs * kernel * kernel * channels);
    if slices >= 1 << 31 || elements >= 1 << 31 {
        return Err("takes fewer than 2^31 boxes of pixels, and gives fewer than 2^31 elements".into());
    }
    let parts = tile.parts(tiles, slices, elements);
    let sums = parts * tile.copies();
    let (sum, to) = if sums == 1 { (dtype, Arg::result(0)) } else { (DType::F32, Arg::scratch(0)) };
    let map = |operand: usize, sizes: [usize; 4], boxes: [usize; 3]| {
        let [images, height, width, channels] = sizes.map(|n| n as u64);
        Arg::TensorMap(TensorMap {
            base: Pointer { base: Base::Operand(operand), offset: 0 },
            dtype,
            dims: vec![channels, width, height, images],
            strides: vec![2 * channels, 2 * channels * width, 2 * channels * width * height],
            tile: boxes.into_iter().chain([1]).map(|n| n as u32).collect(),
            steps: vec![1; 4],
            swizzle: if boxes[0] == 64 { Swizzle::B128 } else { Swizzle::B64 },
        })
    };
    let module = Module::new("conv2d_weight_grad_wgmma.cu")
        .element("TX", dtype)
        .element("TY", sum)
        .define("KERNEL", kernel)
        .define("PAIRED", i32::from(tile.paired))
        .define("CHANNELS", tile.channels)
        .define("PANELS", tile.panels)
        .define("GROUPS", tile.groups)
        .define("STAGES", tile.stages());
    let blocks = u32::try_from(tiles * parts).ok().filter(|n| *n < 1 << 31).ok_or("takes fewer than 2^31 tiles")?;
    let product = Launch {
        module,
        function: "conv2d_weight_grad_wgmma",
        grid: [blocks, 1, 1],
        block: 128 * (tile.groups as u32 + 1),
        shared: (tile.stages() * (tile.slice() + 16)) as u32,
        args: vec![
            map(0, [images, height, width, channels], [tile.channels, SIDE, SIDE + kernel - 1]),
            map(1, [images, oh, ow, outputs], [tile.outputs(), SIDE, SIDE]),
            to,
            Arg::of(Sums {
                along: along as u32,
                tiles: tiles as u32,
                parts: parts as u32,
                slices: slices as u32,
                across: across as u32,
                down: down as u32,
                pads: [op.pads[0] as u32, op.pads[1] as u32],
                outputs: outputs as u32,
                channels: channels as u32,
            }),
        ],
    };
    if sums == 1 {
        return Ok(product.into());
    }
    Ok(Lowered {
        launches: vec![product, add_parts(dtype, sums, elements)],
        scratch: sums * elements * size_of::<f32>(),
    })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Conv2d, Conv2dWeightGrad},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    #[test]
    fn tiles_cover_all_and_fit_into_shared_memory() {
        for kernel in [1, 3] {
            for (outputs, channels) in (1..=40).flat_map(|o| (1..=40).map(move |c| (o * 8, c * 8))) {
                let tile = Tile::of(kernel, outputs, channels);
                assert!(tile.stages() >= 4, "{tile:?}");
                assert!(tile.groups * 64 <= 192 && tile.panels * tile.channels <= 256, "{tile:?}");
                assert!(tile.panels == 1 || tile.channels == 64, "{tile:?}");
            }
        }
        let tile = Tile::of(1, 320, 320);
        assert_eq!((tile.groups, tile.panels, tile.count(320, 320)), (2, 3, [3, 2]));
    }

    /// Parts fill the device where there is much to add up, and are few where there is little.
    #[test]
    fn parts_are_as_many_as_pay() {
        for (kernel, outputs, channels, slices, want) in
            [(3, 32, 32, 94_080, 132), (3, 256, 256, 2888, 8), (3, 64, 64, 120, 24), (1, 256, 256, 2, 1)]
        {
            let tile = Tile::of(kernel, outputs, channels);
            let tiles = tile.count(outputs, channels).into_iter().product();
            let parts = tile.parts(tiles, slices, outputs * kernel * kernel * channels);
            assert_eq!(parts, want, "{tile:?}");
        }
    }

    #[test]
    fn heads_compile_without_spills() {
        let mut requests = Vec::new();
        for (kernel, images, size, channels, outputs) in [
            (3, 8, 148, 256, 256),
            (3, 120, 224, 32, 32),
            (3, 120, 128, 64, 32),
            (3, 120, 64, 32, 64),
            (3, 1, 8, 256, 256),
            (3, 1, 8, 32, 64),
            (1, 120, 128, 64, 64),
            (1, 8, 148, 128, 64),
            (1, 8, 148, 192, 64),
            (1, 8, 148, 256, 256),
            (1, 120, 16, 32, 128),
            (1, 1, 8, 256, 128),
        ] {
            let layout = ImageLayout::Pixels;
            let conv = Conv2d { layout, ..Conv2d::same(kernel / 2, false) };
            let op = Conv2dWeightGrad::of(&conv, [kernel, kernel]);
            for dtype in [DType::BF16, DType::F16] {
                let of = |channels: usize| ValueType::new(dtype, [images, size, size, channels]);
                requests.push((op.clone().into(), vec![of(channels), of(outputs)]));
            }
        }
        conformance::compiles(&requests, "conv2d_weight_grad.wgmma");
    }
}
