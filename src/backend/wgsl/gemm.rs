//! `shaders/gemm.wgsl` and `shaders/gemm_few.wgsl`: matrix products of any shape, over weights of 8 bits too, with what
//! stands behind them.

use lite3r_ir::{
    DType, Op,
    ops::{activation::Activation, quantize::Granularity},
};

use super::{
    Kernel,
    elementwise::packed,
    floats::FLOATS,
    launch::{Binding, Launch, Lowered, folded, word},
    shader::{Shader, Tensors},
    wide::either,
};
use crate::backend::{Request, gpu::product::Product};

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("linear.few", "linear", |r| either(r, few)),
    row("linear.tiled", "linear", |r| either(r, tiled)),
    row("weight_scaled_linear.few", "weight_scaled_linear", |r| either(r, few)),
    row("weight_scaled_linear.tiled", "weight_scaled_linear", |r| either(r, tiled)),
    row("matmul.tiled", "matmul", |r| either(r, tiled)),
];

const fn row(name: &'static str, op: &'static str, lower: fn(&Request<'_>) -> Result<Lowered, String>) -> Kernel {
    Kernel::plain(name, op, FLOATS, lower)
}

/// So many rows are few: what their product takes is reading the weights.
pub const FEW: usize = 16;

/// Tiles of 128 x 128 keep a device busy from so many on.
const MANY_TILES: usize = 128;

/// The function of `shaders/functions.wgsl` that is an activation, applied to `x`.
pub fn activated(activation: Activation, x: &str) -> String {
    match activation {
        Activation::None => x.into(),
        Activation::Relu => format!("maximum({x}, 0.0)"),
        Activation::Gelu => format!("gelu({x})"),
        Activation::GeluTanh => format!("gelu_tanh({x})"),
        Activation::Silu => format!("silu({x})"),
    }
}

/// How four neighbours of a row of `columns` are stored, or why a result of this type cannot be.
pub fn store(result: DType, columns: usize) -> Result<Option<&'static str>, String> {
    match (columns.is_multiple_of(4), result.size()) {
        (true, _) => Ok(Some("fn store(at: u32, column: u32, v: vec4<f32>) { y_put(at / 4u, v); }")),
        (false, 4) => Ok(None),
        (false, _) => Err(format!("gives {} in rows of whole words, not of {columns} columns", result.name())),
    }
}

/// The product that a request is.
pub fn product(request: &Request<'_>) -> Result<Product, String> {
    match request.op {
        Op::MatMul(op) => Product::of_matmul(op, request),
        _ => Product::of_weights(&request.operands[0], &request.operands[1]),
    }
}

/// What all shaders of this file read and write, and what stands behind their sums.
struct Parts {
    shape: Product,
    tensors: Tensors,
    /// The splices `scale`, `epilogue` and, if it is not that of the file, `store`.
    scale: String,
    epilogue: String,
    store: Option<&'static str>,
    /// Whether rows of A, and of B, are read by fours.
    fours: (bool, bool),
    /// Neighbours of a row of B that share a scale.
    w_group: u32,
}

impl Parts {
    fn shader(&self, file: &'static str) -> Shader {
        let shader = Shader::new(file, &self.tensors);
        let shader = shader.splice("scale", self.scale.clone()).splice("epilogue", self.epilogue.clone());
        match self.store {
            Some(store) => shader.splice("store", store),
            None => shader,
        }
    }
}

