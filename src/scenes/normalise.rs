//! The normalisation that VGGT trains with: the first camera is the world, and the mean distance of the points to it
//! is one.

use super::Rendered;
use crate::{
    Error, Result,
    geometry::{Camera, Vec3, compose, inverse, norm},
};

/// Views in normalised coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalised {
    /// Of each view; the first has the identity for its extrinsic.
    pub cameras: Vec<Camera>,
    /// Depth of each view, by rows; 0 where it is not valid.
    pub depths: Vec<Vec<f32>>,
    /// Units of the world that became one.
    pub scale: f64,
}

/// Depth with its camera.
#[derive(Clone, Copy, Debug)]
pub struct Posed<'a> {
    /// World to camera, and pixels of the depth map.
    pub camera: Camera,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// By rows; 0 where there is none.
    pub depth: &'a [f32],
}

/// Depths that differ by less than this share of them are of one surface.
pub const SAME_SURFACE: f64 = 0.05;

impl Posed<'_> {
    /// What a pixel, by its number, shows of the world, if it has a depth.
    pub fn lift(&self) -> impl Fn(usize) -> Option<Vec3> + '_ {
        let lift = self.camera.lift();
        move |at| {
            let depth = f64::from(self.depth[at]);
            (depth > 0.0).then(|| lift((at % self.width) as f64 + 0.5, (at / self.width) as f64 + 0.5, depth))
        }
    }

    /// Where a point of the world is seen, in pixels; none if it is not, or hides behind something.
    pub fn sees(&self, point: Vec3) -> Option<[f64; 2]> {
        let (u, v, z) = self.camera.project(point);
        let inside = z > 0.0 && (0.0..self.width as f64).contains(&u) && (0.0..self.height as f64).contains(&v);
        let known = f64::from(*self.depth.get(v as usize * self.width + u as usize).filter(|_| inside)?);
        (known > 0.0 && (z - known).abs() < SAME_SURFACE * known).then_some([u, v])
    }
}

/// Normalises the views of one scene. Every `stride`-th pixel in both directions counts for the mean.
///
/// Errors: `scenes.normalise` without views, without a valid pixel, or with a stride of zero.
pub fn normalise(views: &[Rendered], stride: usize) -> Result<Normalised> {
    let posed = views.iter().map(|v| Posed { camera: v.camera, width: v.width, height: v.height, depth: &v.depth });
    normalise_posed(&posed.collect::<Vec<_>>(), stride)
}

/// [`normalise`] for depth from anywhere.
///
/// Errors: as [`normalise`].
pub fn normalise_posed(views: &[Posed<'_>], stride: usize) -> Result<Normalised> {
    let refuse = |problem: &str| Err(Error::usage("scenes.normalise", problem));
    let (Some(first), true) = (views.first(), stride > 0) else {
        return refuse("needs at least one view and a positive stride");
    };
    let to_first = inverse(&first.camera.extrinsic);
    let camera = |c: &Camera| Camera { extrinsic: compose(&c.extrinsic, &to_first), ..*c };
    let mut cameras: Vec<Camera> = views.iter().map(|v| camera(&v.camera)).collect();
    let (mut sum, mut count) = (0.0, 0usize);
    for (view, camera) in views.iter().zip(&cameras) {
        let view = Posed { camera: *camera, ..*view };
        let lift = view.lift();
        let rows = (0..view.height).step_by(stride);
        let pixels = rows.flat_map(|row| (0..view.width).step_by(stride).map(move |c| row * view.width + c));
        for point in pixels.filter_map(lift) {
            sum += norm(point);
            count += 1;
        }
    }
    if count == 0 {
        return refuse("no pixel of any view has a depth");
    }
    let scale = sum / count as f64;
    cameras.iter_mut().for_each(|c| c.extrinsic[..3].iter_mut().for_each(|row| row[3] /= scale));
    let depths = views.iter().map(|v| v.depth.iter().map(|d| (f64::from(*d) / scale) as f32).collect()).collect();
    Ok(Normalised { cameras, depths, scale })
}
