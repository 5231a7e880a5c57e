//! `lite3r-compat`: the definitions of the published Lite3R code (github.com/AIGeeksGroup/Lite3R, `eval/metrics.py`,
//! `eval/eval_vggt.py`, `eval/eval_da3.py`, `data/`), its faults included, to stand beside its table and nowhere else.
//!
//! [`FAULTS`] names what is wrong with them and is printed with every report; [`DIFFERENCES`] names what is not
//! repeated. Everything lives in the pixels of the square frame that the model sees (short side scaled, centre cropped,
//! depth by the nearest pixel), with whole numbers at sample positions.

use serde::Serialize;

use super::{depth::median, nearest::Cloud, points::draw};
use crate::geometry::{Mat3, Mat4, Vec3, compose, dot, inverse, norm, rotation, scale, sub, transform, translation};

/// As reports print it.
pub const PROTOCOL: &str = "lite3r-compat";

/// What is wrong with the definitions, repeated here on purpose.
pub const FAULTS: [&str; 11] = [
    "range: of four depth numbers in a camera file the third, the number of planes, is taken for the farthest depth; of \
     fewer, the farthest is one interval too far",
    "mask: pixels beyond five times the median depth are left out of the truth",
    "scale: one least-squares scale serves all views, and a prediction is clamped to 0.001 before it",
    "reference: the rotation error is a mean over all views, the first included, which is zero by construction: at two \
     views it halves",
    "translation: a least-squares scale between translations of world-to-camera poses, not between camera centres; the \
     first view counts as zero here too",
    "cloud: neither the scale nor the pose of the predicted cloud is aligned, and all its pixels are compared with the \
     masked truth",
    "chamfer: half the sum of mean squared distances, no distance",
    "fscore_5cm: its threshold is 0.05 units of max(median depth, longest camera translation), not 5 cm",
    "da3 cloud: views are put together by inverse(E_0) E_i in place of E_0 inverse(E_i), and with the true intrinsics",
    "dropped: a number that is not finite, and a scene that fails, is left out of the mean, which improves it",
    "samples: two views a scene, drawn at random whatever they share, from the scenes that training sees too",
];

/// What of the published code is not repeated.
pub const DIFFERENCES: [&str; 4] = [
    "views and points are drawn by this program's seed, not by numpy and torch (points there by none)",
    "sums run in f64, not in f32",
    "a broken frame is an error of its scene; it is not replaced by another frame",
    "missing data is an error; no random images stand in for it",
];

/// Their threshold of the F-score.
const TAU: f64 = 0.05;
/// Their largest number of points of a cloud.
const MAX_POINTS: usize = 50_000;
/// Fewer true pixels than these have no depth metrics.
const FEWEST_PIXELS: usize = 100;

/// A true view as a data set gives it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// World to camera, in the units of the data.
    pub extrinsic: Mat4,
    /// In pixels of the frame.
    pub intrinsic: Mat3,
    /// By rows of the frame; none where the data set has no depth.
    pub depth: &'a [f32],
    /// The numbers at the end of the camera file: nearest depth, interval, and perhaps planes and farthest depth.
    pub range: &'a [f64],
}

/// What the published loader makes of the views of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    extrinsics: Vec<Mat4>,
    intrinsics: Vec<Mat3>,
    depths: Vec<Vec<f64>>,
    masks: Vec<Vec<bool>>,
    width: usize,
    /// Units of the data that became one.
    pub scale: f64,
}

/// A prediction for the same frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// World to camera.
    pub extrinsics: Vec<Mat4>,
    /// In pixels of the frame.
    pub intrinsics: Vec<Mat3>,
    /// By rows of the frame.
    pub depths: Vec<Vec<f32>>,
    /// Whether the cloud is put together as `eval_da3.py` does.
    pub da3: bool,
}