fn parts(request: &Request<'_>) -> Result<Parts, String> {
    let (operands, y) = (request.operands, &request.results[0]);
    let known = |dtype| FLOATS.contains(&dtype) || dtype == DType::F8E4M3;
    if let Some(odd) = operands.iter().chain(request.results).find(|t| !known(t.dtype)) {
        return Err(format!("takes f32, f16, bf16 and weights of f8e4m3, not {odd}"));
    }
    let mut scale = None;
    let (activation, bias, residual, behind) = match request.op {
        Op::Linear(op) if op.quantize.is_some() => return Err("gives no codes".into()),
        Op::Linear(op) => (op.activation, op.bias, op.residual, 2),
        Op::WeightScaledLinear(op) => {
            scale = Some(op.w_scale);
            (op.activation, op.bias, op.residual, 3)
        }
        Op::MatMul(_) => (Activation::None, false, false, 2),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let shape = product(request)?;
    let Product { n, k, transposed, .. } = shape;
    // Rows that are whole fours are read by fours.
    let fours_a = k.is_multiple_of(4);
    let shared = |columns: usize| columns.is_multiple_of(4) || columns >= k;
    let fours_b = if transposed { k } else { n }.is_multiple_of(4)
        && !matches!(scale, Some(Granularity::Columns(columns)) if !shared(columns));
    let mut tensors = Tensors::default().read_or_fours("a", operands[0].dtype, fours_a).read_or_fours(
        "b",
        operands[1].dtype,
        fours_b,
    );
    let mut w_group = 1;
    let (mut before, mut after) = ("1.0", String::new());
    if let Some(granularity) = scale {
        tensors = tensors.read("w_scales", operands[2].dtype);
        match granularity {
            Granularity::Row => after += "x *= w_scales_at(column); ",
            Granularity::Tensor => after += "x *= w_scales_at(0u); ",
            Granularity::Columns(columns) => {
                w_group = columns;
                before = "w_scales_at(column * ((sizes.k + sizes.w_group - 1u) / sizes.w_group) + k / sizes.w_group)";
            }
        }
    }
    let scales = format!("fn b_scale(column: u32, k: u32) -> f32 {{ return {before}; }}");
    if bias {
        tensors = tensors.read("bias", operands[behind].dtype);
        after += "x += bias_at(column); ";
    }
    after += &format!("x = {}; ", activated(activation, "x"));
    if residual {
        tensors = tensors.read("residual", operands[behind + usize::from(bias)].dtype);
        after += "x += residual_at((item * sizes.m + row) * sizes.n + column); ";
    }
    let tensors = tensors.write("y", y.dtype).sizes();
    let epilogue =
        format!("fn epilogue(sum: f32, item: u32, row: u32, column: u32) -> f32 {{ var x = sum; {after}return x; }}");
    let (store, w_group) = (store(y.dtype, n)?, word(w_group)?);
    Ok(Parts { shape, tensors, scale: scales, epilogue, store, fours: (fours_a, fours_b), w_group })
}

fn few(request: &Request<'_>) -> Result<Lowered, String> {
    let parts = parts(request)?;
    let Product { m, n, k, .. } = parts.shape;
    if m == 0 || m > FEW || parts.fours != (true, true) {
        return Err(format!("takes up to {FEW} rows, of whole fours"));
    }
    let shader = parts.shader("gemm_few.wgsl").constant("ROWS", m);
    let sizes = vec![word(m)?, word(n)?, word(k)?, parts.w_group];
    Ok(Launch { shader, groups: folded(n.div_ceil(8))?, bindings: Binding::all(request), sizes }.into())
}

fn tiled(request: &Request<'_>) -> Result<Lowered, String> {
    let parts = parts(request)?;
    let Product { m, n, k, items, ref walked, transposed } = parts.shape;
    let tiles = |tile: usize| m.div_ceil(tile) * n.div_ceil(tile) * items;
    let tile = if m > 64 && n > 64 && tiles(128) >= MANY_TILES { 128 } else { 64 };
    let mut shader = parts.shader("gemm.wgsl").constant("TRANSPOSED", usize::from(transposed)).constant("TILE", tile);
    if parts.fours.0 {
        shader = shader.splice("left", LEFT_BY_FOURS);
    }
    if parts.fours.1 {
        shader = shader.splice("right", if transposed { RIGHT_BY_FOURS } else { RIGHT_BY_FOURS_ALONG_N });
    }
    let mut sizes = vec![word(m)?, word(n)?, word(k)?, walked.len() as u32, parts.w_group, word(items)?, 0, 0];
    sizes.extend(packed(walked, 2)?);
    Ok(Launch { shader, groups: folded(tiles(tile))?, bindings: Binding::all(request), sizes }.into())
}

const LEFT_BY_FOURS: &str = "fn left_at(start: u32, row: u32, k: u32) -> vec4<f32> {
    if row >= sizes.m || k >= sizes.k { return vec4(0.0); }
    return a_four((start + row * sizes.k + k) / 4u);
}";

/// Four neighbours have one scale.
const RIGHT_BY_FOURS: &str = "fn right_at(start: u32, column: u32, k: u32) -> vec4<f32> {
    if column >= sizes.n || k >= sizes.k { return vec4(0.0); }
    return b_four((start + column * sizes.k + k) / 4u) * b_scale(column, k);
}";

const RIGHT_BY_FOURS_ALONG_N: &str = "fn right_at(start: u32, k: u32, column: u32) -> vec4<f32> {
    if column >= sizes.n || k >= sizes.k { return vec4(0.0); }
    return b_four((start + k * sizes.n + column) / 4u);
}";

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        Tensor,
        ops::{Case, Linear, MatMul},
    };

    use super::*;
    use crate::backend::wgsl::conformance::hold;

    #[test]
    fn few_rows_agree_with_the_reference() {
        let gelu = Linear { activation: Activation::Gelu, residual: true, ..Linear::new(true) };
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        let mut cases = Vec::new();
        for (m, n, k, dtype) in
            [(1, 9, 132, DType::F32), (8, 68, 300, DType::F16), (15, 64, 4, DType::F32), (16, 65, 260, DType::BF16)]
        {
            let operands = [(m, k), (n, k), (1, n), (m, n)].into_iter().zip(1..);
            let inputs = operands.map(|((rows, columns), seed)| match rows {
                1 if seed == 3 => wave(dtype, &[columns], seed),
                _ => wave(dtype, &[rows, columns], seed),
            });
            cases.push(Case::new("few", gelu.clone(), inputs.collect()));
        }
        hold(&cases);
    }

    #[test]
    fn large_products_agree_with_the_reference() {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        let gelu = Linear { activation: Activation::Gelu, ..Linear::new(true) };
        let product = MatMul { transpose_b: false };
        hold(&[
            Case::new("large", gelu.clone(), vec![wave(&[1374, 36], 1), wave(&[1500, 36], 2), wave(&[1500], 3)]),
            Case::new("large_odd", gelu.clone(), vec![wave(&[1374, 35], 1), wave(&[1499, 35], 2), wave(&[1499], 3)]),
            Case::new("large_bf16", gelu, vec![bf16(&[1374, 40], 1), bf16(&[1500, 40], 2), bf16(&[1500], 3)]),
            Case::new("large_by_n", product.clone(), vec![wave(&[2, 1025, 20], 1), wave(&[2, 20, 1028], 2)]),
            Case::new("large_by_n_odd", product, vec![wave(&[2, 1025, 21], 1), wave(&[2, 21, 1027], 2)]),
        ]);
    }
}
