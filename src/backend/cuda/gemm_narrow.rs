//! `cuda/gemm_narrow.cu`: products of many rows and few columns, which cost what reading the rows costs.

use super::{
    Arch, Kernel,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module},
    product::Product,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "linear.narrow", op: "linear", dtypes: FLOATS, lower: |request, _: Arch| lower(request) }];

/// The most columns, which a thread keeps in registers.
const MOST_COLUMNS: usize = 8;
/// The fewest rows: with less, threads that have whole rows leave most of a device idle.
const LEAST_ROWS: usize = 4096;
/// The most bytes of weights.
const WEIGHTS: usize = 16 << 10;

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    floats(request)?;
    let product = Product::of(request)?;
    if product.quantize.is_some() {
        return Err("gives no codes".into());
    }
    if product.n == 0 || product.n > MOST_COLUMNS || product.m < LEAST_ROWS {
        return Err(format!("takes up to {MOST_COLUMNS} columns and at least {LEAST_ROWS} rows"));
    }
    let x = request.operands[0].dtype;
    let (vector, bytes) = (16 / x.size(), product.n * product.k * size_of::<f32>());
    if product.k == 0 || !product.k.is_multiple_of(vector) || bytes > WEIGHTS {
        return Err(format!("takes rows of whole 16 bytes, and up to {WEIGHTS} bytes of weights"));
    }
    let module = Module::new("gemm_narrow.cu")
        .element("TX", x)
        .element("TW", request.operands[1].dtype)
        .define("WIDTH", product.n)
        .define("VECTOR", vector);
    let [_, _, bias, residual] = product.scale_args();
    let sizes = [product.m, product.k].map(|size| Arg::of(size as u32));
    let args = [Arg::operand(0), Arg::operand(1), Arg::result(0), bias, residual].into_iter().chain(sizes).collect();
    let launch = Launch::over(product.define(module, request), "product_narrow", product.m as u64, args);
    Ok(Launch { shared: bytes as u32, ..launch }.into())
}
