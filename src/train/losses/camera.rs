//! The camera loss: L1 on (translation, quaternion, fields of view), later rounds of refinement counting more.
//!
//! With rounds 1..=n, estimates eᵢ and truth t of shape [1, S, 9]:
//!
//! ```text
//! Σᵢ 0.6^(n − i)·(mean|eᵢ − t| over translations, at most 100 an element + mean over quaternions + ½ mean over fields of view) / n
//! ```
//!
//! Law: Wang et al., "VGGT: Visual Geometry Grounded Transformer", 2025.

use lite3r_ir::{
    Builder, Value,
    ops::{Abs, Clip, Split},
};

use super::{Built, mean_magnitude, sum};

/// How much less a round counts than the one behind it.
pub const DECAY: f64 = 0.6;

/// Errors in a translation count up to this.
const MOST: f64 = 100.0;

/// What fields of view count beside translations and rotations.
const FIELDS_OF_VIEW: f64 = 0.5;

/// The loss of `rounds` of encodings [1, S, 9], in order, against the true one.
pub fn loss(b: &mut Builder<'_>, rounds: &[Value], truth: Value) -> Built {
    let mut terms = Vec::with_capacity(rounds.len());
    for (i, round) in rounds.iter().enumerate() {
        let difference = b.sub(*round, truth)?;
        let parts = b.ops(Split { axis: 2, sizes: vec![3.into(), 4.into(), 2.into()] }, &[difference])?;
        let translation = b.op(Abs {}, &[parts[0]])?;
        let translation = b.op(Clip { min: 0.0, max: MOST }, &[translation])?;
        let (translation, rotation) = (mean_magnitude(b, translation)?, mean_magnitude(b, parts[1])?);
        let view = mean_magnitude(b, parts[2])?;
        let view = b.times(view, FIELDS_OF_VIEW)?;
        let term = sum(b, &[translation, rotation, view])?;
        terms.push(b.times(term, DECAY.powi((rounds.len() - 1 - i) as i32) / rounds.len() as f64)?);
    }
    sum(b, &terms)
}
