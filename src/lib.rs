//! GPU kernels with a graph compiler for feed-forward 3D reconstruction transformers.

pub mod error;

pub use error::{Error, Kind, Result};
