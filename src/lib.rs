//! GPU kernels with a graph compiler for feed-forward 3D reconstruction transformers.

pub mod backend;
pub mod error;
pub mod weights;

pub use error::{Error, Kind, Result};
