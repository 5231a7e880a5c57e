//! `reduce_max(x) {axes, keep}`: the largest value over axes.

crate::reduction!(
    /// The largest value over axes.
    ReduceMax, "reduce_max", |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max), 4.0,
    |at, axes, values, _| crate::ops::reduce::chosen(at, axes, values)
);
