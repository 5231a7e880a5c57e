//! Similarities x ↦ s R x + t that match one set of points, or of cameras, to another.
//!
//! The fit is the least-squares one: argmin Σ ‖s R p + t − g‖² over proper rotations, as Umeyama, "Least-squares
//! estimation of transformation parameters between two point patterns", 1991, gives it. The rotation is found as the
//! unit quaternion of Horn, "Closed-form solution of absolute orientation using unit quaternions", 1987, which is never
//! a reflection, and the scale is Umeyama's, Σ g·R p / Σ p·p about the means, not Horn's symmetric one.

use serde::Serialize;

use crate::{
    Error, Result,
    geometry::{Mat3, Mat4, Vec3, add, dot, inverse, rotation, scale, sub, translation},
};

/// A rotation, a scale and a shift.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Similarity {
    /// s.
    pub scale: f64,
    /// R, by rows.
    pub rotation: Mat3,
    /// t.
    pub translation: Vec3,
}

impl Similarity {
    /// Moves nothing.
    pub const IDENTITY: Self =
        Self { scale: 1.0, rotation: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], translation: [0.0; 3] };

    /// s R p + t.
    pub fn apply(&self, p: Vec3) -> Vec3 {
        add(scale(turn(&self.rotation, p), self.scale), self.translation)
    }

    /// The least-squares similarity from points to the points of the same number; with `scaled` false, s = 1.
    ///
    /// Points on one line leave the turn about it open; any of those is an answer, with the same residuals. Errors:
    /// `eval.similarity` where the counts differ, a point is not finite, or the scale is undefined because all points
    /// to be moved are one.
    pub fn fit(from: &[Vec3], to: &[Vec3], scaled: bool) -> Result<Self> {
        let pairs = Pairs::new(from, to)?;
        // Row a, column b: Σ p_a g_b about the means.
        let mut covariance = [[0.0; 3]; 3];
        for (p, g) in pairs.centred() {
            add_outer(&mut covariance, p, g);
        }
        pairs.finish(nearest_rotation(&covariance), scaled)
    }

    /// The similarity between worlds that matches world-to-camera poses: the rotation is the chordal mean of what each
    /// camera says, R = argmax Σ tr(Rᵀ R_gᵀ R_p), scale and shift are least squares between the camera centres.
    /// Two cameras are enough, where centres alone would leave a turn open.
    ///
    /// Errors: `eval.similarity` as [`Similarity::fit`].
    pub fn of_cameras(from: &[Mat4], to: &[Mat4]) -> Result<Self> {
        let centres = |poses: &[Mat4]| -> Vec<Vec3> { poses.iter().map(|m| translation(&inverse(m))).collect() };
        let (p, g) = (centres(from), centres(to));
        let pairs = Pairs::new(&p, &g)?;
        let mut sum = [[0.0; 3]; 3];
        for (p, g) in from.iter().zip(to) {
            // Row i of a world-to-camera rotation is axis i of the camera in the world.
            rotation(p).into_iter().zip(rotation(g)).for_each(|(p, g)| add_outer(&mut sum, p, g));
        }
        pairs.finish(nearest_rotation(&sum), true)
    }
}

/// Points that belong together.
struct Pairs<'a> {
    from: &'a [Vec3],
    to: &'a [Vec3],
    means: (Vec3, Vec3),
}

impl<'a> Pairs<'a> {
    fn new(from: &'a [Vec3], to: &'a [Vec3]) -> Result<Self> {
        let refuse = |problem: String| Err(Error::new(crate::Kind::Accuracy, "eval.similarity", problem));
        if from.len() != to.len() || from.is_empty() {
            return refuse(format!("{} points cannot be matched to {}", from.len(), to.len()));
        }
        let bad = |points: &[Vec3]| points.iter().flatten().any(|v| !v.is_finite());
        if bad(from) || bad(to) {
            return refuse("a point that should be matched is not finite".into());
        }
        let mean = |points: &[Vec3]| {
            let sum = points.iter().fold([0.0; 3], |sum, p| add(sum, *p));
            scale(sum, 1.0 / points.len() as f64)
        };
        Ok(Self { from, to, means: (mean(from), mean(to)) })
    }

    fn centred(&self) -> impl Iterator<Item = (Vec3, Vec3)> {
        self.from.iter().zip(self.to).map(|(p, g)| (sub(*p, self.means.0), sub(*g, self.means.1)))
    }

