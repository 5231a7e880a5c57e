//! `cuda/reduce.cu`: reductions over any axes, and positions of extremes.

use lite3r_ir::{DType, Op};

use super::{
    Arch, Kernel, dims,
    elementwise::pack,
    launch::{Arg, Launch, Lowered, Module, PROCESSORS, THREADS, index_type},
};
use crate::backend::{
    Request,
    gpu::walk::{Axis, separate},
};

/// The most terms that a warp takes; a block takes more.
const WARP_TERMS: usize = 1024;
/// The most terms that a thread takes.
const THREAD_TERMS: usize = 16;
/// The fewest results side by side that the lanes of a warp take.
const LEAST_COLUMNS: usize = 16;
/// The fewest terms of a piece.
const LEAST_TERMS: usize = 1024;
const DTYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8, DType::Bool];

const fn row(name: &'static str, op: &'static str) -> Kernel {
    Kernel { name, op, dtypes: DTYPES, lower }
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("reduce_sum.groups", "reduce_sum"),
    row("reduce_mean.groups", "reduce_mean"),
    row("reduce_max.groups", "reduce_max"),
    row("reduce_min.groups", "reduce_min"),
    row("reduce_prod.groups", "reduce_prod"),
    row("arg_max.groups", "arg_max"),
    row("arg_min.groups", "arg_min"),
];

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let (operation, axes) = match request.op {
        Op::ReduceSum(op) => ("Sum", op.axes.clone()),
        Op::ReduceMean(op) => ("Mean", op.axes.clone()),
        Op::ReduceMax(op) => ("Largest", op.axes.clone()),
        Op::ReduceMin(op) => ("Smallest", op.axes.clone()),
        Op::ReduceProd(op) => ("Product", op.axes.clone()),
        Op::ArgMax(op) => ("FirstLargest", vec![op.axis]),
        Op::ArgMin(op) => ("FirstSmallest", vec![op.axis]),
        other => return Err(format!("does not compute {}", other.name())),
    };
    if let Some(odd) = request.operands.iter().chain(request.results).find(|t| !DTYPES.contains(&t.dtype)) {
        return Err(format!("does not take {odd}"));
    }
    let x = dims(&request.operands[0])?;
    let (kept, gone) = separate(&x, &axes);
    let count = |axes: &[Axis]| axes.iter().map(|a| a.0).product::<usize>();
    let (results, terms) = (count(&kept), count(&gone));
    let ((kept_shape, kept_steps), (gone_shape, gone_steps)) = (pack(&kept, 1)?, pack(&gone, 1)?);
    let columns = results >= LEAST_COLUMNS && terms > THREAD_TERMS && kept.last().is_some_and(|(_, s)| s == &[1]);
    let group = if terms <= THREAD_TERMS {
        1
    } else if columns || terms <= WARP_TERMS {
        32
    } else {
        THREADS
    };
    let pieces = pieces(results, terms, columns);
    let module = Module::new("reduce.cu")
        .element("TX", request.operands[0].dtype)
        .element("TR", request.results[0].dtype)
        .define("OPERATION", operation)
        .define("GROUP", group)
        .define("INDEX", index_type(x.iter().product::<usize>().max(results) as u64));
    let threads = results as u64 * u64::from(if columns { THREADS / 32 } else { group });
    let numbers = [results as i64, terms as i64].map(Arg::of);
    let args = |to: Arg, last: &[Arg]| -> Vec<Arg> {
        let shapes = [Arg::of(kept_shape), Arg::of(kept_steps[0]), Arg::of(gone_shape), Arg::of(gone_steps[0])];
        [Arg::operand(0), to].into_iter().chain(shapes).chain(numbers.clone()).chain(last.iter().cloned()).collect()
    };
    if pieces == 1 {
        let function = if columns { "reduce_columns" } else { "reduce_rows" };
        return Ok(Launch::over(module, function, threads, args(Arg::result(0), &[])).into());
    }
    let function = if columns { "reduce_columns_pieces" } else { "reduce_rows_pieces" };
    let parts = [Arg::of(pieces as i64)];
    let first = Launch::over(module.clone(), function, threads * pieces as u64, args(Arg::scratch(0), &parts));
    let join = [Arg::scratch(0), Arg::result(0)].into_iter().chain(numbers).chain(parts).collect();
    let second = Launch::over(module, "join_pieces", (results * 8) as u64, join);
    Ok(Lowered { launches: vec![first, second], scratch: results * pieces * PARTIAL })
}

/// The bytes of a partial result, at most.
const PARTIAL: usize = 16;

/// How many pieces of the terms are reduced by themselves: more than one where results are too few for the device.
fn pieces(results: usize, terms: usize, columns: bool) -> usize {
    let blocks = results.div_ceil(if columns { 32 } else { 1 }).max(1);
    (4 * PROCESSORS / blocks).min(terms / LEAST_TERMS).max(1)
}
