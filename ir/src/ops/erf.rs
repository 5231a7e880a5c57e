//! `erf(x)`: the error function 2/√π ∫₀ˣ exp(−t²) dt, elementwise.

crate::unary!(
    /// The error function 2/√π ∫₀ˣ exp(−t²) dt, elementwise.
    Erf, "erf", real, super::special::erf, 8.0, [(0.0, 0.0), (1.0, 0.842_700_792_949_714_9), (-0.5, -0.520_499_877_813_046_5), (4.0, 0.999_999_984_582_742_1)]
);
