//! `reduce_sum(x) {axes, keep}`: the sum over axes.

crate::reduction!(
    /// The sum over axes.
    ReduceSum, "reduce_sum", |v| v.iter().sum(), 10.0,
    |_, _, [_, _, g], _| Ok(g)
);
