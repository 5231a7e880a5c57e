//! `cos(x)`: cos x in radians, elementwise.

crate::unary!(
    /// cos x in radians, elementwise.
    Cos, "cos", real, f64::cos, 4.0, [(0.0, 1.0), (std::f64::consts::PI, -1.0)],
    |at, x, _, g| {
        let sin = at.op(super::Sin {}, &[x])?;
        let part = at.mul(g, sin)?;
        at.neg(part)
    }
);
