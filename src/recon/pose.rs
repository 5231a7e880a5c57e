//! Cameras: what the models return, decoded.
//!
//! One convention everywhere: poses are camera from world, axes as in OpenCV (x right, y down, z forward), and the
//! world is the one the model chose (for VGGT the frame of its first view). Pixels are whole numbers at sample
//! positions: a pixel (u, v) of depth d is the camera-frame point d ((u - cx) / fx, (v - cy) / fy, 1).

use lite3r_ir::Tensor;

use crate::{Error, Kind, Result};

/// A pinhole camera's inner parameters, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intrinsics {
    /// Focal length along x.
    pub fx: f64,
    /// Focal length along y.
    pub fy: f64,
    /// Principal point, x.
    pub cx: f64,
    /// Principal point, y.
    pub cy: f64,
}

impl Intrinsics {
    /// As a 3x3 matrix.
    pub fn matrix(&self) -> [[f64; 3]; 3] {
        [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]]
    }

    /// The camera-frame point of a pixel at a depth.
    pub fn unproject(&self, u: f64, v: f64, depth: f64) -> [f64; 3] {
        [(u - self.cx) / self.fx * depth, (v - self.cy) / self.fy * depth, depth]
    }

    /// The pixel of a camera-frame point.
    pub fn project(&self, p: [f64; 3]) -> [f64; 2] {
        [p[0] / p[2] * self.fx + self.cx, p[1] / p[2] * self.fy + self.cy]
    }
}

/// A rigid motion, camera from world: `camera = rotation * world + translation`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pose {
    /// Rotation, row by row.
    pub rotation: [[f64; 3]; 3],
    /// Translation.
    pub translation: [f64; 3],
}

impl Pose {
    /// No motion.
    pub const IDENTITY: Self =
        Self { rotation: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], translation: [0.0; 3] };

    /// From a quaternion x, y, z, w (of any length but zero) and a translation.
    pub fn from_quaternion(q: [f64; 4], translation: [f64; 3]) -> Self {
        let [x, y, z, w] = q;
        let s = 2.0 / (x * x + y * y + z * z + w * w);
        let rotation = [
            [1.0 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1.0 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1.0 - s * (x * x + y * y)],
        ];
        Self { rotation, translation }
    }

    /// The rotation as a unit quaternion x, y, z, w with w >= 0 (Shepperd's method: the largest component first).
    pub fn quaternion(&self) -> [f64; 4] {
        let r = &self.rotation;
        let trace = r[0][0] + r[1][1] + r[2][2];
        let squares = [r[0][0], r[1][1], r[2][2], trace].map(|d| 1.0 + 2.0 * d - trace);
        let largest = (0..4).fold(3, |best, i| if squares[i] > squares[best] { i } else { best });
        let mut q = match largest {
            0 => [squares[0], r[1][0] + r[0][1], r[0][2] + r[2][0], r[2][1] - r[1][2]],
            1 => [r[1][0] + r[0][1], squares[1], r[2][1] + r[1][2], r[0][2] - r[2][0]],
            2 => [r[0][2] + r[2][0], r[2][1] + r[1][2], squares[2], r[1][0] - r[0][1]],
            _ => [r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1], squares[3]],
        };
        let length = q.iter().map(|v| v * v).sum::<f64>().sqrt() * if q[3] < 0.0 { -1.0 } else { 1.0 };
        q.iter_mut().for_each(|v| *v /= length);
        q
    }

    /// A point of the world in the frame of the camera.
    pub fn apply(&self, p: [f64; 3]) -> [f64; 3] {
        let row = |i: usize| (0..3).map(|j| self.rotation[i][j] * p[j]).sum::<f64>() + self.translation[i];
        [row(0), row(1), row(2)]
    }

    /// World from camera.
    pub fn inverse(&self) -> Self {
        let r = &self.rotation;
        let rotation = [0, 1, 2].map(|i| [r[0][i], r[1][i], r[2][i]]);
        let t = Self { rotation, translation: [0.0; 3] }.apply(self.translation);
        // 0 - v rather than -v: no negative zeros in the files.
        Self { rotation, translation: t.map(|v| 0.0 - v) }
    }

    /// `self` after `first`.
    pub fn after(&self, first: &Self) -> Self {
        let a = &self.rotation;
        let rotation = [0, 1, 2].map(|i| [0, 1, 2].map(|j| (0..3).map(|k| a[i][k] * first.rotation[k][j]).sum()));
        Self { rotation, translation: self.apply(first.translation) }
    }

    /// Where the camera stands in the world.
    pub fn center(&self) -> [f64; 3] {
        self.inverse().translation
    }

    /// As a 3x4 matrix.
    pub fn matrix(&self) -> [[f64; 4]; 3] {
        [0, 1, 2].map(|i| {
            let r = self.rotation[i];
            [r[0], r[1], r[2], self.translation[i]]
        })
    }
}

