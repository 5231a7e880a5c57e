//! Losses as graphs: each appends operations that end in one number.
//!
//! - [`camera`]: VGGT's pose encodings against the truth, over the rounds of refinement
//! - [`pose`]: DA3's pose encodings against the truth
//! - [`dense`]: depth or world points with confidence, and their differences at several scales
//! - [`rays`]: ray maps with confidence
//! - [`attention`]: what attention modules of a student give against those of its teacher
//! - [`router`]: which blocks the routers of a student expect attention in against where it is
//! - [`matching`]: where a head of early global attentions looks against where the same surface is seen
//!
//! Values are f32. Masks are 1 where the truth is known and 0 elsewhere; what they cut off gives no gradient.

pub mod attention;
pub mod camera;
pub mod dense;
pub mod matching;
pub mod pose;
pub mod rays;
pub mod router;

use std::ops::Range;

use lite3r_ir::{
    Builder, DType, OpError, Tensor, Value,
    ops::{Abs, Clip, Log, Slice},
};

/// A value, or an operation that does not fit: a model whose outputs have other shapes than its family says.
pub type Built<T = Value> = std::result::Result<T, OpError>;

/// α: what confidence costs.
const PRICE: f64 = 0.2;

/// The mean of x over all elements.
fn mean(b: &mut Builder<'_>, x: Value) -> Built {
    let count = b.ty(x).elements().unwrap_or(1).max(1);
    let sum = b.total(x)?;
    b.times(sum, 1.0 / count as f64)
}

/// The mean of |x| over all elements.
fn mean_magnitude(b: &mut Builder<'_>, x: Value) -> Built {
    let x = b.op(Abs {}, &[x])?;
    mean(b, x)
}

/// How much a mask lets through, at least one.
fn count(b: &mut Builder<'_>, mask: Value) -> Built {
    let count = b.total(mask)?;
    b.op(Clip { min: 1.0, max: f64::INFINITY }, &[count])
}

/// What lies in a range of an axis.
fn part(b: &mut Builder<'_>, x: Value, axis: usize, range: Range<usize>) -> Built {
    b.op(Slice { axis, start: range.start.into(), end: range.end.into(), step: 1 }, &[x])
}

/// d·c − α log c, element by element: errors d count by a confidence c that has its price.
fn trusted(b: &mut Builder<'_>, distance: Value, confidence: Value) -> Built {
    let weighted = b.mul(distance, confidence)?;
    let price = b.op(Log {}, &[confidence])?;
    let price = b.times(price, PRICE)?;
    b.sub(weighted, price)
}

/// Σ x², a number.
pub fn square(b: &mut Builder<'_>, x: Value) -> Built {
    let square = b.mul(x, x)?;
    b.total(square)
}

/// The sum of some numbers; zero of none.
pub fn sum(b: &mut Builder<'_>, terms: &[Value]) -> Built {
    let Some((first, rest)) = terms.split_first() else {
        return Ok(b.constant(Tensor::scalar(DType::F32, 0.0)));
    };
    rest.iter().try_fold(*first, |sum, term| b.add(sum, *term))
}
