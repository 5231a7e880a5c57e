//! `cuda/movement.cu`: operations that move elements without looking at them, by the size of the elements.

use lite3r_ir::{DType, Op, Tensor, ops::shape_rules::strides};

use super::{
    Arch, Kernel, dims,
    elementwise::{MAX_RANK, Shape, Strides, pack},
    launch::{Arg, Launch, Lowered, Module, THREADS, blocks, index_type},
};
use crate::backend::{
    Request,
    gpu::{
        moves::{Copy, copies},
        walk::Axis,
    },
};

/// Copies of one launch.
const MAX_COPIES: usize = 4;
/// Rows and columns of a tile that is transposed in shared memory, where an axis is short or elements are wide, and else.
const TILE: usize = 32;
const WIDE_TILE: usize = 64;

const fn row(name: &'static str, op: &'static str) -> Kernel {
    Kernel { name, op, dtypes: &DType::ALL, lower }
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("reshape.bytes", "reshape"),
    row("transpose.bytes", "transpose"),
    row("concat.bytes", "concat"),
    row("slice.bytes", "slice"),
    row("split.bytes", "split"),
    row("expand.bytes", "expand"),
    Kernel { name: "pad.bytes", op: "pad", dtypes: &DType::ALL, lower: pad },
    row("split_heads.bytes", "split_heads"),
    row("merge_heads.bytes", "merge_heads"),
];

impl Copy {
    fn elements(&self) -> usize {
        self.axes.iter().map(|a| a.0).product()
    }

    /// Whether it may be counted in groups of `count` elements.
    fn groups(&self, count: usize) -> bool {
        let fits = |n: i64| n % count as i64 == 0;
        match self.axes.split_last() {
            _ if self.elements() == 0 => true,
            Some(((size, steps), outer)) => {
                size.is_multiple_of(count)
                    && steps.iter().all(|s| *s == 1)
                    && outer.iter().flat_map(|a| &a.1).chain(&self.starts.map(|s| s as i64)).all(|n| fits(*n))
            }
            None => false,
        }
    }

    /// Counted in groups of `count` elements.
    fn grouped(mut self, count: usize) -> Self {
        if let Some(((size, _), outer)) = self.axes.split_last_mut() {
            *size /= count;
            outer.iter_mut().flat_map(|a| &mut a.1).for_each(|step| *step /= count as i64);
        }
        self.starts = self.starts.map(|s| s / count);
        self
    }
}

/// As `cuda/movement.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct PackedCopy {
    elements: i64,
    starts: [i64; 2],
    from: Strides,
    to: Strides,
    shape: Shape,
    unused: u32,
}

/// The C++ type of elements of `size` bytes.
pub fn element(size: usize) -> &'static str {
    match size {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        8 => "u64",
        _ => "uint4",
    }
}

/// The largest chunk, in bytes, that groups elements of `size` bytes and is `allowed` with that many elements.
pub fn chunk(size: usize, allowed: impl Fn(usize) -> bool) -> usize {
    [16, 8, 4, 2].into_iter().find(|c| *c > size && allowed(c / size)).unwrap_or(size)
}

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let size = request.results[0].dtype.size();
    let copies = copies(request)?;
    if let [copy] = &copies[..]
        && let Some(launch) = transpose(copy, size)?
    {
        return Ok(launch.into());
    }
    let chunk = chunk(size, |count| copies.iter().all(|c| c.groups(count)));
    let copies: Vec<Copy> = copies.into_iter().map(|c| c.grouped(chunk / size)).collect();
    let launches = copies.chunks(MAX_COPIES).map(|c| copy(c, chunk)).collect::<Result<_, String>>()?;
    Ok(Lowered { launches, scratch: 0 })
}

/// The file for elements of `size` bytes, counted up to `most`.
fn module(size: usize, most: u64, tile: usize) -> Module {
    Module::new("movement.cu").define("ELEMENT", element(size)).define("INDEX", index_type(most)).define("TILE", tile)
}

/// One launch of up to [`MAX_COPIES`] copies of elements of `size` bytes.
fn copy(copies: &[Copy], size: usize) -> Result<Launch, String> {
    let elements = copies.iter().map(Copy::elements).max().unwrap_or(0) as u64;
    let mut packed = [<PackedCopy as bytemuck::Zeroable>::zeroed(); MAX_COPIES];
    for (packed, copy) in packed.iter_mut().zip(copies) {
        let (shape, steps) = pack(&copy.axes, 2)?;
        let (starts, elements) = (copy.starts.map(|s| s as i64), copy.elements() as i64);
        *packed = PackedCopy { elements, starts, from: steps[0], to: steps[1], shape, unused: 0 };
    }
    let each = |of: fn(&Copy) -> Arg| (0..MAX_COPIES).map(move |i| copies.get(i).map_or(Arg::Null, of));
    let args = each(|c| Arg::operand(c.operand)).chain(each(|c| Arg::result(c.result)));
    Ok(Launch {
        module: module(size, elements, TILE),
        function: "copy",
        grid: [blocks(elements, THREADS), copies.len() as u32, 1],
        block: THREADS,
        shared: 0,
        args: args.chain([Arg::of(packed)]).collect(),
    })
}

