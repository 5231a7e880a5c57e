//! `relu(x)`: max(x, 0), elementwise.

crate::unary!(
    /// max(x, 0), elementwise.
    Relu, "relu", real, |x| x.max(0.0), 1.0, [(-1.0, 0.0), (2.0, 2.0)],
    |at, x, _, g| super::activation::Activation::Relu.vjp(at, x, g)
);
