//! `shaders/indexing.wgsl`: elements and slices picked or replaced by index, and sequences.

use lite3r_ir::{DType, Op, ops::shape_rules::strides};

use super::{
    Kernel, dims,
    elementwise::{MAX_RANK, packed},
    floats::FLOATS,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::{through_f32, widened},
};
use crate::backend::{Request, gpu::walk::join};

const fn row(name: &'static str, op: &'static str, lower: fn(&Request<'_>) -> Result<Lowered, String>) -> Kernel {
    Kernel::plain(name, op, &DType::ALL, lower)
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("gather.slices", "gather", |request| widened(request, gather)),
    row("gather_nd.slices", "gather_nd", |request| widened(request, gather)),
    row("gather_elements.elements", "gather_elements", |request| widened(request, gather_elements)),
    row("scatter_elements.last", "scatter_elements", |request| widened(request, scatter)),
    row("scatter_nd.last", "scatter_nd", |request| widened(request, scatter)),
    Kernel::plain("scatter_add.elements", "scatter_add", FLOATS, |request| through_f32(request, scatter_add)),
    Kernel::plain("range.steps", "range", &[DType::I64], range),
];

/// The words of `Sizes`.
#[derive(Default)]
struct Sizes {
    count: usize,
    per_batch: usize,
    batch: usize,
    shared: bool,
    inner: usize,
    /// What tuples of indices address.
    target: Vec<usize>,
    start: u32,
    /// Dimensions of a walk with strides in x.
    walk: (Vec<usize>, Vec<i64>),
}

impl Sizes {
    fn words(&self) -> Result<Vec<u32>, String> {
        if self.target.len() > MAX_RANK {
            return Err(format!("takes tuples of up to {MAX_RANK} indices, not {}", self.target.len()));
        }
        let axes = join(&self.walk.0, std::slice::from_ref(&self.walk.1));
        let mut words = vec![
            word(self.count)?,
            word(self.per_batch.max(1))?,
            word(self.batch)?,
            u32::from(self.shared),
            word(self.inner.max(1))?,
            self.target.len() as u32,
            axes.len() as u32,
            self.start,
        ];
        for values in [&self.target, &strides(&self.target)] {
            let padded = values.iter().copied().chain(std::iter::repeat(0)).take(MAX_RANK);
            words.extend(padded.map(word).collect::<Result<Vec<u32>, _>>()?);
        }
        words.extend(packed(&axes, 1)?);
        Ok(words)
    }
}

fn launch(tensors: Tensors, body: Option<&str>, bindings: Vec<Binding>, sizes: &Sizes) -> Result<Launch, String> {
    let shader = Shader::new("indexing.wgsl", &tensors.sizes());
    let shader = if let Some(body) = body { shader.splice("body", body) } else { shader };
    Ok(Launch { shader, groups: folded(sizes.count.div_ceil(THREADS))?, bindings, sizes: sizes.words()? })
}

/// Words of so many elements of the result's type.
fn words_of(request: &Request<'_>, elements: usize) -> Result<usize, String> {
    match elements * request.results[0].dtype.size() {
        bytes if bytes % 4 == 0 => Ok(bytes / 4),
        _ => Err(format!("moves whole words, not {elements} elements of {}", request.results[0].dtype.name())),
    }
}

fn gather(request: &Request<'_>) -> Result<Lowered, String> {
    let (x, indices) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let all: usize = dims(&request.results[0])?.iter().product();
    let (before, tuple, shared) = match request.op {
        Op::Gather(op) => (op.axis, 1, true),
        Op::GatherNd(op) => (op.batch_dims, *indices.last().ok_or("indices need a dimension")?, false),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let sizes = Sizes {
        count: words_of(request, all)?,
        per_batch: match shared {
            true => indices.iter().product(),
            false => indices[before..indices.len() - 1].iter().product(),
        },
        batch: x[before..before + tuple].iter().product(),
        shared,
        inner: words_of(request, x[before + tuple..].iter().product())?,
        target: x[before..before + tuple].to_vec(),
        ..Sizes::default()
    };
    let tensors = Tensors::default().words("x").read("indices", request.operands[1].dtype).words("y");
    Ok(launch(tensors, None, Binding::all(request), &sizes)?.into())
}

/// A walk over indices beside the axis.
fn places(x: &[usize], indices: &[usize], axis: usize) -> (Vec<usize>, Vec<i64>) {
    let own = strides(x);
    (indices.to_vec(), (0..x.len()).map(|d| if d == axis { 0 } else { own[d] as i64 }).collect())
}

fn gather_elements(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::GatherElements(op) = request.op else { return Err("computes gather_elements".into()) };
    let (x, indices) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let sizes = Sizes {
        count: indices.iter().product(),
        inner: words_of(request, 1)?,
        batch: strides(&x)[op.axis],
        target: vec![x[op.axis]],
        walk: places(&x, &indices, op.axis),
        ..Sizes::default()
    };
    let body = "fn body(at: u32) {
    let place = walked(at) + wrapped(indices_at(at), sizes.target_sizes[0u][0u]) * sizes.batch;
    for (var j = 0u; j < sizes.inner; j++) { y[at * sizes.inner + j] = x[place * sizes.inner + j]; }
}";
    let tensors = Tensors::default().words("x").read("indices", request.operands[1].dtype).words("y");
    Ok(launch(tensors, Some(body), Binding::all(request), &sizes)?.into())
}

fn scatter(request: &Request<'_>) -> Result<Lowered, String> {
    let (x, indices) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let all: usize = x.iter().product();
    let (mark, updates, slots, marking) = match request.op {
        Op::ScatterElements(op) => {
            let body = "fn body(at: u32) {
    let slot = walked(at) + wrapped(indices_at(at), sizes.target_sizes[0u][0u]) * sizes.batch;
    atomicMax(&last[slot], at + 1u);
}";
            let sizes = Sizes {
                batch: strides(&x)[op.axis],
                target: vec![x[op.axis]],
                walk: places(&x, &indices, op.axis),
                ..Sizes::default()
            };
            (body, indices.iter().product(), all, sizes)
        }
        Op::ScatterNd(_) => {
            let (tuple, rows) = indices.split_last().ok_or("indices need a dimension")?;
            let body = "fn body(at: u32) { atomicMax(&last[slot_of(at * sizes.tuple)], at + 1u); }";
            let sizes = Sizes { target: x[..*tuple].to_vec(), ..Sizes::default() };
            (body, rows.iter().product(), x[..*tuple].iter().product(), sizes)
        }
        other => return Err(format!("does not compute {}", other.name())),
    };
    let (slots, updates) = if all == 0 { (0, 0) } else { (slots, updates) };
    let inner = words_of(request, all.checked_div(slots).unwrap_or(0))?;
    let table = Binding::scratch(0, 4 * slots);
    let index = Binding::operand(request, 1);
    let dtype = request.operands[1].dtype;
    let clear = "fn body(at: u32) { last[at] = 0u; }";
    let replace = "fn body(at: u32) {
    let update = last[at / sizes.inner];
    y[at] = select(updates[(max(update, 1u) - 1u) * sizes.inner + at % sizes.inner], x[at], update == 0u);
}";
    let marked = Tensors::default().read("indices", dtype);
    let launches = vec![
        launch(
            marked.clone().words("last"),
            Some(clear),
            vec![index, table],
            &Sizes { count: slots, ..Sizes::default() },
        )?,
        launch(
            marked.clone().declared("last", "array<atomic<u32>>"),
            Some(mark),
            vec![index, table],
            &Sizes { count: updates, ..marking },
        )?,
        launch(
            marked.words("x").words("updates").words("last").words("y"),
            Some(replace),
            vec![index, Binding::operand(request, 0), Binding::operand(request, 2), table, Binding::result(request, 0)],
            &Sizes { count: words_of(request, all)?, inner, ..Sizes::default() },
        )?,
    ];
    Ok(Lowered { launches, scratch: 4 * slots })
}

