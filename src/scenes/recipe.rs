//! Scenes in groups that share none, and distributions that are wider than those of the small backbone.

use std::{f64::consts::TAU, ops::Range};

use super::{
    Lights, Object, Pattern, Room, Scene, Sensor, Shape, Texture, Viewpoint,
    sample::{Purpose, looking, normals, on_arc, textured},
};
use crate::{
    Error, Result,
    geometry::{Vec3, add, scale, unit},
    rng::Stream,
};

lite3r_ir::word_enum! {
    /// What scenes are like.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Recipe {
        /// Spheres, boxes and cylinders, seen from an arc of 16 to 72 degrees with fields of view around 42 to 76
        /// degrees, without noise: what the small backbone was trained on.
        Arc = "arc",
        /// Also ellipsoids, piles and furniture along the walls; noise and plain surfaces as textures; darker, brighter
        /// and more coloured light; fields of view from 35 to 95 degrees; baselines from a few degrees to half around,
        /// or along a line; cameras with noise and an exposure of their own.
        Varied = "varied",
    }
}

impl std::str::FromStr for Recipe {
    type Err = Error;

    /// Errors: `scenes.recipe`.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        let wrong =
            || Error::usage("scenes.recipe", format!("`{text}` is no recipe of scenes; there are arc and varied"));
        found.map(|(_, recipe)| *recipe).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// Which scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// What they are like.
    pub recipe: Recipe,
    /// Of all random choices.
    pub seed: u64,
    /// Scenes of different groups have no random number in common, whatever their seeds and numbers are.
    pub group: u64,
}

impl Draw {
    /// Scene number `index`, seen from these viewpoints. A viewpoint depends on its number alone.
    pub fn scene(&self, index: u64, views: Range<u64>) -> Scene {
        // Five words: other streams than those of `Scene::sample`, which have three and four.
        let words = |purpose: Purpose, view: u64| [self.seed, index, purpose as u64, self.group, view];
        let stream = |purpose: Purpose| Stream::new(&words(purpose, 0));
        let view = |v: u64| Stream::new(&words(Purpose::View, v));
        match self.recipe {
            Recipe::Arc => on_arc(stream, view, views),
            Recipe::Varied => {
                let room = room(&mut stream(Purpose::Room));
                let path = Path::sample(&mut stream(Purpose::Arc));
                Scene {
                    objects: objects(&mut stream(Purpose::Objects), &room),
                    room,
                    lights: lights(&mut stream(Purpose::Lights)),
                    views: views.map(|v| path.viewpoint(&mut view(v))).collect(),
                    sensor: sensor(&mut stream(Purpose::Sensor)),
                }
            }
        }
    }
}

/// Farther from the middle than any camera stands: furniture begins here.
const CLEAR: f64 = 5.3;

fn room(r: &mut Stream) -> Room {
    Room {
        half: [r.uniform(6.4, 9.5), r.uniform(6.4, 9.5)],
        height: r.uniform(3.4, 6.0),
        closed: r.unit() < 0.8,
        textures: std::array::from_fn(|_| {
            let pattern = pattern(r);
            textured(r, pattern, (0.6, 2.0))
        }),
    }
}

fn pattern(r: &mut Stream) -> Pattern {
    use Pattern::{Cells, Checker, Noise, Plain, Stripes, Waves};
    // Noise and cells carry most of what views are matched by; a tenth has nothing to match at all.
    [Checker, Stripes, Waves, Cells, Cells, Cells, Noise, Noise, Noise, Plain][r.below(10)]
}

fn texture(r: &mut Stream) -> Texture {
    let pattern = pattern(r);
    textured(r, pattern, (1.2, 6.0))
}

fn objects(r: &mut Stream, room: &Room) -> Vec<Object> {
    let mut out: Vec<Object> = Vec::new();
    for _ in 0..3 + r.below(8) {
        let object = solid(r);
        let pile = r.unit() < 0.25 && object.centre[2] + object.half[2] < 1.1;
        // On top of the solid, its middle above the other's.
        let above = pile.then(|| {
            let mut above = solid(r);
            above.half = above.half.map(|h| 0.7 * h);
            above.centre = add(object.centre, [0.0, 0.0, object.half[2] + above.half[2]]);
            above
        });
        out.push(object);
        out.extend(above);
    }
    if room.closed {
        (0..r.below(7)).for_each(|_| out.push(furniture(r, room)));
    }
    out
}

