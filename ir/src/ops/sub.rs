//! `sub(a, b)`: a − b, with NumPy broadcasting.

crate::binary!(
    /// a − b, with NumPy broadcasting.
    Sub, "sub", |a, b| a - b, |a, b| Some(a.wrapping_sub(b)), None, [(1.0, 2.0, -1.0), (5.0, 2.0, 3.0)],
    |at, _, _, _, g| Ok([g, at.neg(g)?])
);
