//! `cuda/gemv.cu`: products of few rows, which cost what reading their weights costs.

use lite3r_ir::DType;

use super::{
    Arch, Kernel,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
    product::Product,
};
use crate::backend::Request;

/// The rows of this file: x and w [N, K] of one type, or w of bf16 beside x of f32; rows of w whole chunks of 16 bytes.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "linear.few", op: "linear", dtypes: FLOATS, lower: |request, _: Arch| lower(request) }];

/// Rows of a block.
const MOST_TILES: usize = 4;

/// The most rows: what weights are read for again and again in f32, and where tiles of other kernels fill up otherwise.
const fn most_rows(x: DType) -> usize {
    if x.size() == 4 { 128 } else { 32 }
}

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    floats(request)?;
    let product = Product::of(request)?;
    let (x, w) = (request.operands[0].dtype, request.operands[1].dtype);
    let math = match (x, w) {
        (DType::F32, DType::F32 | DType::BF16) => DType::BF16,
        _ if x == w => x,
        _ => return Err(format!("multiplies operands of one type, or f32 by bf16, not {x} by {w}")),
    };
    if product.m > most_rows(x) {
        return Err(format!("takes up to {} rows of {x}, not {}", most_rows(x), product.m));
    }
    let own = 16 / w.size();
    if product.k == 0 || !product.k.is_multiple_of(own) {
        return Err(format!("takes rows of whole 16 bytes, not K = {} of {w}", product.k));
    }
    let tiles = product.m.div_ceil(8).clamp(1, MOST_TILES);
    let columns = product.n.div_ceil(16);
    // Few blocks take many warps, and read ahead, to have as much on its way as many.
    let (warps, ahead) = if columns < 2 * PROCESSORS { (16, 1) } else { (8, 0) };
    let module = Module::new("gemv.cu")
        .element("TX", x)
        .element("TW", w)
        .element("MATH", math)
        .define("WARPS", warps)
        .define("TILES", tiles)
        .define("AHEAD", ahead);
    let sizes = [product.m, product.n, product.k].map(|size| Arg::of(size as u32));
    let [_, _, bias, residual] = product.scale_args();
    Ok(Launch {
        module: product.define(module, request),
        function: "product_few",
        grid: [columns as u32, product.m.div_ceil(8 * tiles) as u32, 1],
        block: 32 * warps,
        shared: 0,
        args: [Arg::operand(0), Arg::operand(1), Arg::result(0), bias, residual].into_iter().chain(sizes).collect(),
    }
    .into())
}
