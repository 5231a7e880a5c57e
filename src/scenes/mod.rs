//! Procedural scenes: textured spheres, boxes and cylinders in a room or on open ground, seen by several cameras.
//!
//! Every pixel is an analytic ray intersection, so depth and cameras are exact. A scene depends on (seed, index)
//! alone, and the camera of a view on its number alone: the same on every machine and for every number of views.
//!
//! World: z up, the ground is z = 0, objects stand near the origin, cameras stand on an arc around them and look at
//! them. Cameras follow [`crate::geometry`]; depth is measured along the z axis of the camera. [`Scene::sample`] draws
//! from the distributions that the small backbone of this repository was trained on; [`Draw`] also from wider ones, and
//! from groups that share no scene.

mod normalise;
mod primitives;
mod recipe;
mod render;
mod sample;
mod sensor;
mod shading;
mod texture;

pub use normalise::{Normalised, Posed, SAME_SURFACE, normalise, normalise_posed};
pub use primitives::Shape;
pub use recipe::{Draw, Recipe};
pub use sensor::Sensor;
pub use shading::Lights;
pub use texture::{Pattern, Texture};

use crate::geometry::{Camera, Vec3};

/// A solid that stands in a scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    /// Its middle, in the world.
    pub centre: Vec3,
    /// Half its size along its own axes. Spheres and cylinders take their radius from the first.
    pub half: Vec3,
    /// Its turn about the vertical, in radians.
    pub yaw: f64,
    /// Its surface, in its own axes.
    pub texture: Texture,
}

/// Ground, ceiling and four walls; without `closed`, ground and sky.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    /// Half its length and half its width.
    pub half: [f64; 2],
    /// Of the ceiling over the ground.
    pub height: f64,
    /// Whether there are walls and a ceiling.
    pub closed: bool,
    /// Ground, ceiling, walls at −x, +x, −y, +y.
    pub textures: [Texture; 6],
}

/// Where a view is taken from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Viewpoint {
    /// World to camera.
    pub extrinsic: crate::geometry::Mat4,
    /// Horizontal field of view, in radians.
    pub fov: f64,
}

impl Viewpoint {
    /// The camera of an image of that size: square pixels, principal point in the middle.
    pub fn camera(&self, width: usize, height: usize) -> Camera {
        let (w, h) = (width as f64, height as f64);
        let focal = w / 2.0 / libm::tan(self.fov / 2.0);
        Camera { extrinsic: self.extrinsic, intrinsic: [[focal, 0.0, w / 2.0], [0.0, focal, h / 2.0], [0.0, 0.0, 1.0]] }
    }
}

/// A world and the views of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The solids.
    pub objects: Vec<Object>,
    /// What surrounds them.
    pub room: Room,
    /// What lights them.
    pub lights: Lights,
    /// Where it is seen from.
    pub views: Vec<Viewpoint>,
    /// What sees it.
    pub sensor: Sensor,
}

/// One view as an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue a pixel, by rows.
    pub rgb: Vec<u8>,
    /// Depth a pixel, by rows; 0 where there is only sky.
    pub depth: Vec<f32>,
    /// Whether a pixel has a depth.
    pub valid: Vec<bool>,
    /// The outward normal of what a pixel shows, of length one, in the axes of the camera; zeros where there is only
    /// sky.
    pub normals: Vec<[f32; 3]>,
    /// The camera that took it.
    pub camera: Camera,
}

impl Rendered {
    /// The colours in 0..=1 as three planes [3, height, width], as models take them.
    pub fn planes(&self) -> Vec<f32> {
        (0..3).flat_map(|c| self.rgb.iter().skip(c).step_by(3).map(|v| f32::from(*v) / 255.0)).collect()
    }
}
