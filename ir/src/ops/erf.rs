//! `erf(x)`: the error function 2/√π ∫₀ˣ exp(−t²) dt, elementwise.

crate::unary!(
    /// The error function 2/√π ∫₀ˣ exp(−t²) dt, elementwise.
    Erf, "erf", real, super::special::erf, 8.0, [(0.0, 0.0), (1.0, 0.842_700_792_949_714_9), (-0.5, -0.520_499_877_813_046_5), (4.0, 0.999_999_984_582_742_1)],
    |at, x, _, g| {
        let square = at.mul(x, x)?;
        let bell = at.neg(square)?;
        let bell = at.op(super::Exp {}, &[bell])?;
        let part = at.mul(g, bell)?;
        at.times(part, std::f64::consts::FRAC_2_SQRT_PI)
    }
);
