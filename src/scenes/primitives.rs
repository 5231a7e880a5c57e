//! Ray intersections and normals of the solids, in their own axes with the middle at the origin, and of the room.

use super::{Object, Room};
use crate::geometry::{Mat4, Vec3, add, dot, inverse, norm, scale, transform, translation, unit};

/// Nothing nearer than this is seen.
const NEAR: f64 = 0.05;
/// Directions count as at least this steep, so that no division is by zero.
const STEEP: f64 = 1e-7;

/// The solids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Of one radius.
    Sphere,
    /// A box, turned about the vertical.
    Cuboid,
    /// Upright, with flat caps.
    Cylinder,
    /// A sphere stretched along its own axes.
    Ellipsoid,
}

/// A half-line: points `origin + t·direction`, t > 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ray {
    pub(super) origin: Vec3,
    pub(super) direction: Vec3,
}

impl Ray {
    #[inline]
    pub(super) fn at(&self, t: f64) -> Vec3 {
        add(self.origin, scale(self.direction, t))
    }
}

impl Shape {
    /// The t of the first hit from outside.
    #[inline]
    pub(super) fn hit(self, half: Vec3, ray: &Ray) -> Option<f64> {
        let t = match self {
            Self::Sphere => sphere(half[0], ray)?,
            Self::Ellipsoid => {
                // In units of the half axes it is the unit sphere; t stays what it is.
                let unscaled = |v: Vec3| std::array::from_fn(|i| v[i] / half[i]);
                sphere(1.0, &Ray { origin: unscaled(ray.origin), direction: unscaled(ray.direction) })?
            }
            Self::Cuboid => interval(&[slab(half, ray, 0), slab(half, ray, 1), slab(half, ray, 2)])?,
            Self::Cylinder => interval(&[tube(half[0], ray)?, slab(half, ray, 2)])?,
        };
        (t > NEAR).then_some(t)
    }

    /// Of a sphere about the middle that holds it.
    fn radius(self, half: Vec3) -> f64 {
        match self {
            Self::Sphere => half[0],
            Self::Cuboid => norm(half),
            Self::Cylinder => norm([half[0], 0.0, half[2]]),
            Self::Ellipsoid => half.into_iter().fold(0.0, f64::max),
        }
    }

    /// The outward normal at a point of the surface.
    #[inline]
    pub(super) fn normal(self, half: Vec3, p: Vec3) -> Vec3 {
        match self {
            Self::Sphere => unit(p),
            Self::Ellipsoid => unit(std::array::from_fn(|i| p[i] / (half[i] * half[i]))),
            Self::Cuboid => {
                let q: Vec3 = std::array::from_fn(|i| p[i] / half[i]);
                let face = (1..3).fold(0, |best, i| if q[i].abs() > q[best].abs() { i } else { best });
                std::array::from_fn(|i| if i == face { q[i].signum() } else { 0.0 })
            }
            Self::Cylinder => {
                let radius = (p[0] * p[0] + p[1] * p[1]).sqrt();
                match p[2].abs() / half[2] > radius / half[0] {
                    true => [0.0, 0.0, p[2].signum()],
                    false => [p[0] / radius.max(1e-6), p[1] / radius.max(1e-6), 0.0],
                }
            }
        }
    }
}

fn sphere(radius: f64, ray: &Ray) -> Option<f64> {
    let (o, d) = (ray.origin, ray.direction);
    let (a, b, c) = (dot(d, d), dot(d, o), dot(o, o) - radius * radius);
    let discriminant = b * b - a * c;
    (discriminant > 0.0).then(|| (-b - discriminant.sqrt()) / a)
}

/// Where the ray is between two opposite faces.
fn slab(half: Vec3, ray: &Ray, axis: usize) -> (f64, f64) {
    let inverse = 1.0 / steep(ray.direction[axis]);
    let (a, b) = ((-half[axis] - ray.origin[axis]) * inverse, (half[axis] - ray.origin[axis]) * inverse);
    (a.min(b), a.max(b))
}

/// Where the ray is inside the endless vertical tube.
fn tube(radius: f64, ray: &Ray) -> Option<(f64, f64)> {
    let ([ox, oy, _], [dx, dy, _]) = (ray.origin, ray.direction);
    let a = (dx * dx + dy * dy).max(1e-9);
    let (b, c) = (dx * ox + dy * oy, ox * ox + oy * oy - radius * radius);
    let discriminant = b * b - a * c;
    (discriminant > 0.0).then(|| ((-b - discriminant.sqrt()) / a, (-b + discriminant.sqrt()) / a))
}

/// The start of what all intervals share.
fn interval(parts: &[(f64, f64)]) -> Option<f64> {
    let start = parts.iter().fold(f64::NEG_INFINITY, |t, part| t.max(part.0));
    let end = parts.iter().fold(f64::INFINITY, |t, part| t.min(part.1));
    (start < end).then_some(start)
}

fn steep(d: f64) -> f64 {
    if d.abs() >= STEEP {
        d
    } else if d < 0.0 {
        -STEEP
    } else {
        STEEP
    }
}

