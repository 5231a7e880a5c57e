//! Depth as a coloured PNG, one range for all views.

use std::{
    io,
    path::{Path, PathBuf},
};

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::{Reconstruction, each_view};
use crate::{Result, atomic, recon::colormap};

pub(super) fn write(reconstruction: &Reconstruction, folder: &Path) -> Result<Vec<PathBuf>> {
    // Without any depth every pixel is black, whatever the range.
    let range = colormap::depth_range(&reconstruction.views).unwrap_or([1.0, 1.0]);
    each_view(reconstruction, folder, "_color.png", |i, path| {
        let image = colormap::depth_image(&reconstruction.views[i], range);
        atomic::write(path, |out| {
            let encoder = PngEncoder::new(out);
            let (width, height) = image.dimensions();
            encoder.write_image(&image, width, height, ExtendedColorType::Rgb8).map_err(io::Error::other)
        })
    })
}
