//! Data sets: scenes of many views with cameras and depth, read from files in their published formats or rendered.
//!
//! - [`blendedmvs`], [`dtu`]: readers of folders; [`Cam`] and [`pairs`] are the text files that both have
//! - [`splits`]: what each scene may be used for
//! - [`Scene`], [`View`], [`Frame`]: a scene, its views, and the pixels of a view
//! - [`Synthetic`]: scenes of the generator, in splits that share nothing, and a writer of BlendedMVS's layout
//! - [`Source`], [`Set`]: where scenes come from, and those of a split
//! - [`Sample`], [`Sampler`], [`Loader`]: what training takes, by number, made ahead by threads
//! - [`mod@check`]: what is in a data set and what is wrong with it
//!
//! Cameras follow [`crate::geometry`]: world to camera, OpenCV's axes, pixels counted from the corner of the image.
//! Nothing is substituted: what is missing or damaged is an error that names its file, and all problems of a scene come
//! together.

pub mod blendedmvs;
mod cam;
pub mod check;
pub mod dtu;
mod files;
mod loader;
mod overlap;
pub mod pairs;
mod sample;
mod scene;
mod source;
pub mod splits;
mod synthetic;

pub use self::{
    cam::Cam,
    loader::{Loader, Options, Sampler},
    sample::Sample,
    scene::{Broken, Frame, Pixels, Scene, View},
    source::{LISTS, Set, Source},
    splits::Split,
    synthetic::Synthetic,
};

#[cfg(test)]
mod tests;
