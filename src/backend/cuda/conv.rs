//! `cuda/conv2d.cu` and `cuda/conv2d_mma.cu`: convolutions of any geometry on every architecture.

use lite3r_ir::{
    DType, Op,
    ops::{Conv2d, QuantizeItems, ScaledConv2d, activation::Activation, images::ImageLayout},
};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats, only},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
    product::Epilogue,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "conv2d.mma", op: "conv2d", dtypes: &[DType::F16, DType::BF16], lower: mma },
    Kernel { name: "conv2d.fma", op: "conv2d", dtypes: FLOATS, lower: fma },
    Kernel { name: "conv2d.rectified", op: "conv2d", dtypes: FLOATS, lower: rectified },
    Kernel { name: "scaled_conv2d.mma", op: "scaled_conv2d", dtypes: CODES, lower: mma },
    Kernel { name: "scaled_conv2d.fma", op: "scaled_conv2d", dtypes: CODES, lower: fma },
    Kernel { name: "scaled_conv2d.quantize", op: "scaled_conv2d", dtypes: CODES, lower: quantize },
];

/// The element type of convolutions of codes.
pub const CODES: &[DType] = &[DType::F8E4M3];

/// Sizes of one image and group, as `cuda/include/convolution.cuh` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Convolution {
    /// Of a group.
    pub outputs: u32,
    /// Input channels of a group times taps.
    pub depth: u32,
    /// Channel groups.
    pub groups: u32,
    from: [u32; 2],
    /// Height and width of the result.
    pub to: [u32; 2],
    strides: [u32; 2],
    dilations: [u32; 2],
    pads: [u32; 2],
}

/// A convolution with all sizes.
pub struct Geometry {
    /// As kernels take it.
    pub sizes: Convolution,
    /// Images times groups.
    pub planes: usize,
    /// Strides, pads and the rest, of codes as of other elements.
    pub op: Conv2d,
    /// Rows and columns of taps.
    pub kernel: [usize; 2],
    /// The operand that holds the weights.
    pub weights: usize,
    /// The operands that hold the scales of images and of output channels.
    pub scales: Option<[usize; 2]>,
    /// Bias, activation, residual.
    pub epilogue: Epilogue,
}

impl Geometry {
    /// Of a `conv2d` of f32, f16 and bf16, or a `scaled_conv2d`.
    pub fn of(request: &Request<'_>, arch: Arch) -> Result<Self, String> {
        let (op, weights, scales) = match request.op {
            Op::Conv2d(op) => {
                floats(request)?;
                (op.clone(), 1, None)
            }
            Op::ScaledConv2d(op) => {
                only(&request.operands[4..])?;
                if arch == Arch::Sm80 {
                    return Err("sm_80 has no FP8 arithmetic; compile without convolution=e4m3".into());
                }
                (op.wide(), 2, Some([1, 3]))
            }
            other => return Err(format!("does not compute {}", other.name())),
        };
        let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[weights])?, dims(&request.results[0])?);
        let planes = |shape: &[usize]| op.layout.planes(shape).ok_or("takes images");
        let ([images, _, h, width], [outputs, channels, kh, kw], [_, _, oh, ow]) =
            (planes(&x)?, planes(&w)?, planes(&y)?);
        let Conv2d { strides, pads, dilations, groups, activation, bias, residual, layout, .. } = &op;
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
        let behind = scales.map_or(weights, |[_, last]| last) + 1;
        let epilogue = Epilogue {
            activation: *activation,
            bias: bias.then_some(behind),
            residual: residual.then_some(behind + usize::from(*bias)),
        };
        let planes = images * groups;
        Ok(Self { sizes, planes, kernel: [kh, kw], weights, scales, epilogue, op })
    }

    /// Whether 16 bytes side by side, of weights and of what lies innermost in images, can be copied at once.
    fn whole_chunks(&self, dtype: DType) -> bool {
        let side_by_side = match self.op.layout {
            ImageLayout::Planes => self.sizes.depth as usize,
            ImageLayout::Pixels => self.sizes.depth as usize / (self.kernel[0] * self.kernel[1]),
        };
        (side_by_side * dtype.size()).is_multiple_of(16)
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
        let scale = if self.scales.is_some() { "ROW" } else { "NONE" };
        let module = module
            .element("TX", request.operands[0].dtype)
            .define("PIXELS", i32::from(self.op.layout == ImageLayout::Pixels))
            .define("KERNEL_H", self.kernel[0])
            .define("KERNEL_W", self.kernel[1])
            .define("XSCALE", scale)
            .define("WSCALE", scale);
        self.epilogue.define(module, request, self.scales.is_some())
    }

    fn args(&self) -> Vec<Arg> {
        let mut args = vec![Arg::operand(0), Arg::operand(self.weights), Arg::result(0)];
        args.extend(self.extra_args());
        args.push(Arg::of(self.sizes));
        args
    }

    /// Scales of images and of output channels, bias and residual.
    pub fn extra_args(&self) -> [Arg; 4] {
        let scales = |i: usize| self.scales.map(|scales| scales[i]);
        [scales(0), scales(1), self.epilogue.bias, self.epilogue.residual].map(Arg::maybe)
    }
}

/// The geometry of what the kernels of this file compute.
fn plain(request: &Request<'_>, arch: Arch) -> Result<Geometry, String> {
    match request.op {
        Op::ScaledConv2d(op) if op.quantize => Err("gives no codes".into()),
        Op::Conv2d(op) if op.rectified => Err("gives one result".into()),
        _ => Geometry::of(request, arch),
    }
}

fn mma(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let geometry = plain(request, arch)?;
    let dtype = request.operands[0].dtype;
    if dtype == DType::F32 {
        return Err("multiplies f16, bf16 and f8e4m3, not f32".into());
    }
    let aligned = geometry.whole_chunks(dtype);
    if dtype == DType::F8E4M3 && !aligned {
        return Err("takes codes of a multiple of 16 channels".into());
    }
    let (tile, warps) = match geometry.sizes.outputs {
        0..=32 => ((32, 128), (1, 4)),
        33..=64 => ((64, 128), (2, 4)),
        // Hopper widens codes ahead of this instruction, which takes registers.
        _ if arch == Arch::Sm90a && geometry.scales.is_some() => ((64, 64), (2, 2)),
        _ if geometry.tiles((128, 128))? < PROCESSORS as u32 => ((64, 64), (2, 2)),
        _ => ((128, 128), (2, 4)),
    };
    let module = Module::new("conv2d_mma.cu")
        .define("ALIGNED", i32::from(aligned))
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

fn fma(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let geometry = plain(request, arch)?;
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

/// The convolution to scratch memory, its codes and scales from there.
fn quantize(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::ScaledConv2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    if !op.quantize {
        return Err("gives codes and scales".into());
    }
    let op = Op::from(ScaledConv2d { quantize: false, ..op.clone() });
    super::quantized_behind(&op, &QuantizeItems { activation: Activation::None }.into(), request, arch)
}

/// The convolution, and what is positive of it.
fn rectified(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    match request.op {
        Op::Conv2d(op) if op.rectified => {
            super::rectified_behind(&Conv2d { rectified: false, ..op.clone() }.into(), request, arch)
        }
        _ => Err("gives two results".into()),
    }
}
