//! One ray a pixel, through its centre; rows in parallel.

use rayon::prelude::*;

use super::{
    Rendered, Scene,
    primitives::{self, Placed, Ray},
    shading::sky,
};
use crate::geometry::{Mat4, Vec3, dot, inverse, rotation, translation};

/// What lies farther than this is sky.
const FAR: f64 = 30.0;

/// What a ray meets: its parameter, the unlit colour and the normal.
struct Hit {
    t: f64,
    colour: [f64; 3],
    normal: Vec3,
}

impl Scene {
    /// The view of that number as an image of that size.
    ///
    /// # Panics
    /// If there is no such view.
    pub fn render(&self, view: usize, width: usize, height: usize) -> Rendered {
        let camera = self.views[view].camera(width, height);
        let (focal, pose) = (camera.intrinsic[0][0], inverse(&camera.extrinsic));
        let objects: Vec<Placed<'_>> = self.objects.iter().map(|o| Placed::new(o, &camera.extrinsic)).collect();
        let mut rgb = vec![0; width * height * 3];
        let mut depth = vec![0.0; width * height];
        let mut normals = vec![[0.0; 3]; width * height];
        let turn = rotation(&camera.extrinsic);
        let shot = self.sensor.shot(&self.views[view].extrinsic);
        let rows = rgb.par_chunks_mut((width * 3).max(1)).zip(depth.par_chunks_mut(width.max(1)));
        rows.zip(normals.par_chunks_mut(width.max(1))).enumerate().for_each(|(row, ((rgb, depth), normals))| {
            let y = (row as f64 + 0.5 - height as f64 / 2.0) / focal;
            let level: Vec<&Placed<'_>> = objects.iter().filter(|placed| placed.may_be_at(1, y)).collect();
            for (column, ((rgb, depth), normal)) in rgb.chunks_exact_mut(3).zip(depth).zip(normals).enumerate() {
                let x = (column as f64 + 0.5 - width as f64 / 2.0) / focal;
                let near = level.iter().copied().filter(|placed| placed.may_be_at(0, x));
                let (colour, hit) = self.look(near, &through(&pose, x, y));
                let colour = shot.expose(colour, row * width + column);
                rgb.iter_mut().zip(colour).for_each(|(to, c)| *to = (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8);
                if let Some((t, outward)) = hit {
                    *depth = t as f32;
                    *normal = std::array::from_fn(|i| dot(turn[i], outward) as f32);
                }
            }
        });
        let valid = depth.iter().map(|d| *d > 0.0).collect();
        Rendered { width, height, rgb, depth, valid, normals, camera }
    }

    /// The lit colour along a ray, and depth and normal unless it is sky.
    fn look<'p>(&self, objects: impl Iterator<Item = &'p Placed<'p>>, ray: &Ray) -> ([f64; 3], Option<(f64, Vec3)>) {
        match self.hit(objects, ray).filter(|hit| hit.t < FAR) {
            Some(hit) => (self.lights.shade(hit.colour, ray.at(hit.t), hit.normal), Some((hit.t, hit.normal))),
            None => (sky(ray.direction), None),
        }
    }

    fn hit<'p>(&self, objects: impl Iterator<Item = &'p Placed<'p>>, ray: &Ray) -> Option<Hit> {
        let solid = objects
            .filter_map(|placed| {
                let local = Ray { origin: placed.eye, direction: placed.inward(ray.direction) };
                Some((placed.object.shape.hit(placed.object.half, &local)?, placed))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let around = primitives::room(&self.room, ray);
        match (solid, around) {
            (Some((t, placed)), around) if around.is_none_or(|(far, ..)| t < far) => {
                let (object, p) = (placed.object, placed.local(ray.at(t)));
                let normal = placed.outward(object.shape.normal(object.half, p));
                Some(Hit { t, colour: object.texture.colour(p), normal })
            }
            (_, around) => {
                around.map(|(t, side, normal)| Hit { t, colour: self.room.textures[side].colour(ray.at(t)), normal })
            }
        }
    }
}

/// The ray from the camera through (x, y, 1) of its own axes: its parameter is the depth.
fn through(pose: &Mat4, x: f64, y: f64) -> Ray {
    let direction = std::array::from_fn(|i| pose[i][0] * x + pose[i][1] * y + pose[i][2]);
    Ray { origin: translation(pose), direction }
}
