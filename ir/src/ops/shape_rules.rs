//! Shape rules that operations share: broadcasting, axes, strides.

use super::Transpose;
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    vjp::Vjp,
};

/// NumPy broadcasting: shapes are aligned at the right, and a one stretches.
pub fn broadcast(shapes: &[&[Dim]]) -> Result<Vec<Dim>, String> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    (0..rank)
        .map(|i| {
            let mut at = shapes.iter().filter_map(|s| (i + s.len()).checked_sub(rank).map(|k| &s[k]));
            at.try_fold(Dim::from(1usize), |a, b| match (a.is_one(), b.is_one() || a == *b) {
                (true, _) => Ok(b.clone()),
                (false, true) => Ok(a),
                _ => Err(format!("{a} and {b} do not broadcast (dimension {i} of {rank})")),
            })
        })
        .collect()
}

/// An axis counted from the end where negative, as an index into `rank` dimensions.
pub fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(at).ok().filter(|a| *a < rank).ok_or_else(|| format!("axis {axis} is outside rank {rank}"))
}

/// Row-major strides in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Strides of `operand` seen as `shape`: zero along stretched and missing dimensions.
pub fn strides_for(operand: &[usize], shape: &[usize]) -> Vec<usize> {
    let own = strides(operand);
    let missing = shape.len() - operand.len();
    (0..shape.len()).map(|i| if i < missing || operand[i - missing] == 1 { 0 } else { own[i - missing] }).collect()
}

/// x with its last two dimensions exchanged.
pub fn transposed(at: &mut Vjp<'_>, x: Value) -> Result<Value, OpError> {
    let rank = at.ty(x).rank();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    at.op(Transpose { perm }, &[x])
}
