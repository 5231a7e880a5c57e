//! `shaders/gemm_matrices.wgsl`: products of f16 by cooperative matrices, over weights of 8 bits too, and convolutions
//! of pixels as such products, with what stands behind them.

use std::fmt::Write;

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{Conv2d, activation::Activation, images::ImageLayout, quantize::Granularity},
};

use super::{
    Features, Kernel, dims,
    elementwise::packed,
    floats::FLOATS,
    gemm::{self, FEW, activated},
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
};
use crate::backend::{Request, gpu::product::Product};

/// What a workgroup needs: two slices of both sides, and sums on their way out.
const NEEDS: Features = Features { workgroup_bytes: 48 * 1024, ..Features::MATRICES };

const fn row(name: &'static str, op: &'static str, lower: fn(&Request<'_>) -> Result<Lowered, String>) -> Kernel {
    Kernel { name, op, dtypes: &[DType::F16], needs: NEEDS, lower }
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("linear.matrices", "linear", product),
    row("weight_scaled_linear.matrices", "weight_scaled_linear", product),
    row("matmul.matrices", "matmul", product),
    row("conv2d.matrices", "conv2d", convolution),
];

/// Tiles keep a device busy from so many on: two for each part of a large one.
const MANY_TILES: usize = 256;

/// What stands behind the sums, in order.
#[derive(Default)]
struct Epilogue {
    text: String,
}

impl Epilogue {
    /// A factor of every column.
    fn scale(mut self, tensor: &str, granularity: Granularity) -> Self {
        self.text += &match granularity {
            Granularity::Tensor => format!("x *= {tensor}_at(0u); "),
            _ => format!("x *= {}; ", four(tensor)),
        };
        self
    }

    fn bias(mut self, is: bool) -> Self {
        if is {
            self.text += &format!("x += {}; ", four("bias"));
        }
        self
    }

    fn activation(mut self, activation: Activation) -> Self {
        if activation != Activation::None {
            let each = ["x.x", "x.y", "x.z", "x.w"].map(|x| activated(activation, x));
            self.text += &format!("x = vec4({}); ", each.join(", "));
        }
        self
    }

    fn residual(mut self, is: bool) -> Self {
        if is {
            self.text += "x += residual_four(((item * sizes.m + row) * sizes.n + column) / 4u); ";
        }
        self
    }
}

/// Four neighbours of a tensor of one element a column.
fn four(tensor: &str) -> String {
    format!("{tensor}_four(column / 4u)")
}

/// Refuses what is not f16, or not in rows of whole fours.
fn fits(a: &ValueType, results: &[ValueType], (n, k): (usize, usize)) -> Result<(), String> {
    if a.dtype != DType::F16 || results.iter().any(|y| !FLOATS.contains(&y.dtype)) {
        return Err(format!("multiplies f16, not {}", a.dtype.name()));
    }
    if !n.is_multiple_of(4) || !k.is_multiple_of(4) || n * k == 0 {
        return Err(format!("takes rows of whole fours, not of {k} and {n}"));
    }
    Ok(())
}

fn product(request: &Request<'_>) -> Result<Lowered, String> {
    let (operands, y) = (request.operands, &request.results[0]);
    let product = gemm::product(request)?;
    let Product { m, n, k, items, .. } = product;
    if m <= FEW && product.transposed && items == 1 {
        return Err("leaves few rows to what reads weights once".into());
    }
    fits(&operands[0], request.results, (n, k))?;
    let codes = operands[1].dtype == DType::F8E4M3;
    if !codes && operands[1].dtype != DType::F16 {
        return Err(format!("takes weights of f16 and f8e4m3, not {}", operands[1].dtype.name()));
    }
    let mut tensors = halves();
    let mut epilogue = Epilogue::default();
    let (activation, bias, residual) = match request.op {
        Op::Linear(op) if op.quantize.is_some() => return Err("gives no codes".into()),
        Op::Linear(op) => (op.activation, op.bias, op.residual),
        Op::WeightScaledLinear(op) => {
            if matches!(op.w_scale, Granularity::Columns(_)) {
                return Err("takes one scale a row of the weights".into());
            }
            tensors = match op.w_scale {
                Granularity::Tensor => tensors.read("w_scales", operands[2].dtype),
                _ => tensors.fours("w_scales", operands[2].dtype),
            };
            epilogue = epilogue.scale("w_scales", op.w_scale);
            (op.activation, op.bias, op.residual)
        }
        _ => (Activation::None, false, false),
    };
    let behind = 2 + usize::from(codes);
    if bias {
        tensors = tensors.fours("bias", operands[behind].dtype);
    }
    if residual {
        tensors = tensors.fours("residual", operands[behind + usize::from(bias)].dtype);
    }
    let tensors = written(tensors, "y", y.dtype).sizes();
    let epilogue = epilogue.bias(bias).activation(activation).residual(residual);
    let tiles = |tile: (usize, usize)| m.div_ceil(tile.0) * n.div_ceil(tile.1) * items;
    let mut sizes = [(128, 128), (64, 128)].into_iter();
    let tile = sizes.find(|tile| n > 64 && tiles(*tile) >= MANY_TILES).unwrap_or((64, 64));
    let shader = shader(product.transposed, tile, &tensors, &epilogue);
    let mut multiply = launch(request, &product, tile, shader, [0; 11])?;
    if !codes {
        return Ok(multiply.into());
    }
    let (widen, halves) = widened(multiply.bindings[1], n * k)?;
    multiply.bindings[1] = halves;
    Ok(Lowered { launches: vec![widen, multiply], scratch: 2 * n * k })
}

fn convolution(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Conv2d(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    let Conv2d { strides, pads, dilations, groups, layout, .. } = op;
    let operands = request.operands;
    let (x, w, y) = (dims(&operands[0])?, dims(&operands[1])?, dims(&request.results[0])?);
    let (&[images, height, width, channels], &[outputs, kh, kw, _], &[_, oh, ow, _]) = (&x[..], &w[..], &y[..]) else {
        return Err("takes images".into());
    };
    if *layout != ImageLayout::Pixels || *groups != 1 || operands[1].dtype != DType::F16 {
        return Err("takes pixels of f16 without groups".into());
    }
    fits(&operands[0], request.results, (outputs, channels))?;
    word(x.iter().product())?;
    let mut tensors = halves();
    if op.bias {
        tensors = tensors.fours("bias", operands[2].dtype);
    }
    if op.residual {
        tensors = tensors.fours("residual", operands[2 + usize::from(op.bias)].dtype);
    }
    let mut store = String::new();
    for (name, result) in ["y", "positive"].iter().zip(request.results) {
        tensors = written(tensors, name, result.dtype);
        let value = if *name == "y" { "v" } else { "max(v, vec4(0.0))" };
        store += &format!(" {name}_put(at / 4u, {value});");
    }
    let epilogue = Epilogue::default().bias(op.bias).activation(op.activation).residual(op.residual);
    let (m, n, k) = (images * oh * ow, outputs, kh * kw * channels);
    let fits = |tile: &(usize, usize)| n >= tile.1 && m.div_ceil(tile.0) * n.div_ceil(tile.1) >= MANY_TILES;
    let narrow = if m.div_ceil(128) >= MANY_TILES { (128, 64) } else { (64, 64) };
    let tile = [(128, 128), (128, 64)].into_iter().find(fits).unwrap_or(narrow);
    let product = Product { m, n, k, items: 1, walked: Vec::new(), transposed: true };
    let shader = shader(true, tile, &tensors.sizes(), &epilogue)
        .constant("KERNEL_W", kw)
        .splice("left", GATHERED)
        .splice("store", format!("fn store(at: u32, v: vec4<f32>) {{{store} }}"));
    let geometry = [strides[0], strides[1], dilations[0], dilations[1], pads[0], pads[1]];
    let mut image = [channels, height, width, oh, ow, 0, 0, 0, 0, 0, 0];
    image[5..].copy_from_slice(&geometry);
    Ok(launch(request, &product, tile, shader, image)?.into())
}

fn launch(
    request: &Request<'_>,
    product: &Product,
    tile: (usize, usize),
    shader: Shader,
    image: [usize; 11],
) -> Result<Launch, String> {
    let Product { m, n, k, items, walked, .. } = product;
    // Positions of elements are 32-bit numbers.
    request.operands.iter().chain(request.results).try_for_each(|ty| word(dims(ty)?.iter().product()).map(drop))?;
    let mut sizes = vec![word(*m)?, word(*n)?, word(*k)?, walked.len() as u32, word(*items)?];
    sizes.extend(image.into_iter().map(word).collect::<Result<Vec<u32>, String>>()?);
    sizes.extend(packed(walked, 2)?);
    let groups = folded(m.div_ceil(tile.0) * n.div_ceil(tile.1) * items)?;
    Ok(Launch { shader, groups, bindings: Binding::all(request), sizes })
}

/// Both sides.
fn halves() -> Tensors {
    Tensors::default().declared("a", "array<vec4<f16>>").declared("b", "array<vec4<f16>>")
}

/// Codes of weights as f16, once into scratch memory: workgroups that each widened what they multiply would do it again
/// and again.
fn widened(codes: Binding, elements: usize) -> Result<(Launch, Binding), String> {
    let tensors = Tensors::default().fours("x", DType::F8E4M3).write("y", DType::F16).sizes();
    let halves = Binding::scratch(0, 2 * elements);
    let launch = Launch {
        shader: Shader::new("widen.wgsl", &tensors),
        groups: folded((elements / 4).div_ceil(THREADS))?,
        bindings: vec![codes, halves],
        sizes: vec![word(elements / 4)?],
    };
    Ok((launch, halves))
}

/// Rows of A are pixels of the result: what they see through every tap.
const GATHERED: &str = "// The image of a pixel of the result, and the pixel that it sees through the first tap.
struct Row { at: u32, y: u32, x: u32 }

fn row_at(start: u32, row: u32) -> Row {
    let pixels = sizes.out_height * sizes.out_width;
    let pixel = row % pixels;
    let y = pixel / sizes.out_width * sizes.stride_y - sizes.pad_y;
    let x = pixel % sizes.out_width * sizes.stride_x - sizes.pad_x;
    // Behind the last pixel, none is seen.
    return Row(row / pixels * sizes.height * sizes.width, select(0x40000000u, y, row < sizes.m), x);
}

fn left_at(row: Row, k: u32) -> vec4<f16> {
    let tap = k / sizes.channels;
    let y = row.y + tap / KERNEL_W * sizes.dilation_y;
    let x = row.x + tap % KERNEL_W * sizes.dilation_x;
    if k >= sizes.k || y >= sizes.height || x >= sizes.width { return vec4<f16>(); }
    return a[((row.at + y * sizes.width + x) * sizes.channels + k % sizes.channels) / 4u];
}";

/// With a tensor that is written by whole fours.
fn written(tensors: Tensors, name: &str, dtype: DType) -> Tensors {
    match dtype {
        DType::F16 => tensors
            .declared(name, "array<vec4<f16>>")
            .function(&format!("fn {name}_put(i: u32, v: vec4<f32>) {{ {name}[i] = vec4<f16>(v); }}")),
        _ => tensors.write(name, dtype),
    }
}

/// The file for a tile: what a subgroup sums, and what a thread fetches, written out.
fn shader(transposed: bool, (tile_m, tile_n): (usize, usize), tensors: &Tensors, epilogue: &Epilogue) -> Shader {
    // Squares of 16 x 16 that a subgroup sums, and fours that a thread fetches of each slice.
    let (down, across) = (tile_m / 32, tile_n / 32);
    let (fetched_a, fetched_b) = (tile_m / 16, tile_n / 16);
    let mut declared = String::new();
    let (mut fetch, mut stow) = (String::new(), String::new());
    for i in 0..fetched_a {
        _ = writeln!(declared, "    let row_{i} = row_at(starts.x, first_m + down_a + {}u);", 16 * i);
        _ = writeln!(declared, "    var a_{i}: vec4<f16>;");
        _ = writeln!(fetch, "    a_{i} = left_at(row_{i}, ahead + across_a);");
        _ = writeln!(stow, "        left[to_a + {}u * STEP_A] = a_{i};", 16 * i);
    }
    for i in 0..fetched_b {
        _ = writeln!(declared, "    var b_{i}: vec4<f16>;");
        _ = writeln!(fetch, "    b_{i} = right_at(starts.y, line_b, first_b, ahead, {i}u * down_b_step);");
        _ = writeln!(stow, "        right[to_b + {i}u * down_b_step * STEP_B] = b_{i};");
    }
    let mut multiply = String::new();
    for i in 0..down {
        let from = format!("&left[from_a + {}u * STEP_A]", 16 * i);
        _ = writeln!(multiply, "            let l_{i} = coopLoadT<coop_mat16x16<f16, A>>({from}, STEP_A);");
    }
    for j in 0..across {
        let (load, from) = match transposed {
            true => ("coopLoad", format!("&right[from_b + {}u * STEP_B]", 16 * j)),
            false => ("coopLoadT", format!("&right[from_b + {}u]", 4 * j)),
        };
        _ = writeln!(multiply, "            let r_{j} = {load}<coop_mat16x16<f16, B>>({from}, STEP_B);");
        for i in 0..down {
            _ = writeln!(declared, "    var sum_{i}_{j}: coop_mat16x16<f32, C>;");
            _ = writeln!(multiply, "            sum_{i}_{j} = coopMultiplyAdd(l_{i}, r_{j}, sum_{i}_{j});");
        }
    }
    let mut put = String::new();
    for i in 0..down {
        for j in (0..across).step_by(2) {
            _ = writeln!(put, "    coopStoreT(sum_{i}_{j}, &staged[subgroup * 128u], 8u);");
            if j + 1 < across {
                _ = writeln!(put, "    coopStoreT(sum_{i}_{}, &staged[subgroup * 128u + 4u], 8u);", j + 1);
            }
            let to = format!("row + {}u, column + {}u", 16 * i, 16 * j);
            _ = writeln!(put, "    workgroupBarrier();\n    put(item, subgroup, lane, {to});\n    workgroupBarrier();");
        }
    }
    let behind = &epilogue.text;
    Shader::new("gemm_matrices.wgsl", tensors)
        .constant("TRANSPOSED", usize::from(transposed))
        .constant("TILE_M", tile_m)
        .constant("TILE_N", tile_n)
        .splice(
            "epilogue",
            format!(
                "fn epilogue(sums: vec4<f32>, item: u32, row: u32, column: u32) -> vec4<f32> \
                 {{ var x = sums; {behind}return x; }}"
            ),
        )
        .splice("declared", declared)
        .splice("fetch", fetch)
        .splice("stow", stow)
        .splice("multiply", multiply)
        .splice("put", put)
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        Tensor,
        ops::{Case, Linear, MatMul, WeightScaledLinear},
    };

    use super::*;
    use crate::backend::wgsl::{
        alone::Alone,
        conformance::{gpu, hold},
        launch::Base,
        shader::tests::fault,
    };

    fn wave(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
        Tensor::wave(dtype, shape, seed)
    }

    #[test]
    fn products_agree_with_the_reference() {
        let (f, h, e) = (DType::F32, DType::F16, DType::F8E4M3);
        let linear = |activation, residual, out| Linear { activation, residual, out, ..Linear::new(true) };
        let codes = |w_scale| WeightScaledLinear {
            activation: Activation::Gelu,
            bias: true,
            residual: false,
            w_scale,
            out: None,
        };
        let mut cases = Vec::new();
        // The last two are large enough for tiles of 64 x 128 and of 128 x 128, ragged on both sides.
        for m in [17, 63, 64, 65, 1374, 2050] {
            let (n, k) = if m < 1000 { (68, 100) } else { (if m == 1374 { 1500 } else { 2060 }, 40) };
            let (x, w, bias) = (wave(h, &[m, k], 1), wave(h, &[n, k], 2), wave(h, &[n], 3));
            let halves = vec![x.clone(), w.clone(), bias.clone()];
            cases.push(Case::new("gelu", linear(Activation::Gelu, false, None), halves));
            let sums = vec![x.clone(), w, bias, wave(f, &[m, n], 4)];
            cases.push(Case::new("residual", linear(Activation::None, true, Some(f)), sums));
            for (granularity, scales) in [(Granularity::Row, n), (Granularity::Tensor, 1)] {
                let operands = vec![x.clone(), wave(e, &[n, k], 2), wave(f, &[scales, 1], 5), wave(h, &[n], 3)];
                cases.push(Case::new("codes", codes(granularity), operands));
            }
            for transpose_b in [false, true] {
                let b: &[usize] = if transpose_b { &[3, 72, 36] } else { &[3, 36, 72] };
                let operands = vec![wave(h, &[3, m, 36], 6), wave(h, b, 7)];
                cases.push(Case::new("batch", MatMul { transpose_b }, operands));
            }
        }
        hold(&cases);
    }

    #[test]
    fn codes_are_widened_to_the_same_numbers() {
        let bytes: Vec<u8> = (0..=255).collect();
        let codes = Tensor::from_bytes(DType::F8E4M3, &[256], &bytes).unwrap();
        let (mut launch, _) = widened(Binding::whole(Base::Operand(0), &codes.value_type()), 256).unwrap();
        assert_eq!(fault(&launch.shader.text(), &Features::NONE), None);
        let wide = codes.cast(DType::F16);
        launch.bindings[1] = Binding::whole(Base::Result(0), &wide.value_type());
        let Some(gpu) = gpu() else { return };
        let alone = Alone::new(&gpu, &launch.into(), std::slice::from_ref(&codes), &[wide.value_type()]).unwrap();
        let (got, want) = (alone.run().unwrap().remove(0).to_f64(), wide.to_f64());
        assert!(got.iter().zip(&want).all(|(g, w)| g == w || g.is_nan() && w.is_nan()), "{got:?}");
    }

    #[test]
    fn convolutions_agree_with_the_reference() {
        let half = |shape: &[usize], seed| Tensor::wave(DType::F16, shape, seed);
        let pixels = Conv2d { layout: ImageLayout::Pixels, ..Conv2d::same(1, true) };
        let strided = Conv2d { strides: vec![2, 2], pads: vec![0, 1, 1, 2], ..pixels.clone() };
        let residual = Conv2d { residual: true, activation: Activation::Relu, ..pixels.clone() };
        let (w, bias) = (half(&[36, 3, 3, 12], 2), half(&[36], 3));
        // For tiles of 128 x 128 and of 128 x 64.
        let large = |n: usize| vec![half(&[1, 128, 130, 12], 1), half(&[n, 3, 3, 12], 2), half(&[n], 3)];
        hold(&[
            Case::new("large", pixels.clone(), large(132)),
            Case::new("large_narrow", pixels, large(68)),
            Case::new("strided", strided, vec![half(&[2, 17, 19, 12], 1), w.clone(), bias.clone()]),
            Case::new("residual", residual, vec![half(&[2, 9, 11, 12], 1), w, bias, half(&[2, 9, 11, 36], 4)]),
        ]);
    }
}
