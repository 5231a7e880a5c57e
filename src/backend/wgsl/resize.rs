//! `shaders/resize.wgsl`: images at another resolution, and what is added to them.

use lite3r_ir::{
    Op,
    ops::{images::ImageLayout, shape_rules::strides_for},
};

use super::{
    Kernel, dims,
    floats::{FLOATS, floats},
    gemm::activated,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::through_f32,
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("resize.fours", "resize", FLOATS, |request| lower(request, true)),
    Kernel::plain("resize.elements", "resize", FLOATS, |request| through_f32(request, |request| lower(request, false))),
    Kernel::plain("resize_grad.fours", "resize_grad", FLOATS, |request| lower(request, true)),
    Kernel::plain("resize_grad.elements", "resize_grad", FLOATS, |request| {
        through_f32(request, |request| lower(request, false))
    }),
];

/// Operands behind x that a kernel adds, at most.
const ADDENDS: usize = 2;

/// Pairs of source and weight that a launch has, of rows as of columns: what every adapter takes as uniforms.
const MOST_TAPS: usize = 4000;

/// Taps of pixels of a row or a column, as many of each.
struct Taps {
    per: usize,
    all: Vec<(usize, f64)>,
}

impl Taps {
    fn new(weights: Vec<Vec<(usize, f64)>>) -> Result<Self, String> {
        let per = weights.iter().map(Vec::len).max().unwrap_or(1).max(1);
        if per > MOST_TAPS {
            return Err(format!("takes up to {MOST_TAPS} taps a pixel, not {per}"));
        }
        let filled = |taps: Vec<(usize, f64)>| taps.into_iter().chain(std::iter::repeat((0, 0.0))).take(per);
        Ok(Self { per, all: weights.into_iter().flat_map(filled).collect() })
    }

    /// As many pixels at a time as one launch has room for: first pixel, and taps.
    fn bands(&self) -> impl Iterator<Item = (usize, &[(usize, f64)])> {
        let pixels = MOST_TAPS / self.per;
        self.all.chunks(pixels * self.per).enumerate().map(move |(i, taps)| (i * pixels, taps))
    }
}