/// An object with what its rays need, computed once a view.
pub(super) struct Placed<'a> {
    pub(super) object: &'a Object,
    /// Where rays begin, in the object's axes.
    pub(super) eye: Vec3,
    /// Least and largest x and y, at z = 1 in the axes of the camera, outside of which it is not seen.
    seen: [[f64; 2]; 2],
    sin: f64,
    cos: f64,
}

impl<'a> Placed<'a> {
    /// Seen by a camera: world to its axes.
    pub(super) fn new(object: &'a Object, camera: &Mat4) -> Self {
        let [x, y, z] = transform(camera, object.centre);
        let radius = object.shape.radius(object.half);
        // What is nearest to the camera spreads most; behind it, anything may be seen.
        let range = |at: f64| {
            let edge = |side: f64| (at + side * radius) / (z - radius * (side * (at + side * radius)).signum());
            if z > radius { [edge(-1.0), edge(1.0)] } else { [f64::NEG_INFINITY, f64::INFINITY] }
        };
        let (sin, cos) = (libm::sin(object.yaw), libm::cos(object.yaw));
        let mut placed = Self { object, eye: translation(&inverse(camera)), seen: [range(x), range(y)], sin, cos };
        placed.eye = placed.local(placed.eye);
        placed
    }

    /// Whether rays through (x, ·, 1) of the camera, or (·, y, 1), may meet it.
    #[inline]
    pub(super) fn may_be_at(&self, axis: usize, at: f64) -> bool {
        let [least, most] = self.seen[axis];
        least <= at && at <= most
    }

    /// A direction of the world in the object's axes.
    #[inline]
    pub(super) fn inward(&self, [x, y, z]: Vec3) -> Vec3 {
        [self.cos * x + self.sin * y, self.cos * y - self.sin * x, z]
    }

    /// A direction of the object's axes in the world.
    #[inline]
    pub(super) fn outward(&self, [x, y, z]: Vec3) -> Vec3 {
        [self.cos * x - self.sin * y, self.sin * x + self.cos * y, z]
    }

    /// A point of the world in the object's axes.
    #[inline]
    pub(super) fn local(&self, p: Vec3) -> Vec3 {
        self.inward(crate::geometry::sub(p, self.object.centre))
    }
}

