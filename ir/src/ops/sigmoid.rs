//! `sigmoid(x)`: 1/(1 + e⁻ˣ), elementwise.

crate::unary!(
    /// 1/(1 + e⁻ˣ), elementwise.
    Sigmoid, "sigmoid", real, |x| 1.0 / (1.0 + (-x).exp()), 4.0, [(0.0, 0.5), (2.0, 0.880_797_077_977_882_3)],
    |at, _, y, g| {
        let part = at.mul(g, y)?;
        let lost = at.mul(part, y)?;
        at.sub(part, lost)
    }
);
