//! `reduce_mean(x) {axes, keep}`: the mean over axes.

crate::reduction!(
    /// The mean over axes.
    ReduceMean, "reduce_mean", |v| v.iter().sum::<f64>() / v.len() as f64, 2.5,
    |at, _, [_, _, g], count| at.times(g, 1.0 / count as f64)
);
