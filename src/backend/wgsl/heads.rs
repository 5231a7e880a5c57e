//! `shaders/rope.wgsl` and `shaders/qkv_heads.wgsl`: rotary positions, and what stands between a joint projection and its
//! attention; with the projection, by parts.

use lite3r_ir::{
    DType, Op,
    ops::{QkvHeads, shape_rules::strides_for},
};

use super::{
    Kernel, dims,
    elementwise::packed,
    floats::{FLOATS, only},
    gemm::store,
    launch::{Binding, Launch, Lowered, Placed, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::either,
    within,
};
use crate::backend::{Request, gpu::walk::join};

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("rope.elements", "rope", FLOATS, rope),
    Kernel::plain("qkv_heads.rows", "qkv_heads", FLOATS, |r| either(r, qkv_heads)),
    Kernel::plain("qkv_linear.parts", "qkv_linear", FLOATS, |r| either(r, qkv_linear)),
];

/// Threads of a head.
const LANES: usize = 16;

fn rope(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Rope(op) = request.op else { return Err("computes rope".into()) };
    only(request.operands)?;
    let (shape, table) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let strides = strides_for(&table, &shape).into_iter().map(|s| s as i64).collect();
    let axes = join(&shape, &[strides]);
    let elements: usize = shape.iter().product();
    let width = shape.last().copied().unwrap_or(0) / op.segments.max(1);
    let mut sizes = vec![word(elements)?, word(width)?, axes.len() as u32, 0];
    sizes.extend(packed(&axes, 1)?);
    let tensors = Tensors::default()
        .read("x", request.operands[0].dtype)
        .read("cosines", request.operands[1].dtype)
        .read("sines", request.operands[2].dtype)
        .write("y", request.results[0].dtype)
        .sizes();
    let shader = Shader::new("rope.wgsl", &tensors);
    let groups = folded(elements.div_ceil(4 * THREADS))?;
    Ok(Launch { shader, groups, bindings: Binding::all(request), sizes }.into())
}

/// What rows turn by.
enum Turns {
    /// Nothing.
    None,
    /// Tables of cos and of sin.
    Tables(Placed, Placed),
    /// One of both in turn, for the lower halves of segments.
    Both(Placed),
}

impl Turns {
    /// Its shape.
    fn shape(&self) -> Result<Option<Vec<usize>>, String> {
        match self {
            Self::None => Ok(None),
            Self::Tables((ty, _), _) | Self::Both((ty, _)) => dims(ty).map(Some),
        }
    }

    /// Declares them, with the functions that the shader reads them by.
    fn declared(&self, mut tensors: Tensors, bindings: &mut Vec<Binding>) -> Tensors {
        let read = |name: &str, at: &str| format!("fn {name}_at(row: u32, column: u32) -> f32 {{ return {at}; }}");
        match self {
            Self::None => tensors.function(&read("cosine", "1.0")).function(&read("sine", "0.0")),
            Self::Tables(cosines, sines) => {
                for (name, of, (ty, binding)) in [("cosines", "cosine", cosines), ("sines", "sine", sines)] {
                    bindings.push(*binding);
                    tensors = tensors.read(name, ty.dtype).function(&read(of, &format!("{name}_at(row + column)")));
                }
                tensors
            }
            Self::Both((ty, binding)) => {
                bindings.push(*binding);
                let at = "row + 2u * (column / (2u * sizes.half) * sizes.half + column % sizes.half)";
                tensors
                    .read("turns", ty.dtype)
                    .function(&read("cosine", &format!("turns_at({at})")))
                    .function(&read("sine", &format!("turns_at({at} + 1u)")))
            }
        }
    }
}

fn qkv_heads(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::QkvHeads(op) = request.op else { return Err("computes qkv_heads".into()) };
    only(request.operands)?;
    let placed = |operand: usize| (request.operands[operand].clone(), Binding::operand(request, operand));
    let norms = if op.norm { 4 } else { 0 };
    let turns = if op.segments > 0 { Turns::Tables(placed(1 + norms), placed(2 + norms)) } else { Turns::None };
    split(op, placed(0), &(1..=norms).map(placed).collect::<Vec<_>>(), &turns, request)
}

fn qkv_linear(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::QkvLinear(op) = request.op else { return Err("computes qkv_linear".into()) };
    if op.x_scale.is_some() {
        return Err("multiplies operands, not f8e4m3 codes of them".into());
    }
    only(request.operands)?;
    let placed = |operand: usize| (request.operands[operand].clone(), Binding::operand(request, operand));
    let (product, others) = op.parts(request.operands);
    let first = product.len();
    // Wide: what follows rounds once.
    let ty = op.product(DType::F32)?.infer(product)?.remove(0);
    let bytes = ty.bytes().ok_or("needs static shapes")?;
    let joint = (ty, Binding::scratch(0, bytes));
    let operands: Vec<Placed> = (0..first).map(placed).collect();
    let mut lowered = within(&op.product(DType::F32)?, &operands, std::slice::from_ref(&joint), bytes)?;
    let norms: Vec<Placed> = (first..first + if op.norm { 4 } else { 0 }).map(placed).collect();
    let turns = if op.segments > 0 { Turns::Both(placed(first + others.len() - 1)) } else { Turns::None };
    lowered.then(split(&op.split(), joint, &norms, &turns, request)?);
    Ok(lowered)
}

/// The heads of a joint projection, which are all results of a request.
fn split(
    op: &QkvHeads,
    joint: Placed,
    norms: &[Placed],
    turns: &Turns,
    request: &Request<'_>,
) -> Result<Lowered, String> {
    let shape = dims(&request.results[0])?;
    let &[batch, heads, n, d] = shape.as_slice() else { return Err("gives results of rank 4".into()) };
    let steps = turns.shape()?.map_or(vec![0; 4], |own| strides_for(&own, &shape));
    let rows = batch * n * heads;
    let half = d.checked_div(op.segments).map_or(0, |width| width / 2);
    let mut launches = Vec::with_capacity(3);
    for part in 0..3 {
        let (norm, rope) = (op.norm && part < 2, op.segments > 0 && part < 2);
        let mut tensors = Tensors::default().read("x", joint.0.dtype);
        let mut bindings = vec![joint.1];
        for (name, place, absent) in [("g", 2 * part, "1.0"), ("b", 2 * part + 1, "0.0")] {
            match norms.get(place).filter(|_| norm) {
                Some((ty, binding)) => {
                    bindings.push(*binding);
                    tensors = tensors.read(name, ty.dtype);
                }
                None => tensors = tensors.function(&format!("fn {name}_at(i: u32) -> f32 {{ return {absent}; }}")),
            }
        }
        tensors = if rope { turns } else { &Turns::None }.declared(tensors, &mut bindings);
        let y = request.results[part].dtype;
        bindings.push(Binding::result(request, part));
        let mut shader = Shader::new("qkv_heads.wgsl", &tensors.write("y", y).sizes())
            .constant("NORM", usize::from(norm))
            .constant("ROPE", usize::from(rope));
        if let Some(store) = store(y, d)? {
            shader = shader.splice("store", store);
        }
        let mut sizes = Vec::new();
        for size in [rows, heads, n, d, part, half] {
            sizes.push(word(size)?);
        }
        sizes.extend([(op.eps as f32).to_bits(), 0]);
        for step in [steps[0], steps[1], steps[2], 0] {
            sizes.push(word(step)?);
        }
        launches.push(Launch { shader, groups: folded(rows.div_ceil(THREADS / LANES))?, bindings, sizes });
    }
    Ok(Lowered { launches, scratch: 0 })
}