/// The launch that transposes in tiles, if source and destination have different innermost axes of some length.
fn transpose(copy: &Copy, size: usize) -> Result<Option<Launch>, String> {
    const LEAST: usize = 8;
    let inner = |side: usize| copy.axes.iter().position(|(n, steps)| steps[side] == 1 && *n >= LEAST);
    let (Some(rows), Some(columns)) = (inner(0), inner(1)) else { return Ok(None) };
    if rows == columns || copy.starts != [0, 0] {
        return Ok(None);
    }
    let outer: Vec<Axis> =
        (0..copy.axes.len()).filter(|i| ![rows, columns].contains(i)).map(|i| copy.axes[i].clone()).collect();
    let (shape, steps) = pack(&outer, 2)?;
    let ((height, down), (width, across)) = (&copy.axes[rows], &copy.axes[columns]);
    let tile = if size > 4 || (*height).min(*width) < 48 { TILE } else { WIDE_TILE };
    let tiles = (height.div_ceil(tile) * width.div_ceil(tile) * outer.iter().map(|a| a.0).product::<usize>()) as u64;
    Ok(Some(Launch {
        module: module(size, tiles, tile),
        function: "transpose",
        grid: [blocks(tiles, 1), 1, 1],
        block: THREADS,
        shared: 0,
        args: vec![
            Arg::operand(copy.operand),
            Arg::result(copy.result),
            Arg::of(shape),
            Arg::of(steps[0]),
            Arg::of(steps[1]),
            Arg::of(*height as i64),
            Arg::of(*width as i64),
            Arg::of(across[0]),
            Arg::of(down[1]),
            Arg::of(tiles as i64),
        ],
    }))
}

/// What `pad` knows of every dimension of the result, as `cuda/movement.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Border {
    before: [i64; MAX_RANK],
    size: [i64; MAX_RANK],
}

fn pad(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::Pad(op) = request.op else { return Err("computes pad".into()) };
    let (x, y, dtype) = (dims(&request.operands[0])?, dims(&request.results[0])?, request.results[0].dtype);
    // (before, size in x, size in y); a dimension without a border is one with the dimension before it.
    let mut axes: Vec<[usize; 3]> = Vec::new();
    for (axis, (&size, &all)) in x.iter().zip(&y).enumerate() {
        match axes.last_mut() {
            Some(outer) if size == all => *outer = outer.map(|n| n * size),
            _ => axes.push([op.before[axis], size, all]),
        }
    }
    let chunk = chunk(dtype.size(), |count| axes.last().is_some_and(|a| a.iter().all(|n| n.is_multiple_of(count))));
    if let Some(last) = axes.last_mut() {
        *last = last.map(|n| n / (chunk / dtype.size()));
    }
    let own = strides(&axes.iter().map(|a| a[1]).collect::<Vec<_>>());
    let walked: Vec<Axis> = axes.iter().zip(&own).map(|(a, step)| (a[2], vec![*step as i64])).collect();
    let (shape, steps) = pack(&walked, 1)?;
    let mut border = Border { before: [0; MAX_RANK], size: [0; MAX_RANK] };
    for (i, axis) in axes.iter().enumerate() {
        (border.before[i], border.size[i]) = (axis[0] as i64, axis[1] as i64);
    }
    let value = Tensor::from_f64(dtype, &[1], &[op.value]);
    let value: [u8; 16] = std::array::from_fn(|i| value.bytes()[i % dtype.size()]);
    let elements = axes.iter().map(|a| a[2] as u64).product();
    Ok(Launch::over(
        module(chunk, elements, TILE),
        "pad",
        elements,
        vec![
            Arg::operand(0),
            Arg::result(0),
            Arg::of(shape),
            Arg::of(steps[0]),
            Arg::of(border),
            Arg::Value(value.to_vec()),
            Arg::of(elements as i64),
        ],
    )
    .into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::ops::elementwise::indices;

    use super::*;

    /// What the device does with copies of chunks of `size` bytes, one byte at a time.
    fn moved(copies: &[Copy], size: usize, inputs: &[Tensor], results: &[usize]) -> Vec<Vec<u8>> {
        let mut bytes: Vec<Vec<u8>> = results.iter().map(|n| vec![0xff; *n]).collect();
        for copy in copies {
            let shape: Vec<usize> = copy.axes.iter().map(|a| a.0).collect();
            let steps = |side: usize| copy.axes.iter().map(|a| a.1[side] as usize).collect();
            for [from, to] in indices(&shape, [steps(0), steps(1)]) {
                let (from, to) = ((copy.starts[0] + from) * size, (copy.starts[1] + to) * size);
                let chunk = &inputs[copy.operand].bytes()[from..from + size];
                bytes[copy.result][to..to + size].copy_from_slice(chunk);
            }
        }
        bytes
    }

    #[test]
    fn copies_move_what_the_reference_moves() {
        let mut chunked = 0;
        for case in Op::all_cases() {
            let operands: Vec<_> = case.inputs.iter().map(Tensor::value_type).collect();
            let results = case.op.infer(&operands).unwrap();
            let request = Request { op: &case.op, operands: &operands, results: &results };
            let Ok(copies) = copies(&request) else { continue };
            let size = results[0].dtype.size();
            let chunk = chunk(size, |count| copies.iter().all(|c| c.groups(count)));
            chunked += usize::from(chunk > size);
            let grouped: Vec<Copy> = copies.into_iter().map(|c| c.grouped(chunk / size)).collect();
            let sizes: Vec<usize> = results.iter().map(|t| t.bytes().unwrap()).collect();
            let got = moved(&grouped, chunk, &case.inputs, &sizes);
            let want = case.op.eval(&case.inputs.iter().collect::<Vec<_>>(), &results).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(got, want.bytes(), "{} {}", case.op.name(), case.name);
            }
        }
        assert!(chunked > 5, "{chunked} cases move chunks");
    }
}
