//! `cuda/layer_norm.cu`, `cuda/layer_norm_grad.cu` and `cuda/dequantize.cu`: rows normalised, quantised, or both, what
//! they get back, and codes made numbers again.

use lite3r_ir::{DType, Op, ops::quantize::Granularity};

use super::{
    Arch, Kernel, dims,
    floats::FLOATS,
    launch::{Arg, Launch, Lowered, Module, blocks, index_type},
};
use crate::backend::Request;

/// The rows of this file: rows of any width, f32, f16 and bf16.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "layer_norm.rows", op: "layer_norm", dtypes: FLOATS, lower },
    Kernel { name: "layer_norm_grad.rows", op: "layer_norm_grad", dtypes: FLOATS, lower: back },
    Kernel { name: "layer_norm_quantize.rows", op: "layer_norm_quantize", dtypes: FLOATS, lower },
    Kernel { name: "quantize.rows", op: "quantize", dtypes: FLOATS, lower },
    Kernel { name: "fake_quantize.rows", op: "fake_quantize", dtypes: FLOATS, lower },
    Kernel { name: "dequantize.elements", op: "dequantize", dtypes: &[DType::F8E4M3], lower: dequantize },
];

/// Rows that a block takes at a time: one a warp.
const WARPS: u64 = 8;

/// The most elements of a row that a lane keeps in registers; half as many beside their gains and biases.
const KEPT: usize = 128;

/// How a lane keeps its part of a row: `per` chunks of `vector` columns; a group of columns is `chunks` of them over
/// `lanes` lanes.
struct Kept {
    per: usize,
    vector: usize,
    chunks: usize,
    lanes: usize,
}

impl Kept {
    /// Of rows of `columns` elements of x under scales of `group` columns; `None` where a row does not fit so.
    fn of(columns: usize, group: Option<usize>, x: DType, affine: bool) -> Option<Self> {
        let whole = 16 / x.size();
        let vector = if columns.is_multiple_of(whole) { whole } else { 1 };
        let (chunks, lanes) = match group {
            None => (1, 32),
            Some(group) if group.is_multiple_of(32 * vector) => (group / (32 * vector), 32),
            Some(group) => (1, Some(group / vector).filter(|n| n * vector == group && n.is_power_of_two())?),
        };
        let per = columns.div_ceil(32 * vector).next_multiple_of(chunks);
        let most = if affine { KEPT / 2 } else { KEPT };
        (columns > 0 && per * vector <= most && lanes <= 32).then_some(Self { per, vector, chunks, lanes })
    }
}

fn floats(request: &Request<'_>) -> Result<(), String> {
    let known = |dtype: DType| FLOATS.contains(&dtype) || dtype == DType::F8E4M3;
    match request.operands.iter().chain(request.results).find(|t| !known(t.dtype)) {
        Some(odd) => Err(format!("takes f32, f16 and bf16, not {odd}")),
        None => Ok(()),
    }
}

