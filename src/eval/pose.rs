//! Pose accuracy over pairs of views.
//!
//! The relative motion of a pair is E_j E_i⁻¹ with world-to-camera E, so nothing depends on either world frame, nor the
//! direction of translation on scale. Rotation error: the angle of R_predᵀ R_true. Translation error: the angle
//! between the directions of translation. The area under the accuracy curve at N degrees takes the larger of both a
//! pair: with one-degree bins, the mean over k = 1..=N of the share of pairs with an error below k (the last bin
//! closed). RRA and RTA at N degrees are the shares of pairs whose rotation, whose translation errs by less. Laws: Wang
//! et al., "PoseDiffusion", 2023; Wang et al., "VGGT", 2025.

use serde::Serialize;

use super::depth::median;
use crate::{
    Error, Result,
    geometry::{Mat4, compose, direction_angle, inverse, rotation, rotation_angle, translation},
};

/// Degrees at which the curves are cut.
pub const THRESHOLDS: [usize; 4] = [3, 5, 15, 30];

/// A named way to measure poses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// As reports print it.
    pub name: &'static str,
    /// Whether opposite directions of translation count as equal: min(θ, 180° − θ).
    pub folded: bool,
    /// How the curve is cut into bins.
    pub bins: Bins,
}

/// How errors up to N degrees are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bins {
    /// N bins of one degree (`numpy.histogram` over 0, 1, …, N).
    Whole,
    /// N + 1 equal bins over 0..=N (`torch.histc`).
    Extra,
}

/// All protocols.
pub const PROTOCOLS: [Protocol; 3] = [
    Protocol { name: "pose/pairs", folded: false, bins: Bins::Whole },
    Protocol { name: "pose/pairs-folded", folded: true, bins: Bins::Whole },
    Protocol { name: "pose/pairs-folded-histc", folded: true, bins: Bins::Extra },
];

/// The errors of one pair, in degrees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairError {
    /// The two views, i < j.
    pub views: (usize, usize),
    /// Of the relative rotation.
    pub rotation: f64,
    /// Of the direction of the relative translation; `None` where the true one is zero. A prediction without direction
    /// counts as opposite.
    pub translation: Option<f64>,
}

impl PairError {
    /// The larger of both.
    pub fn worst(&self) -> f64 {
        self.translation.map_or(self.rotation, |t| t.max(self.rotation))
    }
}

/// The accuracy of the poses of one scene.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoseMetrics {
    /// The protocol that made the numbers.
    pub protocol: &'static str,
    /// Mean and median rotation error, in degrees.
    pub rotation: (f64, f64),
    /// Mean and median error of the direction of translation, in degrees, over pairs that have one.
    pub translation: (f64, f64),
    /// (N, area under the curve up to N degrees) for every [`THRESHOLDS`].
    pub auc: [(usize, f64); 4],
    /// (N, share of pairs whose rotation errs by less than N degrees) for every [`THRESHOLDS`].
    pub rra: [(usize, f64); 4],
    /// The same for the direction of translation, over pairs that have one.
    pub rta: [(usize, f64); 4],
    /// Pairs of views.
    pub pairs: usize,
    /// Pairs whose true translation has no direction.
    pub undirected: usize,
}

impl Protocol {
    /// The protocol of that name. Errors: `eval.protocol`, which lists all.
    pub fn named(name: &str) -> Result<Self> {
        PROTOCOLS.into_iter().find(|p| p.name == name).ok_or_else(|| {
            let known: Vec<&str> = PROTOCOLS.iter().map(|p| p.name).collect();
            Error::usage("eval.protocol", format!("there is no protocol `{name}`; known: {}", known.join(", ")))
        })
    }

    /// The errors of all pairs i < j. Errors: `eval.pose` as [`Protocol::measure`].
    pub fn pairs(&self, predicted: &[Mat4], truth: &[Mat4]) -> Result<Vec<PairError>> {
        check(predicted, truth)?;
        let relative = |poses: &[Mat4], i: usize, j: usize| compose(&poses[j], &inverse(&poses[i]));
        let error = |i: usize, j: usize| {
            let (p, g) = (relative(predicted, i, j), relative(truth, i, j));
            let moved = translation(&g);
            let angle = direction_angle(translation(&p), moved).unwrap_or(180.0);
            let angle = if self.folded { angle.min(180.0 - angle) } else { angle };
            PairError {
                views: (i, j),
                rotation: rotation_angle(&rotation(&p), &rotation(&g)),
                translation: direction_angle(moved, moved).map(|_| angle),
            }
        };
        Ok((0..truth.len()).flat_map(|j| (0..j).map(move |i| (i, j))).map(|(i, j)| error(i, j)).collect())
    }

