//! `shaders/conv2d.wgsl` and `shaders/conv_transpose2d.wgsl`: convolutions of any geometry, in planes and pixels.

use lite3r_ir::{
    DType, Dim, Op, ValueType,
    ops::{Conv2d, MatMul, Transpose, images::ImageLayout},
};

use super::{
    Kernel, dims,
    floats::{FLOATS, floats},
    gemm::activated,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::{either, through_f32},
    within,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("conv2d.tiled", "conv2d", FLOATS, |r| either(r, lower)),
    Kernel::plain("conv_transpose2d.stamps", "conv_transpose2d", FLOATS, |request| through_f32(request, stamps)),
    Kernel::plain("conv_transpose2d.gather", "conv_transpose2d", FLOATS, |request| {
        through_f32(request, |request| Ok(transposed(request, None)?.into()))
    }),
];

/// Tiles of 128 x 128 keep a device busy from so many on.
const MANY_TILES: usize = 128;

/// Positions of elements are 32-bit numbers.
fn counted(shapes: &[&[usize]]) -> Result<(), String> {
    shapes.iter().try_for_each(|shape| word(shape.iter().product()).map(drop))
}

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Conv2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    floats(request)?;
    let Conv2d { strides, pads, dilations, groups, layout, .. } = op;
    let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    counted(&[&x, &w, &y])?;
    let planes = |shape: &[usize]| layout.planes(shape).ok_or("takes images");
    let ([images, _, h, width], [all, channels, kh, kw], [_, _, oh, ow]) = (planes(&x)?, planes(&w)?, planes(&y)?);
    let beside = *layout == ImageLayout::Pixels;
    let (outputs, depth, pixels) = (all / groups, channels * kh * kw, oh * ow);
    // What lies side by side in the result.
    let across = if beside { outputs } else { pixels };
    let whole = across.is_multiple_of(4);
    if !whole && request.results[0].dtype.size() < 4 {
        return Err("gives narrow elements in rows of whole words".into());
    }
    let tiles = |tile: usize| outputs.div_ceil(tile) * pixels.div_ceil(tile) * images * groups;
    let tile = if outputs > 64 && pixels > 64 && tiles(128) >= MANY_TILES { 128 } else { 64 };

    let (fours_x, fours_w) = (beside && channels.is_multiple_of(4), depth.is_multiple_of(4));
    let mut tensors = Tensors::default().read_or_fours("x", request.operands[0].dtype, fours_x).read_or_fours(
        "w",
        request.operands[1].dtype,
        fours_w,
    );
    let mut epilogue = String::from("var v = sum;");
    if op.bias {
        tensors = tensors.read("bias", request.operands[2].dtype);
        epilogue += " v += bias_at(output);";
    }
    epilogue += &format!(" v = {};", activated(op.activation, "v"));
    if op.residual {
        tensors = tensors.read("residual", request.operands[2 + usize::from(op.bias)].dtype);
        epilogue += " v += residual_at(at);";
    }
    let mut store = String::new();
    for (name, result) in ["y", "positive"].iter().zip(request.results) {
        tensors = tensors.write(name, result.dtype);
        let value = if *name == "y" { "v" } else { "max(v, vec4(0.0))" };
        store += &match whole {
            true => format!(" {name}_put(at / 4u, {value});"),
            false => format!(" for (var j = 0u; j < count; j++) {{ {name}_set(at + j, ({value})[j]); }}"),
        };
    }
    let mut shader = Shader::new("conv2d.wgsl", &tensors.sizes())
        .constant("KERNEL_H", kh)
        .constant("KERNEL_W", kw)
        .constant("PIXELS", usize::from(beside))
        .constant("TILE", tile)
        .splice("epilogue", format!("fn epilogue(sum: f32, output: u32, at: u32) -> f32 {{ {epilogue} return v; }}"))
        .splice("store", format!("fn store(at: u32, count: u32, values: vec4<f32>) {{ var v = values;{store} }}"));
    if fours_w {
        shader = shader.splice("weights", WEIGHTS_BY_FOURS);
    }
    if fours_x {
        shader = shader.splice("columns", COLUMNS_BY_FOURS);
    }
    let sizes = [
        [outputs, depth, channels, *groups],
        [h, width, oh, ow],
        [strides[0], strides[1], dilations[0], dilations[1]],
        [pads[0], pads[1], images * groups, 0],
    ];
    let sizes = sizes.into_iter().flatten().map(word).collect::<Result<_, _>>()?;
    Ok(Launch { shader, groups: folded(tiles(tile))?, bindings: Binding::all(request), sizes }.into())
}

/// Rows of weights that are whole fours.
const WEIGHTS_BY_FOURS: &str = "fn weights_at(part: Part, output: u32, k: u32) -> vec4<f32> {
    if output >= sizes.outputs || k >= sizes.depth { return vec4(0.0); }
    return w_four((part.w + output * sizes.depth + k) / 4u);
}";

/// Channels side by side that are whole fours: four of them share a tap.
const COLUMNS_BY_FOURS: &str = "fn columns_at(part: Part, pixel: u32, k: u32) -> vec4<f32> {
    if pixel >= pixels() || k >= sizes.depth { return vec4(0.0); }
    let place = seen(pixel, k / sizes.channels);
    if place.x >= sizes.height || place.y >= sizes.width { return vec4(0.0); }
    let at = (place.x * sizes.width + place.y) * sizes.channels * sizes.groups;
    return x_four((part.x + at + k % sizes.channels) / 4u);
}";

