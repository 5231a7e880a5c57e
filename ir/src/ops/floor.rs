//! `floor(x)`: the largest integer not above x, elementwise.

crate::unary!(
    /// The largest integer not above x, elementwise.
    Floor, "floor", real, f64::floor, 1.0, [(-0.5, -1.0), (1.5, 1.0)],
    flat
);
