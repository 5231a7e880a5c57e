//! `sqrt(x)`: √x, elementwise.

crate::unary!(
    /// √x, elementwise.
    Sqrt, "sqrt", real, f64::sqrt, 1.0, [(4.0, 2.0), (0.0, 0.0)],
    |at, _, y, g| {
        let half = at.times(g, 0.5)?;
        at.div(half, y)
    }
);
