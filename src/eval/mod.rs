//! Accuracy against exact depth and cameras: named protocols, and intervals over scenes.
//!
//! Numbers under different protocols do not compare, so every result carries the name of the one that made it.
//!
//! - [`depth`]: absolute relative error, δ < 1.25, RMSE, after a declared alignment
//! - [`pose`]: relative rotation and translation direction over all pairs of views, area under the accuracy curve
//! - [`bootstrap`]: intervals for means and for ratios of means over scenes

pub mod bootstrap;
pub mod depth;
pub mod pose;

pub use bootstrap::Interval;
