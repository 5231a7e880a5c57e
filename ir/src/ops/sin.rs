//! `sin(x)`: sin x in radians, elementwise.

crate::unary!(
    /// sin x in radians, elementwise.
    Sin, "sin", real, f64::sin, 4.0, [(0.0, 0.0), (std::f64::consts::FRAC_PI_2, 1.0)],
    |at, x, _, g| {
        let cos = at.op(super::Cos {}, &[x])?;
        at.mul(g, cos)
    }
);
