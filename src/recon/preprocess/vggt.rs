//! VGGT's `load_and_preprocess_images`: Pillow's bicubic, sides in multiples of 14, white padding.

use rayon::prelude::*;

use super::{Frame, PATCH, rounded};
use crate::recon::{images::Picture, resample::pillow};

lite3r_ir::word_enum! {
    /// What happens to pictures that are not square.
    pub enum VggtMode {
        /// The width becomes the size; a height above it is cropped to the middle.
        Crop = "crop",
        /// The longer side becomes the size; the other is padded with white on both sides.
        Pad = "pad",
    }
}

/// Frames for pictures of any size. Frames that differ are padded with white to the largest width and height.
pub(super) fn frames(pictures: &[Picture], mode: VggtMode, size: u32) -> Result<Vec<Frame>, Vec<String>> {
    let sizes: Vec<_> = pictures.iter().map(|p| resized(p, mode, size)).collect();
    let thin = pictures.iter().zip(&sizes).filter(|(_, s)| s.contains(&0));
    let problems: Vec<String> = thin
        .map(|(p, _)| format!("{}: {}x{} pixels are too thin for frames of {size}", p.name, p.width(), p.height()))
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut frames: Vec<Frame> = pictures
        .par_iter()
        .zip(sizes)
        .map(|(picture, [width, height])| {
            let mut frame = Frame::new(picture.on_white());
            frame.resize(width, height, pillow::bicubic);
            match mode {
                VggtMode::Crop => frame.center(width, height.min(size)),
                VggtMode::Pad => frame.center(size, size),
            }
            frame
        })
        .collect();
    let largest = frames.iter().fold((0, 0), |(w, h), f| (f.image.width().max(w), f.image.height().max(h)));
    frames.iter_mut().for_each(|f| f.center(largest.0, largest.1));
    Ok(frames)
}

/// Width and height after the resize. The order of the divisions is that of the original: rounding depends on it.
fn resized(picture: &Picture, mode: VggtMode, size: u32) -> [u32; 2] {
    let (width, height) = (picture.width() as f64, picture.height() as f64);
    let other = |side: f64, along: f64| rounded(side * (size as f64 / along) / PATCH as f64) * PATCH;
    match mode {
        VggtMode::Pad if width < height => [other(width, height), size],
        _ => [size, other(height, width)],
    }
}
