//! `reduce_prod(x) {axes, keep}`: the product over axes.

crate::reduction!(
    /// The product over axes.
    ReduceProd, "reduce_prod", |v| v.iter().product(), 24.0
);
