//! `cuda/indexing.cu` and `cuda/scatter_add.cu`: elements and slices picked, replaced or added up by index, and
//! sequences.

use lite3r_ir::{DType, Op, ValueType, ops::shape_rules::strides};

use super::{
    Arch, Kernel, dims,
    elementwise::{MAX_RANK, walk},
    floats::{FLOATS, only},
    launch::{Arg, Launch, Lowered, Module, index_type},
    movement::{chunk, element},
};
use crate::backend::Request;

const fn row(name: &'static str, op: &'static str, lower: fn(&Request<'_>, Arch) -> Result<Lowered, String>) -> Kernel {
    Kernel { name, op, dtypes: &DType::ALL, lower }
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("gather.slices", "gather", gather),
    row("gather_nd.slices", "gather_nd", gather),
    row("gather_elements.elements", "gather_elements", gather_elements),
    row("scatter_elements.last", "scatter_elements", scatter),
    row("scatter_nd.last", "scatter_nd", scatter),
    Kernel { name: "scatter_add.elements", op: "scatter_add", dtypes: FLOATS, lower: scatter_add },
    Kernel { name: "range.steps", op: "range", dtypes: &[DType::I64], lower: range },
];

/// What tuples of indices address, as `cuda/indexing.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Target {
    tuple: i64,
    size: [i64; MAX_RANK],
    stride: [i64; MAX_RANK],
}

impl Target {
    /// Tuples that index all dimensions of `shape`.
    fn new(shape: &[usize]) -> Result<Self, String> {
        if shape.len() > MAX_RANK {
            return Err(format!("takes tuples of up to {MAX_RANK} indices, not {}", shape.len()));
        }
        let mut target = Self { tuple: shape.len() as i64, size: [0; MAX_RANK], stride: [0; MAX_RANK] };
        for (i, (size, stride)) in shape.iter().zip(strides(shape)).enumerate() {
            (target.size[i], target.stride[i]) = (*size as i64, stride as i64);
        }
        Ok(target)
    }
}

/// A launch with one thread an element of `n`.
fn launch(module: &Module, function: &'static str, n: usize, args: impl IntoIterator<Item = Arg>) -> Launch {
    let args = args.into_iter().chain([Arg::of(n as i64)]).collect();
    Launch::over(module.clone(), function, n as u64, args)
}

/// The module for elements of `size` bytes, `elements` in all.
fn module(size: usize, indices: &ValueType, elements: usize) -> Module {
    Module::new("indexing.cu")
        .define("ELEMENT", element(size))
        .element("TI", indices.dtype)
        .define("INDEX", index_type(elements as u64))
}

/// The numbers as arguments.
fn numbers<const N: usize>(values: [usize; N]) -> [Arg; N] {
    values.map(|v| Arg::of(v as i64))
}

