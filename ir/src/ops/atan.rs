//! `atan(x)`: the arc tangent in radians, elementwise.

crate::unary!(
    /// The arc tangent in radians, elementwise.
    Atan, "atan", real, f64::atan, 4.0, [(1.0, std::f64::consts::FRAC_PI_4), (0.0, 0.0)],
    |at, x, _, g| {
        let square = at.mul(x, x)?;
        let below = at.plus(square, 1.0)?;
        at.div(g, below)
    }
);
