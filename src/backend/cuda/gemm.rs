//! `cuda/gemm.cu` and `cuda/gemm_mma.cu`: matrix products of any shape on every architecture; codes and scales of any
//! product, by a quantisation behind it.

use lite3r_ir::{
    DType, Op,
    ops::{Linear, Quantize, ScaledLinear, quantize::Granularity},
};

use super::{
    Arch, Kernel,
    floats::FLOATS,
    launch::{Launch, Lowered, Module, PROCESSORS},
    product::Product,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "linear.mma", op: "linear", dtypes: &[DType::F16, DType::BF16], lower: mma },
    Kernel { name: "matmul.mma", op: "matmul", dtypes: &[DType::F16, DType::BF16], lower: mma },
    Kernel { name: "scaled_linear.mma", op: "scaled_linear", dtypes: &[DType::F8E4M3], lower: mma },
    Kernel {
        name: "weight_scaled_linear.mma",
        op: "weight_scaled_linear",
        dtypes: &[DType::F16, DType::BF16],
        lower: mma,
    },
    Kernel { name: "linear.fma", op: "linear", dtypes: FLOATS, lower: fma },
    Kernel { name: "matmul.fma", op: "matmul", dtypes: FLOATS, lower: fma },
    Kernel { name: "scaled_linear.fma", op: "scaled_linear", dtypes: &[DType::F8E4M3], lower: fma },
    Kernel { name: "weight_scaled_linear.fma", op: "weight_scaled_linear", dtypes: FLOATS, lower: fma },
    Kernel { name: "linear.quantize", op: "linear", dtypes: FLOATS, lower: quantize },
    Kernel { name: "scaled_linear.quantize", op: "scaled_linear", dtypes: &[DType::F8E4M3], lower: quantize },
];

/// Fewer tiles than this leave much of a large device idle.
const MANY_TILES: u32 = PROCESSORS as u32;

/// The product and the types of A and B, if the kernels of this file know all types.
fn product(request: &Request<'_>, arch: Arch) -> Result<(Product, DType, DType), String> {
    let product = Product::of(request)?;
    let known = |dtype: DType| FLOATS.contains(&dtype) || dtype == DType::F8E4M3;
    if product.quantize.is_some() {
        return Err("gives no codes".into());
    }
    if let Some(odd) = request.operands.iter().chain(request.results).find(|t| !known(t.dtype)) {
        return Err(format!("takes f8e4m3, f32, f16 and bf16, not {odd}"));
    }
    if product.x_scales.is_some() && arch == Arch::Sm80 {
        return Err("sm_80 has no FP8 arithmetic; compile with --precision fp8w".into());
    }
    let (a, b) = (request.operands[0].dtype, request.operands[product.b].dtype);
    Ok((product, a, b))
}

/// What a row shares by its scales, if that is not one row or everything.
fn columns(granularity: Granularity) -> Option<usize> {
    match granularity {
        Granularity::Columns(columns) => Some(columns),
        Granularity::Row | Granularity::Tensor => None,
    }
}

fn mma(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let (product, a, b) = product(request, arch)?;
    let math = match (a, b) {
        (DType::BF16 | DType::F16, _) if b.size() <= 2 => a,
        // On Hopper this instruction is slower than that on f16, which holds every e4m3.
        (DType::F8E4M3, DType::F8E4M3) if arch == Arch::Sm90a => DType::F16,
        (DType::F8E4M3, DType::F8E4M3) => DType::F8E4M3,
        _ => return Err(format!("multiplies f16, bf16 and f8e4m3, not {a} and {b}")),
    };
    let depth = 128 / math.size();
    let grouped = product.x_scales.and_then(|s| columns(s.granularity));
    if grouped.is_some_and(|columns| columns % depth != 0) {
        return Err(format!("takes scales of a multiple of {depth} columns"));
    }
    if product.w_scales.is_some_and(|s| columns(s.granularity).is_some()) {
        return Err("takes one scale a row of weights".into());
    }
    // Scaled sums stand beside running ones and need the room of half a tile.
    let large = (128, if grouped.is_some() { 64 } else { 128 });
    let (tile, warps) = match product.tiles(large)? {
        tiles if tiles < MANY_TILES => ((64, 64), (2, 2)),
        _ => (large, (2, 4)),
    };
    let chunk = 16 / math.size();
    let along_b = if product.transposed { product.k } else { product.n };
    let module = Module::new("gemm_mma.cu")
        .element("TA", a)
        .element("TB", b)
        .element("MATH", math)
        .define("TRANSPOSED", i32::from(product.transposed))
        .define("ALIGNED_A", i32::from(product.k.is_multiple_of(chunk)))
        .define("ALIGNED_B", i32::from(along_b.is_multiple_of(chunk)))
        .define("TILE_M", tile.0)
        .define("TILE_N", tile.1)
        .define("WARPS_M", warps.0)
        .define("WARPS_N", warps.1);
    let mut args = product.args();
    args.push(product.layout());
    Ok(Launch {
        module: product.define(module, request),
        function: "product_mma",
        grid: [product.tiles(tile)?, 1, 1],
        block: 32 * warps.0 * warps.1,
        shared: 3 * 128 * (tile.0 + tile.1) as u32,
        args,
    }
    .into())
}

fn fma(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let (product, a, b) = product(request, arch)?;
    let few = product.transposed && product.items == 1 && product.m <= 16;
    let rows = product.m.clamp(1, 8).next_power_of_two();
    let (tile, per) = match product.tiles((128, 128))? {
        tiles if tiles < MANY_TILES => ((32, 32), 2),
        _ => ((128, 128), 8),
    };
    let module = Module::new("gemm.cu")
        .element("TA", a)
        .element("TB", b)
        .define("TRANSPOSED", i32::from(product.transposed))
        .define("TILE_M", tile.0)
        .define("TILE_N", tile.1)
        .define("PER_M", per)
        .define("PER_N", per)
        .define("ROWS", rows);
    let mut args = product.args();
    args.push(product.layout());
    let grid = match few {
        true => [product.n.div_ceil(8) as u32, product.m.div_ceil(rows) as u32, 1],
        false => [product.tiles(tile)?, 1, 1],
    };
    Ok(Launch {
        module: product.define(module, request),
        function: if few { "product_few_rows" } else { "product_tiled" },
        grid,
        block: 256,
        shared: 0,
        args,
    }
    .into())
}

/// The product to scratch memory, its codes and scales from there.
fn quantize(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let (plain, scale): (Op, _) = match request.op {
        Op::Linear(op) => (Linear { quantize: None, ..op.clone() }.into(), op.quantize),
        Op::ScaledLinear(op) => (ScaledLinear { quantize: None, ..op.clone() }.into(), op.quantize),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let scale = scale.ok_or("gives codes and scales")?;
    super::quantized_behind(&plain, &Quantize { scale }.into(), request, arch)
}