/// A view's pose and its intrinsics in pixels of the processed frame.
pub type Camera = (Pose, Intrinsics);

/// The nine numbers of a camera that [`decode_vggt`] reads. Fields of view are those of a frame whose middle is the
/// principal point, as the decoder takes it to be.
pub fn encode_vggt(pose: &Pose, intrinsics: &Intrinsics, width: u32, height: u32) -> [f64; 9] {
    let fov = |side: u32, focal: f64| 2.0 * libm::atan(f64::from(side) / 2.0 / focal);
    let ([tx, ty, tz], [x, y, z, w]) = (pose.translation, pose.quaternion());
    [tx, ty, tz, x, y, z, w, fov(height, intrinsics.fy), fov(width, intrinsics.fx)]
}

/// The nine numbers that [`decode_da3_encoding`] reads.
pub fn encode_da3(pose: &Pose, intrinsics: &Intrinsics, width: u32, height: u32) -> [f64; 9] {
    encode_vggt(&pose.inverse(), intrinsics, width, height)
}

/// VGGT's encoding `[.., S, 9]`: translation, quaternion x y z w, vertical and horizontal field of view, camera from
/// world. The principal point is the middle of the frame.
///
/// # Errors
/// `recon.pose` with every view whose encoding is not finite, has a zero quaternion or a field of view outside 0 to pi.
pub fn decode_vggt(encoding: &Tensor, width: u32, height: u32) -> Result<Vec<Camera>> {
    decode_encoding(encoding, width, height, |pose| pose)
}

/// DA3's encoding `[.., S, 9]`: the same numbers, but world from camera.
///
/// # Errors
/// As [`decode_vggt`].
pub fn decode_da3_encoding(encoding: &Tensor, width: u32, height: u32) -> Result<Vec<Camera>> {
    decode_encoding(encoding, width, height, |pose| pose.inverse())
}

fn decode_encoding(encoding: &Tensor, width: u32, height: u32, fix: impl Fn(Pose) -> Pose) -> Result<Vec<Camera>> {
    if encoding.shape().last() != Some(&9) {
        return Err(shape_error("pose_enc", encoding, "[.., views, 9]"));
    }
    let mut problems = Vec::new();
    let mut cameras = Vec::new();
    for (view, e) in encoding.to_f64().chunks_exact(9).enumerate() {
        let q = [e[3], e[4], e[5], e[6]];
        if e.iter().any(|v| !v.is_finite()) {
            problems.push(format!("pose_enc: view {view} is not finite: {e:?}"));
        } else if q.iter().all(|v| *v == 0.0) {
            problems.push(format!("pose_enc: the quaternion of view {view} is zero"));
        } else if e[7..9].iter().any(|f| *f <= 0.0 || *f >= std::f64::consts::PI) {
            problems.push(format!("pose_enc: the field of view of view {view}, {:?}, is outside 0 to pi", &e[7..9]));
        } else {
            let [w, h] = [width as f64, height as f64];
            let focal = |side: f64, fov: f64| side / 2.0 / (fov / 2.0).tan();
            let k = Intrinsics { fx: focal(w, e[8]), fy: focal(h, e[7]), cx: w / 2.0, cy: h / 2.0 };
            cameras.push((fix(Pose::from_quaternion(q, [e[0], e[1], e[2]])), k));
        }
    }
    finish(cameras, problems)
}

