//! `silu(x)`: x/(1 + e⁻ˣ), elementwise (Hendrycks and Gimpel 2016; Ramachandran et al. 2017).

crate::unary!(
    /// x/(1 + e⁻ˣ), elementwise (Hendrycks and Gimpel 2016; Ramachandran et al. 2017).
    Silu, "silu", real, |x| x / (1.0 + (-x).exp()), 5.0, [(0.0, 0.0), (2.0, 1.761_594_155_955_764_6)],
    |at, x, _, g| super::activation::Activation::Silu.vjp(at, x, g)
);
