//! `abs(x)`: |x|, elementwise; integers too.

crate::unary!(
    /// |x|, elementwise; integers too.
    Abs, "abs", number, f64::abs, 1.0, [(-2.0, 2.0), (3.0, 3.0)],
    |at, x, _, g| {
        let sign = at.op(super::Sign {}, &[x])?;
        at.mul(g, sign)
    }
);
