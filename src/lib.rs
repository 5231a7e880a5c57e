//! GPU kernels with a graph compiler for feed-forward 3D reconstruction transformers.

pub mod atomic;
pub mod backbones;
pub mod backend;
#[cfg(feature = "cli")]
pub mod cli;
pub mod compile;
pub mod demo;
pub mod error;
pub mod eval;
pub mod geometry;
pub mod npy;
pub mod onnx;
pub mod plan;
pub mod recon;
pub mod rng;
pub mod scenes;
pub mod session;
pub mod weights;

pub use error::{Error, Kind, Result};
