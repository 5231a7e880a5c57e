//! `cuda/qkv_heads.cu`: heads of a joint projection, split, normalised, rotated and rounded in one pass.

use lite3r_ir::{
    DType, Op,
    ops::{QkvHeads, SplitHeads, shape_rules::strides_for},
};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, blocks},
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "qkv_heads.rows", op: "qkv_heads", dtypes: FLOATS, lower: |request, _: Arch| lower(request) },
    Kernel { name: "split_heads.rows", op: "split_heads", dtypes: FLOATS, lower: |request, _: Arch| lower(request) },
];

/// As `cuda/qkv_heads.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Heads {
    heads: i32,
    n: i32,
    d: i32,
    half: i32,
    eps: f32,
    unused: i32,
    table: [i64; 3],
}

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let plain = |heads| QkvHeads { heads, norm: false, eps: 0.0, segments: 0, out: None };
    let op = match request.op {
        Op::QkvHeads(op) => op,
        Op::SplitHeads(SplitHeads { parts: 3, heads }) => &plain(*heads),
        _ => return Err("splits three parts into heads".into()),
    };
    floats(request)?;
    let shape = dims(&request.results[0])?;
    let &[batch, heads, n, d] = shape.as_slice() else { return Err("gives results of rank 4".into()) };
    let (norms, tables) = op.parts(request.operands);
    if norms.iter().any(|t| t.dtype != norms[0].dtype) {
        return Err("takes norms of one element type".into());
    }
    let table = tables.first().map(dims).transpose()?.map_or(vec![0; 4], |own| strides_for(&own, &shape));
    let half = d.checked_div(op.segments).map_or(0, |width| width / 2);
    let narrow = d % 8 == 0 && (d / 8).is_power_of_two() && d / 8 <= 32 && half % 8 == 0;
    // A warp exchanges within groups of 2·half columns only if these are a power of two.
    let lanes = if narrow && (half == 0 || (half / 8).is_power_of_two()) { d / 8 } else { 0 };
    // A warp takes a token, or a head.
    let count = if lanes > 0 { batch * n } else { batch * n * 3 * heads };
    let int = |n: usize| i32::try_from(n).map_err(|_| "takes sizes below 2^31".to_string());
    let first = |types: &[lite3r_ir::ValueType]| types.first().map_or(DType::F32, |t| t.dtype);
    let module = Module::new("qkv_heads.cu")
        .element("TX", request.operands[0].dtype)
        .element("TN", first(norms))
        .element("TT", first(tables))
        .element("TY", request.results[0].dtype)
        .define("NORM", i32::from(op.norm))
        .define("ROPE", i32::from(op.segments > 0))
        .define("LANES", lanes)
        .define("HEAD_TABLES", i32::from(table[1] != 0));
    let norm = |i: usize| Arg::maybe(op.norm.then_some(1 + i));
    let table_arg = |i: usize| Arg::maybe((op.segments > 0).then_some(1 + norms.len() + i));
    let grid = match lanes {
        0 => blocks(count as u64, 8),
        _ => u32::try_from(count.div_ceil(8)).map_err(|_| "takes fewer tokens")?,
    };
    Ok(Launch {
        module,
        function: "qkv_heads",
        grid: [grid, 1, 1],
        block: 256,
        shared: 0,
        args: vec![
            Arg::operand(0),
            norm(0),
            norm(1),
            norm(2),
            norm(3),
            table_arg(0),
            table_arg(1),
            Arg::result(0),
            Arg::result(1),
            Arg::result(2),
            Arg::of(Heads {
                heads: int(heads)?,
                n: int(n)?,
                d: int(d)?,
                half: int(half)?,
                eps: op.eps as f32,
                unused: 0,
                table: [table[0] as i64, table[1] as i64, table[2] as i64],
            }),
            Arg::of(count as i64),
        ],
    }
    .into())
}
