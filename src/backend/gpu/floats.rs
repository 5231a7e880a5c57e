//! What kernels that compute in f32 read and write.

use lite3r_ir::{DType, ValueType};

use crate::backend::Request;

/// The element types that are widened to f32 and rounded from it.
pub const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];

/// Refuses operands and results of other types than [`FLOATS`].
pub fn floats(request: &Request<'_>) -> Result<(), String> {
    only(request.operands.iter().chain(request.results))
}

/// Refuses other types than [`FLOATS`].
pub fn only<'t>(types: impl IntoIterator<Item = &'t ValueType>) -> Result<(), String> {
    match types.into_iter().find(|t| !FLOATS.contains(&t.dtype)) {
        Some(odd) => Err(format!("takes f32, f16 and bf16, not {odd}")),
        None => Ok(()),
    }
}
