//! From pictures to the tensor that a model takes, with the way back to the original pixels.
//!
//! Every method makes 8-bit frames first, exactly as the model's own Python code does, and only then numbers: the value
//! divided by 255 and, if the graph does not normalise by itself, (x - mean) / std with ImageNet's constants, all in
//! f32.

mod da3;
mod plain;
mod vggt;

use image::RgbImage;
use lite3r_ir::Tensor;

pub use self::{da3::Da3Method, plain::Fit, vggt::VggtMode};
use super::{frame_map::FrameMap, images::Picture};
use crate::{Error, Kind, Result};

/// ImageNet's mean, red green blue.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's standard deviation, red green blue.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Patch size of the backbones: sides of frames are multiples of it.
const PATCH: u32 = 14;

/// How pictures become frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// VGGT's loader.
    Vggt {
        /// What happens to pictures that are not square.
        mode: VggtMode,
        /// The long side of a frame; 518 for the published model.
        size: u32,
    },
    /// Depth Anything 3's input processor.
    Da3 {
        /// Which side is bounded, and how sides become multiples of 14.
        method: Da3Method,
        /// The bound; 504 for the published models.
        resolution: u32,
    },
    /// Frames of a given size, for models of one fixed shape.
    Plain {
        /// How the picture is fitted.
        fit: Fit,
        /// Width of a frame.
        width: u32,
        /// Height of a frame.
        height: u32,
    },
}

/// What [`preprocess`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preprocess {
    /// From pictures to 8-bit frames.
    pub method: Method,
    /// Whether to apply ImageNet's mean and standard deviation: only where the graph does not ([`graph_normalises`]).
    pub normalise: bool,
}

impl Preprocess {
    /// VGGT as published: crop, 518, normalised inside the graph.
    pub const VGGT: Self = Self { method: Method::Vggt { mode: VggtMode::Crop, size: 518 }, normalise: false };
    /// Depth Anything 3 as published: upper bound 504 by resizing, normalised outside the graph.
    pub const DA3: Self =
        Self { method: Method::Da3 { method: Da3Method::UpperBoundResize, resolution: 504 }, normalise: true };

    /// Frames of exactly `width` x `height`, by a centre crop of the picture.
    pub const fn plain(width: u32, height: u32, normalise: bool) -> Self {
        Self { method: Method::Plain { fit: Fit::Crop, width, height }, normalise }
    }
}

/// What a model is run on.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// f32 [1, S, 3, H, W].
    pub tensor: Tensor,
    /// One map a picture, all to the same H x W.
    pub frames: Vec<FrameMap>,
}

impl Prepared {
    /// Width and height of every frame.
    pub fn size(&self) -> [u32; 2] {
        self.frames[0].processed
    }
}

/// An 8-bit frame on its way to the tensor.
struct Frame {
    image: RgbImage,
    map: FrameMap,
}

impl Frame {
    fn new(image: RgbImage) -> Self {
        let map = FrameMap::identity(image.width(), image.height());
        Self { image, map }
    }

    /// Resized by `resample`, which gets the image and the size.
    fn resize(&mut self, width: u32, height: u32, resample: impl Fn(&RgbImage, u32, u32) -> RgbImage) {
        if self.image.dimensions() != (width, height) {
            self.image = resample(&self.image, width, height);
            self.map = self.map.resized(width, height);
        }
    }

    /// The window of `width` x `height` around the middle; what is larger than the frame becomes white, what is smaller
    /// crops. Odd differences leave the smaller part on the left and above.
    fn center(&mut self, width: u32, height: u32) {
        if self.image.dimensions() == (width, height) {
            return;
        }
        let corner = |have: u32, want: u32| match have >= want {
            true => ((have - want) / 2) as i64,
            false => -(((want - have) / 2) as i64),
        };
        let (left, top) = (corner(self.image.width(), width), corner(self.image.height(), height));
        let mut out = RgbImage::from_pixel(width, height, image::Rgb([255; 3]));
        image::imageops::replace(&mut out, &self.image, -left, -top);
        self.image = out;
        self.map = self.map.window(left, top, width, height);
    }
}

/// Pictures as a tensor of frames of one size.
///
/// # Errors
/// `recon.preprocess` with every picture that cannot become a frame (so thin that a side rounds to zero), or if there
/// is none; `recon.usage` for a size that is no positive multiple of the patch.
pub fn preprocess(pictures: &[Picture], how: &Preprocess) -> Result<Prepared> {
    if pictures.is_empty() {
        return Err(Error::usage("recon.usage", "no picture to preprocess"));
    }
    let frames = match how.method {
        Method::Vggt { mode, size } => vggt::frames(pictures, mode, patched("size", size)?),
        Method::Da3 { method, resolution } => da3::frames(pictures, method, patched("resolution", resolution)?),
        Method::Plain { fit, width, height } if width > 0 && height > 0 => {
            Ok(plain::frames(pictures, fit, width, height))
        }
        Method::Plain { width, height, .. } => {
            return Err(Error::usage("recon.usage", format!("frames of {width}x{height} pixels have no content")));
        }
    };
    let frames = frames.map_err(|p| Error::all(Kind::BadFile, "recon.preprocess", p))?;
    let tensor = to_tensor(&frames, how.normalise);
    Ok(Prepared { tensor, frames: frames.into_iter().map(|f| f.map).collect() })
}

/// `size` if it is a positive multiple of the patch.
fn patched(what: &str, size: u32) -> Result<u32> {
    if size == 0 || !size.is_multiple_of(PATCH) {
        return Err(Error::usage("recon.usage", format!("the {what} {size} is no positive multiple of {PATCH}")));
    }
    Ok(size)
}

fn to_tensor(frames: &[Frame], normalise: bool) -> Tensor {
    let (width, height) = frames[0].image.dimensions();
    let plane = (width * height) as usize;
    let mut values = vec![0f32; frames.len() * 3 * plane];
    for (frame, out) in frames.iter().zip(values.chunks_exact_mut(3 * plane)) {
        for (i, pixel) in frame.image.pixels().enumerate() {
            for (c, v) in pixel.0.iter().enumerate() {
                let unit = *v as f32 / 255.0;
                out[c * plane + i] = if normalise { (unit - IMAGENET_MEAN[c]) / IMAGENET_STD[c] } else { unit };
            }
        }
    }
    Tensor::from_f32(&[1, frames.len(), 3, height as usize, width as usize], values)
}

/// Whether a graph, as imported, holds ImageNet's mean as a constant of its own: then it normalises by itself and its
/// input is plain 0..1.
pub fn graph_normalises<'a>(constants: impl IntoIterator<Item = &'a Tensor>) -> bool {
    constants.into_iter().any(|t| {
        t.len() == 3
            && t.dtype().is_float()
            && t.to_f64().iter().zip(IMAGENET_MEAN).all(|(v, m)| (v - m as f64).abs() < 1e-3)
    })
}

/// Rounded half to even, as Python rounds.
fn rounded(value: f64) -> u32 {
    value.round_ties_even() as u32
}

#[cfg(test)]
mod tests;
