//! Numbers that change over a run: the learning rate, and what losses count.

use serde::{Deserialize, Serialize};

/// A number that stays, or goes from one value to another along half a cosine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scheduled {
    /// The same in every step.
    Constant(f64),
    /// From the first step to the last.
    Cosine {
        /// At the first step.
        from: f64,
        /// At the last step.
        to: f64,
    },
}

impl Scheduled {
    /// At step `step` of `steps`, from 0.
    pub fn at(self, step: u64, steps: u64) -> f64 {
        match self {
            Self::Constant(value) => value,
            Self::Cosine { from, to } => to + (from - to) * cosine(step as f64 / steps.saturating_sub(1).max(1) as f64),
        }
    }

    /// Whether it is zero throughout.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Constant(0.0) | Self::Cosine { from: 0.0, to: 0.0 })
    }

    /// Whether all of its values are finite and not negative.
    pub fn is_sound(self) -> bool {
        let sound = |x: f64| x.is_finite() && x >= 0.0;
        match self {
            Self::Constant(value) => sound(value),
            Self::Cosine { from, to } => sound(from) && sound(to),
        }
    }
}

/// The learning rate at step `step` of `steps`, from 0: rises evenly over `warmup` steps to `peak`, then falls along half
/// a cosine to `peak · last`.
pub fn rate(step: u64, steps: u64, warmup: u64, peak: f64, last: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let rest = steps.saturating_sub(warmup + 1).max(1);
    peak * (last + (1.0 - last) * cosine((step - warmup) as f64 / rest as f64))
}

/// From 1 at 0 to 0 at 1.
fn cosine(part: f64) -> f64 {
    (1.0 + libm::cos(std::f64::consts::PI * part.clamp(0.0, 1.0))) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_middles_are_where_they_belong() {
        let scheduled = Scheduled::Cosine { from: 0.1, to: 0.01 };
        assert_eq!((scheduled.at(0, 101), Scheduled::Constant(2.0).at(50, 101)), (0.1, 2.0));
        assert!((scheduled.at(50, 101) - 0.055).abs() < 1e-12 && (scheduled.at(100, 101) - 0.01).abs() < 1e-12);
        assert_eq!(scheduled.at(0, 1), 0.1);
        let rates: Vec<f64> = (0..14).map(|step| rate(step, 14, 4, 1.0, 0.1)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((rates[13] - 0.1).abs() < 1e-12 && rates[4..].is_sorted_by(|a, b| a >= b), "{rates:?}");
        assert_eq!(rate(0, 1, 0, 1.0, 0.5), 1.0);
    }
}
