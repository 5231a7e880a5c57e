//! The element types that shaders compute with.

use lite3r_ir::DType;

/// All of them are computed in f32.
pub const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
