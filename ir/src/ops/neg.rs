//! `neg(x)`: −x, elementwise; integers too.

crate::unary!(
    /// −x, elementwise; integers too.
    Neg, "neg", number, |x| -x, 1.0, [(1.0, -1.0), (0.0, 0.0)],
    |at, _, _, g| at.neg(g)
);
