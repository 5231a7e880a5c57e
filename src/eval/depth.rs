//! Depth accuracy.
//!
//! With prediction p and truth g over the pixels where g > 0, after alignment p ← a(p):
//! AbsRel = mean |p − g| / g; δⁿ = share of max(p/g, g/p) < 1.25ⁿ; RMSE = √mean (p − g)². A predicted depth that is not
//! positive counts as outside δ. Means run over the pixels of all views of a scene together.
//!
//! Alignments are least squares in depth (s p, s p + t) or in disparity: a(p) = 1/(s/p + t), fitted to 1/g over the
//! predictions that are positive. An aligned disparity is held at that of the farthest true depth or nearer, as Ranftl
//! et al., "MiDaS", 2020, cap depth; a prediction that is not positive has no disparity and stays at zero.

use serde::Serialize;

use crate::{Error, Result};

/// How a prediction is matched to the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alignment {
    /// Not at all.
    None,
    /// By the ratio of medians: s = median g / median p.
    Median,
    /// By least squares: s = Σ p g / Σ p².
    Scale,
    /// By least squares: s, t = argmin Σ (s p + t − g)².
    ScaleShift,
    /// By least squares between disparities: s = argmin Σ (s/p − 1/g)².
    DisparityScale,
    /// By least squares between disparities: s, t = argmin Σ (s/p + t − 1/g)².
    DisparityScaleShift,
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
pub const PROTOCOLS: [Protocol; 11] = [
    row("depth/none", Alignment::None, Scope::Scene),
    row("depth/median-scene", Alignment::Median, Scope::Scene),
    row("depth/median-view", Alignment::Median, Scope::View),
    row("depth/scale-scene", Alignment::Scale, Scope::Scene),
    row("depth/scale-view", Alignment::Scale, Scope::View),
    row("depth/scale-shift-scene", Alignment::ScaleShift, Scope::Scene),
    row("depth/scale-shift-view", Alignment::ScaleShift, Scope::View),
    row("depth/disparity-scale-scene", Alignment::DisparityScale, Scope::Scene),
    row("depth/disparity-scale-view", Alignment::DisparityScale, Scope::View),
    row("depth/disparity-scale-shift-scene", Alignment::DisparityScaleShift, Scope::Scene),
    row("depth/disparity-scale-shift-view", Alignment::DisparityScaleShift, Scope::View),
];

const fn row(name: &'static str, alignment: Alignment, scope: Scope) -> Protocol {
    Protocol { name, alignment, scope }
}

/// The accuracy of the depths of one scene.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DepthMetrics {
    /// The protocol that made the numbers.
    pub protocol: &'static str,
    /// Mean |p − g| / g.
    pub abs_rel: f64,
    /// Share of pixels with max(p/g, g/p) < 1.25.
    pub delta1: f64,
    /// The same below 1.25².
    pub delta2: f64,
    /// The same below 1.25³.
    pub delta3: f64,
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
            let aligned = self.alignment.fit(pairs)?;
            pairs.iter().for_each(|(p, g)| sums.add(aligned.apply(*p), *g));
        }
        let n = sums.count as f64;
        Ok(DepthMetrics {
            protocol: self.name,
            abs_rel: sums.relative / n,
            delta1: sums.within[0] as f64 / n,
            delta2: sums.within[1] as f64 / n,
            delta3: sums.within[2] as f64 / n,
            rmse: (sums.square / n).sqrt(),
            pixels: sums.count,
        })
    }
}

/// A map of depths.
#[derive(Clone, Copy, Debug)]
enum Fitted {
    /// s p + t.
    Depth { s: f64, t: f64 },
    /// 1 / max(s/p + t, least).
    Disparity { s: f64, t: f64, least: f64 },
}

impl Fitted {
    fn apply(self, p: f64) -> f64 {
        match self {
            Self::Depth { s, t } => s * p + t,
            Self::Disparity { .. } if p <= 0.0 => 0.0,
            Self::Disparity { s, t, least } => 1.0 / (s / p + t).max(least),
        }
    }
}

impl Alignment {
    /// The map that matches predictions to truths; `pairs` is not empty and its truths are positive.
    fn fit(self, pairs: &[(f64, f64)]) -> Result<Fitted> {
        let depth = |s, t| Fitted::Depth { s, t };
        let inverse = || pairs.iter().filter(|(p, _)| *p > 0.0).map(|(p, g)| (1.0 / p, 1.0 / g));
        let least = 1.0 / pairs.iter().fold(0.0, |far: f64, (_, g)| far.max(*g));
        let disparity = |(s, t)| Fitted::Disparity { s, t, least };
        let fitted = match self {
            Self::None => depth(1.0, 0.0),
            Self::Median => depth(median(pairs.iter().map(|p| p.1)) / median(pairs.iter().map(|p| p.0)), 0.0),
            Self::Scale => depth(factor(pairs.iter().copied()), 0.0),
            Self::ScaleShift => {
                let (s, t) = line(pairs.iter().copied());
                depth(s, t)
            }
            Self::DisparityScale => disparity((factor(inverse()), 0.0)),
            Self::DisparityScaleShift => disparity(line(inverse())),
        };
        let (s, t, shifted) = match fitted {
            Fitted::Depth { s, t } => (s, t, self == Self::ScaleShift),
            Fitted::Disparity { s, t, .. } => (s, t, self == Self::DisparityScaleShift),
        };
        // A shift leaves any slope a least-squares answer; a factor alone must keep depths in front of the camera.
        match s.is_finite() && t.is_finite() && (shifted || s > 0.0) {
            true => Ok(fitted),
            false => Err(Error::new(
                crate::Kind::Accuracy,
                "eval.depth",
                format!(
                    "the predicted depths cannot be aligned with the truth: the factor would be {s}, the shift {t}"
                ),
            )),
        }
    }
}