/// The published numbers of one sample; `None` where the published code has none and leaves the sample out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CompatMetrics {
    /// [`PROTOCOL`].
    pub protocol: &'static str,
    /// Mean |p − g| / g after the scale.
    pub abs_rel: Option<f64>,
    /// Shares of max(p/g, g/p) below 1.25, 1.25², 1.25³.
    pub delta: [Option<f64>; 3],
    /// Root mean square, in units of the normalised scene.
    pub rmse: Option<f64>,
    /// Mean rotation error over all views, in degrees.
    pub rot_err_deg: Option<f64>,
    /// Mean translation error over all views, in units of the normalised scene.
    pub trans_err: Option<f64>,
    /// Half the sum of mean squared distances.
    pub chamfer: Option<f64>,
    /// F-score at 0.05 units of the normalised scene.
    pub fscore_5cm: Option<f64>,
}

/// Nearest and farthest depth as `_read_cam` understands the numbers of a camera file.
pub fn misread_range(numbers: &[f64]) -> (f64, f64) {
    match *numbers {
        [near, _, third, _, ..] => (near, third),
        [near, interval, ..] => (near, near + 192.0 * interval),
        _ => (0.0, 100.0),
    }
}

impl Truth {
    /// Masks, then normalises by max(median depth, longest translation). `width` is that of the frame.
    pub fn new(views: &[View<'_>], width: usize) -> Self {
        let masks: Vec<Vec<bool>> = views.iter().map(mask).collect();
        let known = views.iter().zip(&masks).flat_map(|(view, mask)| kept(view.depth, mask)).collect::<Vec<f64>>();
        let depth = if known.len() > FEWEST_PIXELS { median(known.into_iter()) } else { 0.0 };
        let longest = views.iter().map(|v| norm(translation(&v.extrinsic))).fold(0.0, f64::max);
        let unit = depth.max(longest).max(1e-3);
        let shrunk = |m: &Mat4| {
            let mut m = *m;
            (0..3).for_each(|i| m[i][3] /= unit);
            m
        };
        let depths = views.iter().map(|v| v.depth.iter().map(|d| f64::from(*d) / unit).collect());
        Self {
            extrinsics: views.iter().map(|v| shrunk(&v.extrinsic)).collect(),
            intrinsics: views.iter().map(|v| v.intrinsic).collect(),
            depths: depths.collect(),
            masks,
            width,
            scale: unit,
        }
    }
}

/// Measures a prediction. `seed` draws the points of the clouds.
pub fn measure(predicted: &Predicted, truth: &Truth, seed: u64) -> CompatMetrics {
    let number = |v: f64| (!v.is_nan()).then_some(v);
    let depth = depth(predicted, truth);
    let (rotation, translation) = pose(predicted, truth);
    let cloud = cloud(predicted, truth, seed);
    CompatMetrics {
        protocol: PROTOCOL,
        abs_rel: depth.and_then(|d| number(d[0])),
        rmse: depth.and_then(|d| number(d[1])),
        delta: [2, 3, 4].map(|i| depth.and_then(|d| number(d[i]))),
        rot_err_deg: number(rotation),
        trans_err: number(translation),
        chamfer: cloud.and_then(|c| number(c.0)),
        fscore_5cm: cloud.and_then(|c| number(c.1)),
    }
}

fn mask(view: &View<'_>) -> Vec<bool> {
    let (near, far) = misread_range(view.range);
    let ranged = far > 0.0 && far.is_finite();
    let within = |d: f64| !ranged || (d >= 0.5 * near && d <= 1.5 * far);
    let mut mask: Vec<bool> = view.depth.iter().map(|d| *d > 0.0 && d.is_finite() && within(f64::from(*d))).collect();
    let middle = median(kept(view.depth, &mask));
    if middle > 0.0 {
        mask.iter_mut().zip(view.depth).for_each(|(m, d)| *m &= f64::from(*d) <= 5.0 * middle);
    }
    mask
}

fn kept<'a>(depth: &'a [f32], mask: &'a [bool]) -> impl Iterator<Item = f64> + 'a {
    depth.iter().zip(mask).filter(|(_, m)| **m).map(|(d, _)| f64::from(*d))
}

/// AbsRel, RMSE and three shares.
fn depth(predicted: &Predicted, truth: &Truth) -> Option<[f64; 5]> {
    let views = predicted.depths.iter().zip(truth.depths.iter().zip(&truth.masks));
    let pairs: Vec<(f64, f64)> = views
        .flat_map(|(p, (g, mask))| p.iter().zip(g.iter().zip(mask)))
        .filter(|(_, (_, mask))| **mask)
        // `clamp`, not `max`: what is not a number stays so.
        .map(|(p, (g, _))| (f64::from(*p).clamp(1e-3, f64::INFINITY), g.max(1e-3)))
        .collect();
    if pairs.len() < FEWEST_PIXELS {
        return None;
    }
    let (pg, pp) = pairs.iter().fold((0.0, 0.0), |(pg, pp), (p, g)| (pg + p * g, pp + p * p));
    let s = pg / f64::max(pp, 1e-8);
    let n = pairs.len() as f64;
    let mean = |f: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|(p, g)| f(s * p, *g)).sum::<f64>() / n;
    let share = |limit: f64| mean(&|p, g| f64::from(u8::from((p / g).max(g / p) < limit)));
    let rmse = mean(&|p, g| (p - g) * (p - g)).sqrt();
    Some([mean(&|p, g| (p - g).abs() / g), rmse, share(1.25), share(1.25f64.powi(2)), share(1.25f64.powi(3))])
}

