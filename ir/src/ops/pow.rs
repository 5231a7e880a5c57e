//! `pow(a, b)`: aᵇ, with NumPy broadcasting; a negative integer exponent is an error.

crate::binary!(
    /// aᵇ, with NumPy broadcasting; a negative integer exponent is an error.
    Pow, "pow", f64::powf, |a, b| u32::try_from(b).ok().map(|b| a.wrapping_pow(b)), None, [(3.0, 2.0, 9.0), (4.0, 0.5, 2.0)]
);
