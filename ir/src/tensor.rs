//! Host tensors: what constants hold and what references compute with. Dense, row-major, cheap to clone.

use std::sync::Arc;

use half::{bf16, f16};

use crate::{
    float8::{e4m3_to_f32, e5m2_to_f32, f32_to_e4m3, f32_to_e5m2},
    types::{DType, ValueType},
};

/// A dense row-major tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// Elements by type. The 8-bit floats and booleans are kept as their bytes.
#[derive(Clone, Debug, PartialEq)]
enum Data {
    F64(Arc<[f64]>),
    F32(Arc<[f32]>),
    F16(Arc<[f16]>),
    BF16(Arc<[bf16]>),
    F8E4M3(Arc<[u8]>),
    F8E5M2(Arc<[u8]>),
    I64(Arc<[i64]>),
    I32(Arc<[i32]>),
    U8(Arc<[u8]>),
    Bool(Arc<[u8]>),
}

impl Tensor {
    /// From real numbers, rounded (saturating in the 8-bit floats) to `dtype`.
    ///
    /// # Panics
    /// If the count does not fit the shape: a defect of the caller.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        let data = match dtype {
            DType::F64 => Data::F64(values.into()),
            DType::F32 => Data::F32(values.iter().map(|v| *v as f32).collect()),
            DType::F16 => Data::F16(values.iter().map(|v| f16::from_f32(to_odd(*v))).collect()),
            DType::BF16 => Data::BF16(values.iter().map(|v| bf16::from_f32(to_odd(*v))).collect()),
            DType::F8E4M3 => Data::F8E4M3(values.iter().map(|v| f32_to_e4m3(to_odd(*v))).collect()),
            DType::F8E5M2 => Data::F8E5M2(values.iter().map(|v| f32_to_e5m2(to_odd(*v))).collect()),
            DType::I64 => Data::I64(values.iter().map(|v| *v as i64).collect()),
            DType::I32 => Data::I32(values.iter().map(|v| *v as i32).collect()),
            DType::U8 => Data::U8(values.iter().map(|v| *v as u8).collect()),
            DType::Bool => Data::Bool(values.iter().map(|v| (*v != 0.0) as u8).collect()),
        };
        Self::checked(shape, data)
    }

    /// From integers, converted to `dtype` (wrapping in narrower integers, as ONNX casts do).
    ///
    /// # Panics
    /// If the count does not fit the shape: a defect of the caller.
    pub fn from_i64(dtype: DType, shape: &[usize], values: &[i64]) -> Self {
        let data = match dtype {
            DType::I64 => Data::I64(values.into()),
            DType::I32 => Data::I32(values.iter().map(|v| *v as i32).collect()),
            DType::U8 => Data::U8(values.iter().map(|v| *v as u8).collect()),
            DType::Bool => Data::Bool(values.iter().map(|v| (*v != 0) as u8).collect()),
            _ => return Self::from_f64(dtype, shape, &values.iter().map(|v| *v as f64).collect::<Vec<_>>()),
        };
        Self::checked(shape, data)
    }

    /// From f32 values.
    ///
    /// # Panics
    /// If the count does not fit the shape: a defect of the caller.
    pub fn from_f32(shape: &[usize], values: impl Into<Arc<[f32]>>) -> Self {
        Self::checked(shape, Data::F32(values.into()))
    }

    /// A tensor without dimensions.
    pub fn scalar(dtype: DType, value: f64) -> Self {
        Self::from_f64(dtype, &[], &[value])
    }

    /// From little-endian bytes; `None` if their count does not fit.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Self> {
        if bytes.len() != shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d))? {
            return None;
        }
        fn typed<T: bytemuck::Pod>(bytes: &[u8]) -> Arc<[T]> {
            bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
        }
        let data = match dtype {
            DType::F64 => Data::F64(typed(bytes)),
            DType::F32 => Data::F32(typed(bytes)),
            DType::F16 => Data::F16(typed(bytes)),
            DType::BF16 => Data::BF16(typed(bytes)),
            DType::F8E4M3 => Data::F8E4M3(bytes.into()),
            DType::F8E5M2 => Data::F8E5M2(bytes.into()),
            DType::I64 => Data::I64(typed(bytes)),
            DType::I32 => Data::I32(typed(bytes)),
            DType::U8 => Data::U8(bytes.into()),
            DType::Bool => Data::Bool(bytes.iter().map(|b| (*b != 0) as u8).collect()),
        };
        Some(Self { shape: shape.to_vec(), data })
    }

    fn checked(shape: &[usize], data: Data) -> Self {
        let tensor = Self { shape: shape.to_vec(), data };
        assert_eq!(tensor.bytes().len(), tensor.len() * tensor.dtype().size(), "{shape:?} does not fit the data");
        tensor
    }

    /// Smooth, reproducible values in (-1, 1): inputs for cases and tests.
    pub fn wave(dtype: DType, shape: &[usize], seed: u64) -> Self {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count as u64)
            .map(|i| {
                // SplitMix64 (Steele, Lea, Flood 2014): every index by itself.
                let mut z = (i + 1).wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
            })
            .collect();
        Self::from_f64(dtype, shape, &values)
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F64(_) => DType::F64,
            Data::F32(_) => DType::F32,
            Data::F16(_) => DType::F16,
            Data::BF16(_) => DType::BF16,
            Data::F8E4M3(_) => DType::F8E4M3,
            Data::F8E5M2(_) => DType::F8E5M2,
            Data::I64(_) => DType::I64,
            Data::I32(_) => DType::I32,
            Data::U8(_) => DType::U8,
            Data::Bool(_) => DType::Bool,
        }
    }

    /// Element type and shape.
    pub fn value_type(&self) -> ValueType {
        ValueType::new(self.dtype(), self.shape.iter().copied())
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Little-endian bytes, row-major.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::F64(v) => bytemuck::cast_slice(v),
            Data::F32(v) => bytemuck::cast_slice(v),
            Data::F16(v) => bytemuck::cast_slice(v),
            Data::BF16(v) => bytemuck::cast_slice(v),
            Data::I64(v) => bytemuck::cast_slice(v),
            Data::I32(v) => bytemuck::cast_slice(v),
            Data::F8E4M3(v) | Data::F8E5M2(v) | Data::U8(v) | Data::Bool(v) => v,
        }
    }

    /// The values as real numbers; exact for everything but large i64.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F64(v) => v.to_vec(),
            Data::F32(v) => v.iter().map(|x| *x as f64).collect(),
            Data::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::BF16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Data::F8E4M3(v) => v.iter().map(|x| e4m3_to_f32(*x) as f64).collect(),
            Data::F8E5M2(v) => v.iter().map(|x| e5m2_to_f32(*x) as f64).collect(),
            Data::I64(v) => v.iter().map(|x| *x as f64).collect(),
            Data::I32(v) => v.iter().map(|x| *x as f64).collect(),
            Data::U8(v) | Data::Bool(v) => v.iter().map(|x| *x as f64).collect(),
        }
    }

    /// The values as f32, rounded from f64 and i64.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.to_vec(),
            _ => self.to_f64().into_iter().map(|x| x as f32).collect(),
        }
    }

    /// The values as integers; floats are truncated towards zero.
    pub fn to_i64(&self) -> Vec<i64> {
        match &self.data {
            Data::I64(v) => v.to_vec(),
            Data::I32(v) => v.iter().map(|x| *x as i64).collect(),
            Data::U8(v) | Data::Bool(v) => v.iter().map(|x| *x as i64).collect(),
            _ => self.to_f64().into_iter().map(|x| x as i64).collect(),
        }
    }

    /// The f32 values where they lie; `None` for another element type.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The one value of a tensor with one element.
    pub fn item(&self) -> Option<f64> {
        (self.len() == 1).then(|| self.to_f64()[0])
    }

    /// The same data under another shape; `None` if the counts differ.
    pub fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        (shape.iter().product::<usize>() == self.len()).then(|| Self { shape: shape.to_vec(), data: self.data.clone() })
    }

    /// The elements at these flat indices, bit for bit, as a tensor of `shape`.
    ///
    /// # Panics
    /// If an index is out of range or the count does not fit the shape: a defect of the caller.
    pub fn pick(&self, shape: &[usize], indices: impl Iterator<Item = usize>) -> Self {
        let data = match &self.data {
            Data::F64(v) => Data::F64(indices.map(|i| v[i]).collect()),
            Data::F32(v) => Data::F32(indices.map(|i| v[i]).collect()),
            Data::F16(v) => Data::F16(indices.map(|i| v[i]).collect()),
            Data::BF16(v) => Data::BF16(indices.map(|i| v[i]).collect()),
            Data::F8E4M3(v) => Data::F8E4M3(indices.map(|i| v[i]).collect()),
            Data::F8E5M2(v) => Data::F8E5M2(indices.map(|i| v[i]).collect()),
            Data::I64(v) => Data::I64(indices.map(|i| v[i]).collect()),
            Data::I32(v) => Data::I32(indices.map(|i| v[i]).collect()),
            Data::U8(v) => Data::U8(indices.map(|i| v[i]).collect()),
            Data::Bool(v) => Data::Bool(indices.map(|i| v[i]).collect()),
        };
        Self::checked(shape, data)
    }

    /// The elements of tensors of one type, one after the other.
    ///
    /// # Panics
    /// If there is none or the types differ: a defect of the caller.
    pub fn concat_flat(tensors: &[&Self]) -> Self {
        let dtype = tensors[0].dtype();
        assert!(tensors.iter().all(|t| t.dtype() == dtype), "one element type");
        let bytes: Vec<u8> = tensors.iter().flat_map(|t| t.bytes()).copied().collect();
        Self::from_bytes(dtype, &[bytes.len() / dtype.size()], &bytes).expect("whole elements")
    }

    /// Converted to another element type: floats round, floats to integers truncate, anything but zero is true.
    pub fn cast(&self, dtype: DType) -> Self {
        match (self.dtype() == dtype, self.dtype().is_float()) {
            (true, _) => self.clone(),
            (false, true) => Self::from_f64(dtype, &self.shape, &self.to_f64()),
            (false, false) => Self::from_i64(dtype, &self.shape, &self.to_i64()),
        }
    }
}

/// To f32, inexact values to the neighbour with an odd last bit: rounding that again to a narrower format gives the
/// same as rounding once (Boldo and Melquiond 2008). `half` looks at the upper 32 bits of an f64 alone.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    if near as f64 == v || near.is_nan() {
        return near;
    }
    let towards_zero = near.to_bits() - (near.abs() as f64 > v.abs()) as u32;
    f32::from_bits(towards_zero | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_formats_round_once() {
        let above_tie = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let round = |dtype, v: f64| Tensor::scalar(dtype, v).to_f64()[0];
        assert_eq!(round(DType::BF16, above_tie), 1.0 + 2f64.powi(-7));
        assert_eq!(round(DType::BF16, 1.0 + 2f64.powi(-8)), 1.0);
        assert_eq!(round(DType::F16, -1.0 - 2f64.powi(-11) - 2f64.powi(-50)), -1.0 - 2f64.powi(-10));
        assert_eq!(round(DType::F8E4M3, 1.0 + 2f64.powi(-4) + 2f64.powi(-45)), 1.125);
        assert_eq!(round(DType::BF16, 1e300), f64::INFINITY);
        assert!(round(DType::F16, f64::NAN).is_nan());
    }
}
