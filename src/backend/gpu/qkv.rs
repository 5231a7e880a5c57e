//! Sizes of queries, keys and values.

use lite3r_ir::ValueType;

use super::{dims, floats::only};

/// Columns of a head, at most.
const MAX_WIDTH: usize = 256;

/// Sizes of q, k and v, checked.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Batch.
    pub images: usize,
    /// Batch times heads.
    pub heads: usize,
    /// Queries.
    pub n: usize,
    /// Keys.
    pub m: usize,
    /// Width of queries and keys.
    pub d: usize,
    /// Width of values.
    pub e: usize,
}

impl Sizes {
    /// From the first three operands, which must be floating-point numbers that kernels know.
    pub fn of(operands: &[ValueType]) -> Result<Self, String> {
        let [q, k, v, ..] = operands else { return Err("takes q, k and v".into()) };
        only([q, k, v])?;
        let (q, k, v) = (dims(q)?, dims(k)?, dims(v)?);
        let (&[b, h, n, d], &[_, _, m, _], &[_, _, _, e]) = (&q[..], &k[..], &v[..]) else {
            return Err("takes operands of rank 4".into());
        };
        Self { images: b, heads: b * h, n, m, d, e }.checked()
    }

    /// Refuses heads that are wider than kernels have room for.
    pub fn checked(self) -> Result<Self, String> {
        match self.d.max(self.e) {
            width if width > MAX_WIDTH => Err(format!("takes head dimensions up to {MAX_WIDTH}, not {width}")),
            _ => Ok(self),
        }
    }

    /// Heads an image.
    pub fn image_heads(&self) -> usize {
        self.heads.checked_div(self.images).unwrap_or(0)
    }
}