/// DA3's `extrinsics` `[.., S, 3 or 4, 4]`, camera from world, and `intrinsics` `[.., S, 3, 3]` in pixels of the frame.
///
/// # Errors
/// `recon.pose` with every view whose matrices are not finite, whose rotation is none, or whose focal lengths are not
/// positive.
pub fn decode_matrices(extrinsics: &Tensor, intrinsics: &Tensor) -> Result<Vec<Camera>> {
    let rows = match extrinsics.shape() {
        [.., rows @ (3 | 4), 4] => *rows,
        _ => return Err(shape_error("extrinsics", extrinsics, "[.., views, 3 or 4, 4]")),
    };
    if !matches!(intrinsics.shape(), [.., 3, 3]) || intrinsics.len() / 9 != extrinsics.len() / (4 * rows) {
        return Err(shape_error("intrinsics", intrinsics, "[.., views, 3, 3], as many views as extrinsics"));
    }
    let mut problems = Vec::new();
    let mut cameras = Vec::new();
    let (e, k) = (extrinsics.to_f64(), intrinsics.to_f64());
    for (view, (e, k)) in e.chunks_exact(4 * rows).zip(k.chunks_exact(9)).enumerate() {
        let pose = Pose {
            rotation: [0, 1, 2].map(|i| [e[4 * i], e[4 * i + 1], e[4 * i + 2]]),
            translation: [e[3], e[7], e[11]],
        };
        let turned = pose.inverse().after(&pose).rotation;
        let off = (0..9).map(|i| (turned[i / 3][i % 3] - (i / 3 == i % 3) as u8 as f64).abs()).fold(0.0, f64::max);
        if e.iter().chain(k).any(|v| !v.is_finite()) {
            problems.push(format!("extrinsics, intrinsics: view {view} is not finite"));
        } else if off > 1e-2 {
            problems.push(format!("extrinsics: the matrix of view {view} is no rotation (off by {off:.3})"));
        } else if k[0] <= 0.0 || k[4] <= 0.0 {
            problems
                .push(format!("intrinsics: the focal lengths of view {view}, {} and {}, are not positive", k[0], k[4]));
        } else {
            cameras.push((pose, Intrinsics { fx: k[0], fy: k[4], cx: k[2], cy: k[5] }));
        }
    }
    finish(cameras, problems)
}

fn finish(cameras: Vec<Camera>, problems: Vec<String>) -> Result<Vec<Camera>> {
    if problems.is_empty() { Ok(cameras) } else { Err(Error::all(Kind::Accuracy, "recon.pose", problems)) }
}

fn shape_error(name: &str, tensor: &Tensor, expected: &str) -> Error {
    Error::unsupported("recon.shape", format!("{name} has the shape {:?}; expected is {expected}", tensor.shape()))
}

#[cfg(test)]
mod tests {
    use lite3r_ir::DType;

    use super::*;