    fn finish(&self, rotation: Mat3, scaled: bool) -> Result<Similarity> {
        let (matched, square) = self
            .centred()
            .fold((0.0, 0.0), |(matched, square), (p, g)| (matched + dot(g, turn(&rotation, p)), square + dot(p, p)));
        let s = if scaled { matched / square } else { 1.0 };
        if !s.is_finite() {
            let problem = "all points that should be moved are the same, so no scale matches them";
            return Err(Error::new(crate::Kind::Accuracy, "eval.similarity", problem));
        }
        let moved = scale(turn(&rotation, self.means.0), s);
        Ok(Similarity { scale: s, rotation, translation: sub(self.means.1, moved) })
    }
}

fn turn(r: &Mat3, p: Vec3) -> Vec3 {
    [dot(r[0], p), dot(r[1], p), dot(r[2], p)]
}

fn add_outer(sum: &mut Mat3, p: Vec3, g: Vec3) {
    for (row, p) in sum.iter_mut().zip(p) {
        row.iter_mut().zip(g).for_each(|(v, g)| *v += p * g);
    }
}

/// The proper rotation R that maximises Σ g·R p, from Σ p gᵀ: the eigenvector of Horn's matrix with the largest
/// eigenvalue, as a unit quaternion.
fn nearest_rotation(s: &Mat3) -> Mat3 {
    let [[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]] = *s;
    let [w, x, y, z] = dominant([
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]);
    [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)],
        [2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)],
        [2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)],
    ]
}