/// Mean rotation error in degrees and mean translation error, both over all views.
fn pose(predicted: &Predicted, truth: &Truth) -> (f64, f64) {
    let relative = |poses: &[Mat4]| -> Vec<Mat4> { poses.iter().map(|m| compose(m, &inverse(&poses[0]))).collect() };
    let (p, g) = (relative(&predicted.extrinsics), relative(&truth.extrinsics));
    let n = g.len() as f64;
    let angle = |p: &Mat4, g: &Mat4| {
        let (p, g) = (rotation(p), rotation(g));
        let trace: f64 = p.iter().flatten().zip(g.iter().flatten()).map(|(a, b)| a * b).sum();
        ((trace - 1.0) / 2.0).clamp(-1.0, 1.0).acos().to_degrees()
    };
    let rotation = p.iter().zip(&g).map(|(p, g)| angle(p, g)).sum::<f64>() / n;
    let shifts: Vec<(Vec3, Vec3)> = p.iter().zip(&g).map(|(p, g)| (translation(p), translation(g))).collect();
    let (pg, pp) = shifts.iter().fold((0.0, 0.0), |(pg, pp), (p, g)| (pg + dot(*p, *g), pp + dot(*p, *p)));
    let s = pg / f64::max(pp, 1e-8);
    (rotation, shifts.iter().map(|(p, g)| norm(sub(scale(*p, s), *g))).sum::<f64>() / n)
}

/// Chamfer and F-score; `None` where the published code swallows an exception.
fn cloud(predicted: &Predicted, truth: &Truth, seed: u64) -> Option<(f64, f64)> {
    let first = inverse(&predicted.extrinsics[0]);
    let mut p = Vec::new();
    for (view, depth) in predicted.depths.iter().enumerate() {
        let (k, to_first) = match predicted.da3 {
            true => (&truth.intrinsics[view], compose(&first, &predicted.extrinsics[view])),
            false => (&predicted.intrinsics[view], inverse(&predicted.extrinsics[view])),
        };
        let lifted = depth.iter().enumerate();
        p.extend(lifted.map(|(i, d)| transform(&to_first, lift(k, i, truth.width, f64::from(*d)))));
    }
    let mut g = Vec::new();
    for (view, depth) in truth.depths.iter().enumerate() {
        let to_first = compose(&truth.extrinsics[0], &inverse(&truth.extrinsics[view]));
        let pixels = depth.iter().enumerate().zip(&truth.masks[view]).filter(|(_, m)| **m);
        let k = &truth.intrinsics[view];
        g.extend(pixels.map(|((i, d), _)| transform(&to_first, lift(k, i, truth.width, *d))));
    }
    let distances = |seed: u64| {
        let (mut p, mut g) = (p.clone(), g.clone());
        draw(&mut p, MAX_POINTS, seed);
        draw(&mut g, MAX_POINTS, seed + 1);
        Some((Cloud::new(&g).ok()?.distances(&p).ok()?, Cloud::new(&p).ok()?.distances(&g).ok()?))
    };
    let square = |d: &[f64]| d.iter().map(|d| d * d).sum::<f64>() / d.len() as f64;
    let (from_p, from_g) = distances(seed)?;
    let chamfer = (square(&from_p) + square(&from_g)) * 0.5;
    // Points are drawn anew for the F-score.
    let (from_p, from_g) = distances(seed + 2)?;
    let [a, b] = [&from_p, &from_g].map(|d| super::pose::below(d, TAU));
    Some((chamfer, if a + b < 1e-6 { 0.0 } else { 2.0 * a * b / (a + b) }))
}

