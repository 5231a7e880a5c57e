//! `reciprocal(x)`: 1/x, elementwise.

crate::unary!(
    /// 1/x, elementwise.
    Reciprocal, "reciprocal", real, f64::recip, 1.0, [(4.0, 0.25), (-2.0, -0.5)],
    |at, _, y, g| {
        let square = at.mul(y, y)?;
        let part = at.mul(g, square)?;
        at.neg(part)
    }
);