/// The first surface of the room along a ray from inside: t, which of [`Room::textures`], and the normal inward.
#[inline]
pub(super) fn room(room: &Room, ray: &Ray) -> Option<(f64, usize, Vec3)> {
    let (o, d) = (ray.origin, ray.direction);
    let level = if d[2] < 0.0 { Some((0.0, 0)) } else { room.closed.then_some((room.height, 1)) };
    let flat = level.map(|(z, side)| ((z - o[2]) / steep(d[2]), side, [0.0, 0.0, if side == 0 { 1.0 } else { -1.0 }]));
    let wall = |axis: usize| {
        let far = d[axis] > 0.0;
        let t = (room.half[axis].copysign(d[axis]) - o[axis]) / steep(d[axis]);
        let mut normal = [0.0; 3];
        normal[axis] = if far { -1.0 } else { 1.0 };
        room.closed.then_some((t.abs(), 2 + 2 * axis + usize::from(far), normal))
    };
    [flat, wall(0), wall(1)].into_iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::IDENTITY;

    const HALF: Vec3 = [0.5, 0.25, 0.75];

    fn ray(origin: Vec3, direction: Vec3) -> Ray {
        Ray { origin, direction }
    }

    #[test]
    fn a_sphere_is_hit_where_geometry_says() {
        let straight = ray([-3.0, 0.0, 0.0], [1.0, 0.0, 0.0]);
        assert_eq!(Shape::Sphere.hit([0.5; 3], &straight), Some(2.5));
        // At the height h the chord begins √(r² − h²) before the middle.
        let high = ray([-3.0, 0.0, 0.3], [2.0, 0.0, 0.0]);
        assert!((Shape::Sphere.hit([0.5; 3], &high).unwrap() - (3.0 - 0.4) / 2.0).abs() < 1e-12);
        assert_eq!(Shape::Sphere.hit([0.5; 3], &ray([-3.0, 0.0, 0.51], [1.0, 0.0, 0.0])), None);
        assert_eq!(Shape::Sphere.hit([0.5; 3], &ray([3.0, 0.0, 0.0], [1.0, 0.0, 0.0])), None, "behind");
    }

    #[test]
    fn an_ellipsoid_is_a_stretched_sphere() {
        let along = |axis: usize| {
            let mut origin = [0.0; 3];
            origin[axis] = -4.0;
            let mut direction = [0.0; 3];
            direction[axis] = 1.0;
            ray(origin, direction)
        };
        for (axis, half) in HALF.into_iter().enumerate() {
            let t = Shape::Ellipsoid.hit(HALF, &along(axis)).unwrap();
            assert!((t - (4.0 - half)).abs() < 1e-12);
            assert_eq!(Shape::Ellipsoid.normal(HALF, along(axis).at(t))[axis], -1.0);
        }
        // (x / a)² + (y / b)² = 1 at y = 0.2, b = 0.25: x = −a · 0.6; the gradient is (x / a², y / b²).
        let side = ray([-4.0, 0.2, 0.0], [1.0, 0.0, 0.0]);
        let t = Shape::Ellipsoid.hit(HALF, &side).unwrap();
        assert!((t - (4.0 - 0.3)).abs() < 1e-12);
        let (normal, gradient) = (Shape::Ellipsoid.normal(HALF, side.at(t)), unit([-0.3 / 0.25, 0.2 / 0.0625, 0.0]));
        assert!(normal.iter().zip(gradient).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn a_box_is_hit_on_every_face() {
        for axis in 0..3 {
            for side in [-1.0, 1.0] {
                let mut origin = [0.01, 0.02, 0.03];
                origin[axis] = 4.0 * side;
                let mut direction = [0.0; 3];
                direction[axis] = -side;
                let ray = ray(origin, direction);
                let t = Shape::Cuboid.hit(HALF, &ray).unwrap();
                assert!((t - (4.0 - HALF[axis])).abs() < 1e-6);
                assert_eq!(Shape::Cuboid.normal(HALF, ray.at(t))[axis], side);
            }
        }
        assert_eq!(Shape::Cuboid.hit(HALF, &ray([-4.0, 0.26, 0.0], [1.0, 0.0, 0.0])), None);
        assert_eq!(Shape::Cuboid.hit(HALF, &ray([0.0; 3], [1.0, 0.0, 0.0])), None, "from inside");
    }

    #[test]
    fn a_cylinder_has_a_side_and_caps() {
        let side = ray([-3.0, 0.3, 0.1], [1.0, 0.0, 0.0]);
        let t = Shape::Cylinder.hit([0.5, 0.5, 0.75], &side).unwrap();
        assert!((t - (3.0 - 0.4)).abs() < 1e-12);
        let normal = Shape::Cylinder.normal([0.5, 0.5, 0.75], side.at(t));
        assert!((normal[0] + 0.8).abs() < 1e-12 && (normal[1] - 0.6).abs() < 1e-12 && normal[2] == 0.0);
        let cap = ray([0.1, 0.1, 4.0], [0.0, 0.0, -2.0]);
        let t = Shape::Cylinder.hit([0.5, 0.5, 0.75], &cap).unwrap();
        assert!((t - (4.0 - 0.75) / 2.0).abs() < 1e-6);
        assert_eq!(Shape::Cylinder.normal([0.5, 0.5, 0.75], cap.at(t)), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn rays_that_hardly_fall_meet_the_ground_ahead() {
        let mut room = super::super::Scene::sample(0, 0, 0).room;
        for closed in [false, true] {
            room.closed = closed;
            for down in [-1e-9, -1e-7, -1e-3] {
                let (t, side, _) = super::room(&room, &ray([0.0, 0.0, 1.5], [1.0, 0.2, down])).unwrap();
                assert!(t > 0.0 && (closed || side == 0), "{t} at {side}");
            }
        }
    }

    #[test]
    fn placing_turns_there_and_back() {
        let texture = super::super::Scene::sample(0, 0, 0).room.textures[0].clone();
        let object = Object { shape: Shape::Cuboid, centre: [1.0, 2.0, 3.0], half: HALF, yaw: 0.7, texture };
        let placed = Placed::new(&object, &IDENTITY);
        let back = placed.outward(placed.inward([0.3, -0.2, 0.9]));
        assert!(back.iter().zip([0.3, -0.2, 0.9]).all(|(a, b)| (a - b).abs() < 1e-15));
        assert_eq!(placed.local(object.centre), [0.0; 3]);
    }

    /// What is not asked because it lies far from a ray would not have been hit.
    #[test]
    fn nothing_that_a_ray_hits_is_left_out() {
        for (index, view) in (0..6).flat_map(|index| (0..3).map(move |view| (index, view))) {
            let scene = super::super::Scene::sample(9, index, 3);
            let camera = scene.views[view].camera(48, 32);
            let (pose, focal) = (inverse(&camera.extrinsic), camera.intrinsic[0][0]);
            for placed in scene.objects.iter().map(|object| Placed::new(object, &camera.extrinsic)) {
                for (column, row) in (0..32).flat_map(|row| (0..48).map(move |column| (column, row))) {
                    let (x, y) = ((f64::from(column) - 23.5) / focal, (f64::from(row) - 15.5) / focal);
                    let direction = std::array::from_fn(|i| pose[i][0] * x + pose[i][1] * y + pose[i][2]);
                    let local = ray(placed.eye, placed.inward(direction));
                    let hit = placed.object.shape.hit(placed.object.half, &local);
                    assert!(hit.is_none() || placed.may_be_at(0, x) && placed.may_be_at(1, y), "{:?}", placed.object);
                }
            }
        }
    }
}
