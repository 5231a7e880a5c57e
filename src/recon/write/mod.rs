//! Files of a reconstruction, each written whole or not at all, all with the same cameras and depths.

mod cameras;
mod colmap;
mod depth_color;
mod depth_pfm;
mod depth_png;
mod glb;
mod npz;
mod ply;

use std::path::{Path, PathBuf};

pub use self::{
    cameras::cameras_json,
    depth_pfm::{pfm_size, read_pfm, write_pfm},
    glb::glb_bytes,
};
use super::{
    points::{Point, PointOptions},
    reconstruction::Reconstruction,
};
use crate::{Error, Kind, Result};

lite3r_ir::word_enum! {
    /// A file format.
    pub enum Format {
        /// `cameras.json`: intrinsics, poses and names of the files of every view, and the scale of the depth PNGs.
        Cameras = "cameras",
        /// `predictions.npz`: depth, confidence, intrinsics and extrinsics as arrays.
        Npz = "npz",
        /// `depth/LABEL.png`: 16-bit, times the scale in `cameras.json` (which is written too); 0 is no depth.
        DepthPng = "depth-png",
        /// `depth/LABEL.pfm`: 32-bit floats, rows from the bottom up; 0 is no depth.
        DepthPfm = "depth-pfm",
        /// `depth/LABEL_color.png`: near bright, far dark, one range for all views.
        DepthColor = "depth-color",
        /// `points.ply`: binary, with colours and confidence.
        Ply = "ply",
        /// `points.glb`: points and camera frusta, for viewers of glTF (whose y axis is turned up).
        Glb = "glb",
        /// `sparse/0/*.bin`: COLMAP's cameras, images and points3D.
        Colmap = "colmap",
        /// `sparse_text/0/*.txt`: the same as text.
        ColmapText = "colmap-text",
    }
}

/// What [`write_all`] writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Formats {
    /// Which files.
    pub formats: Vec<Format>,
    /// Which pixels become the points of PLY and GLB.
    pub points: PointOptions,
    /// At most so many points in COLMAP's files, where each also lists the pixel that it comes from.
    pub max_colmap_points: usize,
}

impl Formats {
    /// Every format, 40 % of the pixels left out, at most a million points and 100 000 in COLMAP's files.
    pub fn all() -> Self {
        let formats = Format::WORDS.iter().map(|(_, f)| *f).collect();
        Self { formats, points: PointOptions::default(), max_colmap_points: 100_000 }
    }

    /// Formats from their words, separated by commas; `all` is every one.
    ///
    /// # Errors
    /// `recon.format` with every word that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut out = Self { formats: Vec::new(), ..Self::all() };
        let mut problems = Vec::new();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match Format::WORDS.iter().find(|(w, _)| *w == word) {
                Some((_, format)) if out.formats.contains(format) => {}
                Some((_, format)) => out.formats.push(*format),
                None if word == "all" => return Ok(Self::all()),
                None => {
                    let known: Vec<&str> = Format::WORDS.iter().map(|(w, _)| *w).collect();
                    problems.push(format!("`{word}` is no format; there are all, {}", known.join(", ")));
                }
            }
        }
        if problems.is_empty() { Ok(out) } else { Err(Error::all(Kind::Usage, "recon.format", problems)) }
    }
}

/// Writes `reconstruction` into `folder`, which is made if it does not exist. Returns the files.
///
/// # Errors
/// Every problem of every format; what could be written is there, whole.
pub fn write_all(reconstruction: &Reconstruction, folder: &Path, formats: &Formats) -> Result<Vec<PathBuf>> {
    let has = |f: Format| formats.formats.contains(&f);
    let cloud = if has(Format::Ply) || has(Format::Glb) { reconstruction.points(&formats.points) } else { Vec::new() };
    let few = PointOptions { max_points: formats.max_colmap_points, ..formats.points };
    let sparse = if has(Format::Colmap) || has(Format::ColmapText) { reconstruction.points(&few) } else { Vec::new() };
    let mut files = Vec::new();
    let mut problems = Vec::new();
    let mut kind = Kind::BadFile;
    let mut take = |written: Result<Vec<PathBuf>>| match written {
        Ok(more) => files.extend(more),
        Err(error) => {
            kind = error.kind;
            problems.extend(error.problems);
        }
    };
    if has(Format::DepthPng) && !has(Format::Cameras) {
        take(cameras::write(reconstruction, folder));
    }
    for format in &formats.formats {
        take(match format {
            Format::Cameras => cameras::write(reconstruction, folder),
            Format::Npz => npz::write(reconstruction, folder),
            Format::DepthPng => depth_png::write(reconstruction, folder),
            Format::DepthPfm => depth_pfm::write(reconstruction, folder),
            Format::DepthColor => depth_color::write(reconstruction, folder),
            Format::Ply => ply::write(&cloud, folder),
            Format::Glb => glb::write(reconstruction, &cloud, folder),
            Format::Colmap => colmap::binary::write(reconstruction, &sparse, folder),
            Format::ColmapText => colmap::text::write(reconstruction, &sparse, folder),
        });
    }
    if problems.is_empty() { Ok(files) } else { Err(Error::all(kind, "recon.write", problems)) }
}

/// One file a view, in `depth/`.
fn each_view(
    reconstruction: &Reconstruction,
    folder: &Path,
    ending: &str,
    mut write: impl FnMut(usize, &Path) -> Result<()>,
) -> Result<Vec<PathBuf>> {
    let paths = reconstruction.views.iter().map(|v| folder.join(depth_file(&v.label, ending)));
    paths.enumerate().map(|(i, path)| write(i, &path).map(|()| path)).collect()
}

/// The path of a view's depth file within the output folder.
fn depth_file(label: &str, ending: &str) -> String {
    format!("depth/{label}{ending}")
}

#[cfg(test)]
mod tests;
