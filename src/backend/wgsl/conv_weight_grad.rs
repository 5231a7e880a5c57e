//! `shaders/conv2d_weight_grad.wgsl`: what the weights of a convolution get back, in planes and pixels.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{Conv2dWeightGrad, ReduceSum, images::ImageLayout},
};

use super::{
    Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Binding, Launch, Lowered, folded, word},
    shader::{Shader, Tensors},
    wide::through_f32,
    within,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] =
    &[Kernel::plain("conv2d_weight_grad.tiled", "conv2d_weight_grad", FLOATS, |request| through_f32(request, lower))];

/// Rows and columns of a tile of dw, and pixels of a slice.
const TILE: usize = 64;
const SLICE: usize = 32;

/// Workgroups that keep a device busy: pixels are parted where dw has fewer tiles. A part has some slices at least.
const MANY_GROUPS: usize = 256;
const LEAST_SLICES: usize = 8;

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Conv2dWeightGrad(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    floats(request)?;
    let Conv2dWeightGrad { strides, pads, dilations, groups, layout, .. } = op;
    let (x, g, dw) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    for shape in [&x, &g, &dw] {
        word(shape.iter().product())?;
    }
    let planes = |shape: &[usize]| layout.planes(shape).ok_or("takes images");
    let ([images, _, h, width], [_, all, oh, ow], [_, channels, kh, kw]) = (planes(&x)?, planes(&g)?, planes(&dw)?);
    let beside = *layout == ImageLayout::Pixels;
    let (outputs, depth, pixels) = (all / groups, channels * kh * kw, images * oh * ow);
    if all * depth == 0 {
        return Ok(Lowered::default());
    }
    if pixels == 0 {
        return Err("takes images with pixels".into());
    }
    let tiles = groups * outputs.div_ceil(TILE) * depth.div_ceil(TILE);
    let parts = (MANY_GROUPS / tiles).clamp(1, pixels.div_ceil(LEAST_SLICES * SLICE));
    let part = pixels.div_ceil(parts).next_multiple_of(SLICE);
    let parts = pixels.div_ceil(part);

    let (fours_x, fours_g) = (beside && channels.is_multiple_of(4), beside && outputs.is_multiple_of(4));
    let tensors = Tensors::default()
        .read_or_fours("x", request.operands[0].dtype, fours_x)
        .read_or_fours("g", request.operands[1].dtype, fours_g)
        .single("y", DType::F32);
    let mut shader = Shader::new("conv2d_weight_grad.wgsl", &tensors.sizes())
        .constant("KERNEL_H", kh)
        .constant("KERNEL_W", kw)
        .constant("PIXELS", usize::from(beside));
    if fours_x {
        shader = shader.splice("columns", COLUMNS_BY_FOURS);
    }
    if fours_g {
        shader = shader.splice("cotangents", COTANGENTS_BY_FOURS);
    }
    let sizes = [
        [outputs, depth, channels, *groups],
        [h, width, oh, ow],
        [strides[0], strides[1], dilations[0], dilations[1]],
        [pads[0], pads[1], pixels, part],
    ];
    let sizes = sizes.into_iter().flatten().map(word).collect::<Result<_, _>>()?;
    let of_parts = ValueType::new(DType::F32, [parts, all, depth]);
    let bytes = of_parts.bytes().ok_or("needs static shapes")?;
    let sums = if parts == 1 { Binding::result(request, 0) } else { Binding::scratch(0, bytes) };
    let bindings = vec![Binding::operand(request, 0), Binding::operand(request, 1), sums];
    let mut all_parts: Lowered = Launch { shader, groups: folded(parts * tiles)?, bindings, sizes }.into();
    if parts > 1 {
        all_parts.scratch = bytes;
        let add: Op = ReduceSum { axes: vec![0], keep: false }.into();
        let whole = (ValueType::new(DType::F32, [all, depth]), Binding::result(request, 0));
        all_parts.then(within(&add, &[(of_parts, sums)], &[whole], bytes)?);
    }
    Ok(all_parts)
}

/// Channels side by side that are whole fours: four of them share a tap.
const COLUMNS_BY_FOURS: &str = "fn columns_at(pixel: Pixel, group: u32, k: u32) -> vec4<f32> {
    if k >= sizes.depth { return vec4(0.0); }
    let place = seen(pixel.at, k / sizes.channels);
    if place.x >= sizes.height || place.y >= sizes.width { return vec4(0.0); }
    let at = (pixel.image * sizes.height + place.x) * sizes.width + place.y;
    return x_four(((at * sizes.groups + group) * sizes.channels + k % sizes.channels) / 4u);
}";

/// Outputs side by side that are whole fours.
const COTANGENTS_BY_FOURS: &str = "fn cotangents_at(pixel: Pixel, group: u32, output: u32) -> vec4<f32> {
    if output >= sizes.outputs { return vec4(0.0); }
    let row = pixel.image * sizes.out_height * sizes.out_width + pixel.at;
    return g_four(((row * sizes.groups + group) * sizes.outputs + output) / 4u);
}";

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        Tensor,
        ops::{Case, Conv2d},
    };

    use super::*;
    use crate::backend::wgsl::conformance::{hold, refused};

    #[test]
    fn gradients_are_taken() {
        let ops = ["conv2d_weight_grad", "resize_grad", "layer_norm_grad", "scatter_add"];
        assert_eq!(refused(&ops), [""; 0]);
    }

    #[test]
    fn parts_agree_with_the_reference() {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let planes = Conv2dWeightGrad::of(&Conv2d::same(1, false), [3, 3]);
        let pixels = Conv2dWeightGrad { layout: ImageLayout::Pixels, ..planes.clone() };
        hold(&[
            Case::new("planes", planes, vec![wave(&[3, 5, 33, 31], 1), wave(&[3, 7, 33, 31], 2)]),
            Case::new("pixels", pixels, vec![wave(&[3, 33, 31, 8], 1), wave(&[3, 33, 31, 12], 2)]),
        ]);
    }
}
