//! `reduce_prod(x) {axes, keep}`: the product over axes.

crate::reduction!(
    /// The product over axes.
    ReduceProd, "reduce_prod", |v| v.iter().product(), 24.0,
    |at, _, [x, y, g], _| {
        let part = at.mul(g, y)?;
        at.div(part, x)
    }
);
