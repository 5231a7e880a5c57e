//! The matrix product that an operation is, whatever multiplies it.

use lite3r_ir::{
    ValueType,
    ops::{MatMul, shape_rules::strides_for},
};

use super::{
    dims,
    walk::{Axis, join},
};
use crate::backend::Request;

/// A [M, K] times B, [N, K] where it is transposed, [K, N] where not, over a batch.
pub struct Product {
    /// Rows of A and of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// What is summed over.
    pub k: usize,
    /// Products of the batch.
    pub items: usize,
    /// The batch, with the steps of A and B.
    pub walked: Vec<Axis>,
    /// Whether rows of B are columns of the product.
    pub transposed: bool,
}

impl Product {
    /// Of rows of `x` with weights [N, K].
    pub fn of_weights(x: &ValueType, w: &ValueType) -> Result<Self, String> {
        let (x, w) = (dims(x)?, dims(w)?);
        let &[n, k] = w.as_slice() else { return Err("takes weights [N, K]".into()) };
        let m = x[..x.len() - 1].iter().product();
        Ok(Self { m, n, k, items: 1, walked: Vec::new(), transposed: true })
    }

    /// Of two operands under broadcasting.
    pub fn of_matmul(op: &MatMul, request: &Request<'_>) -> Result<Self, String> {
        let (a, b, c) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
        let (Some((batch, &[m, n])), Some((batch_a, &[_, k])), Some((batch_b, _))) =
            (c.split_last_chunk(), a.split_last_chunk(), b.split_last_chunk::<2>())
        else {
            return Err("takes matrices".into());
        };
        let steps = |own: &[usize], size: usize| -> Vec<i64> {
            strides_for(own, batch).into_iter().map(|s| (s * size) as i64).collect()
        };
        let walked = join(batch, &[steps(batch_a, m * k), steps(batch_b, k * n)]);
        Ok(Self { m, n, k, items: batch.iter().product(), walked, transposed: op.transpose_b })
    }
}
