//! `quantize`, `quantize_items`, `dequantize` and `layer_norm_quantize`: between f32 and e4m3 codes with their scales.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    DType, Op,
    float8::E4M3_MAX,
    ops::{
        activation::Activation,
        quantize::{Granularity, SMALLEST_SCALE},
    },
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast, cast_mut, only, operand, store},
    lanes::{self, CHUNK, Shared},
    layer_norm::normalise,
    math::{activate, vectorised},
};
use crate::backend::Request;

/// `quantize` by rows.
pub const QUANTIZE: Kernel = row_kernel("quantize.rows", "quantize", FLOATS);
/// `layer_norm_quantize` by rows.
pub const LAYER_NORM_QUANTIZE: Kernel = row_kernel("layer_norm_quantize.rows", "layer_norm_quantize", FLOATS);
/// `quantize_items` by items.
pub const QUANTIZE_ITEMS: Kernel = Kernel {
    name: "quantize_items.items",
    op: "quantize_items",
    dtypes: FLOATS,
    accepts: |_| Ok(()),
    lane: |_| CHUNK * size_of::<f32>(),
    run: |op, args, results, scratch| match op {
        Op::QuantizeItems(op) => quantize_items(op.activation, operand(args, 0)?, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};
/// `dequantize` by rows.
pub const DEQUANTIZE: Kernel = row_kernel("dequantize.rows", "dequantize", &[DType::F8E4M3]);

const fn row_kernel(name: &'static str, op: &'static str, dtypes: &'static [DType]) -> Kernel {
    Kernel {
        name,
        op,
        dtypes,
        accepts,
        // A row of x, its magnitudes or g, and b.
        lane: |request| 3 * 4 * request.operands[0].shape.last().and_then(|d| d.size()).unwrap_or(0),
        run,
    }
}

fn accepts(request: &Request<'_>) -> Result<(), String> {
    let scale = match request.op {
        Op::Quantize(op) => op.scale,
        Op::LayerNormQuantize(op) => op.scale,
        Op::Dequantize(op) => op.scale,
        other => return Err(format!("is no kernel for {}", other.name())),
    };
    let wide = |t: &lite3r_ir::ValueType| FLOATS.contains(&t.dtype);
    let fits = match request.op {
        Op::Dequantize(_) => request.results.iter().all(wide),
        _ => request.operands.iter().all(wide),
    };
    match (fits, scale) {
        (false, _) => Err("takes f32, f16 and bf16".into()),
        (_, Granularity::Tensor) => Err("takes a scale a row or a group of columns".into()),
        _ => Ok(()),
    }
}

fn run(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let norm = |eps: f64| -> Result<Norm<'_>, String> {
        let affine = match args {
            [_, g, b] => Some((Floats::of(g)?, Floats::of(b)?)),
            _ => None,
        };
        Ok(Norm { eps: eps as f32, affine })
    };
    match op {
        Op::Quantize(op) => quantize(operand(args, 0)?, None, op.scale, results, scratch),
        Op::LayerNormQuantize(op) => quantize(operand(args, 0)?, Some(norm(op.eps)?), op.scale, results, scratch),
        Op::Dequantize(op) => dequantize(args, op.scale, only(results)?, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    }
}

/// What is done to a row before it is quantised.
struct Norm<'a> {
    eps: f32,
    affine: Option<(Floats<'a>, Floats<'a>)>,
}

/// Columns that share a scale in rows of `k`.
pub(super) fn group_width(scale: Granularity, k: usize) -> usize {
    match scale {
        Granularity::Columns(n) => n.min(k.max(1)),
        _ => k.max(1),
    }
}

fn quantize(
    x: &Arg<'_>,
    norm: Option<Norm<'_>>,
    scale: Granularity,
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let [codes, scales] = results else { return Err("has two results".into()) };
    let k = x.shape.last().copied().ok_or("x needs a dimension")?;
    if codes.bytes.is_empty() {
        // Rows without columns still have scales.
        cast_mut::<f32>(scales.bytes)?.fill(SMALLEST_SCALE as f32);
        return Ok(());
    }
    let (width, count) = (group_width(scale, k), codes.bytes.len() / k);
    let groups = k.div_ceil(width);
    let x = Floats::of(x)?;
    let rows = (CHUNK / k).max(1);
    let (codes, scales) = (Shared::new(&mut *codes.bytes), Shared::new(cast_mut::<f32>(scales.bytes)?));
    lanes::run(count.div_ceil(rows), 3 * 4 * k, scratch, |task, memory| {
        let (row, rest) = cast_mut::<f32>(memory)?.split_at_mut(k);
        let (first, second) = rest.split_at_mut(k);
        for i in task * rows..(task * rows + rows).min(count) {
            x.read(i * k, row);
            if let Some(norm) = &norm {
                let affine = norm.affine.as_ref().map(|(g, b)| (g.view(0, first), b.view(0, second)));
                normalise(row, affine, norm.eps);
            }
            // SAFETY: every row belongs to one task.
            let (codes, scales) = unsafe { (codes.slice(i * k, k), scales.slice(i * groups, groups)) };
            for ((values, codes), scale) in row.chunks(width).zip(codes.chunks_mut(width)).zip(scales) {
                *scale = quantize_group(values, codes);
            }
        }
        Ok(())
    })
}

/// An item twice, chunk by chunk: for its scale, and for its codes.
fn quantize_items(
    activation: Activation,
    x: &Arg<'_>,
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let [codes, scales] = results else { return Err("has two results".into()) };
    let (items, elements) = (x.shape[0], x.shape[1..].iter().product::<usize>());
    let x = Floats::of(x)?;
    let (codes, scales) = (Shared::new(&mut *codes.bytes), Shared::new(cast_mut::<f32>(scales.bytes)?));
    lanes::run(items, CHUNK * size_of::<f32>(), scratch, |item, memory| {
        let chunk = cast_mut::<f32>(memory)?;
        let read = |start: usize, chunk: &mut [f32]| -> usize {
            let count = CHUNK.min(elements - start);
            x.read(item * elements + start, &mut chunk[..count]);
            activate(activation, &mut chunk[..count]);
            count
        };
        let mut top = 0f32;
        for start in (0..elements).step_by(CHUNK) {
            let count = read(start, chunk);
            top = top.max(largest(&chunk[..count]));
        }
        let scale = scale_of(top);
        for start in (0..elements).step_by(CHUNK) {
            let count = read(start, chunk);
            // SAFETY: every item belongs to one task.
            let codes = unsafe { codes.slice(item * elements + start, count) };
            encode_under(scale, &chunk[..count], codes);
        }
        // SAFETY: as above.
        let own = unsafe { scales.slice(item, 1) };
        own[0] = scale;
        Ok(())
    })
}

/// The codes of values that share a scale, and the scale.
pub(super) fn quantize_group(values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = scale_of(largest(values));
    encode_under(scale, values, codes);
    scale
}

fn largest(values: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || values.iter().fold(0f32, |top, v| if v.abs() > top { v.abs() } else { top }),
    )
}