fn gather(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let (x, indices) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let all: usize = dims(&request.results[0])?.iter().product();
    let size = request.results[0].dtype.size();
    // Of x: dimensions before those that are indexed, those, and the slices behind them.
    let (before, tuple, shared) = match request.op {
        Op::Gather(op) => (op.axis, 1, true),
        Op::GatherNd(op) => (op.batch_dims, *indices.last().ok_or("indices need a dimension")?, false),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let target = Target::new(&x[before..before + tuple])?;
    let inner: usize = x[before + tuple..].iter().product();
    let per_batch: usize = match shared {
        true => indices.iter().product(),
        false => indices[before..indices.len() - 1].iter().product(),
    };
    let batch: usize = x[before..before + tuple].iter().product();
    let chunk = chunk(size, |count| inner > 0 && inner.is_multiple_of(count));
    let group = chunk / size;
    let sizes = numbers([per_batch, batch, usize::from(shared), inner / group]);
    let args = [Arg::operand(0), Arg::operand(1), Arg::result(0), Arg::of(target)].into_iter().chain(sizes);
    Ok(launch(&module(chunk, &request.operands[1], all / group), "gather_slices", all / group, args).into())
}

/// Arguments that find the elements of x [..] that indices name along an axis: a walk, and the axis.
fn places(x: &[usize], indices: &[usize], axis: usize) -> Result<[Arg; 4], String> {
    let own = strides(x);
    let beside = (0..x.len()).map(|d| if d == axis { 0 } else { own[d] as i64 }).collect();
    let (shape, steps) = walk(indices, &[beside])?;
    let [size, stride] = numbers([x[axis], own[axis]]);
    Ok([Arg::of(shape), Arg::of(steps[0]), size, stride])
}

fn gather_elements(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::GatherElements(op) = request.op else { return Err("computes gather_elements".into()) };
    let (x, indices) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let n = indices.iter().product();
    let module = module(request.results[0].dtype.size(), &request.operands[1], n);
    let args = [Arg::operand(0), Arg::operand(1), Arg::result(0)].into_iter().chain(places(&x, &indices, op.axis)?);
    Ok(launch(&module, "gather_elements", n, args).into())
}

fn scatter(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let (x, indices) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let size = request.results[0].dtype.size();
    let all: usize = x.iter().product();
    let table = [Arg::operand(1), Arg::scratch(0)];
    let (function, updates, slots, args): (_, usize, usize, Vec<Arg>) = match request.op {
        Op::ScatterElements(op) => {
            let places = places(&x, &indices, op.axis)?;
            ("mark_elements", indices.iter().product(), all, table.into_iter().chain(places).collect())
        }
        Op::ScatterNd(_) => {
            let (tuple, rows) = indices.split_last().ok_or("indices need a dimension")?;
            let target = Target::new(&x[..*tuple])?;
            let slots = x[..*tuple].iter().product();
            ("mark_slices", rows.iter().product(), slots, table.into_iter().chain([Arg::of(target)]).collect())
        }
        other => return Err(format!("does not compute {}", other.name())),
    };
    if updates >= 1 << 31 {
        return Err(format!("takes fewer than 2^31 updates, not {updates}"));
    }
    let inner = all.checked_div(slots).unwrap_or(0);
    let chunk = chunk(size, |count| inner > 0 && inner.is_multiple_of(count));
    let (group, slots) = (chunk / size, if all == 0 { 0 } else { slots });
    let updates = if all == 0 { 0 } else { updates };
    let module = module(chunk, &request.operands[1], all / group);
    let replace = [Arg::operand(0), Arg::operand(2), Arg::scratch(0), Arg::result(0), Arg::of((inner / group) as i64)];
    Ok(Lowered {
        launches: vec![
            launch(&module, "clear", slots, [Arg::scratch(0)]),
            launch(&module, function, updates, args),
            launch(&module, "replace", all / group, replace),
        ],
        scratch: slots * size_of::<i32>(),
    })
}

fn scatter_add(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::ScatterAdd(op) = request.op else { return Err("computes scatter_add".into()) };
    only(&request.operands[..1])?;
    let (indices, y) = (dims(&request.operands[1])?, dims(&request.results[0])?);
    let n: usize = y.iter().product();
    let module = Module::new("scatter_add.cu")
        .element("TX", request.operands[0].dtype)
        .element("TI", request.operands[1].dtype)
        .define("INDEX", index_type(n as u64));
    let (count, size): (usize, usize) = (indices.iter().product(), y[op.axis]);
    if count >= 1 << 31 {
        return Err("takes fewer than 2^31 indices".into());
    }
    if n == 0 {
        return Ok(Lowered::default());
    }
    let next = (4 * size).next_multiple_of(256);
    let tables = [Arg::scratch(0), Arg::scratch(next)];
    let chains = [Arg::operand(1)].into_iter().chain(tables.clone()).chain(numbers([count]));
    let sizes = numbers([count, size, y[op.axis + 1..].iter().product()]);
    let add = [Arg::operand(0), Arg::result(0)].into_iter().chain(tables).chain(sizes);
    let launches = vec![launch(&module, "chains", size, chains), launch(&module, "scatter_add", n, add)];
    Ok(Lowered { launches, scratch: next + 4 * count })
}

fn range(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::Range(op) = request.op else { return Err("computes range".into()) };
    let start = op.start.constant().ok_or("needs a start without symbols")?;
    let count = request.results[0].elements().ok_or("needs static shapes")?;
    let module = module(8, &request.results[0], count);
    Ok(launch(&module, "range", count, [Arg::result(0), Arg::of(start), Arg::of(op.step)]).into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::ops::ScatterAdd;

    use super::*;
    use crate::backend::cuda::conformance::compiles;

    #[test]
    fn sums_by_index_compile_without_spills() {
        let types = vec![ValueType::new(DType::BF16, [2, 10992, 64]), ValueType::new(DType::I32, [10992])];
        compiles(&[(ScatterAdd { axis: 1, size: 1374.into() }.into(), types)], "scatter_add");
    }
}
