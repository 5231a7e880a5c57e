//! What the backends for GPUs have in common: facts of operations that are no matter of a language of kernels.

pub mod cache;
pub mod elementwise;
pub mod expression;
pub mod floats;
pub mod moves;
pub mod product;
pub mod qkv;
pub mod steps;
pub mod walk;

/// Sizes of a static type.
pub fn dims(ty: &lite3r_ir::ValueType) -> Result<Vec<usize>, String> {
    ty.dims().ok_or_else(|| "needs static shapes".to_string())
}
