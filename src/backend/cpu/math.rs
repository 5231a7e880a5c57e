//! Elementary functions on f32 without branches, so that loops over them become vector code.
//!
//! Each is within a few units in the last place of the true value over its whole domain.

use lite3r_ir::ops::activation::Activation;

/// Runs `f` compiled for the widest vectors of this machine. What `f` calls must be inlined into it to profit.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// eˣ: n = ⌊x log₂e⌉, a polynomial on [−½ ln 2, ½ ln 2], and n put into the exponent. Results below 2⁻¹²⁵ become zero.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the rounded integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x < 89.0 { x } else { 89.0 };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    // ln 2 in two parts (Cody and Waite), so that the difference is exact.
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = r.mul_add(1.987_569_1e-4, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_65);
    let p = p.mul_add(r, 0.5);
    let p = (r * r).mul_add(p, r) + 1.0;
    // 2ⁿ⁻¹, then doubled: n may be 128.
    let half_scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let y = p * half_scale * 2.0;
    let y = if x < -86.6 { 0.0 } else { y };
    let y = if x > 88.722_84 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// The error function, after N. Juffa: an odd polynomial near zero, 1 − e^p(|x|) beyond.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let near = s.mul_add(-5.967_617e-4, 4.991_194_2e-3);
    let near = near.mul_add(s, -2.676_813_5e-2);
    let near = near.mul_add(s, 1.128_199_25e-1);
    let near = near.mul_add(s, -3.761_253_4e-1);
    let near = near.mul_add(s, 1.283_791_7e-1).mul_add(x, x);
    let far = t.mul_add(-1.728_534_7e-5, 3.831_971_3e-4);
    let far = far.mul_add(s, t.mul_add(-3.883_964_4e-3, 2.425_462_2e-2));
    let far = far.mul_add(t, -1.067_778_8e-1);
    let far = far.mul_add(t, -6.348_467e-1);
    let far = far.mul_add(t, -1.287_175_1e-1);
    // Beyond 4 the result is 1 to the last place, and the polynomial would overflow.
    let far = if t < 4.0 { exp(far.mul_add(t, -t)) } else { 0.0 };
    let y = if t > 0.927_734_4 { (1.0 - far).copysign(x) } else { near };
    if x.is_nan() { x } else { y }
}

/// The hyperbolic tangent: an odd polynomial near zero (Cephes), 1 − 2/(e²ˣ + 1) beyond.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let near = s.mul_add(-5.704_988_7e-3, 2.063_909e-2);
    let near = near.mul_add(s, -5.373_971_5e-2);
    let near = near.mul_add(s, 1.333_144_2e-1);
    let near = near.mul_add(s, -3.333_328e-1);
    let near = (near * s).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * t) + 1.0)).copysign(x);
    let y = if t > 0.625 { far } else { near };
    if x.is_nan() { x } else { y }
}

/// 1/(1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x/(1 + e⁻ˣ).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x Φ(x) by the error function.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// x Φ(x) by tanh(√(2/π) (x + 0.044715 x³)).
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (0.044715 * x * x).mul_add(x, x);
    0.5 * x * (1.0 + tanh(inner))
}

/// max(x, 0); NaN gives 0, as in the reference.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x > 0.0 { x } else { 0.0 }
}

/// An activation in place.
pub fn activate(activation: Activation, row: &mut [f32]) {
    #[inline(always)]
    fn each(row: &mut [f32], f: impl Fn(f32) -> f32) {
        vectorised(
            #[inline(always)]
            || row.iter_mut().for_each(|x| *x = f(*x)),
        );
    }
    match activation {
        Activation::None => {}
        Activation::Relu => each(row, relu),
        Activation::Gelu => each(row, gelu),
        Activation::GeluTanh => each(row, gelu_tanh),
        Activation::Silu => each(row, silu),
    }
}

#[cfg(test)]
mod tests {
    use lite3r_ir::ops::special;

    /// The largest error in units of 2⁻²³ of the true value, or of `floor` where that is larger.
    fn worst(f: impl Fn(f32) -> f32, reference: impl Fn(f64) -> f64, from: f64, to: f64, floor: f64) -> f64 {
        (0..=200_000)
            .map(|i| (from + (to - from) * i as f64 / 200_000.0) as f32)
            .map(|x| (f(x) as f64 - reference(x as f64)).abs() / reference(x as f64).abs().max(floor) / 2f64.powi(-23))
            .fold(0.0, f64::max)
    }

    #[test]
    fn close_to_the_true_values() {
        assert!(worst(super::exp, f64::exp, -86.0, 88.7, 0.0) < 1.5);
        assert!(worst(super::erf, special::erf, -6.0, 6.0, 0.0) < 1.5);
        assert!(worst(super::erf, special::erf, -1e-3, 1e-3, 1e-30) < 1.5);
        assert!(worst(super::tanh, f64::tanh, -12.0, 12.0, 1e-30) < 2.5);
        assert!(worst(super::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0, 1e-30) < 3.0);
    }

    #[test]
    fn limits() {
        assert_eq!([super::exp(-200.0), super::exp(0.0), super::exp(100.0)], [0.0, 1.0, f32::INFINITY]);
        assert_eq!([super::exp(f32::NEG_INFINITY), super::exp(f32::INFINITY)], [0.0, f32::INFINITY]);
        assert_eq!([super::erf(f32::INFINITY), super::erf(-100.0), super::erf(0.0)], [1.0, -1.0, 0.0]);
        assert_eq!([super::tanh(f32::INFINITY), super::tanh(-100.0)], [1.0, -1.0]);
        assert!(super::exp(f32::NAN).is_nan() && super::erf(f32::NAN).is_nan() && super::tanh(f32::NAN).is_nan());
    }
}
