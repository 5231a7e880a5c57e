//! Absolute trajectory error: how far camera centres lie from the true ones after one motion of the world.
//!
//! With predicted centres p, true centres g and the least-squares fit a of [`Similarity`]: RMSE = √mean ‖a(p) − g‖².
//! Centres are those of the cameras, −Rᵀ t, not the translations of world-to-camera poses. Law: Sturm et al., "A
//! Benchmark for the Evaluation of RGB-D SLAM Systems", 2012, with Umeyama's similarity, as `evo_ape --correct_scale`.

use serde::Serialize;

use super::{Similarity, depth::median};
use crate::{
    Error, Result,
    geometry::{Mat4, Vec3, add, inverse, norm, scale, sub, translation},
};

/// A named way to measure trajectories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// As reports print it.
    pub name: &'static str,
    /// Whether the scale is fitted too.
    pub scaled: bool,
}

/// All protocols.
pub const PROTOCOLS: [Protocol; 2] =
    [Protocol { name: "ate/sim3", scaled: true }, Protocol { name: "ate/se3", scaled: false }];

/// The fewest views that say anything: a similarity takes two centres to two others exactly.
pub const FEWEST_VIEWS: usize = 3;

/// The accuracy of the camera centres of one scene.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TrajectoryMetrics {
    /// The protocol that made the numbers.
    pub protocol: &'static str,
    /// Root of the mean square, in units of the truth.
    pub rmse: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// Largest.
    pub max: f64,
    /// RMSE over the root mean square distance of the true centres from their mean, which compares between scenes of
    /// different units; 1 is what cameras that all stand in one place would get.
    pub relative: f64,
    /// Views.
    pub views: usize,
}

impl Protocol {
    /// Measures predicted world-to-camera poses of one scene.
    ///
    /// Errors: `eval.trajectory` where the numbers of views differ, there are fewer than [`FEWEST_VIEWS`], or all true
    /// cameras stand in one place; `eval.similarity` as [`Similarity::fit`].
    pub fn measure(&self, predicted: &[Mat4], truth: &[Mat4]) -> Result<TrajectoryMetrics> {
        let refuse = |problem: String| Err(Error::new(crate::Kind::Accuracy, "eval.trajectory", problem));
        if predicted.len() != truth.len() || truth.len() < FEWEST_VIEWS {
            let (p, g) = (predicted.len(), truth.len());
            return refuse(format!("{p} predicted poses for {g} true ones; at least {FEWEST_VIEWS} are needed"));
        }
        let centres = |poses: &[Mat4]| -> Vec<Vec3> { poses.iter().map(|m| translation(&inverse(m))).collect() };
        let (p, g) = (centres(predicted), centres(truth));
        let n = g.len() as f64;
        let middle = scale(g.iter().fold([0.0; 3], |sum, c| add(sum, *c)), 1.0 / n);
        let spread = rms(&g.iter().map(|c| norm(sub(*c, middle))).collect::<Vec<_>>());
        if spread == 0.0 {
            return refuse("all true cameras stand in one place".into());
        }
        let fit = Similarity::fit(&p, &g, self.scaled)?;
        let errors: Vec<f64> = p.iter().zip(&g).map(|(p, g)| norm(sub(fit.apply(*p), *g))).collect();
        let rmse = rms(&errors);
        Ok(TrajectoryMetrics {
            protocol: self.name,
            rmse,
            mean: errors.iter().sum::<f64>() / n,
            median: median(errors.iter().copied()),
            max: errors.iter().copied().fold(0.0, f64::max),
            relative: rmse / spread,
            views: g.len(),
        })
    }
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{IDENTITY, compose, rigid};

    /// A camera at a place, turned by an angle about y.
    fn camera(centre: Vec3, degrees: f64) -> Mat4 {
        let (s, c) = degrees.to_radians().sin_cos();
        let r = [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]];
        let turned = crate::geometry::transform(&rigid(&r, [0.0; 3]), centre);
        rigid(&r, scale(turned, -1.0))
    }

    /// Corners of a square of side 2 about the origin.
    fn square() -> Vec<Mat4> {
        [[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [1.0, -1.0, 0.0]].map(|c| camera(c, 0.0)).to_vec()
    }

    #[test]
    fn errors_have_closed_forms() {
        // Opposite corners are lifted by +h and the others by −h: no similarity can level them, so the fit is s = 1
        // by symmetry over 1 + h²/2: s = Σ g·p / Σ p·p = 2 / (2 + h²) and each corner is off by the same amount.
        let h = 0.5;
        let lifted: Vec<Mat4> =
            [[1.0, 1.0, h], [-1.0, 1.0, -h], [-1.0, -1.0, h], [1.0, -1.0, -h]].map(|c| camera(c, 40.0)).to_vec();
        let m = PROTOCOLS[0].measure(&lifted, &square()).unwrap();
        let s = 2.0 / (2.0 + h * h);
        let expect = (2.0 * (s - 1.0) * (s - 1.0) + s * s * h * h).sqrt();
        assert!((m.rmse - expect).abs() < 1e-12 && (m.max - m.median).abs() < 1e-12, "{m:?}");
        assert!((m.relative - expect / 2f64.sqrt()).abs() < 1e-12);
        assert!((PROTOCOLS[1].measure(&lifted, &square()).unwrap().rmse - h).abs() < 1e-12);
    }

    #[test]
    fn worlds_and_scales_do_not_matter_but_centres_do() {
        let truth: Vec<Mat4> = (0..5).map(f64::from).map(|i| camera([i, (i * i) / 3.0, -0.5 * i], 15.0 * i)).collect();
        let world = camera([0.3, -2.0, 1.0], 70.0);
        let moved: Vec<Mat4> = truth
            .iter()
            .map(|m| {
                let mut m = *m;
                (0..3).for_each(|i| m[i][3] *= 3.0);
                compose(&m, &world)
            })
            .collect();
        assert!(PROTOCOLS[0].measure(&moved, &truth).unwrap().rmse < 1e-12);
        assert!(PROTOCOLS[1].measure(&moved, &truth).unwrap().rmse > 0.1);
        // The same translations under other rotations are other centres.
        let turned: Vec<Mat4> =
            truth.iter().map(|m| rigid(&crate::geometry::rotation(&IDENTITY), translation(m))).collect();
        assert!(PROTOCOLS[0].measure(&turned, &truth).unwrap().rmse > 0.1);
    }

    #[test]
    fn cameras_in_one_place_get_no_credit() {
        let still = vec![IDENTITY; 4];
        assert_eq!(PROTOCOLS[0].measure(&still, &square()).unwrap_err().code, "eval.similarity");
        assert!((PROTOCOLS[1].measure(&still, &square()).unwrap().relative - 1.0).abs() < 1e-12);
        assert_eq!(PROTOCOLS[1].measure(&square(), &still).unwrap_err().code, "eval.trajectory");
        assert_eq!(PROTOCOLS[0].measure(&square()[..2], &square()[..2]).unwrap_err().code, "eval.trajectory");
    }
}
