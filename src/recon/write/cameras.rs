//! `cameras.json`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Reconstruction, depth_file, depth_png};
use crate::{Error, Result, atomic};

#[derive(Serialize)]
struct File {
    version: u32,
    conventions: Conventions,
    depth_png_scale: f64,
    views: Vec<ViewEntry>,
}

#[derive(Serialize)]
struct Conventions {
    pose: &'static str,
    axes: &'static str,
    pixels: &'static str,
    depth: &'static str,
    depth_png: &'static str,
}

const CONVENTIONS: Conventions = Conventions {
    pose: "camera = camera_from_world * [world, 1]",
    axes: "OpenCV: x right, y down, z forward",
    pixels: "pixel (u, v), whole numbers, of depth d is the camera-frame point d * inverse(intrinsics) * [u, v, 1]",
    depth: "along the optical axis, in units of the world; 0 is no depth",
    depth_png: "depth = value * depth_png_scale; 0 is no depth",
};

#[derive(Serialize)]
struct ViewEntry {
    name: String,
    label: String,
    width: u32,
    height: u32,
    intrinsics: [[f64; 3]; 3],
    camera_from_world: [[f64; 4]; 3],
    quaternion_xyzw: [f64; 4],
    center: [f64; 3],
    depth_png: String,
    depth_pfm: String,
}

/// The text of `cameras.json`: version 1, the conventions in words, the scale of the depth PNGs, and per view its name,
/// size, intrinsics (3x3), camera from world (3x4), the same rotation as a quaternion, and where the camera stands.
pub fn cameras_json(reconstruction: &Reconstruction) -> Result<String> {
    let entry = |v: &crate::recon::View| ViewEntry {
        name: v.name.clone(),
        label: v.label.clone(),
        width: v.image.width(),
        height: v.image.height(),
        intrinsics: v.intrinsics.matrix(),
        camera_from_world: v.pose.matrix(),
        quaternion_xyzw: v.pose.quaternion(),
        center: v.pose.center(),
        depth_png: depth_file(&v.label, depth_png::ENDING),
        depth_pfm: depth_file(&v.label, super::depth_pfm::ENDING),
    };
    let file = File {
        version: 1,
        conventions: CONVENTIONS,
        depth_png_scale: depth_png::scale(reconstruction),
        views: reconstruction.views.iter().map(entry).collect(),
    };
    let mut text =
        serde_json::to_string_pretty(&file).map_err(|e| Error::bad_file("recon.json", format!("cameras.json: {e}")))?;
    text.push('\n');
    Ok(text)
}

pub(super) fn write(reconstruction: &Reconstruction, folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("cameras.json");
    atomic::write_bytes(&path, cameras_json(reconstruction)?.as_bytes())?;
    Ok(vec![path])
}
