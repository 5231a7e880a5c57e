//! `shaders/rows.wgsl`: softmax and normalisation, a workgroup a row.

use lite3r_ir::{Op, ops::shape_rules};

use super::{
    Kernel, dims,
    floats::{FLOATS, only},
    launch::{Binding, Launch, Lowered, folded, word},
    shader::{Shader, Tensors},
    wide::through_f32,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("softmax.rows", "softmax", FLOATS, |r| through_f32(r, softmax)),
    Kernel::plain("layer_norm.rows", "layer_norm", FLOATS, |r| through_f32(r, layer_norm)),
    Kernel::plain("layer_norm_grad.rows", "layer_norm_grad", FLOATS, |r| through_f32(r, layer_norm_grad)),
];

/// Launches over rows of `length` elements that lie `step` apart.
fn rows(
    request: &Request<'_>,
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
    let elements = request.results[0].elements().ok_or("needs static shapes")?;
    let count = elements.checked_div(length).unwrap_or(0);
    let sizes = vec![word(count)?, word(length)?, word(step.max(1))?, (eps as f32).to_bits()];
    Ok(Launch { shader, groups: folded(count)?, bindings: Binding::all(request), sizes }.into())
}

fn softmax(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Softmax(op) = request.op else { return Err("computes softmax".into()) };
    let shape = dims(&request.operands[0])?;
    let axis = shape_rules::axis(op.axis, shape.len())?;
    rows(request, &["x"], [shape[axis], shape[axis + 1..].iter().product()], 0.0, None)
}

fn layer_norm(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::LayerNorm(op) = request.op else { return Err("computes layer_norm".into()) };
    let shape = dims(&request.operands[0])?;
    let affine = if request.operands.len() == 3 { "fma(v, g_at(i), b_at(i))" } else { "v" };
    let row = format!(
        "fn row(start: u32, thread: u32) {{
    let count = f32(sizes.length);
    var sum = 0.0;
    for (var i = thread; i < sizes.length; i += 256u) {{ sum += x_at(start + i); }}
    let mean = sum_of(sum, thread) / count;
    var squares = 0.0;
    for (var i = thread; i < sizes.length; i += 256u) {{
        let v = x_at(start + i) - mean;
        squares = fma(v, v, squares);
    }}
    let scale = 1.0 / sqrt(sum_of(squares, thread) / count + sizes.eps);
    for (var i = thread; i < sizes.length; i += 256u) {{
        let v = (x_at(start + i) - mean) * scale;
        y_set(start + i, {affine});
    }}
}}"
    );
    rows(request, &["x", "g", "b"], [shape.last().copied().unwrap_or(1), 1], op.eps, Some(&row))
}

fn layer_norm_grad(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::LayerNormGrad(op) = request.op else { return Err("computes layer_norm_grad".into()) };
    let shape = dims(&request.operands[1])?;
    let gain = if request.operands.len() == 3 { "g_at(start + i) * gain_at(i)" } else { "g_at(start + i)" };
    let row = format!(
        "fn h_at(start: u32, i: u32) -> f32 {{ return {gain}; }}
fn row(start: u32, thread: u32) {{
    let count = f32(sizes.length);
    var sum = 0.0;
    for (var i = thread; i < sizes.length; i += 256u) {{ sum += x_at(start + i); }}
    let mean = sum_of(sum, thread) / count;
    var sums = vec3(0.0);
    for (var i = thread; i < sizes.length; i += 256u) {{
        let v = x_at(start + i) - mean;
        let h = h_at(start, i);
        sums = fma(vec3(v, h, h), vec3(v, v, 1.0), sums);
    }}
    let scale = 1.0 / sqrt(sum_of(sums.x, thread) / count + sizes.eps);
    let along = sum_of(sums.y, thread) / count * scale * scale;
    let level = sum_of(sums.z, thread) / count;
    for (var i = thread; i < sizes.length; i += 256u) {{
        let v = x_at(start + i) - mean;
        y_set(start + i, fma(-v, along, h_at(start, i) - level) * scale);
    }}
}}"
    );
    rows(request, &["g", "x", "gain"], [shape.last().copied().unwrap_or(1), 1], op.eps, Some(&row))
}
