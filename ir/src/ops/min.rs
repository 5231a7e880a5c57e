//! `min(a, b)`: The smaller of a and b, with NumPy broadcasting.

crate::binary!(
    /// The smaller of a and b, with NumPy broadcasting.
    Min, "min", f64::min, |a, b| Some(a.min(b)), None, [(3.0, 2.0, 2.0), (-4.0, 0.5, -4.0)],
    |at, a, b, _, g| super::elementwise::shared(at, b, a, g)
);
