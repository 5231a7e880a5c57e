//! Depth Anything 3's input processor: OpenCV's resize twice, sides in multiples of 14. Alpha is ignored.

use image::RgbImage;
use rayon::prelude::*;

use super::{Frame, PATCH, rounded};
use crate::recon::{images::Picture, resample::opencv};

lite3r_ir::word_enum! {
    /// Which side becomes the resolution, and how sides become multiples of 14.
    pub enum Da3Method {
        /// The longer side; then each side is resized to the nearest multiple, ties up.
        UpperBoundResize = "upper_bound_resize",
        /// The longer side; then the middle is cropped to the multiples below.
        UpperBoundCrop = "upper_bound_crop",
        /// The shorter side, then as the first.
        LowerBoundResize = "lower_bound_resize",
        /// The shorter side, then as the second.
        LowerBoundCrop = "lower_bound_crop",
    }
}

/// Frames for pictures of any size. Frames that differ are cropped to the middle of the smallest width and height.
pub(super) fn frames(pictures: &[Picture], method: Da3Method, resolution: u32) -> Result<Vec<Frame>, Vec<String>> {
    let made: Vec<_> = pictures.par_iter().map(|p| frame(p, method, resolution)).collect();
    let mut frames = Vec::new();
    let mut problems = Vec::new();
    for result in made {
        match result {
            Ok(frame) => frames.push(frame),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let smallest =
        frames.iter().fold((u32::MAX, u32::MAX), |(w, h), f| (f.image.width().min(w), f.image.height().min(h)));
    frames.iter_mut().for_each(|f| f.center(smallest.0, smallest.1));
    Ok(frames)
}

fn frame(picture: &Picture, method: Da3Method, resolution: u32) -> Result<Frame, String> {
    use Da3Method::{LowerBoundCrop, LowerBoundResize, UpperBoundCrop, UpperBoundResize};
    let (width, height) = (picture.width(), picture.height());
    let side = match method {
        UpperBoundResize | UpperBoundCrop => width.max(height),
        LowerBoundResize | LowerBoundCrop => width.min(height),
    };
    let mut frame = Frame::new(picture.rgb.clone());
    if side != resolution {
        let scale = resolution as f64 / side as f64;
        let to = |side: u32| rounded(side as f64 * scale).max(1);
        frame.resize(to(width), to(height), if scale > 1.0 { opencv::cubic } else { opencv::area });
    }
    let (width, height) = frame.image.dimensions();
    match method {
        UpperBoundResize | LowerBoundResize => {
            let [w, h] = [nearest(width), nearest(height)];
            let resample: fn(&RgbImage, u32, u32) -> RgbImage =
                if w > width || h > height { opencv::cubic } else { opencv::area };
            frame.resize(w.max(1), h.max(1), resample);
        }
        UpperBoundCrop | LowerBoundCrop => frame.center(width / PATCH * PATCH, height / PATCH * PATCH),
    }
    if frame.image.width() < PATCH || frame.image.height() < PATCH {
        let (w, h) = (picture.width(), picture.height());
        return Err(format!("{}: {w}x{h} pixels are too thin for frames of {resolution}", picture.name));
    }
    Ok(frame)
}

/// The nearest multiple of the patch, ties up.
fn nearest(side: u32) -> u32 {
    (side + PATCH / 2) / PATCH * PATCH
}
