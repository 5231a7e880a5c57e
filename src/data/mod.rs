//! Data sets: scenes of many views with cameras and depth, read from files in their published formats or rendered.
//!
//! - [`blendedmvs`], [`dtu`]: readers of folders; [`Cam`] and [`pairs`] are the text files that both have
//! - [`splits`]: what each scene may be used for
//! - [`Scene`], [`View`], [`Frame`]: a scene, its views, and the pixels of a view
//!
//! Cameras follow [`crate::geometry`]: world to camera, OpenCV's axes, pixels counted from the corner of the image.
//! Nothing is substituted: what is missing or damaged is an error that names its file, and all problems of a scene come
//! together.

pub mod blendedmvs;
mod cam;
pub mod dtu;
mod files;
pub mod pairs;
mod scene;
pub mod splits;

pub use self::{
    cam::Cam,
    scene::{Broken, Frame, Pixels, Scene, View},
    splits::Split,
};

#[cfg(test)]
mod tests;
