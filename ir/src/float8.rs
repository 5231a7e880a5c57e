//! The two 8-bit floating-point formats of the OCP specification (OFP8, 2023): e4m3 (no infinities, largest 448) and
//! e5m2 (infinities, largest 57344). Encoding rounds to nearest, ties to even, and saturates finite values; a NaN stays
//! a NaN.

/// Largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;
/// Largest finite e5m2 value.
pub const E5M2_MAX: f32 = 57344.0;

/// The value of an e4m3 code.
pub fn e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    decode(code, 3, 7)
}

/// The value of an e5m2 code.
pub fn e5m2_to_f32(code: u8) -> f32 {
    match code & 0x7f {
        0x7c => f32::INFINITY.copysign(if code & 0x80 == 0 { 1.0 } else { -1.0 }),
        0x7d.. => f32::NAN,
        _ => decode(code, 2, 15),
    }
}

/// The nearest e4m3 code, ties to even, saturating at ±448.
pub fn f32_to_e4m3(x: f32) -> u8 {
    encode(x, 3, 7, 0x7e, 0x7f)
}

/// The nearest e5m2 code, ties to even, saturating at ±57344.
pub fn f32_to_e5m2(x: f32) -> u8 {
    encode(x, 2, 15, 0x7b, 0x7e)
}

fn decode(code: u8, mantissa_bits: u32, bias: i32) -> f32 {
    let mantissa = (code & ((1 << mantissa_bits) - 1)) as f32;
    let exponent = ((code & 0x7f) >> mantissa_bits) as i32;
    let unit = (mantissa_bits as i32 + bias - 1).min(120);
    let magnitude = match exponent {
        0 => mantissa * (-unit as f32).exp2(),
        e => (mantissa + (1 << mantissa_bits) as f32) * ((e - 1 - unit) as f32).exp2(),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

fn encode(x: f32, mantissa_bits: u32, bias: i32, largest: u8, nan: u8) -> u8 {
    let bits = x.to_bits();
    let sign = ((bits >> 31) as u8) << 7;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | nan;
    }
    let exponent = (magnitude >> 23) as i32 - 127;
    let code = if exponent < 1 - bias {
        // Subnormal in the target: count units of the last place; the sum is exact, so one rounding happens.
        let unit = (1 - bias - mantissa_bits as i32) as f32;
        (f32::from_bits(magnitude) * (-unit).exp2()).round_ties_even() as u32
    } else {
        let drop = 23 - mantissa_bits;
        let round = (1 << (drop - 1)) - 1 + ((magnitude >> drop) & 1);
        ((magnitude + round) >> drop) - (((127 - bias) as u32) << mantissa_bits)
    };
    sign | code.min(largest as u32) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_round_trip() {
        for code in 0..=255u8 {
            if !e4m3_to_f32(code).is_nan() {
                assert_eq!(f32_to_e4m3(e4m3_to_f32(code)), code);
            }
            let wide = e5m2_to_f32(code);
            if wide.is_finite() {
                assert_eq!(f32_to_e5m2(wide), code);
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even_and_saturates() {
        for (x, y) in
            [(448.0, 448.0), (1e9, 448.0), (-1e9, -448.0), (17.0, 16.0), (19.0, 20.0), (0.0146484375, 0.015625)]
        {
            assert_eq!(e4m3_to_f32(f32_to_e4m3(x)), y, "{x}");
        }
        assert_eq!(e4m3_to_f32(f32_to_e4m3(2f32.powi(-10))), 0.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(1.5 * 2f32.powi(-9))), 2f32.powi(-8));
        assert!(e4m3_to_f32(f32_to_e4m3(f32::NAN)).is_nan());
        assert_eq!(e5m2_to_f32(f32_to_e5m2(f32::INFINITY)), E5M2_MAX);
    }

    #[test]
    fn is_the_nearest_of_all_codes() {
        for i in 0..20000 {
            let x = (i as f32 * 0.37).sin() * (i as f32 / 2000.0 - 6.0).exp2();
            let best =
                (0..=255u8).map(e4m3_to_f32).filter(|v| !v.is_nan()).map(|v| (v - x).abs()).fold(f32::MAX, f32::min);
            assert_eq!((e4m3_to_f32(f32_to_e4m3(x)) - x).abs(), best, "{x}");
        }
    }
}