/// A thread computes an element, or `by_fours` channels side by side.
fn lower(request: &Request<'_>, by_fours: bool) -> Result<Lowered, String> {
    floats(request)?;
    let (x, y) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    // Of a gradient, with taps the other way round and nothing added.
    let (op, back) = match request.op {
        Op::Resize(op) => (op.clone(), None),
        Op::ResizeGrad(op) => (op.resize([]), Some(op)),
        other => return Err(format!("does not compute {}", other.name())),
    };
    let ([images, channels, h, w], [.., oh, ow]) = (op.sizes(&x)?, op.sizes(&y)?);
    let weights = |axis: usize, from: usize, to: usize| match back {
        Some(back) => back.weights(axis, to, from),
        None => op.weights(axis, from, to),
    };
    word(x.iter().product())?;
    word(y.iter().product())?;
    if y.contains(&0) {
        return Ok(Lowered::default());
    }
    if h == 0 || w == 0 {
        return Err("takes images with pixels".into());
    }
    if op.addends > ADDENDS || op.addends > 0 && y.len() != 4 {
        return Err(format!("adds up to {ADDENDS} operands to images of four dimensions"));
    }
    let pixels = op.layout == ImageLayout::Pixels;
    let steps: Vec<[usize; 4]> = request.operands[1..]
        .iter()
        .map(|addend| {
            let [image, channel, row, column] =
                op.layout.planes(&strides_for(&dims(addend)?, &y)).ok_or("takes images")?;
            Ok([image, row, column, channel])
        })
        .collect::<Result<_, String>>()?;
    let lanes = if by_fours { 4 } else { 1 };
    if by_fours && !(pixels && channels.is_multiple_of(4)) {
        return Err("takes multiples of four channels side by side".into());
    }
    // Planes of images of four dimensions are told apart for what is added to them.
    let (beside, apart, planes) = match (pixels, y.as_slice()) {
        (true, _) => (channels / lanes, 1, images),
        (false, &[n, c, ..]) if y.len() == 4 => (1, c, n * c),
        _ => (1, 1, channels),
    };

    let mut tensors = Tensors::default();
    tensors = match by_fours {
        true => tensors.fours("x", request.operands[0].dtype),
        false => tensors.read("x", request.operands[0].dtype),
    };
    let mut finish = String::from("    var v = sum;\n");
    for (i, (name, addend)) in ["a", "b"].iter().zip(&request.operands[1..]).enumerate() {
        tensors = tensors.read(name, addend.dtype);
        finish += &match by_fours {
            false => format!("    v += {name}_at(place({i}u, image, row, column, channel));\n"),
            true => format!(
                "    for (var j = 0u; j < 4u; j++) \
                 {{ v[j] += {name}_at(place({i}u, image, row, column, 4u * channel + j)); }}\n"
            ),
        };
    }
    finish += &match by_fours {
        false => format!("    v = {};\n", activated(op.activation, "v")),
        true => format!("    for (var j = 0u; j < 4u; j++) {{ v[j] = {}; }}\n", activated(op.activation, "v[j]")),
    };
    for (name, result) in ["y", "positive"].iter().zip(request.results) {
        tensors = tensors.write(name, result.dtype);
        let value = if *name == "y" { "v" } else { "max(v, Value())" };
        finish += &format!("    {name}_{}(at, {value});\n", if by_fours { "put" } else { "set" });
    }
    let value = match by_fours {
        true => "alias Value = vec4<f32>;\nfn x_value(i: u32) -> Value { return x_four(i); }",
        false => "alias Value = f32;\nfn x_value(i: u32) -> Value { return x_at(i); }",
    };
    let shader = Shader::new("resize.wgsl", &tensors.sizes()).splice("value", value).splice(
        "finish",
        format!("fn finish(sum: Value, at: u32, image: u32, row: u32, column: u32, channel: u32) {{\n{finish}}}"),
    );

    let (rows, columns) = (Taps::new(weights(0, h, oh))?, Taps::new(weights(1, w, ow))?);
    let mut launches = Vec::new();
    for (first_row, down) in rows.bands() {
        for (first_column, along) in columns.bands() {
            let (band_rows, band_columns) = (down.len() / rows.per, along.len() / columns.per);
            let values = planes * band_rows * band_columns * beside;
            let numbers = [
                [values, band_rows, band_columns, first_row],
                [first_column, beside, apart, rows.per],
                [columns.per, h, w, oh],
                [ow, 0, 0, 0],
            ];
            let steps = steps.iter().flatten().copied().chain(std::iter::repeat(0)).take(4 * ADDENDS);
            let mut sizes =
                numbers.into_iter().flatten().chain(steps).map(word).collect::<Result<Vec<u32>, String>>()?;
            for (source, weight) in down.iter().chain(along) {
                sizes.extend([word(*source)?, (*weight as f32).to_bits()]);
            }
            // Few lengths, so that images of several sizes share a shader.
            let pairs = (down.len() + along.len()).div_ceil(2).next_power_of_two().min(MOST_TAPS);
            sizes.resize(4 * (4 + ADDENDS + pairs), 0);
            launches.push(Launch {
                shader: shader.clone().constant("TAPS", pairs),
                groups: folded(values.div_ceil(THREADS))?,
                bindings: Binding::all(request),
                sizes,
            });
        }
    }
    Ok(Lowered { launches, scratch: 0 })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        DType, Tensor,
        ops::{
            Case, Resize,
            resize::{Coordinates, ResizeMode},
        },
    };

    use crate::backend::wgsl::conformance::hold;

    #[test]
    fn results_of_several_bands_agree_with_the_reference() {
        let to = |h: usize, w: usize| Resize::new(ResizeMode::Linear, Coordinates::AlignCorners, [h.into(), w.into()]);
        let wave = |shape: &[usize]| Tensor::wave(DType::F32, shape, 1);
        hold(&[
            Case::new("tall", to(4100, 3), vec![wave(&[1, 2, 5, 4])]),
            Case::new("wide", to(3, 2001), vec![wave(&[1, 2, 5, 700])]),
        ]);
    }
}
