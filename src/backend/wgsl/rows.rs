//! `shaders/rows.wgsl`: softmax and normalisation, a workgroup or a subgroup a row.

use lite3r_ir::{Op, ops::shape_rules};

use super::{
    Features, Kernel, dims,
    floats::{FLOATS, only},
    launch::{Binding, Launch, Lowered, folded, word},
    shader::{Shader, Tensors},
    wide::through_f32,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    by_subgroups("softmax.subgroups", "softmax", |r| through_f32(r, |r| softmax(r, By::Subgroup))),
    Kernel::plain("softmax.rows", "softmax", FLOATS, |r| through_f32(r, |r| softmax(r, By::Workgroup))),
    by_subgroups("layer_norm.subgroups", "layer_norm", |r| through_f32(r, |r| layer_norm(r, By::Subgroup))),
    Kernel::plain("layer_norm.rows", "layer_norm", FLOATS, |r| through_f32(r, |r| layer_norm(r, By::Workgroup))),
    by_subgroups("layer_norm_grad.subgroups", "layer_norm_grad", |r| {
        through_f32(r, |r| layer_norm_grad(r, By::Subgroup))
    }),
    Kernel::plain("layer_norm_grad.rows", "layer_norm_grad", FLOATS, |r| {
        through_f32(r, |r| layer_norm_grad(r, By::Workgroup))
    }),
];

const fn by_subgroups(
    name: &'static str,
    op: &'static str,
    lower: fn(&Request<'_>) -> Result<Lowered, String>,
) -> Kernel {
    Kernel { name, op, dtypes: FLOATS, needs: Features { subgroups: true, ..Features::NONE }, lower }
}

/// What takes a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Workgroup,
    Subgroup,
}

/// Rows that a workgroup takes when its subgroups share them, and how long they may be: longer ones want more threads.
const ROWS: usize = 8;
const LONGEST: usize = 4096;

/// In place of the splice `lanes`.
const LANES: &str = "
fn sum_of(value: f32, lane: u32) -> f32 { return subgroupAdd(value); }

fn most_of(value: f32, lane: u32) -> f32 { return subgroupMax(value); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32,
        @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32) {
    let first = (id.y * count.x + id.x) * ROWS;
    for (var i = subgroup; i < ROWS; i += subgroups) {
        if first + i < sizes.rows { row(start_of(first + i), lane, lanes); }
    }
}";

/// Launches over rows of `length` elements that lie `step` apart.
fn rows(
    (request, by): (&Request<'_>, By),
    names: &[&str],
    [length, step]: [usize; 2],
    eps: f64,
    row: Option<&str>,
) -> Result<Lowered, String> {
    only(request.operands)?;
    let mut tensors = Tensors::default();
    for (name, operand) in names.iter().zip(request.operands) {
        tensors = tensors.read(name, operand.dtype);
    }
    let mut shader = Shader::new("rows.wgsl", &tensors.write("y", request.results[0].dtype).sizes());
    if let Some(row) = row {
        shader = shader.splice("row", row);
    }
    if by == By::Subgroup {
        if length > LONGEST {
            return Err(format!("takes rows of up to {LONGEST} elements, not {length}"));
        }
        shader = shader.splice("lanes", format!("const ROWS = {ROWS}u;{LANES}"));
    }
    let elements = request.results[0].elements().ok_or("needs static shapes")?;
    let count = elements.checked_div(length).unwrap_or(0);
    let sizes = vec![word(count)?, word(length)?, word(step.max(1))?, (eps as f32).to_bits()];
    let groups = folded(if by == By::Subgroup { count.div_ceil(ROWS) } else { count })?;
    Ok(Launch { shader, groups, bindings: Binding::all(request), sizes }.into())
}

fn softmax(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let Op::Softmax(op) = request.op else { return Err("computes softmax".into()) };
    let shape = dims(&request.operands[0])?;
    let axis = shape_rules::axis(op.axis, shape.len())?;
    rows((request, by), &["x"], [shape[axis], shape[axis + 1..].iter().product()], 0.0, None)
}

fn layer_norm(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let Op::LayerNorm(op) = request.op else { return Err("computes layer_norm".into()) };
    let shape = dims(&request.operands[0])?;
    let affine = if request.operands.len() == 3 { "fma(v, g_at(i), b_at(i))" } else { "v" };
    let row = format!(
        "fn row(start: u32, lane: u32, lanes: u32) {{
    let count = f32(sizes.length);
    var sum = 0.0;
    for (var i = lane; i < sizes.length; i += lanes) {{ sum += x_at(start + i); }}
    let mean = sum_of(sum, lane) / count;
    var squares = 0.0;
    for (var i = lane; i < sizes.length; i += lanes) {{
        let v = x_at(start + i) - mean;
        squares = fma(v, v, squares);
    }}
    let scale = 1.0 / sqrt(sum_of(squares, lane) / count + sizes.eps);
    for (var i = lane; i < sizes.length; i += lanes) {{
        let v = (x_at(start + i) - mean) * scale;
        y_set(start + i, {affine});
    }}
}}"
    );
    rows((request, by), &["x", "g", "b"], [shape.last().copied().unwrap_or(1), 1], op.eps, Some(&row))
}

fn layer_norm_grad(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let Op::LayerNormGrad(op) = request.op else { return Err("computes layer_norm_grad".into()) };
    let shape = dims(&request.operands[1])?;
    let gain = if request.operands.len() == 3 { "g_at(start + i) * gain_at(i)" } else { "g_at(start + i)" };
    let row = format!(
        "fn h_at(start: u32, i: u32) -> f32 {{ return {gain}; }}
fn row(start: u32, lane: u32, lanes: u32) {{
    let count = f32(sizes.length);
    var sum = 0.0;
    for (var i = lane; i < sizes.length; i += lanes) {{ sum += x_at(start + i); }}
    let mean = sum_of(sum, lane) / count;
    var sums = vec3(0.0);
    for (var i = lane; i < sizes.length; i += lanes) {{
        let v = x_at(start + i) - mean;
        let h = h_at(start, i);
        sums = fma(vec3(v, h, h), vec3(v, v, 1.0), sums);
    }}
    let scale = 1.0 / sqrt(sum_of(sums.x, lane) / count + sizes.eps);
    let along = sum_of(sums.y, lane) / count * scale * scale;
    let level = sum_of(sums.z, lane) / count;
    for (var i = lane; i < sizes.length; i += lanes) {{
        let v = x_at(start + i) - mean;
        y_set(start + i, fma(-v, along, h_at(start, i) - level) * scale);
    }}
}}"
    );
    rows((request, by), &["g", "x", "gain"], [shape.last().copied().unwrap_or(1), 1], op.eps, Some(&row))
}
