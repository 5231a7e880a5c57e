//! Depth accuracy.
//!
//! With prediction p and truth g over the pixels where g > 0, after alignment p ← s p:
//! AbsRel = mean |p − g| / g; δ = share of max(p/g, g/p) < 1.25; RMSE = √mean (p − g)². A predicted depth that is not
//! positive counts as outside δ. Means run over the pixels of all views of a scene together.

use serde::Serialize;

use crate::{Error, Result};

/// How the scale of a prediction is matched to the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    /// Not at all: s = 1.
    None,
    /// By the ratio of medians: s = median g / median p.
    Median,
    /// By least squares: s = Σ p g / Σ p².
    Scale,
}

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All views of a scene.
    Scene,
    /// Each view by itself.
    View,
}

/// A named way to measure depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// As reports print it.
    pub name: &'static str,
    /// How scale is matched.
    pub alignment: Alignment,
    /// What shares one scale.
    pub scope: Scope,
}

/// All protocols.
pub const PROTOCOLS: [Protocol; 5] = [
    Protocol { name: "depth/none", alignment: Alignment::None, scope: Scope::Scene },
    Protocol { name: "depth/median-scene", alignment: Alignment::Median, scope: Scope::Scene },
    Protocol { name: "depth/median-view", alignment: Alignment::Median, scope: Scope::View },
    Protocol { name: "depth/scale-scene", alignment: Alignment::Scale, scope: Scope::Scene },
    Protocol { name: "depth/scale-view", alignment: Alignment::Scale, scope: Scope::View },
];

/// The accuracy of the depths of one scene.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DepthMetrics {
    /// The protocol that made the numbers.
    pub protocol: &'static str,
    /// Mean |p − g| / g.
    pub abs_rel: f64,
    /// Share of pixels with max(p/g, g/p) < 1.25.
    pub delta1: f64,
    /// Root of the mean square of p − g, in units of the truth.
    pub rmse: f64,
    /// Pixels with a true depth.
    pub pixels: usize,
}

impl Protocol {
    /// The protocol of that name. Errors: `eval.protocol`, which lists all.
    pub fn named(name: &str) -> Result<Self> {
        PROTOCOLS.into_iter().find(|p| p.name == name).ok_or_else(|| {
            let known: Vec<&str> = PROTOCOLS.iter().map(|p| p.name).collect();
            Error::usage("eval.protocol", format!("there is no protocol `{name}`; known: {}", known.join(", ")))
        })
    }

    /// Measures the predicted depths of the views of one scene.
    ///
    /// Errors: `eval.depth` where numbers of views or pixels differ, no pixel has a true depth, a prediction under a
    /// true depth is not finite, or the alignment has no scale.
    pub fn measure(&self, predicted: &[&[f32]], truth: &[&[f32]]) -> Result<DepthMetrics> {
        let views = pixels(predicted, truth)?;
        let views = match self.scope {
            Scope::Scene => vec![views.concat()],
            Scope::View => views,
        };
        let mut sums = Sums::default();
        for pairs in views.iter().filter(|pairs| !pairs.is_empty()) {
            let scale = self.alignment.scale(pairs)?;
            pairs.iter().for_each(|(p, g)| sums.add(scale * p, *g));
        }
        let n = sums.count as f64;
        Ok(DepthMetrics {
            protocol: self.name,
            abs_rel: sums.relative / n,
            delta1: sums.within as f64 / n,
            rmse: (sums.square / n).sqrt(),
            pixels: sums.count,
        })
    }
}

impl Alignment {
    /// The factor that matches predictions to truths.
    fn scale(self, pairs: &[(f64, f64)]) -> Result<f64> {
        let scale = match self {
            Self::None => 1.0,
            Self::Median => median(pairs.iter().map(|p| p.1)) / median(pairs.iter().map(|p| p.0)),
            Self::Scale => {
                pairs.iter().map(|(p, g)| p * g).sum::<f64>() / pairs.iter().map(|(p, _)| p * p).sum::<f64>()
            }
        };
        match scale.is_finite() && scale > 0.0 {
            true => Ok(scale),
            false => Err(Error::new(
                crate::Kind::Accuracy,
                "eval.depth",
                format!("the predicted depths cannot be scaled to the truth: the factor would be {scale}"),
            )),
        }
    }
}

