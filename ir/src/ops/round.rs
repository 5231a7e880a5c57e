//! `round(x)`: the nearest integer, ties to even, elementwise.

crate::unary!(
    /// The nearest integer, ties to even, elementwise.
    Round, "round", real, f64::round_ties_even, 1.0, [(0.5, 0.0), (1.5, 2.0), (-2.5, -2.0)],
    flat
);
