//! BlendedMVS and whatever else is laid out like it.
//!
//! ```text
//! ROOT/NAME/blended_images/00000000.jpg        (and 00000000_masked.jpg, which is not read)
//! ROOT/NAME/cams/00000000_cam.txt, pair.txt
//! ROOT/NAME/rendered_depth_maps/00000000.pfm
//! ```
//!
//! Law: github.com/YoYo000/BlendedMVS; Yao et al., "BlendedMVS", 2020. Depth is along the z axis of the camera, in
//! units that are not metric; 0 is no depth. A view may have fewer than ten pairs or none, and a range of depth that
//! begins at or below zero, which then counts as none ([`View::range`](super::View::range)).

use std::path::Path;

use super::{
    files::{Found, numbered, parsed},
    pairs,
    scene::{Broken, Scene},
};
use crate::Result;

/// Reads the scene in a folder.
///
/// # Errors
/// `data.scene` with everything that is missing, damaged or does not fit together, each with its file.
pub fn scene(folder: &Path, broken: Broken) -> Result<Scene> {
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut problems = Vec::new();
    let mut list = |sub: &str, number| match numbered(&folder.join(sub), number) {
        Ok(found) => found,
        Err(problem) => {
            problems.push(problem);
            Default::default()
        }
    };
    let images = list("blended_images", image);
    let cams = list("cams", cam);
    let depths = Some(list("rendered_depth_maps", depth));
    let pairs = parsed(&folder.join("cams/pair.txt"), pairs::parse).unwrap_or_else(|wrong| {
        problems.extend(wrong);
        Default::default()
    });
    Found { name, images, cams, depths, masks: Default::default(), pairs, problems }.scene(broken)
}

/// Whether a folder is laid out like a scene.
pub fn is_scene(folder: &Path) -> bool {
    folder.join("cams").is_dir() || folder.join("blended_images").is_dir()
}

fn image(name: &str) -> Option<u32> {
    let stem = [".jpg", ".jpeg", ".png"].iter().find_map(|ending| name.strip_suffix(ending))?;
    digits(stem)
}

fn cam(name: &str) -> Option<u32> {
    digits(name.strip_suffix("_cam.txt")?)
}

fn depth(name: &str) -> Option<u32> {
    digits(name.strip_suffix(".pfm")?)
}

/// Digits alone; `00000000_masked` is none.
pub(super) fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