fn lift(k: &Mat3, pixel: usize, width: usize, depth: f64) -> Vec3 {
    let (u, v) = ((pixel % width) as f64, (pixel / width) as f64);
    [(u - k[0][2]) / k[0][0] * depth, (v - k[1][2]) / k[1][1] * depth, depth]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{IDENTITY, rigid};

    const K: Mat3 = [[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]];

    fn turned(degrees: f64, t: Vec3) -> Mat4 {
        let (s, c) = degrees.to_radians().sin_cos();
        rigid(&[[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], t)
    }

    /// Two views of 16x16 pixels with depth 2 everywhere and the second camera one unit to the side.
    fn truth(depth: &[f32], range: &[f64], second: Mat4) -> Truth {
        let view = |extrinsic| View { extrinsic, intrinsic: K, depth, range };
        Truth::new(&[view(IDENTITY), view(second)], 16)
    }

    fn predicted(depth: f32, second: Mat4) -> Predicted {
        Predicted {
            extrinsics: vec![IDENTITY, second],
            intrinsics: vec![K; 2],
            depths: vec![vec![depth; 256]; 2],
            da3: false,
        }
    }

    #[test]
    fn ranges_are_misread() {
        assert_eq!(misread_range(&[2.5, 0.05, 128.0, 8.85]), (2.5, 128.0));
        assert_eq!(misread_range(&[425.0, 2.5]), (425.0, 905.0));
        assert_eq!(misread_range(&[1.0, 0.5, 9.0]), (1.0, 97.0));
        assert_eq!(misread_range(&[]), (0.0, 100.0));
    }

    #[test]
    fn masks_end_at_five_medians_and_at_the_misread_range() {
        let mut depth = vec![2f32; 256];
        depth[..4].copy_from_slice(&[0.0, f32::NAN, 11.0, 9.9]);
        let t = truth(&depth, &[1.0, 0.1, 128.0, 3.0], IDENTITY);
        assert_eq!(t.masks[0][..5], [false, false, false, true, true]);
        // Ten planes in place of 128 hide what lies beyond fifteen.
        let mut far = vec![20f32; 256];
        far[0] = 12.0;
        let t = truth(&far, &[1.0, 0.1, 10.0, 30.0], IDENTITY);
        assert_eq!(t.masks[0].iter().filter(|m| **m).count(), 1);
        // 256 pixels of 2 and nothing farther: the median is the unit, unless a camera stands farther away.
        assert_eq!(truth(&[2.0; 256], &[], IDENTITY).scale, 2.0);
        assert_eq!(truth(&[2.0; 256], &[], turned(0.0, [0.0, 6.0, 0.0])).scale, 6.0);
    }

    #[test]
    fn depth_forgives_one_scale() {
        let t = truth(&[2.0; 256], &[], IDENTITY);
        let m = measure(&predicted(7.0, IDENTITY), &t, 0);
        assert!(m.abs_rel.unwrap() < 1e-12 && m.rmse.unwrap() < 1e-12 && m.delta == [Some(1.0); 3]);
        // One view 1, the other 3, the truth 1 after normalisation: s = (1 + 3) / (1 + 9).
        let mut p = predicted(1.0, IDENTITY);
        p.depths[1].fill(3.0);
        let m = measure(&p, &t, 0);
        assert!((m.abs_rel.unwrap() - (0.6 + 0.2) / 2.0).abs() < 1e-12, "{m:?}");
        assert_eq!(m.delta, [Some(0.5); 3]);
    }

    #[test]
    fn the_reference_view_halves_the_errors() {
        let t = truth(&[2.0; 256], &[], turned(20.0, [1.0, 0.0, 0.0]));
        let m = measure(&predicted(1.0, turned(26.0, [0.0, 4.0, 0.0])), &t, 0);
        assert!((m.rot_err_deg.unwrap() - 3.0).abs() < 1e-9);
        // Orthogonal translations: the best scale is zero, the error that of the true one, ½, halved.
        assert!((m.trans_err.unwrap() - 0.25).abs() < 1e-12, "{m:?}");
        // 26° in place of 20°, the right direction at any length.
        let m = measure(&predicted(1.0, turned(26.0, [9.0, 0.0, 0.0])), &t, 0);
        assert!(m.trans_err.unwrap() < 1e-12);
    }

    #[test]
    fn clouds_are_squared_and_not_scaled() {
        // The truth becomes the plane z = 1; the prediction stands at z = 1.1, seen by the same single camera.
        let t = truth(&[2.0; 256], &[], IDENTITY);
        let exact = measure(&predicted(1.0, IDENTITY), &t, 0);
        assert_eq!((exact.chamfer, exact.fscore_5cm), (Some(0.0), Some(1.0)));
        let m = measure(&predicted(1.1, IDENTITY), &t, 0);
        // Not less than the square of the distance between the planes, and not much more.
        assert!((0.01..0.0115).contains(&m.chamfer.unwrap()) && m.fscore_5cm == Some(0.0), "{m:?}");
        // The right shape at twice the size is wrong here.
        assert!(measure(&predicted(2.0, IDENTITY), &t, 0).chamfer.unwrap() > 0.5);
    }

    #[test]
    fn clouds_of_da3_are_put_together_wrongly() {
        // Predicted exactly, with a second camera that turns and moves: right as VGGT, wrong as DA3.
        let second = turned(30.0, [1.0, 0.2, 0.5]);
        let t = truth(&[2.0; 256], &[], second);
        let mut exact = predicted(1.0, turned(30.0, [0.5, 0.1, 0.25]));
        assert!(measure(&exact, &t, 0).chamfer.unwrap() < 1e-20);
        exact.da3 = true;
        assert!(measure(&exact, &t, 0).chamfer.unwrap() > 0.01);
        // True intrinsics stand in for the predicted ones.
        let still = truth(&[2.0; 256], &[], IDENTITY);
        let mut wrong = predicted(1.0, IDENTITY);
        wrong.intrinsics = vec![[[9.0, 0.0, 8.0], [0.0, 9.0, 8.0], [0.0, 0.0, 1.0]]; 2];
        assert!(measure(&wrong, &still, 0).chamfer.unwrap() > 0.001);
        wrong.da3 = true;
        assert_eq!(measure(&wrong, &still, 0).chamfer, Some(0.0));
    }

    #[test]
    fn what_has_no_number_is_left_out() {
        let t = truth(&[], &[425.0, 2.5], turned(5.0, [300.0, 0.0, 0.0]));
        let m = measure(&predicted(1.0, turned(5.0, [1.0, 0.0, 0.0])), &t, 0);
        assert_eq!((t.scale, m.abs_rel, m.chamfer, m.delta), (300.0, None, None, [None; 3]));
        assert!(m.rot_err_deg.unwrap() < 1e-5 && m.trans_err.unwrap() < 1e-12);
        let mut broken = predicted(1.0, IDENTITY);
        broken.depths[0][9] = f32::NAN;
        let m = measure(&broken, &truth(&[2.0; 256], &[], IDENTITY), 0);
        assert_eq!((m.abs_rel, m.chamfer, m.rot_err_deg), (None, None, Some(0.0)));
        assert!(m.delta[0].is_some());
    }
}
