//! `tanh(x)`: tanh x, elementwise.

crate::unary!(
    /// tanh x, elementwise.
    Tanh, "tanh", real, f64::tanh, 4.0, [(0.0, 0.0), (1.0, 0.761_594_155_955_764_9)],
    |at, _, y, g| {
        let square = at.mul(y, y)?;
        let lost = at.mul(g, square)?;
        at.sub(g, lost)
    }
);