    /// Measures predicted world-to-camera poses of one scene.
    ///
    /// Errors: `eval.pose` where the numbers of views differ, there are fewer than two, or a prediction is not finite.
    pub fn measure(&self, predicted: &[Mat4], truth: &[Mat4]) -> Result<PoseMetrics> {
        let pairs = self.pairs(predicted, truth)?;
        let summary = |values: Vec<f64>| (mean(&values), median(values.iter().copied()));
        let directed: Vec<f64> = pairs.iter().filter_map(|p| p.translation).collect();
        let worst: Vec<f64> = pairs.iter().map(PairError::worst).collect();
        let turned: Vec<f64> = pairs.iter().map(|p| p.rotation).collect();
        Ok(PoseMetrics {
            protocol: self.name,
            rra: THRESHOLDS.map(|n| (n, below(&turned, n as f64))),
            rta: THRESHOLDS.map(|n| (n, below(&directed, n as f64))),
            rotation: summary(turned),
            undirected: pairs.len() - directed.len(),
            translation: summary(directed),
            auc: THRESHOLDS.map(|n| (n, auc(&worst, n, self.bins))),
            pairs: pairs.len(),
        })
    }
}

/// The area under the accuracy curve up to `threshold` degrees, in 0..=1.
pub fn auc(errors: &[f64], threshold: usize, bins: Bins) -> f64 {
    let top = threshold as f64;
    let (count, width) = match bins {
        Bins::Whole => (threshold, 1.0),
        Bins::Extra => (threshold + 1, top / (top + 1.0)),
    };
    let mut histogram = vec![0usize; count];
    for error in errors.iter().filter(|e| (0.0..=top).contains(*e)) {
        histogram[((error / width) as usize).min(count - 1)] += 1;
    }
    let mut below = 0;
    let shares = histogram.iter().map(|n| {
        below += n;
        below as f64 / errors.len() as f64
    });
    shares.sum::<f64>() / count as f64
}

