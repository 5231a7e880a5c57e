//! GPU kernels with a graph compiler for feed-forward 3D reconstruction transformers.
//!
//! ```text
//! backbone.onnx ─ onnx ─┐
//!                       ├─▶ graph ─ compile ─▶ graph ─ plan ─▶ plan.l3r ─ session ─▶ tensors ─ recon ─▶ depth, cameras, points
//! config ── backbones ──┘
//! ```
//!
//! Modules depend downwards, and `tests/layering.rs` holds it: the IR (crate `lite3r-ir`) knows no file and no device;
//! [`onnx`], [`backbones`] and [`weights`] make graphs and find their weights; [`compile`] chooses passes; [`plan`]
//! decides kernels, order and memory by asking a target; [`backend`] computes; [`session`] runs; [`recon`], [`eval`]
//! and [`scenes`] know pictures, cameras and truth, [`data`] sets of them; [`train`] differentiates and learns; [`demo`] and
//! the command lines stand on top.
//!
//! **Architecture Invariant:** a pass never sees a device, and a device never sees a graph. What lies between is a
//! plan, which [`plan::check()`] proves without trusting the planner; executors rely on that proof.
//!
//! **Architecture Invariant:** whatever depends on weights alone is a part of the graph until the plan is made. Passes
//! write `transpose($w)` or `quantize($w)` and need no recipe language; the plan computes each such expression once.
//!
//! **Architecture Invariant:** nothing falls back. A missing kernel, an unknown operator, a weight of another type, a
//! forced choice that the model does not have: each is an error with a stable code, and all of one kind are reported
//! together.
//!
//! Files that are mapped (models, weights, plans) must not be truncated by others while they are in use.

pub mod atomic;
pub mod backbones;
pub mod backend;
pub mod benchmark;
#[cfg(feature = "cli")]
pub mod cli;
mod clock;
pub mod compile;
pub mod data;
pub mod demo;
pub mod error;
pub mod eval;
pub mod geometry;
pub mod npy;
pub mod onnx;
pub mod plan;
pub mod predict;
pub mod recon;
pub mod rng;
pub mod scenes;
pub mod session;
pub mod train;
pub mod weights;

pub use error::{Error, Kind, Result};
