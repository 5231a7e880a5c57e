//! `cuda/conv2d_weight_grad.cu` and `cuda/conv2d_weight_grad_mma.cu`: what the weights of convolutions get back.

use lite3r_ir::{DType, Op, ops::images::ImageLayout};

use super::{
    Arch, Kernel,
    conv::Geometry,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "conv2d_weight_grad.mma", op: "conv2d_weight_grad", dtypes: &[DType::F16, DType::BF16], lower: mma },
    Kernel { name: "conv2d_weight_grad.fma", op: "conv2d_weight_grad", dtypes: FLOATS, lower: fma },
];

/// The pixels of a slice are a multiple of this; a part has some slices at least.
const SLICE: usize = 64;
const LEAST_SLICES: usize = 8;

/// See `cuda/include/weight_grad.cuh`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Pixels {
    all: u32,
    part: u32,
}

/// What a kernel of some tile launches.
struct Kind {
    module: Module,
    function: &'static str,
    tile: [usize; 2],
    shared: u32,
}

/// The convolution whose weights they are.
pub fn geometry(request: &Request<'_>, arch: Arch) -> Result<Geometry, String> {
    let Op::Conv2dWeightGrad(op) = request.op else { return Err("computes conv2d_weight_grad".into()) };
    floats(request)?;
    let convolution: Op = op.convolution().into();
    let operands = [request.operands[0].clone(), request.results[0].clone()];
    Geometry::of(&Request { op: &convolution, operands: &operands, results: &request.operands[1..] }, arch)
}

fn mma(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let dtype = request.operands[0].dtype;
    if dtype == DType::F32 {
        return Err("multiplies f16 and bf16, not f32".into());
    }
    let geometry = geometry(request, arch)?;
    let (outputs, depth) = (geometry.sizes.outputs as usize, geometry.sizes.depth as usize);
    let channels = depth / geometry.kernel.iter().product::<usize>().max(1);
    let whole = outputs.is_multiple_of(8) && channels.is_multiple_of(8);
    let aligned = geometry.op.layout == ImageLayout::Pixels && whole;
    let tile = [outputs, depth].map(|n| if n <= 64 { 64 } else { 128 });
    let module = Module::new("conv2d_weight_grad_mma.cu")
        .define("ALIGNED", i32::from(aligned))
        .define("TILE_M", tile[0])
        .define("TILE_N", tile[1]);
    let shared = (3 * SLICE * 2 * (tile[0] + tile[1])) as u32;
    lower(request, &geometry, Kind { module, function: "conv2d_weight_grad_mma", tile, shared })
}

fn fma(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let geometry = geometry(request, arch)?;
    let module = Module::new("conv2d_weight_grad.cu");
    lower(request, &geometry, Kind { module, function: "conv2d_weight_grad", tile: [64, 64], shared: 0 })
}

/// A launch over tiles and parts of the pixels, where tiles alone are too few for the device, and one that adds the
/// parts up.
fn lower(request: &Request<'_>, geometry: &Geometry, kind: Kind) -> Result<Lowered, String> {
    let sizes = &geometry.sizes;
    let (groups, outputs, depth) = (sizes.groups as usize, sizes.outputs as usize, sizes.depth as usize);
    let (pixels, elements) =
        (geometry.planes / groups * (sizes.to[0] * sizes.to[1]) as usize, groups * outputs * depth);
    if elements == 0 {
        return Ok(Lowered::default());
    }
    if pixels == 0 || pixels >= 1 << 31 || elements >= 1 << 31 {
        return Err("takes pixels, fewer than 2^31, and gives fewer than 2^31 elements".into());
    }
    let tiles = groups * outputs.div_ceil(kind.tile[0]) * depth.div_ceil(kind.tile[1]);
    let parts = (2 * PROCESSORS / tiles).clamp(1, pixels.div_ceil(LEAST_SLICES * SLICE));
    let part = pixels.div_ceil(parts).next_multiple_of(SLICE);
    let parts = pixels.div_ceil(part);
    let dtype = request.results[0].dtype;
    let (sum, to) = if parts == 1 { (dtype, Arg::result(0)) } else { (DType::F32, Arg::scratch(0)) };
    let module = kind
        .module
        .element("TX", request.operands[0].dtype)
        .element("TY", sum)
        .define("PIXELS", i32::from(geometry.op.layout == ImageLayout::Pixels))
        .define("KERNEL_H", geometry.kernel[0])
        .define("KERNEL_W", geometry.kernel[1]);
    let pixels = Pixels { all: pixels as u32, part: part as u32 };
    let blocks = u32::try_from(tiles * parts).ok().filter(|n| *n < 1 << 31).ok_or("takes fewer than 2^31 tiles")?;
    let product = Launch {
        module,
        function: kind.function,
        grid: [blocks, 1, 1],
        block: 256,
        shared: kind.shared,
        args: vec![Arg::operand(0), Arg::operand(1), to, Arg::of(*sizes), Arg::of(pixels)],
    };
    if parts == 1 {
        return Ok(product.into());
    }
    let add = add_parts(dtype, parts, elements);
    Ok(Lowered { launches: vec![product, add], scratch: parts * elements * size_of::<f32>() })
}

/// The launch that adds up parts of so many elements, in scratch memory, to the result.
pub fn add_parts(dtype: DType, parts: usize, elements: usize) -> Launch {
    let numbers = [parts as u32, elements as u32].map(Arg::of);
    let args = [Arg::scratch(0), Arg::result(0)].into_iter().chain(numbers).collect();
    Launch::over(Module::new("parts.cu").element("TY", dtype), "add_parts", elements as u64, args)
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Conv2d, Conv2dWeightGrad},
    };

    use super::*;
    use crate::backend::cuda::conformance::compiles;

    #[test]
    fn heads_compile_without_spills() {
        let pixels = Conv2d { layout: ImageLayout::Pixels, ..Conv2d::same(1, false) };
        let op = Conv2dWeightGrad::of(&pixels, [3, 3]);
        let bf16 = |shape: [usize; 4]| ValueType::new(DType::BF16, shape);
        let head = (op.into(), vec![bf16([8, 148, 148, 256]), bf16([8, 148, 148, 256])]);
        compiles(&[head], "mma");
    }
}
