//! `reduce_mean(x) {axes, keep}`: the mean over axes.

crate::reduction!(
    /// The mean over axes.
    ReduceMean, "reduce_mean", |v| v.iter().sum::<f64>() / v.len() as f64, 2.5
);
