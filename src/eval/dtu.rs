//! The DTU measure of points, in millimetres, as DTUeval-python computes it.
//!
//! 1. The predicted cloud is shuffled by a seed and thinned greedily to 0.2 mm.
//! 2. `inside`: points in the bounding box, 60 mm wider below and 120 mm wider above. `observed`: those of them whose
//!    voxel was seen by enough cameras.
//! 3. Acc = mean distance of the observed points from the scan; Comp = mean distance of the scan above its table from
//!    the inside points; in both only distances below 20 mm count. Overall = (Acc + Comp) / 2.
//!
//! Laws: Jensen et al., "Large Scale Multi-view Stereopsis Evaluation", 2014; github.com/jzhangbs/DTUeval-python. Like
//! there, what is farther than the cut does not count at all, so [`DtuMetrics::cut`] tells how much was left out.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{
    mat::{self, Array},
    nearest::{Cloud, thin},
    ply,
};
use crate::{Error, Result, geometry::Vec3, rng::Stream};

/// As reports print it.
pub const PROTOCOL: &str = "dtu/acc-comp-mm";

/// Points nearer to each other than this are thinned, in mm.
pub const DENSITY: f64 = 0.2;
/// Distances from here on do not count, in mm.
pub const CUT: f64 = 20.0;
/// How far the bounding box is widened, in mm; twice this at its upper corner.
const PATCH: f64 = 60.0;

/// What a scan is measured against.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Lower and upper corner of the observed box, in mm.
    pub bounds: [Vec3; 2],
    /// Edge of a voxel, in mm.
    pub resolution: f64,
    /// Voxels along x, y and z.
    pub shape: [usize; 3],
    /// Whether a voxel was observed; x runs fastest.
    pub observed: Vec<bool>,
    /// Points above the table have a x + b y + c z + d > 0.
    pub plane: [f64; 4],
    /// The scanned surface.
    pub surface: Vec<Vec3>,
}

/// The accuracy of one scan, in mm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DtuMetrics {
    /// [`PROTOCOL`].
    pub protocol: &'static str,
    /// Mean distance of predicted points from the scan.
    pub accuracy: f64,
    /// Mean distance of the scan from the predicted points.
    pub completeness: f64,
    /// Mean of both.
    pub overall: f64,
    /// Shares of predicted and scanned points that lie beyond [`CUT`] and do not count.
    pub cut: (f64, f64),
    /// Predicted points that were observed, scanned points above the table.
    pub points: (usize, usize),
}

impl Reference {
    /// Reads the three files of a scan: the scanned surface (a PLY), the observed voxels (a MAT-file with `ObsMask`, `BB`
    /// and `Res`), the plane of the table (one with `P`).
    ///
    /// Errors: `file.io`, `eval.mat`, `eval.ply`; `eval.dtu` where an array is missing or has another shape. All files
    /// that are wrong are named.
    pub fn read(surface: &Path, mask: &Path, plane: &Path) -> Result<Self> {
        let parts = (
            mat::read(mask).and_then(|a| observed(&a).map_err(|p| wrong(mask, &p))),
            mat::read(plane).and_then(|a| table(&a).map_err(|p| wrong(plane, &p))),
            ply::read(surface),
        );
        match parts {
            (Ok((bounds, resolution, shape, observed)), Ok(plane), Ok(surface)) => {
                Ok(Self { bounds, resolution, shape, observed, plane, surface })
            }
            (a, b, c) => {
                let errors: Vec<Error> = [a.err(), b.err(), c.err()].into_iter().flatten().collect();
                let code = errors[0].code;
                Err(Error::all(crate::Kind::BadFile, code, errors.into_iter().flat_map(|e| e.problems).collect()))
            }
        }
    }