/// The middle value; the mean of the two middle ones for an even count. Not a number without values.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// (prediction, truth) of the valid pixels of each view.
fn pixels(predicted: &[&[f32]], truth: &[&[f32]]) -> Result<Vec<Vec<(f64, f64)>>> {
    let mut problems = Vec::new();
    if predicted.len() != truth.len() {
        problems.push(format!("{} views are predicted, {} have a truth", predicted.len(), truth.len()));
    }
    let mut views = Vec::new();
    for (view, (p, g)) in predicted.iter().zip(truth).enumerate() {
        if p.len() != g.len() {
            problems.push(format!("view {view}: {} pixels are predicted, {} have a truth", p.len(), g.len()));
        }
        let known = |g: f32| g > 0.0 && g.is_finite();
        let pairs: Vec<(f64, f64)> =
            p.iter().zip(*g).filter(|(_, g)| known(**g)).map(|(p, g)| (f64::from(*p), f64::from(*g))).collect();
        let bad = pairs.iter().filter(|(p, _)| !p.is_finite()).count();
        if bad > 0 {
            problems.push(format!("view {view}: {bad} predicted depths are not finite"));
        }
        views.push(pairs);
    }
    if problems.is_empty() && views.iter().all(Vec::is_empty) {
        problems.push("no pixel has a true depth".into());
    }
    match problems.is_empty() {
        true => Ok(views),
        false => Err(Error::all(crate::Kind::Accuracy, "eval.depth", problems)),
    }
}

#[derive(Default)]
struct Sums {
    relative: f64,
    square: f64,
    within: usize,
    count: usize,
}

impl Sums {
    fn add(&mut self, p: f64, g: f64) {
        self.relative += (p - g).abs() / g;
        self.square += (p - g) * (p - g);
        self.within += usize::from(p > 0.0 && (p / g).max(g / p) < 1.25);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(name: &str, predicted: &[&[f32]], truth: &[&[f32]]) -> DepthMetrics {
        Protocol::named(name).unwrap().measure(predicted, truth).unwrap()
    }

    #[test]
    fn errors_have_closed_forms() {
        let m = measure("depth/none", &[&[1.1, 3.0, 9.0, 2.0]], &[&[1.0, 2.0, 0.0, 2.0]]);
        assert!((m.abs_rel - (0.1 + 0.5 + 0.0) / 3.0).abs() < 1e-7);
        assert!((m.rmse - ((0.01 + 1.0) / 3f64).sqrt()).abs() < 1e-7);
        assert_eq!((m.delta1, m.pixels, m.protocol), (2.0 / 3.0, 3, "depth/none"));
        assert_eq!(measure("depth/none", &[&[0.0, -1.0]], &[&[1.0, 1.0]]).delta1, 0.0);
    }

    #[test]
    fn alignment_removes_exactly_the_scale_it_declares() {
        let truth: [&[f32]; 2] = [&[1.0, 2.0, 4.0], &[3.0, 5.0, 8.0]];
        let halves = truth.map(|v| v.iter().map(|g| g / 2.0).collect::<Vec<_>>());
        for name in ["depth/median-scene", "depth/median-view", "depth/scale-scene", "depth/scale-view"] {
            assert!(measure(name, &[&halves[0], &halves[1]], &truth).abs_rel < 1e-12, "{name}");
        }
        assert_eq!(measure("depth/none", &[&halves[0], &halves[1]], &truth).abs_rel, 0.5);
        // Different scales in each view: only the alignment by view takes them out.
        let mixed: [&[f32]; 2] = [&[1.0, 2.0, 4.0], &halves[1]];
        assert!(measure("depth/median-view", &mixed, &truth).abs_rel < 1e-12);
        assert!(measure("depth/median-scene", &mixed, &truth).abs_rel > 0.1);
    }

    #[test]
    fn least_squares_is_the_minimum() {
        let (p, g) = ([1.0f32, 2.0, 3.0], [2.0f32, 3.0, 7.0]);
        // s = (2 + 6 + 21) / 14.
        let s = 29.0 / 14.0;
        let expect = ((0..3).map(|i| (s * f64::from(p[i]) - f64::from(g[i])).powi(2)).sum::<f64>() / 3.0).sqrt();
        assert!((measure("depth/scale-scene", &[&p], &[&g]).rmse - expect).abs() < 1e-12);
        assert!(measure("depth/median-scene", &[&p], &[&g]).rmse > expect);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_in_full() {
        let none = Protocol::named("depth/none").unwrap();
        let error = none.measure(&[&[1.0], &[f32::NAN]], &[&[1.0, 1.0], &[1.0], &[1.0]]).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("eval.depth", 3));
        assert!(none.measure(&[&[1.0]], &[&[0.0]]).is_err());
        assert!(Protocol::named("depth/scale-view").unwrap().measure(&[&[0.0]], &[&[1.0]]).is_err());
        assert!(Protocol::named("depth").unwrap_err().to_string().contains("depth/median-view"));
    }

    #[test]
    fn medians_of_even_counts_lie_between() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
        assert_eq!(median([4.0, 1.0, 3.0].into_iter()), 3.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
