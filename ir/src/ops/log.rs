//! `log(x)`: the natural logarithm, elementwise.

crate::unary!(
    /// The natural logarithm, elementwise.
    Log, "log", real, f64::ln, 4.0, [(1.0, 0.0), (std::f64::consts::E, 1.0)],
    |at, x, _, g| at.div(g, x)
);
