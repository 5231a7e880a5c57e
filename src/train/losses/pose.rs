//! The camera loss of DA3: ‖e − t‖₁ of every camera's translation, quaternion and fields of view, a mean over cameras.
//!
//! Law: Lin et al., "Depth Anything 3", 2025: every term is an l1 norm. Encodings are compared as the decoder gives them,
//! world from camera, before they become matrices.

use lite3r_ir::{Builder, Value, ops::Abs};

use super::{Built, mean};

/// The loss of encodings [1, S, 9] against the true ones.
pub fn loss(b: &mut Builder<'_>, predicted: Value, truth: Value) -> Built {
    let difference = b.sub(predicted, truth)?;
    let difference = b.op(Abs {}, &[difference])?;
    let distance = b.sum(difference, &[2])?;
    mean(b, distance)
}