/// The scale of values of which none is larger.
fn scale_of(top: f32) -> f32 {
    (top as f64 / E4M3_MAX as f64).max(SMALLEST_SCALE) as f32
}

fn encode_under(scale: f32, values: &[f32], codes: &mut [u8]) {
    vectorised(
        #[inline(always)]
        || codes.iter_mut().zip(values).for_each(|(c, v)| *c = encode(*v / scale)),
    )
}

/// The nearest e4m3 code, ties to even, saturating: as `float8::f32_to_e4m3`, without branches.
#[inline(always)]
fn encode(x: f32) -> u8 {
    let magnitude = x.abs();
    let magnitude = if magnitude < E4M3_MAX { magnitude } else { E4M3_MAX };
    // Below 2⁻⁶ codes count units of 2⁻⁹; adding 1.5·2²³ rounds to nearest even.
    let subnormal = (magnitude * 512.0 + 12_582_912.0).to_bits() & 0xff;
    let bits = magnitude.to_bits();
    let normal = (bits.wrapping_add(0x7_ffff + ((bits >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    let code = if magnitude < 0.015625 { subnormal } else { normal };
    let code = if x.is_nan() { 0x7f } else { code };
    code as u8 | ((x.to_bits() >> 24) as u8 & 0x80)
}

fn dequantize(args: &[Arg<'_>], scale: Granularity, y: &mut ArgMut<'_>, scratch: &mut [u8]) -> Result<(), String> {
    let (codes, scales) = (operand(args, 0)?, operand(args, 1)?);
    let k = codes.shape.last().copied().ok_or("codes need a dimension")?;
    if y.bytes.is_empty() {
        return Ok(());
    }
    let count = codes.bytes.len() / k;
    let (codes, scales) = (Floats::of(codes)?, Scales { values: cast(scales.bytes)?, granularity: scale });
    let (dtype, row_bytes, rows) = (y.dtype, k * y.dtype.size(), (CHUNK / k).max(1));
    let out = Shared::new(&mut *y.bytes);
    lanes::run(count.div_ceil(rows), 3 * 4 * k, scratch, |task, memory| {
        let row = &mut cast_mut::<f32>(memory)?[..k];
        for i in task * rows..(task * rows + rows).min(count) {
            codes.read(i * k, row);
            scales.apply(row, i);
            // SAFETY: every row belongs to one task.
            store(dtype, row, unsafe { out.slice(i * row_bytes, row_bytes) })?;
        }
        Ok(())
    })
}

/// The scales of codes.
#[derive(Clone, Copy)]
pub struct Scales<'a> {
    /// As `quantize` writes them.
    pub values: &'a [f32],
    /// What shares one.
    pub granularity: Granularity,
}

impl Scales<'_> {
    /// Multiplies the values of row `row`.
    pub fn apply(&self, values: &mut [f32], row: usize) {
        let (width, groups) = match self.granularity {
            Granularity::Columns(n) => (n, values.len().div_ceil(n)),
            _ => (values.len().max(1), 1),
        };
        let first = if self.granularity == Granularity::Tensor { 0 } else { row * groups };
        vectorised(
            #[inline(always)]
            || {
                for (values, scale) in values.chunks_mut(width).zip(&self.values[first..]) {
                    values.iter_mut().for_each(|v| *v *= scale);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use lite3r_ir::float8::f32_to_e4m3;

    #[test]
    fn codes_are_those_of_the_reference() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2147));
            assert_eq!(super::encode(x), f32_to_e4m3(x), "{x:e}");
            let y = (i as f32 - 1e6) * 4.6e-4;
            assert_eq!(super::encode(y), f32_to_e4m3(y), "{y:e}");
        }
    }
}
