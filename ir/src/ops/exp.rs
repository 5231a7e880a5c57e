//! `exp(x)`: eˣ, elementwise.

crate::unary!(
    /// eˣ, elementwise.
    Exp, "exp", real, f64::exp, 4.0, [(0.0, 1.0), (1.0, std::f64::consts::E), (-200.0, 0.0)],
    |at, _, y, g| at.mul(g, y)
);
