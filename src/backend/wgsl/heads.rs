//! `shaders/rope.wgsl` and `shaders/qkv_heads.wgsl`: rotary positions, and what stands between a joint projection and its
//! attention.

use lite3r_ir::{Op, ops::shape_rules::strides_for};

use super::{
    Features, Kernel, dims,
    elementwise::packed,
    floats::{FLOATS, only},
    gemm::store,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::either,
};
use crate::backend::{Request, gpu::walk::join};

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "rope.elements", op: "rope", dtypes: FLOATS, needs: Features::NONE, lower: rope },
    Kernel {
        name: "qkv_heads.rows",
        op: "qkv_heads",
        dtypes: FLOATS,
        needs: Features::NONE,
        lower: |r| either(r, qkv_heads),
    },
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

fn qkv_heads(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::QkvHeads(op) = request.op else { return Err("computes qkv_heads".into()) };
    only(request.operands)?;
    let shape = dims(&request.results[0])?;
    let &[batch, heads, n, d] = shape.as_slice() else { return Err("gives results of rank 4".into()) };
    let (norms, tables) = op.parts(request.operands);
    let steps = tables.first().map(dims).transpose()?.map_or(vec![0; 4], |own| strides_for(&own, &shape));
    let rows = batch * n * heads;
    let half = d.checked_div(op.segments).map_or(0, |width| width / 2);
    let mut launches = Vec::with_capacity(3);
    for part in 0..3 {
        let (norm, rope) = (op.norm && part < 2, op.segments > 0 && part < 2);
        let dtype = |operand: usize| request.operands[operand].dtype;
        let mut tensors = Tensors::default().read("x", dtype(0));
        let mut bindings = vec![Binding::operand(request, 0)];
        let first_table = 1 + norms.len();
        for (name, operand, there, absent) in [
            ("g", 1 + 2 * part, norm, "1.0"),
            ("b", 2 + 2 * part, norm, "0.0"),
            ("cosines", first_table, rope, "1.0"),
            ("sines", first_table + 1, rope, "0.0"),
        ] {
            if there {
                tensors = tensors.read(name, dtype(operand));
                bindings.push(Binding::operand(request, operand));
            } else {
                tensors = tensors.function(&format!("fn {name}_at(i: u32) -> f32 {{ return {absent}; }}"));
            }
        }
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