fn solid(r: &mut Stream) -> Object {
    let shape = [Shape::Sphere, Shape::Cuboid, Shape::Cuboid, Shape::Cylinder, Shape::Ellipsoid][r.below(5)];
    let (angle, distance) = (r.uniform(0.0, TAU), 1.9 * r.uniform(0.02, 1.0).sqrt());
    let [a, b, c] = [r.uniform(0.15, 0.6), r.uniform(0.15, 0.6), r.uniform(0.15, 0.85)];
    let half = match shape {
        Shape::Sphere => [a, a, a],
        Shape::Cuboid | Shape::Ellipsoid => [a, b, c],
        Shape::Cylinder => [0.8 * a, 0.8 * a, c],
    };
    let lift = if r.unit() < 0.2 { r.uniform(0.0, 1.1) } else { 0.0 };
    Object {
        shape,
        centre: [distance * libm::cos(angle), distance * libm::sin(angle), half[2] + lift],
        half,
        yaw: r.uniform(0.0, TAU),
        texture: texture(r),
    }
}

/// A box that stands with its back to a wall.
fn furniture(r: &mut Stream, room: &Room) -> Object {
    let axis = r.below(2);
    let side = if r.unit() < 0.5 { -1.0 } else { 1.0 };
    let deep = r.uniform(0.15, 0.45).min((room.half[axis] - CLEAR) / 2.0);
    let (wide, high) = (r.uniform(0.3, 1.4), r.uniform(0.2, 1.1));
    let along = r.uniform(-1.0, 1.0) * (room.half[1 - axis] - wide);
    let (mut centre, mut half) = ([0.0, 0.0, high], [wide, wide, high]);
    centre[axis] = side * (room.half[axis] - deep);
    centre[1 - axis] = along;
    half[axis] = deep;
    Object { shape: Shape::Cuboid, centre, half, yaw: 0.0, texture: texture(r) }
}

fn lights(r: &mut Stream) -> Lights {
    let [x, y, z] = normals(r);
    Lights {
        sun: unit([x, y, z.abs() + 0.3]),
        lamp: [r.uniform(-4.5, 4.5), r.uniform(-4.5, 4.5), r.uniform(1.2, 3.3)],
        tint: std::array::from_fn(|_| r.uniform(0.7, 1.15)),
        ambient: r.uniform(0.2, 0.6),
        sun_power: r.uniform(0.0, 0.7),
        lamp_power: r.uniform(0.0, 0.8),
    }
}

fn sensor(r: &mut Stream) -> Sensor {
    let noisy = r.unit() < 0.7;
    let noise = if noisy { r.uniform(0.0, 0.03) } else { 0.0 };
    Sensor { noise, exposure: r.uniform(0.0, 0.25), seed: r.bits() }
}

/// What the cameras of one scene share.
struct Path {
    /// Where the middle of the path is seen from the origin.
    angle: f64,
    radius: f64,
    height: f64,
    target: Vec3,
    fov: f64,
    roll: f64,
    kind: Kind,
}

enum Kind {
    /// Around the objects: so far to both sides, in radians.
    Around(f64),
    /// On a line past them, of half that length; what is looked at moves along for a part of it.
    Past { half: f64, follow: f64 },
}

impl Path {
    fn sample(r: &mut Stream) -> Self {
        // Even in the logarithm: narrow and wide baselines are as frequent.
        let half_width = libm::exp(r.uniform(libm::log(3.0), libm::log(90.0))).to_radians();
        let past = Kind::Past { half: r.uniform(0.2, 2.0), follow: r.uniform(0.0, 0.8) };
        Self {
            angle: r.uniform(0.0, TAU),
            radius: r.uniform(3.1, 4.4),
            height: r.uniform(0.6, 2.6),
            target: [r.uniform(-0.5, 0.5), r.uniform(-0.5, 0.5), r.uniform(0.2, 1.0)],
            fov: r.uniform(38.0, 92.0),
            roll: r.uniform(0.0, 10.0).to_radians(),
            kind: if r.unit() < 0.7 { Kind::Around(half_width) } else { past },
        }
    }