/// The unit eigenvector of the largest eigenvalue of a symmetric matrix, by Jacobi's rotations.
fn dominant(mut a: Mat4) -> [f64; 4] {
    let mut vectors = crate::geometry::IDENTITY;
    // Convergence is quadratic: 4x4 matrices are diagonal to the last digit within about six sweeps.
    for _ in 0..16 {
        for (p, q) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            if a[p][q] == 0.0 {
                continue;
            }
            let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
            let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
            let c = 1.0 / t.hypot(1.0);
            let s = t * c;
            for row in [&mut a, &mut vectors] {
                row.iter_mut().for_each(|r| (r[p], r[q]) = (c * r[p] - s * r[q], s * r[p] + c * r[q]));
            }
            let (rp, rq) = (a[p], a[q]);
            for k in 0..4 {
                (a[p][k], a[q][k]) = (c * rp[k] - s * rq[k], s * rp[k] + c * rq[k]);
            }
        }
    }
    // Among equals the first: nothing to match is no turn.
    let largest = (0..4).rev().max_by(|i, j| a[*i][*i].total_cmp(&a[*j][*j])).unwrap_or(0);
    vectors.map(|row| row[largest])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{geometry::rigid, rng::Stream};

    fn quaternion(r: &mut Stream) -> Mat3 {
        let q: [f64; 4] = std::array::from_fn(|_| r.normal());
        let n = q.iter().map(|v| v * v).sum::<f64>();
        let [w, x, y, z] = q;
        let s = 2.0 / n;
        [
            [1.0 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1.0 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1.0 - s * (x * x + y * y)],
        ]
    }

    fn points(r: &mut Stream, n: usize) -> Vec<Vec3> {
        (0..n).map(|_| std::array::from_fn(|_| 3.0 * r.normal())).collect()
    }

    fn residual(fit: &Similarity, from: &[Vec3], to: &[Vec3]) -> f64 {
        from.iter().zip(to).map(|(p, g)| sub(fit.apply(*p), *g)).map(|d| dot(d, d)).sum()
    }

    fn determinant(r: &Mat3) -> f64 {
        dot(r[0], crate::geometry::cross(r[1], r[2]))
    }

    fn known(r: &mut Stream) -> Similarity {
        Similarity {
            scale: r.uniform(0.1, 9.0),
            rotation: quaternion(r),
            translation: std::array::from_fn(|_| r.uniform(-5.0, 5.0)),
        }
    }

    fn close(a: &Similarity, b: &Similarity, tolerance: f64) -> bool {
        let flat = |s: &Similarity| [vec![s.scale], s.rotation.concat(), s.translation.to_vec()].concat();
        flat(a).iter().zip(flat(b)).all(|(a, b)| (a - b).abs() < tolerance)
    }

    #[test]
    fn known_similarities_are_found() {
        for seed in 0..50 {
            let r = &mut Stream::new(&[seed]);
            let (truth, from) = (known(r), points(r, 3 + seed as usize));
            let to: Vec<Vec3> = from.iter().map(|p| truth.apply(*p)).collect();
            assert!(close(&Similarity::fit(&from, &to, true).unwrap(), &truth, 1e-9), "seed {seed}");
        }
    }

    #[test]
    fn mirrored_points_are_matched_by_a_rotation() {
        // The mirror image in x = 0 of points that vary least in x: the nearest rotation leaves x mirrored, and by
        // Umeyama's law the scale is (σ₁ + σ₂ − σ₃) / (σ₁ + σ₂ + σ₃).
        let from =
            [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, -3.0]];
        let to = from.map(|[x, y, z]| [-x, y, z]);
        let fit = Similarity::fit(&from, &to, true).unwrap();
        let expect = Similarity { scale: (4.0 + 9.0 - 1.0) / (1.0 + 4.0 + 9.0), ..Similarity::IDENTITY };
        assert!(close(&fit, &expect, 1e-12), "{fit:?}");
        // A turn by π about z: the trace is smallest, the quaternion has no real part.
        let turned = from.map(|[x, y, z]| [-x, -y, z]);
        let fit = Similarity::fit(&from, &turned, true).unwrap();
        assert!(residual(&fit, &from, &turned) < 1e-24 && (determinant(&fit.rotation) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn no_neighbour_fits_better() {
        for seed in 0..20 {
            let r = &mut Stream::new(&[7, seed]);
            // Unrelated points; every other set is mirrored, where a careless SVD returns a reflection.
            let (from, mut to) = (points(r, 12), points(r, 12));
            if seed % 2 == 0 {
                to = from.iter().zip(&to).map(|(p, n)| add([-p[0], p[1], p[2]], scale(*n, 0.1))).collect();
            }
            let fit = Similarity::fit(&from, &to, true).unwrap();
            assert!((determinant(&fit.rotation) - 1.0).abs() < 1e-12);
            let best = residual(&fit, &from, &to);
            for _ in 0..40 {
                let mut other = fit;
                other.scale *= 1.0 + 1e-3 * r.normal();
                other.translation = add(other.translation, scale(points(r, 1)[0], 1e-3));
                let small = scale(points(r, 1)[0], 1e-3);
                other.rotation = fit.rotation.map(|row| sub(row, crate::geometry::cross(small, row)));
                // Orthonormal again to second order is enough: the first order of the residual must vanish.
                assert!(residual(&other, &from, &to) > best - 1e-4 * best, "seed {seed}");
            }
            let rigid = Similarity::fit(&from, &to, false).unwrap();
            assert!(rigid.scale == 1.0 && residual(&rigid, &from, &to) >= best);
        }
    }

    #[test]
    fn two_cameras_fix_the_world() {
        for seed in 0..20 {
            let r = &mut Stream::new(&[9, seed]);
            let truth = known(r);
            let from: Vec<Mat4> = (0..2).map(|_| rigid(&quaternion(r), points(r, 1)[0])).collect();
            // x_camera = R_p x_p + t, x_g = s R x_p + b, in units of the other world: R_g = R_p Rᵀ, centre mapped.
            let to: Vec<Mat4> = from
                .iter()
                .map(|m| {
                    let rp = rotation(m);
                    let rg: Mat3 = std::array::from_fn(|i| std::array::from_fn(|j| dot(rp[i], truth.rotation[j])));
                    let centre = truth.apply(translation(&inverse(m)));
                    rigid(&rg, scale(turn(&rg, centre), -1.0))
                })
                .collect();
            assert!(close(&Similarity::of_cameras(&from, &to).unwrap(), &truth, 1e-9), "seed {seed}");
        }
    }

    #[test]
    fn what_cannot_be_matched_is_refused() {
        let one = [[1.0, 2.0, 3.0]];
        assert_eq!(Similarity::fit(&one, &[], true).unwrap_err().code, "eval.similarity");
        assert!(Similarity::fit(&one, &[[f64::NAN; 3]], true).is_err());
        assert!(Similarity::fit(&one, &one, true).is_err(), "one point has no scale");
        assert!(close(&Similarity::fit(&one, &one, false).unwrap(), &Similarity::IDENTITY, 1e-12));
        // Points on a line: the turn about it is free, the residual is zero all the same.
        let line: Vec<Vec3> = (0..4).map(|i| [f64::from(i), 0.0, 0.0]).collect();
        let other: Vec<Vec3> = (0..4).map(|i| [0.0, 2.0 * f64::from(i), 1.0]).collect();
        assert!(residual(&Similarity::fit(&line, &other, true).unwrap(), &line, &other) < 1e-20);
    }

    proptest! {
        #[test]
        fn fitting_the_moved_points_again_gives_the_same_residual(seed in 0u64..1000) {
            let r = &mut Stream::new(&[seed, 3]);
            let (from, to, world) = (points(r, 9), points(r, 9), known(r));
            let moved: Vec<Vec3> = from.iter().map(|p| world.apply(*p)).collect();
            let a = residual(&Similarity::fit(&from, &to, true).unwrap(), &from, &to);
            let b = residual(&Similarity::fit(&moved, &to, true).unwrap(), &moved, &to);
            prop_assert!((a - b).abs() < 1e-9 * a.max(1.0));
        }
    }
}
