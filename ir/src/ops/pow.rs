//! `pow(a, b)`: aᵇ, with NumPy broadcasting; a negative integer exponent is an error.

crate::binary!(
    /// aᵇ, with NumPy broadcasting; a negative integer exponent is an error.
    Pow, "pow", f64::powf, |a, b| u32::try_from(b).ok().map(|b| a.wrapping_pow(b)), None, [(3.0, 2.0, 9.0), (4.0, 0.5, 2.0)],
    |at, a, b, y, g| {
        let less = at.plus(b, -1.0)?;
        let slope = at.op(Self {}, &[a, less])?;
        let slope = at.mul(b, slope)?;
        let log = at.op(super::Log {}, &[a])?;
        let part = at.mul(g, y)?;
        Ok([at.mul(g, slope)?, at.mul(part, log)?])
    }
);
