//! Element types, and the type of a value: element type and shape.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::dim::{Bindings, Dim};

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Host only: the precision of constant folding and of references. No backend has it, so none may survive `fold`.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// OFP8 e4m3, largest 448, no infinities.
    F8E4M3,
    /// OFP8 e5m2, largest 57344.
    F8E5M2,
    /// Signed, 64 bits: indices and shapes as exporters write them.
    I64,
    /// Signed, 32 bits: indices as kernels read them.
    I32,
    /// Unsigned bytes: images.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every element type, in declared order.
    pub const ALL: [Self; 10] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I64,
        Self::I32,
        Self::U8,
        Self::Bool,
    ];

    /// As the text form writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F8E4M3 => "f8e4m3",
            Self::F8E5M2 => "f8e5m2",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::Bool => "bool",
        }
    }

    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether it is a floating-point format.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
    }

    /// Relative spacing of neighbouring values at 1; zero for integers.
    pub const fn epsilon(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON,
            Self::F32 => f32::EPSILON as f64,
            Self::F16 => 9.765625e-4,
            Self::BF16 => 7.8125e-3,
            Self::F8E4M3 => 0.125,
            Self::F8E5M2 => 0.25,
            _ => 0.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|t| t.name() == text).ok_or_else(|| format!("`{text}` is not an element type"))
    }
}

/// Element type and shape, row-major and dense.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValueType {
    /// Of every element.
    pub dtype: DType,
    /// Outermost first; empty for a scalar.
    pub shape: Vec<Dim>,
}

impl ValueType {
    /// A type from anything that dimensions can be made of.
    pub fn new<D: Into<Dim>>(dtype: DType, shape: impl IntoIterator<Item = D>) -> Self {
        Self { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The sizes, where no symbol is left.
    pub fn dims(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(Dim::size).collect()
    }

    /// The number of elements, where no symbol is left and the product fits.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(d.size()?))
    }

    /// Bytes of a dense value, where no symbol is left and the product fits.
    pub fn bytes(&self) -> Option<usize> {
        self.elements()?.checked_mul(self.dtype.size())
    }

    /// The same shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, shape: self.shape.clone() }
    }

    /// The same element type with another shape.
    pub fn with_shape<D: Into<Dim>>(&self, shape: impl IntoIterator<Item = D>) -> Self {
        Self::new(self.dtype, shape)
    }

    /// Replaces the symbols that have a value.
    pub fn bind(&self, bindings: &Bindings) -> Self {
        Self { dtype: self.dtype, shape: self.shape.iter().map(|d| d.bind(bindings)).collect() }
    }
}

impl fmt::Display for ValueType {
    /// `f16[2,1374,64*S]`; a scalar is `f32[]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

impl FromStr for ValueType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (dtype, rest) = text.split_once('[').ok_or_else(|| format!("`{text}` is not a type"))?;
        let inner = rest.strip_suffix(']').ok_or_else(|| format!("`{text}` lacks its `]`"))?;
        let dims = inner.split(',').filter(|d| !d.trim().is_empty());
        Ok(Self { dtype: dtype.trim().parse()?, shape: dims.map(str::parse).collect::<Result<_, _>>()? })
    }
}
