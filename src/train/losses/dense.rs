//! The loss of dense predictions: distances, weighted by a confidence that has its price, and differences between
//! neighbours at several scales.
//!
//! With prediction p, truth t, confidence c and mask m, d = ‖p − t‖ a pixel, n the number of pixels under the mask:
//!
//! ```text
//! Σ m·d / n  +  Σ m·(d·c − α log c) / n  +  Σ over scales of Σ |neighbours' difference of m·(p − t)| / n at that scale
//! ```
//!
//! where a difference counts if both neighbours are under the mask. Law: Wang et al., "VGGT: Visual Geometry Grounded
//! Transformer", 2025, after DUSt3R (Wang et al. 2024) and MiDaS (Ranftl et al. 2020).

use lite3r_ir::{
    Builder, Dim, Value,
    ops::{Abs, Slice, Sqrt},
};

use super::{Built, count, part, sum, trusted};

/// Every pixel, every second one, every fourth one, …
const SCALES: [usize; 4] = [1, 2, 4, 8];

/// Added under the root, whose slope has no end at zero.
const SMALLEST: f64 = 1e-12;

/// The loss of a prediction [1, S, H, W, C], or [1, S, H, W] of one channel, with its confidence [1, S, H, W] against a
/// truth like the prediction, under a mask [1, S, H, W].
pub fn loss(b: &mut Builder<'_>, predicted: Value, confidence: Value, truth: Value, mask: Value) -> Built {
    let image = b.ty(mask).shape.clone();
    let pixel = [&image[..], &[Dim::from(1)]].concat();
    let spread = b.reshape(mask, &pixel)?;
    let (predicted, truth) = match b.ty(predicted).rank() {
        4 => (b.reshape(predicted, &pixel)?, b.reshape(truth, &pixel)?),
        _ => (predicted, truth),
    };
    let difference = b.sub(predicted, truth)?;
    let difference = b.mul(difference, spread)?;
    let distance = distance(b, difference)?;
    let count = count(b, mask)?;
    let plain = b.total(distance)?;
    let plain = b.div(plain, count)?;
    let weighted = trusted(b, distance, confidence)?;
    let weighted = b.mul(weighted, mask)?;
    let weighted = b.total(weighted)?;
    let weighted = b.div(weighted, count)?;
    let edges = edges(b, difference, spread)?;
    sum(b, &[plain, weighted, edges])
}

/// Lengths [1, S, H, W] of vectors [1, S, H, W, C].
fn distance(b: &mut Builder<'_>, x: Value) -> Built {
    let shape = b.ty(x).shape.clone();
    let lengths = if shape[4].is_one() {
        b.op(Abs {}, &[x])?
    } else {
        let square = b.mul(x, x)?;
        let square = b.sum(square, &[4])?;
        let square = b.plus(square, SMALLEST)?;
        b.op(Sqrt {}, &[square])?
    };
    b.reshape(lengths, &shape[..4])
}

/// Differences between neighbours along rows and columns, at every scale that leaves two.
fn edges(b: &mut Builder<'_>, difference: Value, mask: Value) -> Built {
    let mut terms = Vec::new();
    for scale in SCALES {
        let (mut x, mut m) = (difference, mask);
        for axis in [2, 3] {
            (x, m) = (every(b, x, axis, scale)?, every(b, m, axis, scale)?);
        }
        let count = count(b, m)?;
        for axis in [2, 3] {
            if size(b, x, axis) < 2 {
                continue;
            }
            let (near, far) = neighbours(b, x, axis)?;
            let (known, also) = neighbours(b, m, axis)?;
            let step = b.sub(far, near)?;
            let step = b.op(Abs {}, &[step])?;
            let both = b.mul(known, also)?;
            let step = b.mul(step, both)?;
            let step = b.total(step)?;
            terms.push(b.div(step, count)?);
        }
    }
    sum(b, &terms)
}

fn size(b: &Builder<'_>, x: Value, axis: usize) -> usize {
    b.ty(x).shape[axis].size().unwrap_or(0)
}

fn every(b: &mut Builder<'_>, x: Value, axis: usize, step: usize) -> Built {
    let end = size(b, x, axis).into();
    if step == 1 { Ok(x) } else { b.op(Slice { axis, start: 0.into(), end, step }, &[x]) }
}

/// All but the last, all but the first.
fn neighbours(b: &mut Builder<'_>, x: Value, axis: usize) -> Built<(Value, Value)> {
    let n = size(b, x, axis);
    Ok((part(b, x, axis, 0..n - 1)?, part(b, x, axis, 1..n)?))
}
