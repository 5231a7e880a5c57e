//! `and(a, b)`: Whether a and b are both true, with NumPy broadcasting.

crate::binary!(
    /// Whether a and b are both true, with NumPy broadcasting.
    And, "and", |a, b| (a != 0.0 && b != 0.0) as u8 as f64, |a, b| Some((a != 0 && b != 0) as i64), Some(crate::types::DType::Bool), [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0)],
    flat
);
