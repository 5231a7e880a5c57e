//! Accuracy against exact depth and cameras: named protocols, and intervals over scenes.
//!
//! Numbers under different protocols do not compare, so every result carries the name of the one that made it.
//!
//! - [`depth`]: absolute relative error, δ < 1.25ⁿ, RMSE, after a declared alignment
//! - [`pose`]: relative rotation and translation direction over all pairs of views, area under the accuracy curve
//! - [`trajectory`]: camera centres after a similarity
//! - [`points`]: accuracy, completeness, Chamfer and F-score of clouds after a declared alignment
//! - [`dtu`]: accuracy and completeness in millimetres against the scans of DTU
//! - [`bootstrap`]: intervals for means and for ratios of means over scenes
//!
//! [`similarity`] and [`nearest`] are what these stand on; [`mat`] and [`ply`] read scans.

pub mod bootstrap;
pub mod depth;
pub mod dtu;
pub mod mat;
pub mod nearest;
pub mod ply;
pub mod points;
pub mod pose;
pub mod similarity;
pub mod trajectory;

pub use bootstrap::Interval;
pub use similarity::Similarity;
