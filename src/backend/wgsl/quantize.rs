//! `shaders/quantize.wgsl`: codes of e4m3 with the scales that they stand under, and numbers from codes.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{LayerNorm, Quantize, quantize::Granularity},
};

use super::{
    Kernel, dims,
    floats::{FLOATS, only},
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    within,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("quantize.words", "quantize", FLOATS, quantize),
    Kernel::plain("fake_quantize.words", "fake_quantize", FLOATS, quantize),
    Kernel::plain("dequantize.words", "dequantize", &[DType::F8E4M3], dequantize),
    Kernel::plain("layer_norm_quantize.words", "layer_norm_quantize", FLOATS, normalised),
];

/// Rows of a tensor and what of them shares a scale.
struct Groups {
    rows: usize,
    columns: usize,
    /// Columns that share a scale, and scales of a row; `None` where everything shares one.
    group: usize,
    groups: Option<usize>,
}

impl Groups {
    fn new(shape: &[usize], granularity: Granularity) -> Result<Self, String> {
        let (columns, outer) = shape.split_last().ok_or("takes operands with a dimension")?;
        let (rows, columns) = (outer.iter().product(), (*columns).max(1));
        let (group, groups) = match granularity {
            Granularity::Tensor => (columns, None),
            Granularity::Row => (columns, Some(1)),
            Granularity::Columns(group) => (group.min(columns), Some(columns.div_ceil(group))),
        };
        Ok(Self { rows: if shape.contains(&0) { 0 } else { rows }, columns, group, groups })
    }

    fn sizes(&self, count: usize) -> Result<Vec<u32>, String> {
        let elements = self.rows * self.columns;
        let numbers = [count, elements, self.columns, self.group, self.groups.unwrap_or(0), 0, 0, 0];
        numbers.into_iter().map(word).collect()
    }

    /// The launch that gives the largest magnitudes of groups as scales.
    fn scales(&self, x: (DType, Binding), y: Binding, scale: Option<&str>) -> Result<Launch, String> {
        let per = self.groups.unwrap_or(1);
        let (scales, threads) = (self.rows * per, if self.group <= 1024 { 32 } else { THREADS });
        let tensors = Tensors::default().read("x", x.0).write("y", DType::F32).sizes();
        let mut shader = Shader::new("quantize.wgsl", &tensors).constant("GROUP", threads);
        if let Some(scale) = scale {
            shader = shader.splice("scale", scale);
        }
        let of = Self { groups: Some(per), ..*self };
        let groups = folded(scales.div_ceil(THREADS / threads))?;
        Ok(Launch { shader, groups, bindings: vec![x.1, y], sizes: of.sizes(scales)? })
    }

    /// The launch that computes four elements a thread from those of the first tensor and their scales.
    fn each(&self, x: (DType, Binding), scales: Binding, y: (DType, Binding), value: &str) -> Result<Launch, String> {
        let tensors = Tensors::default().read("x", x.0).read("scales", DType::F32).write("y", y.0).sizes();
        let count = (self.rows * self.columns).div_ceil(4);
        let shader = Shader::new("quantize.wgsl", &tensors).splice(
            "body",
            format!(
                "fn body(word: u32, thread: u32) {{
    if word >= sizes.count {{ return; }}
    var v: vec4<f32>;
    for (var j = 0u; j < 4u; j++) {{
        let at = min(4u * word + j, sizes.elements - 1u);
        let scale = scales_at(scale_index(at));
        v[j] = {value};
    }}
    y_put(word, v);
}}"
            ),
        );
        let groups = folded(count.div_ceil(THREADS))?;
        Ok(Launch { shader, groups, bindings: vec![x.1, scales, y.1], sizes: self.sizes(count)? })
    }
}

/// What a group of zeros stands under, too.
const LARGEST: &str = "fn scale_of(most: f32) -> f32 { return max(most, bitcast<f32>(0x00800000u)); }";

/// Scales of groups; those of rows on the way where everything shares one. Then codes, or what they stand for.
fn quantize(request: &Request<'_>) -> Result<Lowered, String> {
    let (granularity, fake) = match request.op {
        Op::Quantize(op) => (op.scale, false),
        Op::FakeQuantize(op) => (op.scale, true),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let x = &request.operands[0];
    only([x])?;
    let groups = Groups::new(&dims(x)?, granularity)?;
    let mut scratch = 0;
    let mut taken = |floats: usize| {
        let at = scratch;
        scratch += (4 * floats).next_multiple_of(256);
        Binding::scratch(at, 4 * floats)
    };
    let scales = match (fake, granularity) {
        (false, _) => Binding::result(request, 1),
        (true, Granularity::Tensor) => taken(1),
        (true, _) => taken(groups.rows * groups.groups.unwrap_or(1)),
    };
    let operand = (x.dtype, Binding::operand(request, 0));
    let mut launches = Vec::new();
    match granularity {
        Granularity::Tensor => {
            let each = taken(groups.rows.max(1));
            launches.push(groups.scales(operand, each, None)?);
            let all = Groups { rows: 1, columns: groups.rows, group: groups.rows, groups: Some(1) };
            launches.push(all.scales((DType::F32, each), scales, Some(LARGEST))?);
        }
        _ => launches.push(groups.scales(operand, scales, None)?),
    }
    let value = match fake {
        true => "float_of_e4m3(e4m3_of_float(x_at(at) / scale)) * scale",
        false => "x_at(at) / scale",
    };
    launches.push(groups.each(operand, scales, (request.results[0].dtype, Binding::result(request, 0)), value)?);
    Ok(Lowered { launches, scratch })
}

fn dequantize(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::Dequantize(op) = request.op else { return Err(format!("does not compute {}", request.op.name())) };
    let (q, y) = (&request.operands[0], &request.results[0]);
    if q.dtype != DType::F8E4M3 || !FLOATS.contains(&y.dtype) {
        return Err(format!("gives f32, f16 and bf16 of codes of f8e4m3, not {y} of {q}"));
    }
    let groups = Groups::new(&dims(q)?, op.scale)?;
    let of = |ty: &ValueType, binding| (ty.dtype, binding);
    let launch = groups.each(
        of(q, Binding::operand(request, 0)),
        Binding::operand(request, 1),
        of(y, Binding::result(request, 0)),
        "x_at(at) * scale",
    )?;
    Ok(launch.into())
}

/// Normalised rows to scratch memory, codes from there.
fn normalised(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::LayerNormQuantize(op) = request.op else {
        return Err(format!("does not compute {}", request.op.name()));
    };
    let rows = request.operands[0].with_dtype(DType::F32);
    let bytes = rows.bytes().ok_or("needs static shapes")?;
    let norm: Op = LayerNorm { eps: op.eps, out: Some(DType::F32) }.into();
    let codes: Op = Quantize { scale: op.scale }.into();
    let operand = |(i, ty): (usize, &ValueType)| (ty.clone(), Binding::operand(request, i));
    let operands: Vec<_> = request.operands.iter().enumerate().map(operand).collect();
    let result = |(i, ty): (usize, &ValueType)| (ty.clone(), Binding::result(request, i));
    let results: Vec<_> = request.results.iter().enumerate().map(result).collect();
    let between = [(rows, Binding::scratch(0, bytes))];
    let mut lowered = within(&norm, &operands, &between, bytes)?;
    lowered.then(within(&codes, &between, &results, bytes)?);
    Ok(lowered)
}
