//! `remainder(a, b)`: The remainder of a/b with the sign of b, with NumPy broadcasting; for integers, by zero is an
//! error.

crate::binary!(
    /// The remainder of a/b with the sign of b, with NumPy broadcasting; for integers, by zero is an error.
    Remainder, "remainder", |a, b| a - b * (a / b).floor(), |a, b| (b != 0).then(|| a - b * (a as f64 / b as f64).floor() as i64), None, [(5.0, 3.0, 2.0), (-1.0, 3.0, 2.0)],
    |at, a, b, _, g| {
        let ratio = at.div(a, b)?;
        let whole = at.op(super::Floor {}, &[ratio])?;
        let part = at.mul(g, whole)?;
        Ok([g, at.neg(part)?])
    }
);
