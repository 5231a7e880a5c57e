//! `add(a, b)`: the sum, with broadcasting.

crate::binary!(
    /// a + b, with NumPy broadcasting.
    Add, "add", |a, b| a + b, |a, b| Some(a.wrapping_add(b)), None, [(1.0, 2.0, 3.0), (-1.0, 1.0, 0.0)],
    |_, _, _, _, g| Ok([g, g])
);
