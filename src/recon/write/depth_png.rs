//! Depth as 16-bit grey PNG.

use std::{
    io,
    path::{Path, PathBuf},
};

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::{Reconstruction, each_view};
use crate::{Result, atomic};

/// What follows the label of a view.
pub(super) const ENDING: &str = ".png";

/// Depth per step: the largest depth of all views takes the largest value. One where there is no depth at all.
pub(super) fn scale(reconstruction: &Reconstruction) -> f64 {
    let largest = reconstruction.views.iter().flat_map(|v| &v.depth).copied().fold(0f32, f32::max);
    if largest > 0.0 { largest as f64 / u16::MAX as f64 } else { 1.0 }
}

pub(super) fn write(reconstruction: &Reconstruction, folder: &Path) -> Result<Vec<PathBuf>> {
    let scale = scale(reconstruction);
    each_view(reconstruction, folder, ENDING, |i, path| {
        let view = &reconstruction.views[i];
        // Zero means no depth, so the nearest depths take the smallest value above it.
        let value = |d: &f32| if *d > 0.0 { (*d as f64 / scale).round().max(1.0) as u16 } else { 0 };
        let values: Vec<u8> = view.depth.iter().flat_map(|d| value(d).to_ne_bytes()).collect();
        let [width, height] = view.size();
        atomic::write(path, |out| {
            let encoder = PngEncoder::new(out);
            encoder.write_image(&values, width, height, ExtendedColorType::L16).map_err(io::Error::other)
        })
    })
}
