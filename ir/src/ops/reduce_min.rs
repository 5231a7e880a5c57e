//! `reduce_min(x) {axes, keep}`: the smallest value over axes.

crate::reduction!(
    /// The smallest value over axes.
    ReduceMin, "reduce_min", |v| v.iter().copied().fold(f64::INFINITY, f64::min), 1.0,
    |at, axes, values, _| crate::ops::reduce::chosen(at, axes, values)
);
