//! `or(a, b)`: Whether a or b is true, with NumPy broadcasting.

crate::binary!(
    /// Whether a or b is true, with NumPy broadcasting.
    Or, "or", |a, b| (a != 0.0 || b != 0.0) as u8 as f64, |a, b| Some((a != 0 || b != 0) as i64), Some(crate::types::DType::Bool), [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0)],
    flat
);
