//! The distributions that scenes are drawn from.

use std::f64::consts::{PI, TAU};

use super::{Lights, Object, Pattern, Room, Scene, Sensor, Shape, Texture, Viewpoint};
use crate::{
    geometry::{Mat3, Vec3, add, cross, rigid, scale, sub, transform, unit},
    rng::Stream,
};

/// Slots for solids, the shapes in turn; each scene fills a random choice of them.
const SLOTS: [Shape; 12] = {
    use Shape::{Cuboid, Cylinder, Sphere};
    [Sphere, Sphere, Sphere, Sphere, Cuboid, Cuboid, Cuboid, Cuboid, Cylinder, Cylinder, Cylinder, Cylinder]
};
const FEWEST_OBJECTS: usize = 4;

/// What a random stream is for. Each has its own, so that one distribution can change without moving the others.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Objects = 1,
    Room = 2,
    Lights = 3,
    Arc = 4,
    View = 5,
    Sensor = 6,
}

impl Scene {
    /// Scene number `index` of `seed`, seen from `views` viewpoints.
    pub fn sample(seed: u64, index: u64, views: usize) -> Self {
        let stream = |purpose: Purpose| Stream::new(&[seed, index, purpose as u64]);
        let view = |v: u64| Stream::new(&[seed, index, Purpose::View as u64, v]);
        on_arc(stream, view, 0..views as u64)
    }
}

/// A scene of the distributions of this file, from streams for its parts and its views.
pub(super) fn on_arc(
    stream: impl Fn(Purpose) -> Stream,
    view: impl Fn(u64) -> Stream,
    views: std::ops::Range<u64>,
) -> Scene {
    let arc = Arc::sample(&mut stream(Purpose::Arc));
    Scene {
        objects: objects(&mut stream(Purpose::Objects)),
        room: room(&mut stream(Purpose::Room)),
        lights: lights(&mut stream(Purpose::Lights)),
        views: views.map(|v| arc.viewpoint(&mut view(v))).collect(),
        sensor: Sensor::IDEAL,
    }
}

fn objects(r: &mut Stream) -> Vec<Object> {
    let mut slots: Vec<usize> = (0..SLOTS.len()).collect();
    r.shuffle(&mut slots);
    slots.truncate(FEWEST_OBJECTS + r.below(SLOTS.len() - FEWEST_OBJECTS + 1));
    slots.sort_unstable();
    slots.into_iter().map(|slot| object(r, SLOTS[slot])).collect()
}

fn object(r: &mut Stream, shape: Shape) -> Object {
    let (angle, distance) = (r.uniform(0.0, TAU), 1.9 * r.uniform(0.02, 1.0).sqrt());
    let [a, b, c] = [r.uniform(0.22, 0.65), r.uniform(0.22, 0.65), r.uniform(0.2, 0.8)];
    let half = match shape {
        Shape::Sphere => [a, a, a],
        Shape::Cuboid | Shape::Ellipsoid => [a, b, c],
        Shape::Cylinder => [0.8 * a, 0.8 * a, c],
    };
    let lift = if r.unit() < 0.3 { r.uniform(0.0, 1.1) } else { 0.0 };
    Object {
        shape,
        centre: [distance * libm::cos(angle), distance * libm::sin(angle), half[2] + lift],
        half,
        yaw: r.uniform(0.0, PI),
        texture: texture(r, (1.8, 5.0), 0.0),
    }
}

fn room(r: &mut Stream) -> Room {
    Room {
        half: [r.uniform(5.5, 9.0), r.uniform(5.5, 9.0)],
        height: r.uniform(3.5, 6.0),
        closed: r.unit() < 0.75,
        textures: std::array::from_fn(|_| texture(r, (0.7, 1.8), 0.6)),
    }
}

