//! `max(a, b)`: The larger of a and b, with NumPy broadcasting.

crate::binary!(
    /// The larger of a and b, with NumPy broadcasting.
    Max, "max", f64::max, |a, b| Some(a.max(b)), None, [(3.0, 2.0, 3.0), (-4.0, 0.5, 0.5)],
    |at, a, b, _, g| super::elementwise::shared(at, a, b, g)
);
