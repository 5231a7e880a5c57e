//! `ceil(x)`: the smallest integer not below x, elementwise.

crate::unary!(
    /// The smallest integer not below x, elementwise.
    Ceil, "ceil", real, f64::ceil, 1.0, [(-0.5, 0.0), (1.5, 2.0)],
    flat
);