    /// Measures a predicted cloud in the scanner's frame.
    ///
    /// Errors: `eval.dtu` where no predicted point was observed, no scanned point lies above the table, or everything is
    /// beyond the cut; `eval.cloud` where a point is not finite.
    pub fn measure(&self, predicted: &[Vec3], seed: u64) -> Result<DtuMetrics> {
        let mut shuffled = predicted.to_vec();
        Stream::new(&[seed]).shuffle(&mut shuffled);
        let inside: Vec<Vec3> =
            thin(&shuffled, DENSITY).into_iter().map(|i| shuffled[i]).filter(|p| self.inside(*p)).collect();
        let observed: Vec<Vec3> = inside.iter().copied().filter(|p| self.observed(*p)).collect();
        let [a, b, c, d] = self.plane;
        let above: Vec<Vec3> =
            self.surface.iter().copied().filter(|[x, y, z]| a * x + b * y + c * z + d > 0.0).collect();
        if observed.is_empty() || above.is_empty() {
            let (n, m) = (observed.len(), above.len());
            return Err(refuse(format!("{n} predicted points were observed, {m} scanned ones lie above the table")));
        }
        let (accuracy, far) = mean_below(&Cloud::new(&self.surface)?.distances(&observed)?)?;
        let (completeness, hidden) = mean_below(&Cloud::new(&inside)?.distances(&above)?)?;
        Ok(DtuMetrics {
            protocol: PROTOCOL,
            accuracy,
            completeness,
            overall: (accuracy + completeness) / 2.0,
            cut: (far, hidden),
            points: (observed.len(), above.len()),
        })
    }

    fn inside(&self, p: Vec3) -> bool {
        let [low, high] = self.bounds;
        (0..3).all(|i| (low[i] - PATCH..high[i] + 2.0 * PATCH).contains(&p[i]))
    }

    fn observed(&self, p: Vec3) -> bool {
        let voxel: [f64; 3] = std::array::from_fn(|i| ((p[i] - self.bounds[0][i]) / self.resolution).round_ties_even());
        let within = (0..3).all(|i| (0.0..self.shape[i] as f64).contains(&voxel[i]));
        let [x, y, z] = voxel.map(|v| v as usize);
        within && self.observed[x + self.shape[0] * (y + self.shape[1] * z)]
    }
}

/// The mean of what counts, and the share that does not.
fn mean_below(distances: &[f64]) -> Result<(f64, f64)> {
    let near: Vec<f64> = distances.iter().copied().filter(|d| *d < CUT).collect();
    if near.is_empty() {
        return Err(refuse(format!("all {} distances are {CUT} mm or more", distances.len())));
    }
    let mean = near.iter().sum::<f64>() / near.len() as f64;
    Ok((mean, 1.0 - near.len() as f64 / distances.len() as f64))
}

type Observed = ([Vec3; 2], f64, [usize; 3], Vec<bool>);

fn observed(arrays: &BTreeMap<String, Array>) -> Result<Observed, String> {
    let array = |name: &str| arrays.get(name).ok_or_else(|| format!("has no array `{name}`"));
    let (mask, bounds, resolution) = (array("ObsMask")?, array("BB")?, array("Res")?);
    let shape: [usize; 3] =
        mask.shape.as_slice().try_into().map_err(|_| format!("`ObsMask` has the shape {:?}", mask.shape))?;
    if bounds.shape != [2, 3] {
        return Err(format!("`BB` has the shape {:?}, not [2, 3]", bounds.shape));
    }
    let &[resolution] = resolution.values.as_slice() else {
        return Err(format!("`Res` has the shape {:?}, not one element", resolution.shape));
    };
    if resolution.is_nan() || resolution <= 0.0 {
        return Err(format!("`Res` is {resolution}"));
    }
    // Corners are single precision there.
    let corner = |row: usize| std::array::from_fn(|i| f64::from(bounds.values[row + 2 * i] as f32));
    Ok(([corner(0), corner(1)], resolution, shape, mask.values.iter().map(|v| *v != 0.0).collect()))
}

fn table(arrays: &BTreeMap<String, Array>) -> Result<[f64; 4], String> {
    let plane = arrays.get("P").ok_or("has no array `P`")?;
    plane.values.as_slice().try_into().map_err(|_| format!("`P` has the shape {:?}, not 4 elements", plane.shape))
}

fn wrong(path: &Path, problem: &str) -> Error {
    Error::bad_file("eval.dtu", format!("{}: {problem}", path.display()))
}

