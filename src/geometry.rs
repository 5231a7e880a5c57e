//! Vectors, rigid motions and pinhole cameras in f64.
//!
//! Cameras follow OpenCV: x right, y down, z forward; extrinsics take world to camera; the centre of the pixel in
//! column c and row r lies at (c + ½, r + ½).

/// A point or direction.
pub type Vec3 = [f64; 3];
/// A 3x3 matrix, by rows.
pub type Mat3 = [[f64; 3]; 3];
/// A rigid motion as a 4x4 matrix, by rows; the last row is 0 0 0 1.
pub type Mat4 = [[f64; 4]; 4];

/// The motion that moves nothing.
pub const IDENTITY: Mat4 = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];

/// A pinhole camera.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Camera {
    /// World to camera.
    pub extrinsic: Mat4,
    /// Focal lengths and principal point, in pixels.
    pub intrinsic: Mat3,
}

impl Camera {
    /// Where the camera stands in the world.
    pub fn centre(&self) -> Vec3 {
        translation(&inverse(&self.extrinsic))
    }

    /// The world point at `depth` (along the z axis of the camera) behind the image position (u, v).
    #[inline]
    pub fn unproject(&self, u: f64, v: f64, depth: f64) -> Vec3 {
        self.lift()(u, v, depth)
    }

    /// [`Camera::unproject`] for many positions.
    #[inline]
    pub fn lift(&self) -> impl Fn(f64, f64, f64) -> Vec3 + use<> {
        let (world, k) = (inverse(&self.extrinsic), self.intrinsic);
        move |u, v, depth| transform(&world, [(u - k[0][2]) / k[0][0] * depth, (v - k[1][2]) / k[1][1] * depth, depth])
    }

    /// The image position (u, v) of a world point, and its depth along the z axis of the camera.
    #[inline]
    pub fn project(&self, point: Vec3) -> (f64, f64, f64) {
        let ([x, y, z], k) = (transform(&self.extrinsic, point), &self.intrinsic);
        (k[0][0] * x / z + k[0][2], k[1][1] * y / z + k[1][2], z)
    }
}

/// a + b.
#[inline]
pub fn add(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// a − b.
#[inline]
pub fn sub(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// s a.
#[inline]
pub fn scale(a: Vec3, s: f64) -> Vec3 {
    [a[0] * s, a[1] * s, a[2] * s]
}

/// a · b.
#[inline]
pub fn dot(a: Vec3, b: Vec3) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// a × b.
#[inline]
pub fn cross(a: Vec3, b: Vec3) -> Vec3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// |a|.
#[inline]
pub fn norm(a: Vec3) -> f64 {
    dot(a, a).sqrt()
}

/// a / |a|; not a number for the zero vector.
#[inline]
pub fn unit(a: Vec3) -> Vec3 {
    scale(a, 1.0 / norm(a))
}

/// The motion that does `b`, then `a`.
pub fn compose(a: &Mat4, b: &Mat4) -> Mat4 {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..4).map(|k| a[i][k] * b[k][j]).sum()))
}

/// The inverse of a rigid motion: its rotation is transposed, not inverted.
#[inline]
pub fn inverse(m: &Mat4) -> Mat4 {
    let t = translation(m);
    std::array::from_fn(|i| {
        if i == 3 {
            return IDENTITY[3];
        }
        let column = [m[0][i], m[1][i], m[2][i]];
        [column[0], column[1], column[2], -dot(column, t)]
    })
}

/// The rotation of a rigid motion.
#[inline]
pub fn rotation(m: &Mat4) -> Mat3 {
    std::array::from_fn(|i| [m[i][0], m[i][1], m[i][2]])
}

/// The translation of a rigid motion.
#[inline]
pub fn translation(m: &Mat4) -> Vec3 {
    [m[0][3], m[1][3], m[2][3]]
}

/// The image of a point under a rigid motion.
#[inline]
pub fn transform(m: &Mat4, p: Vec3) -> Vec3 {
    std::array::from_fn(|i| m[i][0] * p[0] + m[i][1] * p[1] + m[i][2] * p[2] + m[i][3])
}

/// A rigid motion from the rows of its rotation and its translation.
pub fn rigid(rotation: &Mat3, translation: Vec3) -> Mat4 {
    std::array::from_fn(|i| {
        if i == 3 {
            return IDENTITY[3];
        }
        [rotation[i][0], rotation[i][1], rotation[i][2], translation[i]]
    })
}

/// Degrees that the rotation aᵀ b turns by, in 0..=180.
///
/// Small angles come from the antisymmetric part, where the trace has lost its digits.
pub fn rotation_angle(a: &Mat3, b: &Mat3) -> f64 {
    let r = |i: usize, j: usize| (0..3).map(|k| a[k][i] * b[k][j]).sum::<f64>();
    let axis = [r(2, 1) - r(1, 2), r(0, 2) - r(2, 0), r(1, 0) - r(0, 1)];
    let trace = r(0, 0) + r(1, 1) + r(2, 2);
    libm::atan2(norm(axis), trace - 1.0).to_degrees()
}

/// Degrees between two directions, in 0..=180; `None` where one of them is zero.
pub fn direction_angle(a: Vec3, b: Vec3) -> Option<f64> {
    (norm(a) > 1e-12 && norm(b) > 1e-12).then(|| libm::atan2(norm(cross(a, b)), dot(a, b)).to_degrees())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns by `degrees` about z.
    fn about_z(degrees: f64) -> Mat3 {
        let (s, c) = degrees.to_radians().sin_cos();
        [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]
    }

    #[test]
    fn inverse_undoes_a_motion() {
        let m = rigid(&about_z(33.0), [1.0, -2.0, 3.0]);
        let product = compose(&m, &inverse(&m));
        assert!(product.iter().flatten().zip(IDENTITY.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-15));
        assert_eq!(cross([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn angles_are_exact_from_the_smallest_to_the_largest() {
        for degrees in [0.0, 1e-7, 0.5, 90.0, 179.999, 180.0] {
            assert!((rotation_angle(&about_z(20.0), &about_z(20.0 + degrees)) - degrees).abs() < 1e-9, "{degrees}");
        }
        assert!((direction_angle([1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]).unwrap() - 180.0).abs() < 1e-12);
        assert_eq!(direction_angle([0.0; 3], [1.0, 0.0, 0.0]), None);
    }

    #[test]
    fn projection_undoes_unprojection() {
        let extrinsic = rigid(&about_z(-70.0), [0.3, 0.1, 2.0]);
        let camera = Camera { extrinsic, intrinsic: [[100.0, 0.0, 32.0], [0.0, 90.0, 24.0], [0.0, 0.0, 1.0]] };
        let (u, v, depth) = camera.project(camera.unproject(10.5, 40.5, 3.25));
        assert!((u - 10.5).abs() < 1e-12 && (v - 40.5).abs() < 1e-12 && (depth - 3.25).abs() < 1e-12);
    }
}
