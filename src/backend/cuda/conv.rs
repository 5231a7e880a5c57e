//! `cuda/conv2d.cu` and `cuda/conv2d_mma.cu`: convolutions of any geometry on every architecture.

use lite3r_ir::{
    DType, Op,
    ops::{Conv2d, images::ImageLayout},
};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
    product::Epilogue,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "conv2d.mma", op: "conv2d", dtypes: &[DType::F16, DType::BF16], lower: mma },
    Kernel { name: "conv2d.fma", op: "conv2d", dtypes: FLOATS, lower: fma },
];

/// Sizes of one image and group, as `cuda/include/convolution.cuh` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Convolution {
    outputs: u32,
    depth: u32,
    groups: u32,
    from: [u32; 2],
    to: [u32; 2],
    strides: [u32; 2],
    dilations: [u32; 2],
    pads: [u32; 2],
}

/// A convolution with all sizes.
pub struct Geometry {
    sizes: Convolution,
    /// Images times groups.
    planes: usize,
    /// Rows and columns of taps.
    pub kernel: [usize; 2],
    layout: ImageLayout,
    /// Bias, activation, residual.
    pub epilogue: Epilogue,
}

impl Geometry {
    /// Of a `conv2d` of f32, f16 and bf16.
    pub fn of(request: &Request<'_>) -> Result<Self, String> {
        let Op::Conv2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
        floats(request)?;
        let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
        let planes = |shape: &[usize]| op.layout.planes(shape).ok_or("takes images");
        let ([images, _, h, width], [outputs, channels, kh, kw], [_, _, oh, ow]) =
            (planes(&x)?, planes(&w)?, planes(&y)?);
        let Conv2d { strides, pads, dilations, groups, activation, bias, residual, layout } = op;
        // Positions within an image are 32-bit numbers with room for padding.
        let most = 1 << 30;
        let reach = |i: usize| [h, width][i] + pads[i] + pads[i + 2] + strides[i];
        let beside = if *layout == ImageLayout::Pixels { *groups } else { 1 };
        if [beside * channels * h * width, channels * kh * kw, oh * ow, reach(0), reach(1)]
            .iter()
            .any(|size| *size >= most)
        {
            return Err("takes images of less than 2^30 elements a group".into());
        }
        let pair = |of: &[usize]| [of[0] as u32, of[1] as u32];
        let sizes = Convolution {
            outputs: (outputs / groups) as u32,
            depth: (channels * kh * kw) as u32,
            groups: *groups as u32,
            from: [h as u32, width as u32],
            to: [oh as u32, ow as u32],
            strides: pair(strides),
            dilations: pair(dilations),
            pads: pair(pads),
        };
        let epilogue = Epilogue {
            activation: *activation,
            bias: bias.then_some(2),
            residual: residual.then_some(2 + usize::from(*bias)),
        };
        Ok(Self { sizes, planes: images * groups, kernel: [kh, kw], layout: *layout, epilogue })
    }

    /// Whether eight elements side by side, of weights and of what lies innermost in images, can be copied at once.
    fn whole_chunks(&self) -> bool {
        let side_by_side = match self.layout {
            ImageLayout::Planes => self.sizes.depth as usize,
            ImageLayout::Pixels => self.sizes.depth as usize / (self.kernel[0] * self.kernel[1]),
        };
        side_by_side.is_multiple_of(8)
    }

    fn tiles(&self, (tile_m, tile_n): (u32, u32)) -> Result<u32, String> {
        let [oh, ow] = self.sizes.to;
        let tiles = u64::from(self.sizes.outputs.div_ceil(tile_m)) * u64::from((oh * ow).div_ceil(tile_n));
        match i32::try_from(tiles * self.planes as u64) {
            Ok(tiles) => Ok(tiles as u32),
            Err(_) => Err(format!("takes up to 2^31 tiles of {tile_m}x{tile_n}, not {tiles} an image")),
        }
    }

    /// The macros of taps and epilogue.
    fn define(&self, module: Module, request: &Request<'_>) -> Module {
        let module = module
            .element("TX", request.operands[0].dtype)
            .define("PIXELS", i32::from(self.layout == ImageLayout::Pixels))
            .define("KERNEL_H", self.kernel[0])
            .define("KERNEL_W", self.kernel[1])
            .define("XSCALE", "NONE")
            .define("WSCALE", "NONE");
        self.epilogue.define(module, request, false)
    }

    fn args(&self) -> Vec<Arg> {
        let (bias, residual) = (Arg::maybe(self.epilogue.bias), Arg::maybe(self.epilogue.residual));
        vec![Arg::operand(0), Arg::operand(1), Arg::result(0), bias, residual, Arg::of(self.sizes)]
    }
}

fn mma(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let geometry = Geometry::of(request)?;
    let dtype = request.operands[0].dtype;
    if dtype == DType::F32 {
        return Err("multiplies f16 and bf16, not f32".into());
    }
    let (tile, warps) = match geometry.sizes.outputs {
        0..=32 => ((32, 128), (1, 4)),
        33..=64 => ((64, 128), (2, 4)),
        _ if geometry.tiles((128, 128))? < PROCESSORS as u32 => ((64, 64), (2, 2)),
        _ => ((128, 128), (2, 4)),
    };
    let module = Module::new("conv2d_mma.cu")
        .define("ALIGNED", i32::from(geometry.whole_chunks()))
        .define("TILE_M", tile.0)
        .define("TILE_N", tile.1)
        .define("WARPS_M", warps.0)
        .define("WARPS_N", warps.1);
    Ok(Launch {
        module: geometry.define(module, request),
        function: "conv2d_mma",
        grid: [geometry.tiles(tile)?, 1, 1],
        block: 32 * warps.0 * warps.1,
        shared: 3 * 128 * (tile.0 + tile.1),
        args: geometry.args(),
    }
    .into())
}

fn fma(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let geometry = Geometry::of(request)?;
    let (tile, per) = match geometry.sizes.outputs {
        0..=16 => ((16, 256), (4, 4)),
        17..=64 => ((64, 128), (8, 4)),
        _ if geometry.tiles((128, 128))? < PROCESSORS as u32 => ((32, 32), (2, 2)),
        _ => ((128, 128), (8, 8)),
    };
    let module = Module::new("conv2d.cu")
        .define("TILE_M", tile.0)
        .define("TILE_N", tile.1)
        .define("PER_M", per.0)
        .define("PER_N", per.1);
    Ok(Launch {
        module: geometry.define(module, request),
        function: "conv2d",
        grid: [geometry.tiles(tile)?, 1, 1],
        block: 256,
        shared: 0,
        args: geometry.args(),
    }
    .into())
}
