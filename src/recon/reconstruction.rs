//! What a model returned, as cameras and depth at the original resolution.

use std::collections::BTreeMap;

use image::{GrayImage, RgbImage};
use lite3r_ir::Tensor;
use rayon::prelude::*;

use super::{
    frame_map::FrameMap,
    images::Picture,
    pose::{self, Camera, Intrinsics, Pose},
    preprocess::Prepared,
};
use crate::{Error, Kind, Result};

/// How a model encodes its cameras.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `pose_enc`, camera from world, with fields of view.
    Vggt,
    /// `extrinsics` and `intrinsics`.
    Da3,
}

impl Family {
    /// By the names of the outputs; a model that returns both kinds counts as VGGT.
    ///
    /// # Errors
    /// `recon.outputs` if there are no cameras among them.
    pub fn detect(outputs: &BTreeMap<String, Tensor>) -> Result<Self> {
        if outputs.contains_key("pose_enc") {
            Ok(Self::Vggt)
        } else if outputs.contains_key("extrinsics") && outputs.contains_key("intrinsics") {
            Ok(Self::Da3)
        } else {
            Err(missing(outputs, "cameras (pose_enc, or extrinsics and intrinsics)"))
        }
    }
}

/// One picture with its camera and depth.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// File name of the picture.
    pub name: String,
    /// Names the files that are written for the view.
    pub label: String,
    /// The picture, at its original resolution like everything here.
    pub image: RgbImage,
    /// Depth along the optical axis, row by row; 0 where the model did not see the pixel or returned nothing finite
    /// and positive.
    pub depth: Vec<f32>,
    /// Confidence, larger is surer; all ones if the model returns none.
    pub confidence: Vec<f32>,
    /// Inner parameters in original pixels.
    pub intrinsics: Intrinsics,
    /// Camera from world.
    pub pose: Pose,
    /// Zero where a pixel must not become a point.
    pub mask: Option<GrayImage>,
}

impl View {
    /// Width and height in pixels.
    pub fn size(&self) -> [u32; 2] {
        [self.image.width(), self.image.height()]
    }

    /// Where the camera stands and the corners of its image (clockwise from the top left) at a depth, in the world.
    pub fn frustum(&self, depth: f64) -> [[f64; 3]; 5] {
        let (world, [w, h]) = (self.pose.inverse(), self.size().map(f64::from));
        let corner = |u, v| world.apply(self.intrinsics.unproject(u, v, depth));
        [world.translation, corner(0.0, 0.0), corner(w, 0.0), corner(w, h), corner(0.0, h)]
    }

    /// Whether the pixel at this index of [`Self::depth`] has depth and is not masked.
    pub fn is_valid(&self, index: usize) -> bool {
        self.depth[index] > 0.0 && self.mask.as_ref().is_none_or(|m| m.as_raw()[index] > 0)
    }
}

/// Cameras, depth and confidence of all views in one world frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstruction {
    /// The views in input order.
    pub views: Vec<View>,
    /// Values of depth and confidence in the model's own frames that were not finite and positive, or not finite.
    pub dropped: usize,
}

impl Reconstruction {
    /// From the outputs of a model by name.
    ///
    /// `depth` [1,S,H,W] or [1,S,H,W,1] and `depth_conf` [1,S,H,W], with cameras by `family`. A model without `depth`
    /// but with `world_points` [1,S,H,W,3] (and `world_points_conf`) gives the depth of those points in the frames of
    /// its cameras. Without a confidence output every pixel counts as equally sure. The first dimension may be missing.
    ///
    /// # Errors
    /// `recon.outputs` with every output that is missing, `recon.shape` with every shape that does not fit the frames,
    /// and the errors of the pose decoders.
    pub fn from_outputs(
        outputs: &BTreeMap<String, Tensor>,
        prepared: &Prepared,
        pictures: &[Picture],
        family: Family,
    ) -> Result<Self> {
        let views = prepared.frames.len();
        if pictures.len() != views {
            let problem = format!("{} pictures for {views} frames", pictures.len());
            return Err(Error::usage("recon.usage", problem));
        }
        let [width, height] = prepared.size();
        let cameras = cameras(outputs, family, width, height)?;
        if cameras.len() != views {
            let problem = format!("the model returned cameras for {} views; it was given {views}", cameras.len());
            return Err(Error::unsupported("recon.shape", problem));
        }
        let maps = Maps { outputs, views, width: width as usize, height: height as usize };
        let (depth, confidence) = if outputs.contains_key("depth") {
            (maps.of("depth", 1)?, maps.optional("depth_conf")?)
        } else if outputs.contains_key("world_points") {
            (maps.camera_depth(&cameras)?, maps.optional("world_points_conf")?)
        } else {
            return Err(missing(outputs, "depth (depth or world_points)"));
        };
        let plane = maps.width * maps.height;
        let bad = |v: &&f32| !(v.is_finite() && **v > 0.0);
        let dropped = depth.iter().filter(bad).count() + confidence.iter().filter(|v| !v.is_finite()).count();
        let frames = depth.par_chunks_exact(plane).zip(confidence.par_chunks_exact(plane));
        let views = frames
            .zip(pictures.par_iter().zip(&prepared.frames))
            .zip(&cameras)
            .map(|(((depth, confidence), (picture, map)), (pose, intrinsics))| View {
                name: picture.name.clone(),
                label: picture.label.clone(),
                image: picture.rgb.clone(),
                depth: to_original(depth, map, true),
                confidence: to_original(confidence, map, false),
                intrinsics: map.to_original(*intrinsics),
                pose: *pose,
                mask: picture.mask.clone(),
            })
            .collect();
        Ok(Self { views, dropped })
    }

