//! `mul(a, b)`: a·b, with NumPy broadcasting.

crate::binary!(
    /// a·b, with NumPy broadcasting.
    Mul, "mul", |a, b| a * b, |a, b| Some(a.wrapping_mul(b)), None, [(3.0, 2.0, 6.0), (-1.0, 2.0, -2.0)],
    |at, a, b, _, g| Ok([at.mul(g, b)?, at.mul(g, a)?])
);