/// The launch that writes a transposed convolution, from x and w, or from `products` of all pixels and taps.
fn transposed(request: &Request<'_>, products: Option<Binding>) -> Result<Launch, String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    floats(request)?;
    let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    counted(&[&x, &w, &y])?;
    let (&[_, c, h, width], &[_, outputs, kh, kw], &[.., oh, ow]) = (&x[..], &w[..], &y[..]) else {
        return Err("takes images".into());
    };
    let mut bindings = Binding::all(request);
    let mut tensors = Tensors::default();
    tensors = match products {
        None => tensors.read("x", request.operands[0].dtype).read("w", request.operands[1].dtype),
        Some(products) => {
            bindings.splice(..2, [products]);
            tensors.read("x", DType::F32)
        }
    };
    if op.bias {
        tensors = tensors.read("bias", request.operands[2].dtype);
    }
    let mut shader = Shader::new("conv_transpose2d.wgsl", &tensors.write("y", request.results[0].dtype).sizes());
    if op.bias {
        shader = shader.splice("bias", "fn bias_of(output: u32) -> f32 { return bias_at(output); }");
    }
    if products.is_some() {
        shader = shader.splice("value", VALUE_OF_PRODUCTS);
    }
    let elements = y.iter().product::<usize>();
    let sizes = [
        [elements, c / op.groups, outputs, op.groups],
        [h, width, oh, ow],
        [kh, kw, op.strides[0], op.strides[1]],
        [op.dilations[0], op.dilations[1], op.pads[0], op.pads[1]],
    ];
    let sizes = sizes.into_iter().flatten().map(word).collect::<Result<_, _>>()?;
    Ok(Launch { shader, groups: folded(elements.div_ceil(THREADS))?, bindings, sizes })
}

/// `x` holds [images, outputs, taps, pixels].
const VALUE_OF_PRODUCTS: &str = "fn value_of(image: u32, output: u32, row: u32, column: u32) -> f32 {
    let tap = row % sizes.kernel_y * sizes.kernel_x + column % sizes.kernel_x;
    let pixel = row / sizes.kernel_y * sizes.width + column / sizes.kernel_x;
    let plane = (image * sizes.outputs + output) * sizes.kernel_y * sizes.kernel_x + tap;
    return x_at(plane * sizes.height * sizes.width + pixel);
}";

/// Where stamps do not overlap: a product of weights as [outputs * taps, channels] and images as [channels, pixels],
/// then every number to its place.
fn stamps(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    floats(request)?;
    let (x, w) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let (&[n, c, h, width], &[_, o, kh, kw]) = (&x[..], &w[..]) else { return Err("takes images".into()) };
    if op.groups != 1 || !op.stamps_lie_apart(&[kh, kw]) {
        return Err("takes kernels of the size of the stride, without groups, padding and dilation".into());
    }
    let (dtype, rows, pixels) = (request.operands[0].dtype, o * kh * kw, h * width);
    let ty = |dtype, shape: &[usize]| ValueType::new(dtype, shape.iter().map(|n| Dim::from(*n)));
    let (turned, product) = (ty(dtype, &[rows, c]), ty(DType::F32, &[n, rows, pixels]));
    let bytes = |ty: &ValueType| ty.bytes().unwrap_or(0);
    let products_at = bytes(&turned).next_multiple_of(256);
    let inner = products_at + bytes(&product);
    let products = Binding::scratch(products_at, bytes(&product));
    let weights = (turned.clone(), Binding::scratch(0, bytes(&turned)));
    let images = (ty(dtype, &[n, c, pixels]), Binding::operand(request, 0));
    let given = (ty(dtype, &[c, rows]), Binding::operand(request, 1));
    let turn: Op = Transpose { perm: vec![1, 0] }.into();
    let multiply: Op = MatMul { transpose_b: false }.into();
    let mut all = within(&turn, &[given], std::slice::from_ref(&weights), inner)?;
    all.then(within(&multiply, &[weights, images], &[(product, products)], inner)?);
    all.launches.push(transposed(request, Some(products))?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{Tensor, ops::Case};

    use super::*;
    use crate::backend::wgsl::conformance::{hold, refused};

    #[test]
    fn large_tiles_agree_with_the_reference() {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let planes = Conv2d::same(1, true);
        let pixels = Conv2d { layout: ImageLayout::Pixels, ..planes.clone() };
        let odd = Conv2d { pads: vec![0, 1, 1, 2], ..pixels.clone() };
        hold(&[
            Case::new("planes", planes, vec![wave(&[1, 3, 128, 128], 1), wave(&[72, 3, 3, 3], 2), wave(&[72], 3)]),
            Case::new("pixels", pixels, vec![wave(&[1, 128, 128, 4], 1), wave(&[72, 3, 3, 4], 2), wave(&[72], 3)]),
            Case::new("odd", odd, vec![wave(&[2, 93, 91, 3], 1), wave(&[71, 3, 3, 3], 2), wave(&[71], 3)]),
        ]);
    }

    #[test]
    fn stamps_of_narrow_elements_agree_with_the_reference() {
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        let op = lite3r_ir::ops::ConvTranspose2d {
            strides: vec![2, 2],
            pads: vec![0; 4],
            output_padding: vec![0, 0],
            dilations: vec![1, 1],
            groups: 1,
            bias: true,
        };
        hold(&[Case::new("bf16", op, vec![bf16(&[2, 20, 7, 9], 1), bf16(&[20, 9, 2, 2], 2), bf16(&[9], 3)])]);
    }

    #[test]
    fn images_are_taken() {
        assert_eq!(refused(&["conv2d", "conv_transpose2d", "resize"]), [""; 0]);
    }

    #[test]
    fn codes_are_taken_except_as_activations() {
        assert_eq!(refused(&["quantize", "fake_quantize", "dequantize", "layer_norm_quantize"]), [""; 0]);
        assert!(refused(&["scaled_linear"]).iter().all(|clause| clause.contains("fp8w")));
    }
}