/// Rows and columns, the last dimension being a row.
fn matrix(shape: &[usize]) -> Result<(usize, u32), String> {
    let (columns, outer) = shape.split_last().ok_or("takes operands with a dimension")?;
    let columns = u32::try_from(*columns).map_err(|_| "takes rows of less than 2^32 elements")?;
    Ok((outer.iter().product(), columns))
}

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    floats(request)?;
    let (eps, scale, fake) = match request.op {
        Op::LayerNorm(op) => (Some(op.eps), None, false),
        Op::LayerNormQuantize(op) => (Some(op.eps), Some(op.scale), false),
        Op::Quantize(op) => (None, Some(op.scale), false),
        Op::FakeQuantize(op) => (None, Some(op.scale), true),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let (operands, out) = (request.operands, &request.results[0]);
    let (rows, columns) = matrix(&dims(&operands[0])?)?;
    let affine = operands.len() == 3;
    let of = |i: usize| operands.get(i).map_or(DType::F32, |t| t.dtype);
    let group = match scale {
        Some(Granularity::Columns(group)) => u32::try_from(group).unwrap_or(u32::MAX >> 1).min(columns.max(1)),
        _ => 1,
    };
    let grouped = matches!(scale, Some(Granularity::Columns(_))).then_some(group as usize);
    let kept = Kept::of(columns as usize, grouped, of(0), affine);
    let kept_as = |of: fn(&Kept) -> usize| kept.as_ref().map_or(0, of);
    let launch = |mode: &str, scales: Arg| Launch {
        module: Module::new("layer_norm.cu")
            .element("TX", of(0))
            .element("TG", of(1))
            .element("TB", of(2))
            .element("TY", out.dtype)
            .define("NORM", i32::from(eps.is_some()))
            .define("AFFINE", i32::from(affine))
            .define("SCALE", mode)
            .define("FAKE", i32::from(fake))
            .define("PER", kept_as(|k| k.per))
            .define("VECTOR", kept_as(|k| k.vector))
            .define("CHUNKS", kept_as(|k| k.chunks))
            .define("LANES", kept_as(|k| k.lanes)),
        function: if kept.is_some() { "normalise_kept" } else { "normalise_any" },
        grid: [blocks((rows as u64).div_ceil(WARPS), 1), 1, 1],
        block: 32 * WARPS as u32,
        shared: 0,
        args: vec![
            Arg::operand(0),
            Arg::maybe(affine.then_some(1)),
            Arg::maybe(affine.then_some(2)),
            Arg::result(0),
            scales,
            Arg::of(rows as i64),
            Arg::of(columns),
            Arg::of(group),
            Arg::of(eps.unwrap_or(0.0) as f32),
        ],
    };
    let scales = || if fake || scale.is_none() { Arg::Null } else { Arg::result(1) };
    match scale {
        None => Ok(launch("NONE", scales()).into()),
        Some(Granularity::Row) => Ok(launch("ROW", scales()).into()),
        Some(Granularity::Columns(_)) => Ok(launch("COLUMNS", scales()).into()),
        Some(Granularity::Tensor) => {
            // The scale of everything is a result, or stands behind the magnitudes of rows.
            let behind = rows * 4;
            let shared = if fake { Arg::scratch(behind) } else { Arg::result(1) };
            let measure = launch("MEASURE", Arg::scratch(0));
            let reduce = Launch {
                module: measure.module.clone(),
                function: "scale_of_rows",
                grid: [1, 1, 1],
                block: 256,
                shared: 0,
                args: vec![Arg::scratch(0), shared.clone(), Arg::of(rows as i64)],
            };
            Ok(Lowered { launches: vec![measure, reduce, launch("GIVEN", shared)], scratch: behind + 4 })
        }
    }
}

fn back(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::LayerNormGrad(op) = request.op else { return Err("computes layer_norm_grad".into()) };
    super::floats::floats(request)?;
    let of = |i: usize| request.operands.get(i).map_or(DType::F32, |t| t.dtype);
    let (rows, columns) = matrix(&dims(&request.operands[1])?)?;
    let affine = request.operands.len() == 3;
    // Two rows are kept, as beside gains and biases.
    let kept = Kept::of(columns as usize, None, of(1), true);
    let module = Module::new("layer_norm_grad.cu")
        .element("TG", of(0))
        .element("TX", of(1))
        .element("TGAIN", of(2))
        .define("AFFINE", i32::from(affine))
        .define("PER", kept.as_ref().map_or(0, |k| k.per))
        .define("VECTOR", kept.as_ref().map_or(0, |k| k.vector));
    Ok(Launch {
        module,
        function: if kept.is_some() { "layer_norm_grad_kept" } else { "layer_norm_grad_any" },
        grid: [blocks((rows as u64).div_ceil(WARPS), 1), 1, 1],
        block: 32 * WARPS as u32,
        shared: 0,
        args: vec![
            Arg::operand(0),
            Arg::operand(1),
            Arg::maybe(affine.then_some(2)),
            Arg::result(0),
            Arg::of(rows as i64),
            Arg::of(columns),
            Arg::of(op.eps as f32),
        ],
    }
    .into())
}

fn dequantize(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    floats(request)?;
    let Op::Dequantize(op) = request.op else { return Err("computes dequantize".into()) };
    let (rows, columns) = matrix(&dims(&request.operands[0])?)?;
    let (group, groups) = match op.scale {
        Granularity::Tensor => (1, 0),
        Granularity::Row => (columns.max(1), 1),
        Granularity::Columns(group) => {
            let group = u32::try_from(group).unwrap_or(u32::MAX).min(columns.max(1));
            (group, columns.div_ceil(group))
        }
    };
    let elements = rows as u64 * u64::from(columns);
    Ok(Launch::over(
        Module::new("dequantize.cu").element("TY", request.results[0].dtype).define("INDEX", index_type(elements)),
        "dequantize",
        elements,
        vec![
            Arg::operand(0),
            Arg::operand(1),
            Arg::result(0),
            Arg::of(elements as i64),
            Arg::of(columns),
            Arg::of(group),
            Arg::of(groups),
        ],
    )
    .into())
}
