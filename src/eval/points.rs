//! Point clouds against true surfaces.
//!
//! With predicted points P after alignment, true points G and d(x, S) the distance to the nearest point of S:
//! accuracy = mean of d(p, G), completeness = mean of d(g, P), Chamfer = (accuracy + completeness) / 2, precision and
//! recall the shares of d(p, G) and d(g, P) below τ, F = 2 · precision · recall / (precision + recall). Law: Knapitsch
//! et al., "Tanks and Temples", 2017. Distances here are plain, not squared.
//!
//! Scenes without metric scale compare only in units of their own: [`Protocol::measure`] gives distances over the median
//! true depth of the scene, and τ is a share of that depth ([`THRESHOLD`] unless another is asked for).

use serde::Serialize;

use super::{Similarity, depth::median, nearest::Cloud};
use crate::{
    Error, Result,
    geometry::{Camera, Mat4, Vec3, inverse, transform},
    rng::Stream,
};

/// τ in units of the median true depth.
pub const THRESHOLD: f64 = 0.05;

/// At most so many points of either cloud are looked at, drawn by a seed.
pub const MAX_POINTS: usize = 100_000;

/// What a cloud is moved by before it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    /// Nothing but the world: the first predicted camera is put on the first true one.
    First,
    /// The similarity between the cameras, [`Similarity::of_cameras`].
    Cameras,
    /// The least-squares similarity between the points of the same pixels, [`Similarity::fit`].
    Pixels,
}

/// A named way to measure clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// As reports print it.
    pub name: &'static str,
    /// What the cloud is moved by.
    pub alignment: Alignment,
}

/// All protocols.
pub const PROTOCOLS: [Protocol; 3] = [
    Protocol { name: "points/first-camera", alignment: Alignment::First },
    Protocol { name: "points/sim3-cameras", alignment: Alignment::Cameras },
    Protocol { name: "points/umeyama-pixels", alignment: Alignment::Pixels },
];

/// One view of a scene: a camera and what it sees.
#[derive(Clone, Copy, Debug)]
pub struct Surface<'a> {
    /// Its pose and pixels; pixel centres at halves, as [`Camera`] has it.
    pub camera: Camera,
    /// Columns.
    pub width: usize,
    /// Depth along z, by rows; what is not positive is no surface.
    pub depth: &'a [f32],
}

/// The accuracy of the points of one scene, in units of the median true depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PointMetrics {
    /// The protocol that made the numbers.
    pub protocol: &'static str,
    /// Mean and median distance of predicted points from the truth.
    pub accuracy: (f64, f64),
    /// Mean and median distance of true points from the prediction.
    pub completeness: (f64, f64),
    /// Mean of both means.
    pub chamfer: f64,
    /// Share of predicted points nearer than the threshold.
    pub precision: f64,
    /// Share of true points nearer than the threshold.
    pub recall: f64,
    /// Harmonic mean of both shares.
    pub f_score: f64,
    /// τ.
    pub threshold: f64,
    /// Units of the truth that are one here: its median depth.
    pub unit: f64,
    /// Predicted and true points that were looked at.
    pub points: (usize, usize),
}

/// Distances between two clouds.
#[derive(Clone, Debug, PartialEq)]
pub struct Distances {
    /// From every predicted point to the truth.
    pub predicted: Vec<f64>,
    /// From every true point to the prediction.
    pub truth: Vec<f64>,
}

