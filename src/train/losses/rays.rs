//! The loss of ray maps: which way every pixel looks, and from where.
//!
//! A ray is R K⁻¹ (u, v, 1), which reaches as far as depth 1, and the place of the camera, three numbers each, in the world
//! of the first view. With prediction r, truth t of shape [1, S, h, w, 6], confidence c [1, S, h, w] and d = ‖r − t‖₁ a ray, the mean over all
//! rays of
//!
//! ```text
//! d·c − α log c
//! ```
//!
//! Cameras are known for every pixel, so there is no mask. Law: Lin et al., "Depth Anything 3", 2025, which writes the
//! confidence out for depth; ray maps have one as well.

use lite3r_ir::{Builder, Value, ops::Abs};

use super::{Built, mean, trusted};

/// The loss of a prediction [1, S, h, w, 6] with its confidence [1, S, h, w] against a truth like the prediction.
pub fn loss(b: &mut Builder<'_>, predicted: Value, confidence: Value, truth: Value) -> Built {
    let difference = b.sub(predicted, truth)?;
    let difference = b.op(Abs {}, &[difference])?;
    let distance = b.sum(difference, &[4])?;
    let rays = b.ty(confidence).shape.clone();
    let distance = b.reshape(distance, &rays)?;
    let weighted = trusted(b, distance, confidence)?;
    mean(b, weighted)
}
