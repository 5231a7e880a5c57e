//! `less(a, b)`: Whether a < b, with NumPy broadcasting.

crate::binary!(
    /// Whether a < b, with NumPy broadcasting.
    Less, "less", |a, b| (a < b) as u8 as f64, |a, b| Some((a < b) as i64), Some(crate::types::DType::Bool), [(5.0, 3.0, 0.0), (2.0, 3.0, 1.0)],
    flat
);
