//! The normalisation that VGGT trains with: the first camera is the world, and the mean distance of the points to it
//! is one.

use super::Rendered;
use crate::{
    Error, Result,
    geometry::{Camera, compose, inverse, norm},
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
        let lift = camera.lift();
        for row in (0..view.height).step_by(stride) {
            for column in (0..view.width).step_by(stride) {
                let depth = view.depth[row * view.width + column];
                if depth > 0.0 {
                    sum += norm(lift(column as f64 + 0.5, row as f64 + 0.5, f64::from(depth)));
                    count += 1;
                }
            }
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