/// argmin Σ (s x − y)².
fn factor(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (xy, xx) = pairs.fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + x * y, xx + x * x));
    xy / xx
}

/// argmin Σ (s x + t − y)², about the means, so that nothing is lost where x hardly varies; not a number where x does
/// not vary at all.
fn line(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    let (n, x, y) = pairs.clone().fold((0.0, 0.0, 0.0), |(n, sx, sy), (x, y)| (n + 1.0, sx + x, sy + y));
    let (x, y) = (x / n, y / n);
    let s = factor(pairs.map(|(a, b)| (a - x, b - y)));
    (s, y - s * x)
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
    within: [usize; 3],
    count: usize,
}

impl Sums {
    fn add(&mut self, p: f64, g: f64) {
        self.relative += (p - g).abs() / g;
        self.square += (p - g) * (p - g);
        for (n, within) in self.within.iter_mut().enumerate() {
            *within += usize::from(p > 0.0 && (p / g).max(g / p) < 1.25f64.powi(n as i32 + 1));
        }
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
        for protocol in &PROTOCOLS[1..] {
            let m = protocol.measure(&[&halves[0], &halves[1]], &truth).unwrap();
            assert!(m.abs_rel < 1e-12 && (m.delta1, m.delta3) == (1.0, 1.0), "{m:?}");
        }
        assert_eq!(measure("depth/none", &[&halves[0], &halves[1]], &truth).abs_rel, 0.5);
        // Different scales in each view: only the alignment by view takes them out.
        let mixed: [&[f32]; 2] = [&[1.0, 2.0, 4.0], &halves[1]];
        assert!(measure("depth/median-view", &mixed, &truth).abs_rel < 1e-12);
        assert!(measure("depth/median-scene", &mixed, &truth).abs_rel > 0.1);
    }

    #[test]
    fn thresholds_are_powers() {
        let m = measure("depth/none", &[&[1.2, 1.5, 1.9, 2.0, 1.0 / 1.3]], &[&[1.0; 5]]);
        assert_eq!((m.delta1, m.delta2, m.delta3), (1.0 / 5.0, 3.0 / 5.0, 4.0 / 5.0));
    }

    #[test]
    fn shifts_are_taken_out_where_they_are_declared() {
        let truth = [1.0f32, 2.0, 4.0, 8.0];
        // p = 2 g − 1 is undone in depth; 1/p = 2/g + ¼ is undone in disparity.
        let shifted = truth.map(|g| 2.0 * g - 1.0);
        let inverse = truth.map(|g| 1.0 / (2.0 / g + 0.25));
        for (name, p, exact) in [
            ("depth/scale-shift-scene", shifted, true),
            ("depth/scale-shift-view", shifted, true),
            ("depth/scale-scene", shifted, false),
            ("depth/disparity-scale-shift-scene", inverse, true),
            ("depth/disparity-scale-shift-view", inverse, true),
            ("depth/disparity-scale-scene", inverse, false),
        ] {
            let m = measure(name, &[&p], &[&truth]);
            assert!((m.abs_rel < 1e-6) == exact, "{m:?}");
        }
    }

    #[test]
    fn disparities_end_at_the_farthest_truth() {
        // s = (1·1 + 1·½ + 0) / 2 over the positive predictions: 1/p ∈ {1, 1}, 1/g ∈ {1, ½}.
        let m = measure("depth/disparity-scale-scene", &[&[1.0, 1.0, -3.0]], &[&[1.0, 2.0, 2.0]]);
        let p = 1.0 / 0.75;
        assert!((m.abs_rel - ((p - 1.0) + (2.0 - p) / 2.0 + 1.0) / 3.0).abs() < 1e-12, "{m:?}");
        // The line through (1, 1) and (½, ⅕) leaves ⅒ at 7/16, below the disparity 1/5 of the farthest truth.
        let far = measure("depth/disparity-scale-shift-scene", &[&[1.0, 2.0, 2.0]], &[&[1.0, 5.0, 5.0]]);
        assert!(far.abs_rel < 1e-12 && far.delta1 == 1.0);
        let capped = Alignment::DisparityScaleShift.fit(&[(1.0, 1.0), (2.0, 5.0)]).unwrap();
        assert!((capped.apply(16.0 / 7.0) - 5.0).abs() < 1e-12);
    }

    proptest::proptest! {
        #[test]
        fn more_freedom_never_leaves_a_larger_square(
            pairs in proptest::collection::vec((0.1f32..10.0, 0.1f32..10.0), 3..40),
        ) {
            let (p, g): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let rmse = |name| measure(name, &[&p], &[&g]).rmse;
            let (none, median, scale) = (rmse("depth/none"), rmse("depth/median-scene"), rmse("depth/scale-scene"));
            proptest::prop_assert!(scale <= none + 1e-9 && scale <= median + 1e-9);
            proptest::prop_assert!(rmse("depth/scale-shift-scene") <= scale + 1e-9);
        }

        #[test]
        fn shares_grow_with_their_threshold(
            pairs in proptest::collection::vec((0.1f32..10.0, 0.1f32..10.0), 1..40),
        ) {
            let (p, g): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let m = measure("depth/none", &[&p], &[&g]);
            proptest::prop_assert!(m.delta1 <= m.delta2 && m.delta2 <= m.delta3);
        }
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