    /// The median depth of all pixels that have one; of an even number the upper of the two. `None` if there are none.
    pub fn median_depth(&self) -> Option<f64> {
        let mut depths: Vec<f32> =
            self.views.iter().flat_map(|v| v.depth.iter().copied().filter(|d| *d > 0.0)).collect();
        let middle = depths.len() / 2;
        (!depths.is_empty()).then(|| *depths.select_nth_unstable_by(middle, f32::total_cmp).1 as f64)
    }

    /// The same geometry with the world frame put on the first camera.
    pub fn in_first_camera(&self) -> Self {
        let mut out = self.clone();
        if let Some(world) = self.views.first().map(|v| v.pose.inverse()) {
            out.views.iter_mut().for_each(|v| v.pose = v.pose.after(&world));
        }
        out
    }
}

fn cameras(outputs: &BTreeMap<String, Tensor>, family: Family, width: u32, height: u32) -> Result<Vec<Camera>> {
    match family {
        Family::Vggt => match outputs.get("pose_enc") {
            Some(encoding) => pose::decode_vggt(encoding, width, height),
            None => Err(missing(outputs, "pose_enc")),
        },
        Family::Da3 => match (outputs.get("extrinsics"), outputs.get("intrinsics")) {
            (Some(e), Some(k)) => pose::decode_matrices(e, k),
            _ => Err(missing(outputs, "extrinsics and intrinsics")),
        },
    }
}

fn missing(outputs: &BTreeMap<String, Tensor>, what: &str) -> Error {
    let found: Vec<&str> = outputs.keys().map(String::as_str).collect();
    let problem = format!("the model returns no {what}; its outputs are {}", found.join(", "));
    Error::new(Kind::Unsupported, "recon.outputs", problem)
}

/// Reads per-pixel outputs and checks their shapes.
struct Maps<'a> {
    outputs: &'a BTreeMap<String, Tensor>,
    views: usize,
    width: usize,
    height: usize,
}

impl Maps<'_> {
    fn of(&self, name: &str, channels: usize) -> Result<Vec<f32>> {
        let tensor = self.outputs.get(name).ok_or_else(|| missing(self.outputs, name))?;
        let mut shape = tensor.shape();
        let expected = [self.views, self.height, self.width, channels];
        if shape.len() > 3 && shape[0] == 1 && shape[1..].starts_with(&expected[..3]) {
            shape = &shape[1..];
        }
        let fits = shape == expected || (channels == 1 && shape == &expected[..3]);
        if !fits {
            let problem = format!("{name} has the shape {:?}; expected is {expected:?}", tensor.shape());
            return Err(Error::unsupported("recon.shape", problem));
        }
        Ok(tensor.to_f32())
    }

    fn optional(&self, name: &str) -> Result<Vec<f32>> {
        match self.outputs.contains_key(name) {
            true => self.of(name, 1),
            false => Ok(vec![1.0; self.views * self.height * self.width]),
        }
    }

    fn camera_depth(&self, cameras: &[Camera]) -> Result<Vec<f32>> {
        let points = self.of("world_points", 3)?;
        let plane = self.width * self.height * 3;
        let frames = points.chunks_exact(plane).zip(cameras);
        let depth = frames.flat_map(|(p, (pose, _))| {
            p.chunks_exact(3).map(|p| pose.apply([p[0] as f64, p[1] as f64, p[2] as f64])[2] as f32)
        });
        Ok(depth.collect())
    }
}

/// A map of the frame read at every original pixel, bilinearly; 0 outside the frame.
///
/// With `edges`, where the four neighbours differ by more than a tenth, or one of them is no depth, the nearest one is
/// taken: blending a near and a far surface would make points that lie on neither.
fn to_original(map: &[f32], frame: &FrameMap, edges: bool) -> Vec<f32> {
    let [width, height] = frame.original;
    let row_len = frame.processed[0] as usize;
    let clean = |v: f32| if v.is_finite() && (!edges || v > 0.0) { v } else { 0.0 };
    let across: Vec<_> = (0..width).map(|u| taps(frame, 0, u)).collect();
    let mut out = vec![0f32; width as usize * height as usize];
    out.par_chunks_exact_mut(width as usize).enumerate().for_each(|(v, out)| {
        let Some((y, fy)) = taps(frame, 1, v as u32) else { return };
        for (o, x) in out.iter_mut().zip(&across) {
            let Some((x, fx)) = *x else { continue };
            let [a, b, c, d] = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(j, i)| clean(map[y[j] * row_len + x[i]]));
            let (low, high) = (a.min(b).min(c).min(d), a.max(b).max(c).max(d));
            *o = if edges && high > 1.1 * low {
                [[a, b], [c, d]][(fy >= 0.5) as usize][(fx >= 0.5) as usize]
            } else {
                (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy
            };
        }
    });
    out
}

/// The two samples of an axis around an original pixel, and how far it lies towards the second.
fn taps(frame: &FrameMap, axis: usize, index: u32) -> Option<([usize; 2], f32)> {
    let last = frame.processed[axis] as f64 - 1.0;
    let position = frame.sample(axis, index)?.clamp(0.0, last);
    let first = position.floor();
    Some(([first as usize, (first + 1.0).min(last) as usize], (position - first) as f32))
}

#[cfg(test)]
mod tests;