    fn npy(folder: &str, name: &str) -> Tensor {
        let path = format!("{}/tests/fixtures/onnx/{folder}/{name}.npy", env!("CARGO_MANIFEST_DIR"));
        let file = npyz::NpyFile::new(std::fs::File::open(path).unwrap()).unwrap();
        let shape: Vec<usize> = file.shape().iter().map(|d| *d as usize).collect();
        Tensor::from_f32(&shape, file.into_vec::<f32>().unwrap())
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) {
        assert_eq!(a.len(), b.len());
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "{i}: {x} against {y}");
        }
    }

    /// Two exporters' recordings of torch results; the frame has 42 rows and 56 columns.
    #[test]
    fn encodings_decode_to_the_recorded_matrices() {
        for folder in ["op_pose_dyn18", "op_pose_ts17"] {
            let (extrinsics, intrinsics) = (npy(folder, "out_extrinsics"), npy(folder, "out_intrinsics"));
            let cameras = decode_da3_encoding(&npy(folder, "in_pose"), 56, 42).unwrap();
            let e: Vec<f64> = cameras.iter().flat_map(|c| c.0.matrix().concat()).collect();
            let k: Vec<f64> = cameras.iter().flat_map(|c| c.1.matrix().concat()).collect();
            close(&e, &extrinsics.to_f64(), 2e-6);
            close(&k, &intrinsics.to_f64(), 2e-6);
            let read = decode_matrices(&extrinsics, &intrinsics).unwrap();
            for ((p, k), (q, l)) in cameras.iter().zip(&read) {
                close(&p.matrix().concat(), &q.matrix().concat(), 2e-6);
                close(&k.matrix().concat(), &l.matrix().concat(), 2e-6);
            }
        }
    }

    #[test]
    fn vggt_encodings_are_camera_from_world() {
        let encoding = Tensor::from_f64(DType::F64, &[1, 1, 9], &[1., 2., 3., 0., 0., 2., 2., 1.0, 1.2]);
        let (pose, k) = decode_vggt(&encoding, 60, 40).unwrap()[0];
        // A quarter turn about z.
        close(&pose.matrix().concat(), &[0., -1., 0., 1., 1., 0., 0., 2., 0., 0., 1., 3.], 1e-15);
        close(&k.matrix().concat(), &[30. / 0.6f64.tan(), 0., 30., 0., 20. / 0.5f64.tan(), 20., 0., 0., 1.], 1e-15);
        assert_eq!(pose.apply([5., 0., 0.]), [1.0, 7.0, 3.0]);
    }

    #[test]
    fn encoding_and_decoding_are_inverse() {
        let pose = Pose::from_quaternion([0.1, -0.7, 0.3, -0.2], [1.0, -2.0, 3.0]);
        let k = Intrinsics { fx: 70.0, fy: 65.0, cx: 30.0, cy: 20.0 };
        let tensor = |encoding: [f64; 9]| Tensor::from_f64(DType::F64, &[1, 1, 9], &encoding);
        for decoded in [
            decode_vggt(&tensor(encode_vggt(&pose, &k, 60, 40)), 60, 40),
            decode_da3_encoding(&tensor(encode_da3(&pose, &k, 60, 40)), 60, 40),
        ] {
            let (found, l) = decoded.unwrap()[0];
            close(&found.matrix().concat(), &pose.matrix().concat(), 1e-14);
            close(&l.matrix().concat(), &k.matrix().concat(), 1e-13);
        }
    }

    #[test]
    fn quaternions_come_back() {
        for q in [
            [0., 0., 0., 1.],
            [1., 0., 0., 0.],
            [0., 1., 0., 0.],
            [0., 0., 1., 0.],
            [0.1, -0.7, 0.3, 0.2],
            [0.5, 0.5, -0.5, 0.5],
        ] {
            let length = q.iter().map(|v: &f64| v * v).sum::<f64>().sqrt();
            let unit = q.map(|v| v / length);
            let found = Pose::from_quaternion(q, [0.0; 3]).quaternion();
            let sign = if unit.iter().zip(found).map(|(a, b)| a * b).sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
            close(&found.map(|v| v * sign), &unit, 1e-12);
        }
    }

    #[test]
    fn poses_compose_and_invert() {
        let a = Pose::from_quaternion([0.1, 0.2, -0.3, 0.9], [1., -2., 3.]);
        let b = Pose::from_quaternion([-0.5, 0.1, 0.3, 0.4], [0.3, 0.2, -7.]);
        let p = [0.7, -1.1, 2.9];
        close(&a.after(&b).apply(p), &a.apply(b.apply(p)), 1e-12);
        close(&a.inverse().apply(a.apply(p)), &p, 1e-12);
        close(&a.apply(a.center()), &[0.0; 3], 1e-12);
    }

    #[test]
    fn pixels_project_where_they_came_from() {
        let k = Intrinsics { fx: 300.0, fy: 310.0, cx: 111.5, cy: 80.0 };
        close(&k.project(k.unproject(17.0, 63.0, 2.5)), &[17.0, 63.0], 1e-12);
    }

    #[test]
    fn bad_cameras_are_all_named() {
        let good = [0., 0., 0., 0., 0., 0., 1., 1., 1.];
        let mut rows = [good; 4];
        rows[1][0] = f64::NAN;
        rows[2][6] = 0.0;
        rows[3][8] = 0.0;
        let error = decode_vggt(&Tensor::from_f64(DType::F64, &[1, 4, 9], &rows.concat()), 8, 8).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("recon.pose", 3), "{error}");
        let e = Tensor::from_f64(DType::F64, &[1, 3, 4], &[2., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0.]);
        let k = Tensor::from_f64(DType::F64, &[1, 3, 3], &[1., 0., 0., 0., 1., 0., 0., 0., 1.]);
        assert!(decode_matrices(&e, &k).unwrap_err().to_string().contains("no rotation"));
        assert_eq!(decode_matrices(&k, &k).unwrap_err().code, "recon.shape");
        assert_eq!(decode_vggt(&k, 8, 8).unwrap_err().code, "recon.shape");
    }
}