/// The share of values below a limit.
pub fn below(values: &[f64], limit: f64) -> f64 {
    values.iter().filter(|v| **v < limit).count() as f64 / values.len() as f64
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn check(predicted: &[Mat4], truth: &[Mat4]) -> Result<()> {
    let mut problems = Vec::new();
    if predicted.len() != truth.len() {
        problems.push(format!("{} poses are predicted, {} have a truth", predicted.len(), truth.len()));
    }
    if truth.len() < 2 {
        problems.push(format!("pairs need at least two views, there are {}", truth.len()));
    }
    let bad = predicted.iter().enumerate().filter(|(_, m)| m.iter().flatten().any(|v| !v.is_finite()));
    problems.extend(bad.map(|(view, _)| format!("view {view}: the predicted pose is not finite")));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::all(crate::Kind::Accuracy, "eval.pose", problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{IDENTITY, Vec3, rigid};

    fn pose(degrees: f64, translation: Vec3) -> Mat4 {
        let (s, c) = degrees.to_radians().sin_cos();
        rigid(&[[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], translation)
    }

    fn measure(name: &str, predicted: &[Mat4], truth: &[Mat4]) -> PoseMetrics {
        Protocol::named(name).unwrap().measure(predicted, truth).unwrap()
    }

    #[test]
    fn exact_poses_in_any_world_and_scale_have_no_error() {
        let truth = [pose(0.0, [0.0, 0.0, 1.0]), pose(20.0, [1.0, 0.0, 2.0]), pose(-35.0, [0.5, 0.5, 0.0])];
        let world = pose(77.0, [3.0, -1.0, 2.0]);
        // Scaling a world about its origin scales the translations; then the world itself moves.
        let scaled = truth.map(|m| {
            let mut m = m;
            (0..3).for_each(|i| m[i][3] *= 2.5);
            compose(&m, &world)
        });
        let exact = measure("pose/pairs", &scaled, &truth);
        assert!(exact.rotation.0 < 1e-6 && exact.translation.0 < 1e-6, "{exact:?}");
        assert_eq!((exact.pairs, exact.undirected, exact.auc[0]), (3, 0, (3, 1.0)));
    }

    #[test]
    fn angles_have_closed_forms() {
        let truth = [IDENTITY, pose(30.0, [1.0, 0.0, 0.0])];
        let predicted = [IDENTITY, pose(37.0, [1.0, 0.0, 1.0])];
        let m = measure("pose/pairs", &predicted, &truth);
        assert!((m.rotation.0 - 7.0).abs() < 1e-9 && (m.translation.0 - 45.0).abs() < 1e-9);
        let back = [IDENTITY, pose(30.0, [-1.0, 0.0, 0.0])];
        assert!((measure("pose/pairs", &back, &truth).translation.0 - 180.0).abs() < 1e-9);
        assert!(measure("pose/pairs-folded", &back, &truth).translation.0 < 1e-9);
    }

    #[test]
    fn one_wrong_view_counts_in_its_pairs_only() {
        let truth: Vec<Mat4> = (0..5).map(|i| pose(10.0 * f64::from(i), [f64::from(i), 0.0, 1.0])).collect();
        let mut predicted = truth.clone();
        predicted[3] = pose(30.0 + 12.0, [3.0, 0.0, 1.0]);
        let pairs = Protocol::named("pose/pairs").unwrap().pairs(&predicted, &truth).unwrap();
        assert_eq!(pairs.len(), 10);
        for pair in pairs {
            let touched = pair.views.0 == 3 || pair.views.1 == 3;
            assert!((pair.rotation - if touched { 12.0 } else { 0.0 }).abs() < 1e-6);
        }
    }

    #[test]
    fn pairs_without_baseline_are_counted_apart() {
        let truth = [IDENTITY, pose(10.0, [0.0; 3]), pose(0.0, [1.0, 0.0, 0.0])];
        let m = measure("pose/pairs", &truth, &truth);
        assert_eq!((m.pairs, m.undirected), (3, 1));
        let still = [IDENTITY, pose(10.0, [0.0; 3]), IDENTITY];
        assert_eq!(measure("pose/pairs", &still, &truth).translation.0, 180.0);
    }

    #[test]
    fn area_follows_both_histograms() {
        // Bins 0..1, 1..2, 2..3: one error each in the first and the second, the third is closed at 3, one beyond.
        let errors = [0.5, 1.5, 3.0, 40.0];
        assert!((auc(&errors, 3, Bins::Whole) - (0.25 + 0.5 + 0.75) / 3.0).abs() < 1e-12);
        // Four bins of ¾ degree: 0.5 in the first, 1.5 opens the third, 3.0 in the last.
        assert!((auc(&errors, 3, Bins::Extra) - (0.25 + 0.25 + 0.5 + 0.75) / 4.0).abs() < 1e-12);
        assert_eq!(auc(&[0.0; 4], 30, Bins::Whole), 1.0);
        assert_eq!(auc(&[31.0; 4], 30, Bins::Whole), 0.0);
        // Uniform errors over 0..N leave the area under a straight line, but for half a bin.
        let uniform: Vec<f64> = (0..3000).map(|i| f64::from(i) / 100.0).collect();
        assert!((auc(&uniform, 30, Bins::Whole) - 0.5 - 0.5 / 30.0).abs() < 1e-9);
    }

    #[test]
    fn shares_of_pairs_have_closed_forms() {
        // Pair errors of rotation: 4, 10, 6 degrees; translations are exact but for view 2, which errs by 45.
        let truth = [IDENTITY, pose(0.0, [1.0, 0.0, 0.0]), pose(0.0, [0.0, 0.0, 1.0])];
        let predicted = [IDENTITY, pose(4.0, [1.0, 0.0, 0.0]), pose(10.0, [1.0, 0.0, 1.0])];
        let m = measure("pose/pairs", &predicted, &truth);
        assert_eq!(m.rra, [(3, 0.0), (5, 1.0 / 3.0), (15, 1.0), (30, 1.0)]);
        assert_eq!(m.rta.map(|(_, share)| share < 1.0), [true; 4]);
        assert!(m.auc[3].1 <= m.rra[3].1 && below(&[3.0], 3.0) == 0.0);
    }

    proptest::proptest! {
        #[test]
        fn areas_lie_below_the_share_at_their_end(
            errors in proptest::collection::vec(0.0f64..180.0, 1..60),
            n in 1usize..40,
        ) {
            for bins in [Bins::Whole, Bins::Extra] {
                let area = auc(&errors, n, bins);
                let share = errors.iter().filter(|e| **e <= n as f64).count() as f64 / errors.len() as f64;
                proptest::prop_assert!((0.0..=1.0).contains(&area) && area <= share + 1e-12);
            }
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused_in_full() {
        let mut broken = IDENTITY;
        broken[0][0] = f64::NAN;
        let error = Protocol::named("pose/pairs").unwrap().measure(&[broken, IDENTITY], &[IDENTITY]).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("eval.pose", 3));
        assert!(Protocol::named("auc").unwrap_err().to_string().contains("pose/pairs-folded"));
    }
}
