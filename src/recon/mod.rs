//! Images in, geometry out.
//!
//! [`load_images`] reads pictures, [`preprocess()`] makes the tensor that a model takes,
//! [`Reconstruction::from_outputs`] reads what the model returned, and [`write_all`] writes cameras, depth and points.
//!
//! # Conventions
//! Poses are camera from world with OpenCV's axes (x right, y down, z forward), all in one world frame: the one the
//! model chose. Everything is given at the original resolution of every picture. Whole numbers are sample positions:
//! pixel (u, v) with depth d is the camera-frame point d ((u - cx) / fx, (v - cy) / fy, 1), without half a pixel
//! added, as in VGGT and Depth Anything 3. Every file that is written uses the same cameras and depths, so they agree
//! with each other exactly.

pub mod colormap;
mod frame_map;
pub mod html;
mod images;
mod points;
pub mod pose;
mod preprocess;
mod reconstruction;
pub mod resample;
#[cfg(test)]
pub(crate) mod testing;
mod write;

pub use self::{
    frame_map::FrameMap,
    images::{Picture, image_size, load_images, load_masks},
    points::{Point, PointOptions},
    pose::{Camera, Intrinsics, Pose},
    preprocess::{
        Da3Method, Fit, IMAGENET_MEAN, IMAGENET_STD, Method, Prepared, Preprocess, VggtMode, graph_normalises,
        preprocess,
    },
    reconstruction::{Family, Reconstruction, View},
    write::{Format, Formats, cameras_json, glb_bytes, pfm_size, read_pfm, write_all, write_pfm},
};
