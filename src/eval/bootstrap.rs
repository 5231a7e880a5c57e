//! Intervals over scenes by the percentile bootstrap (Efron 1979): scenes are drawn again with replacement, by a seed.

use serde::Serialize;

use crate::{Error, Result, rng::Stream};

/// How often scenes are drawn again.
pub const RESAMPLES: usize = 2000;

/// An estimate, and the range that holds 95 % of its resamples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Over the scenes as they are.
    pub estimate: f64,
    /// The 2.5 % quantile of the resamples.
    pub low: f64,
    /// The 97.5 % quantile of the resamples.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The mean of one number a scene. Errors: `eval.bootstrap` without scenes.
pub fn mean(values: &[f64], seed: u64) -> Result<Interval> {
    resample(values.len(), seed, |pick| pick.iter().map(|i| values[*i]).sum::<f64>() / pick.len() as f64)
}

/// The ratio of the means of two numbers a scene, which are drawn together: what a rewrite costs on the same scenes.
///
/// Errors: `eval.bootstrap` without scenes, or where the numbers of scenes differ.
pub fn ratio(above: &[f64], below: &[f64], seed: u64) -> Result<Interval> {
    if above.len() != below.len() {
        let problem = format!("{} and {} scenes cannot be paired", above.len(), below.len());
        return Err(Error::usage("eval.bootstrap", problem));
    }
    resample(above.len(), seed, |pick| {
        pick.iter().map(|i| above[*i]).sum::<f64>() / pick.iter().map(|i| below[*i]).sum::<f64>()
    })
}

fn resample(n: usize, seed: u64, estimate: impl Fn(&[usize]) -> f64) -> Result<Interval> {
    if n == 0 {
        return Err(Error::usage("eval.bootstrap", "an interval needs at least one scene"));
    }
    let mut stream = Stream::new(&[seed]);
    let mut values: Vec<f64> =
        (0..RESAMPLES).map(|_| estimate(&(0..n).map(|_| stream.below(n)).collect::<Vec<_>>())).collect();
    values.sort_unstable_by(f64::total_cmp);
    let quantile = |q: f64| values[(q * (RESAMPLES - 1) as f64).round() as usize];
    let whole: Vec<usize> = (0..n).collect();
    Ok(Interval { estimate: estimate(&whole), low: quantile(0.025), high: quantile(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_is_that_of_the_standard_error() {
        let mut stream = Stream::new(&[5]);
        let values: Vec<f64> = (0..400).map(|_| 3.0 + stream.normal()).collect();
        let interval = mean(&values, 1).unwrap();
        // ± 1.96 / √400 about the mean.
        assert!((interval.high - interval.low - 2.0 * 1.96 / 20.0).abs() < 0.03, "{interval:?}");
        assert!(interval.contains(interval.estimate) && interval.contains(3.0));
        assert_eq!(interval, mean(&values, 1).unwrap());
        assert_ne!(interval, mean(&values, 2).unwrap());
    }

    #[test]
    fn pairs_are_drawn_together() {
        // A constant factor between paired scenes has no uncertainty, however much the scenes differ.
        let below: Vec<f64> = (1..=20).map(f64::from).collect();
        let above: Vec<f64> = below.iter().map(|v| 1.2 * v).collect();
        let interval = ratio(&above, &below, 3).unwrap();
        for value in [interval.estimate, interval.low, interval.high] {
            assert!((value - 1.2).abs() < 1e-12);
        }
    }

    #[test]
    fn nothing_to_draw_from_is_refused() {
        assert_eq!(mean(&[], 0).unwrap_err().code, "eval.bootstrap");
        assert_eq!(ratio(&[1.0], &[], 0).unwrap_err().code, "eval.bootstrap");
        let one = mean(&[2.5], 0).unwrap();
        assert_eq!((one.low, one.estimate, one.high), (2.5, 2.5, 2.5));
    }
}