/// A texture of any pattern; with the probability `cells` it is made of cells for certain.
fn texture(r: &mut Stream, frequency: (f64, f64), cells: f64) -> Texture {
    let pattern = [Pattern::Checker, Pattern::Stripes, Pattern::Waves, Pattern::Cells][r.below(4)];
    let pattern = if r.unit() < cells { Pattern::Cells } else { pattern };
    textured(r, pattern, frequency)
}

/// A texture of that pattern.
pub(super) fn textured(r: &mut Stream, pattern: Pattern, frequency: (f64, f64)) -> Texture {
    let frequency = r.uniform(frequency.0, frequency.1);
    let mut colour = || std::array::from_fn(|_| r.uniform(0.05, 1.0));
    let colours = [colour(), colour()];
    Texture {
        pattern,
        frequency,
        phase: r.uniform(0.2, 0.8),
        seed: r.below(1 << 20) as i64,
        colours,
        direction: unit(normals(r)),
        waves: std::array::from_fn(|_| (scale(normals(r), 1.3 * frequency), r.uniform(0.0, TAU))),
    }
}

fn lights(r: &mut Stream) -> Lights {
    let [x, y, z] = normals(r);
    Lights {
        sun: unit([x, y, z.abs() + 0.5]),
        lamp: [r.uniform(-4.0, 4.0), r.uniform(-4.0, 4.0), r.uniform(1.5, 3.4)],
        tint: std::array::from_fn(|_| r.uniform(0.85, 1.1)),
        ambient: r.uniform(0.3, 0.5),
        sun_power: r.uniform(0.3, 0.6),
        lamp_power: r.uniform(0.1, 0.4),
    }
}

pub(super) fn normals(r: &mut Stream) -> Vec3 {
    std::array::from_fn(|_| r.normal())
}

/// What the cameras of one scene share.
struct Arc {
    middle: f64,
    half_width: f64,
    radius: f64,
    height: f64,
    target: Vec3,
    fov: f64,
}

impl Arc {
    fn sample(r: &mut Stream) -> Self {
        Self {
            middle: r.uniform(0.0, TAU),
            half_width: r.uniform(8.0, 36.0).to_radians(),
            radius: r.uniform(3.1, 4.5),
            height: r.uniform(0.8, 2.5),
            target: [r.uniform(-0.4, 0.4), r.uniform(-0.4, 0.4), r.uniform(0.3, 0.9)],
            fov: r.uniform(42.0, 76.0),
        }
    }

    fn viewpoint(&self, r: &mut Stream) -> Viewpoint {
        let angle = self.middle + self.half_width * r.uniform(-1.0, 1.0);
        let radius = self.radius * r.uniform(0.9, 1.15);
        let height = (self.height + r.uniform(-0.5, 0.5)).clamp(0.5, 3.0);
        let position = [radius * libm::cos(angle), radius * libm::sin(angle), height];
        let target = add(self.target, std::array::from_fn(|_| r.uniform(-0.35, 0.35)));
        let roll = r.uniform(-6.0, 6.0).to_radians();
        looking(position, target, roll, (self.fov + r.uniform(-3.0, 3.0)).to_radians())
    }
}

/// A view from `position` towards `target`, upright but for `roll`.
pub(super) fn looking(position: Vec3, target: Vec3, roll: f64, fov: f64) -> Viewpoint {
    let axes = axes(unit(sub(target, position)), roll);
    let translation = transform(&rigid(&axes, [0.0; 3]), scale(position, -1.0));
    Viewpoint { extrinsic: rigid(&axes, translation), fov }
}

/// The axes of a camera that looks along `forward`, upright but for `roll`.
fn axes(forward: Vec3, roll: f64) -> Mat3 {
    let right = unit(cross(forward, [0.0, 0.0, 1.0]));
    let down = cross(forward, right);
    let (s, c) = (libm::sin(roll), libm::cos(roll));
    [add(scale(right, c), scale(down, s)), sub(scale(down, c), scale(right, s)), forward]
}
