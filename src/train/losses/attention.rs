//! Partial attention distillation: what the attention modules of a student give against those of its teacher.
//!
//! The mean over chosen layers of ‖o − o′‖² / ‖o‖², o of the teacher and o′ of the student, so that every layer counts
//! the same whatever its scale. Law: Lite3R, arXiv 2605.11354, 2026.

use lite3r_ir::{Builder, Value};

use super::{Built, square, sum};

/// Added to ‖o‖².
const SMALLEST: f64 = 1e-12;

/// The loss of (teacher, student) pairs of one type each.
pub fn loss(b: &mut Builder<'_>, pairs: &[(Value, Value)]) -> Built {
    let mut terms = Vec::with_capacity(pairs.len());
    for (teacher, student) in pairs {
        let difference = b.sub(*student, *teacher)?;
        let (error, size) = (square(b, difference)?, square(b, *teacher)?);
        let size = b.plus(size, SMALLEST)?;
        terms.push(b.div(error, size)?);
    }
    let total = sum(b, &terms)?;
    b.times(total, 1.0 / pairs.len().max(1) as f64)
}