/// A thread sums an element over all indices, in their order.
fn scatter_add(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::ScatterAdd(op) = request.op else { return Err("computes scatter_add".into()) };
    if !FLOATS.contains(&request.operands[0].dtype) {
        return Err(format!("takes f32, f16 and bf16, not {}", request.operands[0]));
    }
    let (g, indices, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    word(g.iter().product())?;
    let sizes = Sizes {
        count: y.iter().product(),
        batch: y[op.axis],
        inner: y[op.axis + 1..].iter().product(),
        start: word(indices.iter().product())?,
        ..Sizes::default()
    };
    let body = "fn body(at: u32) {
    let slice = at / sizes.inner;
    let outer = slice / sizes.batch * sizes.start;
    var sum = 0.0;
    for (var k = 0u; k < sizes.start; k++) {
        if wrapped(indices_at(k), sizes.batch) == slice % sizes.batch {
            sum += g_at((outer + k) * sizes.inner + at % sizes.inner);
        }
    }
    y_set(at, sum);
}";
    let (g, indices) = (request.operands[0].dtype, request.operands[1].dtype);
    let tensors = Tensors::default().read("g", g).read("indices", indices).single("y", DType::F32);
    Ok(launch(tensors, Some(body), Binding::all(request), &sizes)?.into())
}

fn range(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Range(op) = request.op else { return Err("computes range".into()) };
    let start = op.start.constant().ok_or("needs a start without symbols")?;
    let count = request.results[0].elements().ok_or("needs static shapes")?;
    let bits = |n: i64| i32::try_from(n).map(|n| n as u32).map_err(|_| format!("takes steps of 32 bits, not {n}"));
    let sizes = Sizes { count, start: bits(start)?, batch: bits(op.step)? as usize, ..Sizes::default() };
    let body = "fn indices_at(i: u32) -> i32 { return 0; }
fn body(at: u32) { y_set(at, bitcast<i32>(sizes.start + sizes.batch * at)); }";
    let tensors = Tensors::default().single("y", DType::I64);
    Ok(launch(tensors, Some(body), Binding::all(request), &sizes)?.into())
}
