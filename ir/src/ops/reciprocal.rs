//! `reciprocal(x)`: 1/x, elementwise.

crate::unary!(
    /// 1/x, elementwise.
    Reciprocal, "reciprocal", real, f64::recip, 1.0, [(4.0, 0.25), (-2.0, -0.5)]
);
