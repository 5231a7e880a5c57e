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
    by_subgroups("layer_norm.subgroups", "layer_norm", |r| layer_norm(r, By::Subgroup)),
    Kernel::plain("layer_norm.rows", "layer_norm", FLOATS, |r| layer_norm(r, By::Workgroup)),
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

/// Launches over rows of `length` elements that lie `step` apart; operands are read by fours or element by element.
fn rows(
    (request, by): (&Request<'_>, By),
    (names, fours): (&[&str], bool),
    [length, step]: [usize; 2],
    eps: f64,
    row: Option<&str>,
) -> Result<Lowered, String> {
    only(request.operands)?;
    let mut tensors = Tensors::default();
    for (name, operand) in names.iter().zip(request.operands) {
        tensors = tensors.read_or_fours(name, operand.dtype, fours);
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
    rows((request, by), (&["x"], false), [shape[axis], shape[axis + 1..].iter().product()], 0.0, None)
}

/// Rows of whole fours are read and written by them, in any type; others element by element.
fn layer_norm(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let length = dims(&request.operands[0])?.last().copied().unwrap_or(1);
    match length.is_multiple_of(4) {
        true => norm(request, by, length, true),
        false => through_f32(request, |r| norm(r, by, length, false)),
    }
}

fn norm(request: &Request<'_>, by: By, length: usize, fours: bool) -> Result<Lowered, String> {
    let Op::LayerNorm(op) = request.op else { return Err("computes layer_norm".into()) };
    let (size, of, put, zero) = if fours { (4, "four", "put", "vec4(0.0)") } else { (1, "at", "set", "0.0") };
    let whole = match fours {
        true => "fn whole(v: vec4<f32>) -> f32 { return v.x + v.y + v.z + v.w; }",
        false => "fn whole(v: f32) -> f32 { return v; }",
    };
    let affine = if request.operands.len() == 3 { format!("fma(v, g_{of}(i), b_{of}(i))") } else { "v".into() };
    let row = format!(
        "{whole}
fn row(start: u32, lane: u32, lanes: u32) {{
    let count = f32(sizes.length);
    let first = start / {size}u;
    let end = sizes.length / {size}u;
    var sum = {zero};
    for (var i = lane; i < end; i += lanes) {{ sum += x_{of}(first + i); }}
    let mean = sum_of(whole(sum), lane) / count;
    var squares = {zero};
    for (var i = lane; i < end; i += lanes) {{
        let v = x_{of}(first + i) - mean;
        squares = fma(v, v, squares);
    }}
    let scale = 1.0 / sqrt(sum_of(whole(squares), lane) / count + sizes.eps);
    for (var i = lane; i < end; i += lanes) {{
        let v = (x_{of}(first + i) - mean) * scale;
        y_{put}(first + i, {affine});
    }}
}}"
    );
    rows((request, by), (&["x", "g", "b"], fours), [length, 1], op.eps, Some(&row))
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
    rows((request, by), (&["g", "x", "gain"], false), [shape.last().copied().unwrap_or(1), 1], op.eps, Some(&row))
}