    fn viewpoint(&self, r: &mut Stream) -> Viewpoint {
        let along = r.uniform(-1.0, 1.0);
        let jitter: Vec3 = std::array::from_fn(|_| r.uniform(-0.35, 0.35));
        let (nearer, rise) = (r.uniform(0.9, 1.15), r.uniform(-0.5, 0.5));
        let radius = self.radius * nearer;
        let height = (self.height + rise).clamp(0.4, 3.0);
        let at = |angle: f64| [radius * libm::cos(angle), radius * libm::sin(angle), height];
        let (position, target) = match self.kind {
            Kind::Around(half) => (at(self.angle + half * along), self.target),
            Kind::Past { half, follow } => {
                let sideways = [-libm::sin(self.angle), libm::cos(self.angle), 0.0];
                let moved = scale(sideways, half * along);
                (add(at(self.angle), moved), add(self.target, scale(moved, follow)))
            }
        };
        let roll = self.roll * r.uniform(-1.0, 1.0);
        looking(position, add(target, jitter), roll, (self.fov + r.uniform(-3.0, 3.0)).to_radians())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{norm, sub};

    const VARIED: Draw = Draw { recipe: Recipe::Varied, seed: 5, group: 0 };

    #[test]
    fn a_viewpoint_depends_on_its_number_alone() {
        for recipe in [Recipe::Arc, Recipe::Varied] {
            let draw = Draw { recipe, ..VARIED };
            let (few, many) = (draw.scene(3, 4..6), draw.scene(3, 0..9));
            assert_eq!((&few.objects, &few.views[..]), (&many.objects, &many.views[4..6]));
        }
    }

    #[test]
    fn groups_share_nothing() {
        for recipe in [Recipe::Arc, Recipe::Varied] {
            let scenes: Vec<Scene> = (0..4)
                .flat_map(|group| (0..4).map(move |index| Draw { recipe, seed: 1, group }.scene(index, 0..2)))
                .collect();
            for (i, a) in scenes.iter().enumerate() {
                for b in &scenes[i + 1..] {
                    assert!(a.objects != b.objects && a.room != b.room && a.views != b.views && a.lights != b.lights);
                }
            }
            let draw = Draw { recipe, seed: 1, group: 0 };
            assert_ne!(draw.scene(0, 0..1).objects, Scene::sample(1, 0, 1).objects, "nor with scenes of no group");
        }
    }

    #[test]
    fn varied_scenes_show_everything_and_no_camera_stands_in_a_solid() {
        let (mut patterns, mut shapes) = (Vec::new(), Vec::new());
        let (mut narrow, mut wide, mut fovs) = (f64::MAX, 0f64, (f64::MAX, 0f64));
        for index in 0..60 {
            let scene = VARIED.scene(index, 0..6);
            patterns.extend(scene.objects.iter().map(|o| o.texture.pattern));
            shapes.extend(scene.objects.iter().map(|o| o.shape));
            let centres: Vec<Vec3> = scene.views.iter().map(|v| v.camera(8, 8).centre()).collect();
            let spread = centres.iter().map(|c| norm(sub(*c, centres[0]))).fold(0.0, f64::max);
            (narrow, wide) = (narrow.min(spread), wide.max(spread));
            for (view, [x, y, z]) in scene.views.iter().zip(&centres) {
                fovs = (fovs.0.min(view.fov.to_degrees()), fovs.1.max(view.fov.to_degrees()));
                assert!(x.hypot(*y) < CLEAR && (0.39..3.01).contains(z));
            }
            for o in &scene.objects {
                let reach = o.half[0].hypot(o.half[1]);
                let clear = centres.iter().all(|c| (c[0] - o.centre[0]).hypot(c[1] - o.centre[1]) > reach);
                let wall = o.centre[0].hypot(o.centre[1]) > 3.0;
                assert!(clear || wall, "scene {index}: {o:?}");
                let deep = (0..2).any(|i| o.centre[i].abs() - o.half[i] >= CLEAR - 1e-9);
                assert!(!wall || deep, "furniture stands at the wall: {o:?}");
            }
        }
        for pattern in [Pattern::Noise, Pattern::Plain, Pattern::Cells, Pattern::Checker, Pattern::Stripes] {
            assert!(patterns.contains(&pattern));
        }
        assert!(shapes.contains(&Shape::Ellipsoid) && shapes.contains(&Shape::Cylinder));
        assert!(narrow < 1.0 && wide > 5.0 && fovs.0 < 45.0 && fovs.1 > 85.0, "{narrow} {wide} {fovs:?}");
    }

    #[test]
    fn normals_are_those_of_the_depth() {
        let scene = VARIED.scene(1, 0..1);
        let view = scene.render(0, 64, 48);
        let point = |i: usize, j: usize| {
            let k = &view.camera.intrinsic;
            let depth = f64::from(view.depth[j * 64 + i]);
            [(i as f64 + 0.5 - k[0][2]) / k[0][0] * depth, (j as f64 + 0.5 - k[1][2]) / k[1][1] * depth, depth]
        };
        let (mut agree, mut count) = (0, 0);
        for (i, j) in (1..63).flat_map(|i| (1..47).map(move |j| (i, j))) {
            let normal = view.normals[j * 64 + i].map(f64::from);
            if view.valid[j * 64 + i] {
                assert!((norm(normal) - 1.0).abs() < 1e-6);
                let (right, down) = (sub(point(i + 1, j), point(i, j)), sub(point(i, j + 1), point(i, j)));
                let found = unit(crate::geometry::cross(down, right));
                agree += usize::from(crate::geometry::dot(found, normal) > 0.99);
                count += 1;
            }
        }
        assert!(agree * 10 > count * 7, "{agree} of {count}: all but edges and curved surfaces");
    }
}
