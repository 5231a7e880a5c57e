//! `cuda/conv2d_weight_grad_few.cu`: what the weights of pointwise convolutions with few outputs get back.

use lite3r_ir::{DType, ops::images::ImageLayout};

use super::{
    Arch, Kernel,
    conv_weight_grad::{add_parts, geometry},
    dims,
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
};
use crate::backend::Request;

/// The rows of this file: up to four outputs.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "conv2d_weight_grad.few", op: "conv2d_weight_grad", dtypes: &[DType::F16, DType::BF16], lower }];

/// Sums of more would fill the registers.
const MOST_OUTPUTS: usize = 4;
/// Threads of a block at most; channels of each.
const THREADS: usize = 256;
const EACH: usize = 8;
/// Pixels of a thread at least.
const LEAST: usize = 16;

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let geometry = geometry(request, arch)?;
    let (op, dtype) = (&geometry.op, request.operands[0].dtype);
    if dtype.size() != 2 {
        return Err(format!("takes f16 and bf16, not {dtype}"));
    }
    let pointwise = geometry.kernel == [1, 1] && op.strides == [1, 1] && op.pads.iter().all(|pad| *pad == 0);
    if op.layout != ImageLayout::Pixels || op.groups != 1 || !pointwise {
        return Err("takes windows of one pixel of stride one, one group, channels of a pixel side by side".into());
    }
    let (x, g) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let (Some((&channels, places)), Some((&outputs, of_g))) = (x.split_last(), g.split_last()) else {
        return Err("takes images".into());
    };
    if places != of_g || !(1..=MOST_OUTPUTS).contains(&outputs) {
        return Err(format!("takes up to {MOST_OUTPUTS} outputs of all pixels, not {outputs}"));
    }
    let lanes = channels / EACH;
    if !channels.is_multiple_of(EACH) || !(1..=THREADS).contains(&lanes) {
        return Err(format!("takes multiples of {EACH} channels up to {}, not {channels}", EACH * THREADS));
    }
    let (pixels, elements) = (places.iter().product::<usize>(), outputs * channels);
    if pixels == 0 || pixels >= 1 << 31 {
        return Err("takes pixels, fewer than 2^31".into());
    }
    let rows = THREADS / lanes;
    let part = pixels.div_ceil(2 * PROCESSORS).max(LEAST * rows);
    let parts = pixels.div_ceil(part);
    let result = request.results[0].dtype;
    let (sum, to) = if parts == 1 { (result, Arg::result(0)) } else { (DType::F32, Arg::scratch(0)) };
    let module = Module::new("conv2d_weight_grad_few.cu")
        .element("TX", dtype)
        .element("TY", sum)
        .define("OUTPUTS", outputs)
        .define("LANES", lanes)
        .define("ROWS", rows);
    let sizes = [pixels as u32, part as u32].map(Arg::of);
    let sums = Launch {
        module,
        function: "conv2d_weight_grad_few",
        grid: [parts as u32, 1, 1],
        block: (rows * lanes) as u32,
        shared: 0,
        args: [Arg::operand(0), Arg::operand(1), to].into_iter().chain(sizes).collect(),
    };
    if parts == 1 {
        return Ok(sums.into());
    }
    let launches = vec![sums, add_parts(result, parts, elements)];
    Ok(Lowered { launches, scratch: parts * elements * size_of::<f32>() })
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
    fn last_layers_compile_without_spills() {
        let pixels = Conv2d { layout: ImageLayout::Pixels, ..Conv2d::same(0, false) };
        let bf16 = |shape: [usize; 4]| ValueType::new(DType::BF16, shape);
        let of = |channels, outputs| {
            let images = |last| bf16([120, 224, 224, last]);
            (Conv2dWeightGrad::of(&pixels, [1, 1]).into(), vec![images(channels), images(outputs)])
        };
        compiles(&[of(32, 2), of(32, 4), of(128, 3), of(40, 1)], ".few");
    }
}