impl Protocol {
    /// Measures predicted views of a scene at the pixels where both have a surface. `threshold` is τ in units of the
    /// median true depth, `seed` draws [`MAX_POINTS`] of the pixels.
    ///
    /// Errors: `eval.points` where numbers of views or pixels differ, nothing is seen, or a predicted depth under a true
    /// one is not finite; `eval.similarity` and `eval.cloud` where a prediction cannot be aligned.
    pub fn measure(
        &self,
        predicted: &[Surface<'_>],
        truth: &[Surface<'_>],
        threshold: f64,
        seed: u64,
    ) -> Result<PointMetrics> {
        let mut pixels = seen(predicted, truth)?;
        let unit = median(pixels.iter().map(|(view, i)| f64::from(truth[*view].depth[*i])));
        draw(&mut pixels, MAX_POINTS, seed);
        let found: Vec<(usize, usize)> =
            pixels.iter().copied().filter(|(view, i)| predicted[*view].depth[*i] > 0.0).collect();
        if found.is_empty() {
            return Err(refuse(vec!["no pixel with a true depth has a positive predicted one".into()]));
        }
        let p = points(predicted, &found);
        let fit = match self.alignment {
            Alignment::First => first(&predicted[0].camera.extrinsic, &truth[0].camera.extrinsic),
            Alignment::Cameras => Similarity::of_cameras(&poses(predicted), &poses(truth))?,
            Alignment::Pixels => Similarity::fit(&p, &points(truth, &found), true)?,
        };
        let moved: Vec<Vec3> = p.into_iter().map(|p| fit.apply(p)).collect();
        let Distances { predicted: to_truth, truth: to_predicted } = distances(&moved, &points(truth, &pixels))?;
        let summary = |values: &[f64]| (mean(values) / unit, median(values.iter().copied()) / unit);
        let (accuracy, completeness) = (summary(&to_truth), summary(&to_predicted));
        let [precision, recall] = [&to_truth, &to_predicted].map(|d| super::pose::below(d, threshold * unit));
        Ok(PointMetrics {
            protocol: self.name,
            accuracy,
            completeness,
            chamfer: (accuracy.0 + completeness.0) / 2.0,
            precision,
            recall,
            f_score: f_score(precision, recall),
            threshold,
            unit,
            points: (to_truth.len(), to_predicted.len()),
        })
    }
}

/// The distances between two clouds, both ways. Errors: `eval.cloud` as [`Cloud`].
pub fn distances(predicted: &[Vec3], truth: &[Vec3]) -> Result<Distances> {
    Ok(Distances {
        predicted: Cloud::new(truth)?.distances(predicted)?,
        truth: Cloud::new(predicted)?.distances(truth)?,
    })
}

/// All points of a cloud: the pixels of all views whose depth is positive and finite, in the common world.
pub fn cloud(views: &[Surface<'_>]) -> Vec<Vec3> {
    let valid = |d: &f32| *d > 0.0 && d.is_finite();
    let pixels = views
        .iter()
        .enumerate()
        .flat_map(|(view, s)| s.depth.iter().enumerate().filter(move |(_, d)| valid(d)).map(move |(i, _)| (view, i)));
    points(views, &pixels.collect::<Vec<_>>())
}

/// The harmonic mean of precision and recall; 0 where both are.
pub fn f_score(precision: f64, recall: f64) -> f64 {
    match precision + recall {
        0.0 => 0.0,
        sum => 2.0 * precision * recall / sum,
    }
}

/// Keeps `most` items, each as likely as any other, in their order.
pub fn draw<T>(items: &mut Vec<T>, most: usize, seed: u64) {
    if items.len() <= most {
        return;
    }
    // Selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S).
    let (mut stream, mut left, mut want) = (Stream::new(&[seed]), items.len(), most);
    items.retain(|_| {
        let taken = stream.unit() * (left as f64) < want as f64;
        left -= 1;
        want -= usize::from(taken);
        taken
    });
}

/// (view, pixel) of everything that has a true depth.
fn seen(predicted: &[Surface<'_>], truth: &[Surface<'_>]) -> Result<Vec<(usize, usize)>> {
    let mut problems = Vec::new();
    if predicted.len() != truth.len() {
        problems.push(format!("{} views are predicted, {} have a truth", predicted.len(), truth.len()));
    }
    let mut pixels = Vec::new();
    for (view, (p, g)) in predicted.iter().zip(truth).enumerate() {
        if p.depth.len() != g.depth.len() || p.width != g.width {
            problems.push(format!("view {view}: {} pixels are predicted, {} are true", p.depth.len(), g.depth.len()));
            continue;
        }
        let known = |i: &usize| g.depth[*i] > 0.0 && g.depth[*i].is_finite();
        let before = pixels.len();
        pixels.extend((0..g.depth.len()).filter(known).map(|i| (view, i)));
        let bad = pixels[before..].iter().filter(|(_, i)| !p.depth[*i].is_finite()).count();
        if bad > 0 {
            problems.push(format!("view {view}: {bad} predicted depths are not finite"));
        }
    }
    if problems.is_empty() && pixels.is_empty() {
        problems.push("no pixel has a true depth".into());
    }
    match problems.is_empty() {
        true => Ok(pixels),
        false => Err(refuse(problems)),
    }
}

fn points(views: &[Surface<'_>], pixels: &[(usize, usize)]) -> Vec<Vec3> {
    let worlds: Vec<Mat4> = views.iter().map(|v| inverse(&v.camera.extrinsic)).collect();
    let point = |(view, i): &(usize, usize)| {
        let Surface { camera, width, depth } = &views[*view];
        let (u, v, d) = ((i % width) as f64 + 0.5, (i / width) as f64 + 0.5, f64::from(depth[*i]));
        let k = &camera.intrinsic;
        transform(&worlds[*view], [(u - k[0][2]) / k[0][0] * d, (v - k[1][2]) / k[1][1] * d, d])
    };
    pixels.iter().map(point).collect()
}

fn poses(views: &[Surface<'_>]) -> Vec<Mat4> {
    views.iter().map(|v| v.camera.extrinsic).collect()
}

/// The motion of the world that puts one camera on another.
fn first(predicted: &Mat4, truth: &Mat4) -> Similarity {
    let motion = crate::geometry::compose(&inverse(truth), predicted);
    Similarity {
        scale: 1.0,
        rotation: crate::geometry::rotation(&motion),
        translation: crate::geometry::translation(&motion),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn refuse(problems: Vec<String>) -> Error {
    Error::all(crate::Kind::Accuracy, "eval.points", problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{IDENTITY, compose, rigid};

    const K: [[f64; 3]; 3] = [[20.0, 0.0, 8.0], [0.0, 20.0, 6.0], [0.0, 0.0, 1.0]];

    /// Two cameras of 16x12 pixels before the plane z = 4.
    fn plane() -> (Vec<Camera>, Vec<Vec<f32>>) {
        let (s, c) = 0.2f64.sin_cos();
        let turned = rigid(&[[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], [0.3, 0.1, 0.5]);
        let cameras: Vec<Camera> =
            [IDENTITY, turned].map(|extrinsic| Camera { extrinsic, intrinsic: K }).into_iter().collect();
        let depth = |camera: &Camera| {
            let at = |i: usize| {
                let (u, v) = ((i % 16) as f64 + 0.5, (i / 16) as f64 + 0.5);
                let (near, far) = (camera.centre()[2], camera.unproject(u, v, 1.0)[2]);
                ((4.0 - near) / (far - near)) as f32
            };
            (0..16 * 12).map(at).collect()
        };
        let depths = cameras.iter().map(depth).collect();
        (cameras, depths)
    }

    fn surfaces<'a>(cameras: &[Camera], depths: &'a [Vec<f32>]) -> Vec<Surface<'a>> {
        cameras.iter().zip(depths).map(|(camera, depth)| Surface { camera: *camera, width: 16, depth }).collect()
    }

    #[test]
    fn distances_between_clouds_have_closed_forms() {
        let truth = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [4.0, 0.0, 0.0]];
        let predicted = [[0.0, 0.5, 0.0], [1.0, 0.0, 0.0]];
        let d = distances(&predicted, &truth).unwrap();
        assert_eq!((d.predicted, d.truth), (vec![0.5, 0.0], vec![0.5, 0.0, 3.0]));
        assert_eq!(f_score(0.5, 1.0), 2.0 / 3.0);
        assert_eq!(f_score(0.0, 0.0), 0.0);
    }

    #[test]
    fn the_same_scene_in_another_world_and_scale_is_exact() {
        let (cameras, depths) = plane();
        let world = rigid(&[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [2.0, -1.0, 0.5]);
        let halves: Vec<Vec<f32>> = depths.iter().map(|d| d.iter().map(|v| v / 2.0).collect()).collect();
        let moved: Vec<Camera> = cameras
            .iter()
            .map(|c| {
                let mut extrinsic = c.extrinsic;
                (0..3).for_each(|i| extrinsic[i][3] /= 2.0);
                Camera { extrinsic: compose(&extrinsic, &world), ..*c }
            })
            .collect();
        let (predicted, truth) = (surfaces(&moved, &halves), surfaces(&cameras, &depths));
        for protocol in &PROTOCOLS[1..] {
            let m = protocol.measure(&predicted, &truth, THRESHOLD, 0).unwrap();
            assert!(m.chamfer < 1e-6 && m.f_score == 1.0, "{m:?}");
            assert_eq!((m.points, m.threshold), ((384, 384), THRESHOLD));
        }
        // Without a scale the surface lies at half its depth.
        let m = PROTOCOLS[0].measure(&predicted, &truth, THRESHOLD, 0).unwrap();
        assert!(m.chamfer > 0.1 && m.f_score < 0.1, "{m:?}");
    }

    #[test]
    fn a_shifted_plane_is_off_by_its_shift() {
        // Seen head on, a plane at 5 in place of 4: the nearest true point lies 1 behind, give or take its neighbours.
        let camera =
            Camera { extrinsic: IDENTITY, intrinsic: [[2000.0, 0.0, 8.0], [0.0, 2000.0, 6.0], [0.0, 0.0, 1.0]] };
        let (far, near) = ([5f32; 192], [4f32; 192]);
        let surface = |depth| [Surface { camera, width: 16, depth }];
        let m = PROTOCOLS[0].measure(&surface(&far), &surface(&near), 0.3, 0).unwrap();
        assert!((m.accuracy.1 - 0.25).abs() < 1e-4 && (m.completeness.0 - 0.25).abs() < 1e-4, "{m:?}");
        assert_eq!((m.precision, m.recall, m.f_score, m.unit), (1.0, 1.0, 1.0, 4.0));
        let strict = PROTOCOLS[0].measure(&surface(&far), &surface(&near), 0.2, 0).unwrap();
        assert_eq!((strict.precision, strict.recall, strict.f_score), (0.0, 0.0, 0.0));
    }

    #[test]
    fn what_is_not_seen_is_incomplete() {
        let (cameras, depths) = plane();
        let mut holes = depths.clone();
        holes[0][..96].fill(0.0);
        holes[1].fill(0.0);
        let m = PROTOCOLS[0].measure(&surfaces(&cameras, &holes), &surfaces(&cameras, &depths), 0.01, 0).unwrap();
        assert!(m.accuracy.0 < 1e-6 && m.completeness.0 > 0.01 && m.recall < 0.9, "{m:?}");
        assert_eq!(m.points, (96, 384));
        // The truth has holes: what is predicted there is not judged.
        let m = PROTOCOLS[0].measure(&surfaces(&cameras, &depths), &surfaces(&cameras, &holes), 0.01, 0).unwrap();
        assert_eq!((m.points, m.f_score), ((96, 96), 1.0));
    }

    #[test]
    fn draws_are_even_and_repeatable() {
        let run = |seed| {
            let mut items: Vec<usize> = (0..1374).collect();
            draw(&mut items, 137, seed);
            items
        };
        assert!(run(1).len() == 137 && run(1) == run(1) && run(1) != run(2) && run(1).is_sorted());
    }

    #[test]
    fn what_cannot_be_measured_is_refused_in_full() {
        let (cameras, depths) = plane();
        let mut broken = depths.clone();
        broken[0][3] = f32::NAN;
        broken[1].pop();
        let truth = surfaces(&cameras, &depths);
        let error = PROTOCOLS[1].measure(&surfaces(&cameras, &broken), &truth, 0.05, 0).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("eval.points", 2));
        let nothing = depths.iter().map(|d| vec![0.0; d.len()]).collect::<Vec<_>>();
        assert!(PROTOCOLS[1].measure(&surfaces(&cameras, &nothing), &truth, 0.05, 0).is_err());
        assert!(PROTOCOLS[1].measure(&truth, &surfaces(&cameras, &nothing), 0.05, 0).is_err());
    }
}
