//! Activations that products apply to their results before anybody else sees them.

use std::f64::consts::PI;

use super::{Clip, Erf, Exp, Less, Sigmoid, Tanh, Where, special::erf};
use crate::{
    graph::{OpError, Value},
    vjp::Vjp,
};

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
                let inner = (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }

    /// The cotangent of x from that of the activation of x, of one element type.
    pub fn vjp(self, at: &mut Vjp<'_>, x: Value, g: Value) -> Result<Value, OpError> {
        let slope = match self {
            Self::None => return Ok(g),
            Self::Relu => {
                let zero = at.number(x, 0.0);
                let above = at.op(Less {}, &[zero, x])?;
                return at.op(Where {}, &[above, g, zero]);
            }
            // Φ(x) + x·φ(x).
            Self::Gelu => {
                let scaled = at.times(x, std::f64::consts::FRAC_1_SQRT_2)?;
                let erf = at.op(Erf {}, &[scaled])?;
                let above = at.plus(erf, 1.0)?;
                let half = at.times(above, 0.5)?;
                let exponent = at.mul(scaled, scaled)?;
                let exponent = at.neg(exponent)?;
                let bell = at.op(Exp {}, &[exponent])?;
                let bell = at.times(bell, (2.0 * PI).sqrt().recip())?;
                let rise = at.mul(x, bell)?;
                at.add(half, rise)?
            }
            // With t = tanh(c (x + a x³)): (1 + t)/2 + x (1 − t²) c (1 + 3a x²)/2. Far out t² rounds to 1 before x
            // grows without bound, but x³ would overflow in 16 bits.
            Self::GeluTanh => {
                let (c, a) = ((2.0 / PI).sqrt(), 0.044715);
                let x = at.op(Clip { min: -16.0, max: 16.0 }, &[x])?;
                let square = at.mul(x, x)?;
                let inner = at.times(square, c * a)?;
                let inner = at.plus(inner, c)?;
                let inner = at.mul(x, inner)?;
                let t = at.op(Tanh {}, &[inner])?;
                let above = at.plus(t, 1.0)?;
                let half = at.times(above, 0.5)?;
                let lost = at.mul(t, t)?;
                let lost = at.neg(lost)?;
                let left = at.plus(lost, 1.0)?;
                let steep = at.times(square, 1.5 * c * a)?;
                let steep = at.plus(steep, 0.5 * c)?;
                let rise = at.mul(x, steep)?;
                let rise = at.mul(left, rise)?;
                at.add(half, rise)?
            }
            // σ + x σ (1 − σ).
            Self::Silu => {
                let sigmoid = at.op(Sigmoid {}, &[x])?;
                let whole = at.mul(x, sigmoid)?;
                let lost = at.mul(whole, sigmoid)?;
                let rise = at.sub(whole, lost)?;
                at.add(sigmoid, rise)?
            }
        };
        at.mul(g, slope)
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
