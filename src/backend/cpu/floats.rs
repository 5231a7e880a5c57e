//! Floating-point operands of any width, read and written as f32.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use lite3r_ir::{
    DType,
    float8::{e4m3_to_f32, e5m2_to_f32},
};

use super::{Arg, ArgMut, math::vectorised};
use crate::backend::Request;

/// The element types that kernels compute with: anything wider is for references alone.
pub const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];

/// Refuses requests of which one of the first operands is not f32, f16 or bf16.
pub fn first_are_floats(request: &Request<'_>, count: usize) -> Result<(), String> {
    match request.operands.iter().take(count).find(|t| !FLOATS.contains(&t.dtype)) {
        Some(odd) => Err(format!("takes f32, f16 and bf16, not {odd}")),
        None => Ok(()),
    }
}

/// A floating-point operand.
#[derive(Clone, Copy)]
pub enum Floats<'a> {
    /// Read where they lie.
    F32(&'a [f32]),
    /// Widened.
    F16(&'a [f16]),
    /// Widened.
    BF16(&'a [bf16]),
    /// Looked up in the table of all codes.
    F8(&'a [u8], &'static [f32; 256]),
}

impl<'a> Floats<'a> {
    /// Of an operand.
    pub fn of(arg: &Arg<'a>) -> Result<Self, String> {
        Ok(match arg.dtype {
            DType::F32 => Self::F32(cast(arg.bytes)?),
            DType::F16 => Self::F16(cast(arg.bytes)?),
            DType::BF16 => Self::BF16(cast(arg.bytes)?),
            DType::F8E4M3 => Self::F8(arg.bytes, &E4M3),
            DType::F8E5M2 => Self::F8(arg.bytes, &E5M2),
            other => return Err(format!("{other} is no floating-point type of this kernel")),
        })
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
            Self::F8(v, _) => v.len(),
        }
    }

    /// Whether the elements can be used without conversion.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match self {
            Self::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements from `start`, as many as `out` holds.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        match self {
            Self::F32(v) => out.copy_from_slice(&v[start..end]),
            Self::F16(v) => v[start..end].convert_to_f32_slice(out),
            Self::BF16(v) => vectorised(|| out.iter_mut().zip(&v[start..end]).for_each(|(o, x)| *o = widen(*x))),
            Self::F8(v, table) => out.iter_mut().zip(&v[start..end]).for_each(|(o, x)| *o = table[*x as usize]),
        }
    }

    /// The elements from `start`: where they lie, or converted into `buffer`.
    pub fn view<'b>(&self, start: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(v) => &v[start..start + buffer.len()],
            _ => {
                self.read(start, buffer);
                buffer
            }
        }
    }
}

/// A bf16 is the upper half of an f32.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

/// Nearest even, as `half` rounds, without its branches; a NaN stays one.
#[inline(always)]
fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    bf16::from_bits(if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded })
}

/// `values` rounded to `dtype` into `bytes`, which holds as many elements.
pub fn store(dtype: DType, values: &[f32], bytes: &mut [u8]) -> Result<(), String> {
    match dtype {
        DType::F32 => cast_mut::<f32>(bytes)?.copy_from_slice(values),
        DType::F16 => cast_mut::<f16>(bytes)?.convert_from_f32_slice(values),
        DType::BF16 => {
            let out: &mut [bf16] = cast_mut(bytes)?;
            vectorised(|| out.iter_mut().zip(values).for_each(|(o, x)| *o = narrow(*x)));
        }
        other => return Err(format!("{other} is no floating-point type of this kernel")),
    }
    Ok(())
}

/// The elements of an operand.
pub fn cast<T: bytemuck::Pod>(bytes: &[u8]) -> Result<&[T], String> {
    // No elements need no place; the pointer of an empty slice is arbitrary.
    if bytes.is_empty() {
        return Ok(&[]);
    }
    bytemuck::try_cast_slice(bytes).map_err(|e| format!("an operand is misplaced: {e}"))
}

/// The elements of a result.
pub fn cast_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> Result<&mut [T], String> {
    if bytes.is_empty() {
        return Ok(&mut []);
    }
    bytemuck::try_cast_slice_mut(bytes).map_err(|e| format!("a result is misplaced: {e}"))
}

/// The operand `index`, or what is missing.
pub fn operand<'a, 'b>(args: &'b [Arg<'a>], index: usize) -> Result<&'b Arg<'a>, String> {
    args.get(index).ok_or_else(|| format!("operand {index} is missing"))
}

/// The only result.
pub fn only<'b, 'a>(results: &'b mut [ArgMut<'a>]) -> Result<&'b mut ArgMut<'a>, String> {
    match results {
        [result] => Ok(result),
        _ => Err(format!("has one result, not {}", results.len())),
    }
}

static E4M3: std::sync::LazyLock<[f32; 256]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|code| e4m3_to_f32(code as u8)));
static E5M2: std::sync::LazyLock<[f32; 256]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|code| e5m2_to_f32(code as u8)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does() {
        for i in 0..1_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(4297));
            assert_eq!(narrow(x).is_nan(), x.is_nan());
            assert!(x.is_nan() || narrow(x) == bf16::from_f32(x), "{x:e}");
        }
    }
}
