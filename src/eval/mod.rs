//! Accuracy against exact depth and cameras: named protocols, and intervals over scenes.
//!
//! Numbers under different protocols do not compare, so every result carries the name of the one that made it.
//!
//! - [`depth`]: absolute relative error, δ < 1.25ⁿ, RMSE, after a declared alignment
//! - [`pose`]: relative rotation and translation direction over all pairs of views, area under the accuracy curve
//! - [`trajectory`]: camera centres after a similarity
//! - [`points`]: accuracy, completeness, Chamfer and F-score of clouds after a declared alignment
//! - [`dtu`]: accuracy and completeness in millimetres against the scans of DTU
//! - [`compat`]: the published Lite3R code's own definitions, faults included
//! - [`protocol`]: all of them by name
//! - [`summary`]: means over scenes, in which failures count
//! - [`bootstrap`]: intervals for means and for ratios of means over scenes
//!
//! [`similarity`] and [`nearest`] are what these stand on; [`mat`] and [`ply`] read scans.

pub mod bootstrap;
pub mod compat;
pub mod depth;
pub mod dtu;
pub mod mat;
pub mod nearest;
pub mod ply;
pub mod points;
pub mod pose;
pub mod protocol;
pub mod similarity;
pub mod summary;
pub mod trajectory;

pub use bootstrap::Interval;
pub use protocol::{Protocol, Scene};
pub use similarity::Similarity;
