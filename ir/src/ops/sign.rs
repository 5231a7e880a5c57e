//! `sign(x)`: −1, 0 or 1, elementwise; integers too.

crate::unary!(
    /// −1, 0 or 1, elementwise; integers too.
    Sign, "sign", number, |x| if x == 0.0 { 0.0 } else { x.signum() }, 1.0, [(-3.0, -1.0), (0.0, 0.0), (0.5, 1.0)],
    flat
);