fn refuse(problem: String) -> Error {
    Error::new(crate::Kind::Accuracy, "eval.dtu", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of 41x41 points at z = 0 and a plate of 21x21 points at z = 50 over its middle, 1 mm apart; the voxels of
    /// 10 mm at x ≥ 0 are observed.
    fn reference() -> Reference {
        let grid = |half: i32, z: f64| {
            (-half..=half).flat_map(move |x| (-half..=half).map(move |y| [f64::from(x), f64::from(y), z]))
        };
        let shape = [9, 9, 9];
        Reference {
            bounds: [[-40.0; 3], [40.0; 3]].map(|[x, y, z]| [x, y, z + 40.0]),
            resolution: 10.0,
            shape,
            observed: (0..729).map(|i| i % 9 >= 4).collect(),
            plane: [0.0, 0.0, 1.0, -10.0],
            surface: grid(20, 0.0).chain(grid(10, 50.0)).collect(),
        }
    }

    #[test]
    fn distances_have_closed_forms() {
        let scan = reference();
        // The plate, 2 mm too high: every observed point is 2 off, and so is every scanned one above the table.
        let plate: Vec<Vec3> = scan.surface.iter().filter(|p| p[2] > 0.0).map(|[x, y, z]| [*x, *y, z + 2.0]).collect();
        let m = scan.measure(&plate, 42).unwrap();
        assert!((m.accuracy - 2.0).abs() < 1e-12 && (m.completeness - 2.0).abs() < 1e-12, "{m:?}");
        // Voxels are rounded to the nearest, halves to the even one: x = −5 belongs to voxel 4, which is observed.
        assert_eq!((m.points, m.cut, m.overall), ((16 * 21, 441), (0.0, 0.0), 2.0));
    }

    #[test]
    fn what_lies_beyond_the_cut_does_not_count() {
        let scan = reference();
        let mut cloud: Vec<Vec3> = scan.surface.iter().filter(|p| p[2] > 0.0).copied().collect();
        // One stray point, 21 mm over the plate; one outside the box; one that no camera has seen, beyond the margin.
        cloud.extend([[3.0, 3.0, 71.0], [500.0, 0.0, 50.0], [-90.0, 0.0, 50.0]]);
        let m = scan.measure(&cloud, 1).unwrap();
        assert_eq!((m.accuracy, m.completeness), (0.0, 0.0));
        assert!((m.cut.0 - 1.0 / 337.0).abs() < 1e-12 && m.points.0 == 337, "{m:?}");
        let far = scan.measure(&[[3.0, 3.0, 71.0]], 1).unwrap_err();
        assert_eq!(far.code, "eval.dtu");
        assert!(scan.measure(&[[-20.0, 0.0, 50.0]], 1).is_err(), "nothing was observed");
    }

    #[test]
    fn near_points_are_thinned_by_the_seed() {
        let scan = reference();
        let pairs: Vec<Vec3> =
            (0..10).flat_map(|i| [[f64::from(i), 0.0, 50.0], [f64::from(i) + 0.1, 0.0, 50.0]]).collect();
        let (a, b) = (scan.measure(&pairs, 1).unwrap(), scan.measure(&pairs, 1).unwrap());
        assert_eq!((a, a.points.0), (b, 10));
        let others = (2..12).map(|seed| scan.measure(&pairs, seed).unwrap().accuracy);
        assert!(others.into_iter().any(|v| v != a.accuracy));
    }

    #[test]
    fn files_are_read_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let [mask, plane, surface] = ["mask.mat", "plane.mat", "surface.ply"].map(|name| folder.path().join(name));
        let read = || Reference::read(&surface, &mask, &plane);
        let error = read().unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("file.io", 3));
        let scan = reference();
        let array = |shape: &[usize], values: Vec<f64>| Array { shape: shape.to_vec(), values };
        let [low, high] = scan.bounds;
        let arrays = BTreeMap::from([
            ("ObsMask".into(), array(&scan.shape, scan.observed.iter().map(|o| f64::from(u8::from(*o))).collect())),
            ("BB".into(), array(&[2, 3], (0..3).flat_map(|i| [low[i], high[i]]).collect())),
            ("Res".into(), array(&[1, 1], vec![scan.resolution])),
        ]);
        std::fs::write(&mask, mat::to_bytes(&arrays)).unwrap();
        let table = |values: Vec<f64>| {
            let plane = array(&[values.len(), 1], values);
            mat::to_bytes(&BTreeMap::from([("P".into(), plane)]))
        };
        std::fs::write(&plane, table(scan.plane.to_vec())).unwrap();
        let mut ply = format!(
            "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n",
            scan.surface.len()
        );
        scan.surface.iter().for_each(|[x, y, z]| ply += &format!("{x} {y} {z}\n"));
        std::fs::write(&surface, ply).unwrap();
        assert_eq!(read().unwrap(), scan);
        std::fs::write(&plane, table(vec![0.0; 3])).unwrap();
        let error = read().unwrap_err();
        assert!(error.to_string().contains("plane.mat") && error.code == "eval.dtu", "{error}");
    }
}
