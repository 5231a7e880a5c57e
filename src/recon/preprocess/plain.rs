//! Frames of a given size, for models that were exported for one shape: Pillow's bicubic on white.

use rayon::prelude::*;

use super::{Frame, rounded};
use crate::recon::{images::Picture, resample::pillow};

lite3r_ir::word_enum! {
    /// How a picture of another shape is fitted.
    pub enum Fit {
        /// Scaled until it covers the frame; what sticks out is cropped evenly.
        Crop = "crop",
        /// Scaled until it lies within the frame; the rest is white.
        Pad = "pad",
        /// Both sides scaled on their own.
        Stretch = "stretch",
    }
}

/// Frames of `width` x `height`.
pub(super) fn frames(pictures: &[Picture], fit: Fit, width: u32, height: u32) -> Vec<Frame> {
    pictures
        .par_iter()
        .map(|picture| {
            let ratio = [width as f64 / picture.width() as f64, height as f64 / picture.height() as f64];
            let scale = match fit {
                Fit::Crop => [ratio[0].max(ratio[1]); 2],
                Fit::Pad => [ratio[0].min(ratio[1]); 2],
                Fit::Stretch => ratio,
            };
            let mut frame = Frame::new(picture.on_white());
            let to = |side: u32, scale: f64| rounded(side as f64 * scale).max(1);
            frame.resize(to(picture.width(), scale[0]), to(picture.height(), scale[1]), pillow::bicubic);
            frame.center(width, height);
            frame
        })
        .collect()
}
