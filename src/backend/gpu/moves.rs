//! Operations that move elements without looking at them, as boxes of elements.

use lite3r_ir::{
    Op,
    ops::shape_rules::{strides, strides_for},
};

use super::{
    dims,
    walk::{Axis, join},
};
use crate::backend::Request;

/// A box of elements that moves from an operand to a result.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// The operand.
    pub operand: usize,
    /// The result.
    pub result: usize,
    /// Sizes, and strides in source and destination.
    pub axes: Vec<Axis>,
    /// Where the box starts in source and destination.
    pub starts: [usize; 2],
}

impl Copy {
    /// Of `shape`, from and to (operand or result, where the box starts, strides).
    pub fn new(shape: &[usize], from: (usize, usize, &[usize]), to: (usize, usize, &[usize])) -> Self {
        let signed = |own: &[usize]| own.iter().map(|s| *s as i64).collect();
        Self {
            operand: from.0,
            result: to.0,
            axes: join(shape, &[signed(from.2), signed(to.2)]),
            starts: [from.1, to.1],
        }
    }
}

/// What an operation copies.
pub fn copies(request: &Request<'_>) -> Result<Vec<Copy>, String> {
    let shapes = |types: &[_]| types.iter().map(dims).collect::<Result<Vec<_>, _>>();
    let (x, y) = (shapes(request.operands)?, shapes(request.results)?);
    let whole = |shape: &[usize], start: usize, from: &[usize]| {
        vec![Copy::new(shape, (0, start, from), (0, 0, &strides(shape)))]
    };
    Ok(match request.op {
        Op::Reshape(_) => whole(&[y[0].iter().product()], 0, &[1]),
        Op::Transpose(op) => {
            let own = strides(&x[0]);
            whole(&y[0], 0, &op.perm.iter().map(|p| own[*p]).collect::<Vec<_>>())
        }
        Op::Expand(_) => whole(&y[0], 0, &strides_for(&x[0], &y[0])),
        Op::Slice(op) => {
            let mut from = strides(&x[0]);
            let start = op.start.size().ok_or("needs static shapes")? * from[op.axis];
            from[op.axis] *= op.step;
            whole(&y[0], start, &from)
        }
        Op::Split(op) => {
            let (from, mut start) = (strides(&x[0]), 0);
            let part = |(result, shape): (usize, &Vec<usize>)| {
                let copy = Copy::new(shape, (0, start, &from), (result, 0, &strides(shape)));
                start += shape[op.axis] * from[op.axis];
                copy
            };
            y.iter().enumerate().map(part).collect()
        }
        Op::Concat(op) => {
            let (to, mut start) = (strides(&y[0]), 0);
            let part = |(operand, shape): (usize, &Vec<usize>)| {
                let copy = Copy::new(shape, (operand, 0, &strides(shape)), (0, start, &to));
                start += shape[op.axis] * to[op.axis];
                copy
            };
            x.iter().enumerate().map(part).collect()
        }
        Op::SplitHeads(op) => {
            let [_, n, c] = x[0][..] else { return Err("takes [B, N, C]".into()) };
            let d = y[0].last().copied().unwrap_or(0);
            let from = [n * c, d, c, 1];
            let part = |(result, shape): (usize, &Vec<usize>)| {
                Copy::new(shape, (0, result * op.heads * d, &from), (result, 0, &strides(shape)))
            };
            y.iter().enumerate().map(part).collect()
        }
        Op::MergeHeads(_) => {
            let [b, h, n, d] = x[0][..] else { return Err("takes [B, H, N, D]".into()) };
            whole(&[b, n, h, d], 0, &[h * n * d, d, n * d, 1])
        }
        other => return Err(format!("does not compute {}", other.name())),
    })
}
