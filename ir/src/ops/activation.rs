//! Activations that products apply to their results before anybody else sees them.

use super::special::erf;

crate::word_enum! {
    /// What a product applies to its sum.
    pub enum Activation {
        /// Nothing.
        None = "none",
        /// max(x, 0).
        Relu = "relu",
        /// x Φ(x), with the error function.
        Gelu = "gelu",
        /// x Φ(x), with Φ approximated by tanh.
        GeluTanh = "gelu_tanh",
        /// x / (1 + e⁻ˣ).
        Silu = "silu",
    }
}

impl Activation {
    /// Of one value.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }

    /// Operations an element.
    pub fn flops(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Relu => 1.0,
            Self::Gelu | Self::GeluTanh => 10.0,
            Self::Silu => 5.0,
        }
    }
}
