//! `div(a, b)`: a/b, with NumPy broadcasting; integers truncate towards zero, and dividing them by zero is an error.

crate::binary!(
    /// a/b, with NumPy broadcasting; integers truncate towards zero, and dividing them by zero is an error.
    Div, "div", |a, b| a / b, i64::checked_div, None, [(3.0, 2.0, 1.5), (-1.0, 4.0, -0.25)],
    |at, _, b, y, g| {
        let part = at.div(g, b)?;
        let lost = at.mul(part, y)?;
        Ok([part, at.neg(lost)?])
    }
);
