//! The 8-bit codes that an attention may multiply instead of its operands.
//!
//! After SageAttention (Zhang et al. 2024) and FlashAttention-3 (Shah et al. 2024), of each head:
//!
//! - keys are *centred*: c, the mean of all keys, is taken from each. A softmax does not see it, since q·c is added to
//!   all scores of a row, and what is left has smaller magnitudes;
//! - a query has a scale of its own, a block of centred keys shares one, a column of values shares one over all keys;
//! - scales and codes are those of [`super::quantize`]: amax/448, the nearest e4m3 number.
//!
//! Scores, softmax and sums are what they are without codes. Kernels round weights to e4m3 too, which the reference
//! does not: [`tolerance`] allows for it.

use std::ops::Range;

use super::{
    Tolerance,
    attention::Sizes,
    blocks::{dot, mean},
    quantize::{Granularity, quantize},
};
use crate::float8::{e4m3_to_f32, f32_to_e4m3};

crate::word_enum! {
    /// What the products of an attention multiply.
    pub enum Codes {
        /// The operands.
        None = "none",
        /// e4m3 codes of them.
        E4m3 = "e4m3",
    }
}

impl Codes {
    /// Nothing, or that codes are refused: the words of kernels that multiply operands.
    pub fn none(self) -> Result<(), String> {
        match self {
            Self::None => Ok(()),
            Self::E4m3 => Err(format!("multiplies operands, not {} codes of them", self.word())),
        }
    }
}

/// Keys that share a scale where there are no lists of key blocks.
pub const KEYS: usize = 128;

/// Centroids that share a scale.
pub const CENTROIDS: usize = 64;

/// Operands as their codes stand for them, in reals.
pub struct Coded {
    /// Queries [B·H, N, D].
    pub q: Vec<f64>,
    /// Centred keys [B·H, M, D].
    pub k: Vec<f64>,
    /// Values [B·H, M, E].
    pub v: Vec<f64>,
    /// The mean key of every head [B·H, D].
    centres: Vec<f64>,
    /// The scale of every column of values [B·H, E].
    columns: Vec<f64>,
}

impl Coded {
    /// q [B·H, N, D], k [B·H, M, D] and v [B·H, M, E]; `blocks` are the keys that share scales.
    pub fn of(s: &Sizes, q: &[f64], k: &[f64], v: &[f64], blocks: &[Range<usize>]) -> Self {
        let mut coded = Self {
            q: rounded(q, s.d, Granularity::Row),
            k: Vec::with_capacity(k.len()),
            v: Vec::with_capacity(v.len()),
            centres: Vec::new(),
            columns: Vec::new(),
        };
        for head in 0..s.b * s.h {
            let (k, v) = (&k[head * s.m * s.d..][..s.m * s.d], &v[head * s.m * s.e..][..s.m * s.e]);
            let centre = mean(k, s.d, 0..s.m);
            for block in blocks {
                coded.k.extend(rounded(
                    &centred(&k[block.start * s.d..block.end * s.d], &centre),
                    s.d,
                    Granularity::Tensor,
                ));
            }
            // Columns of values are rows of their transpose.
            let across: Vec<f64> = (0..s.e * s.m).map(|i| v[i % s.m * s.e + i / s.m]).collect();
            let (_, scales) = quantize(&across, s.m, Granularity::Row);
            coded.centres.extend(centre);
            coded.v.extend(under(v, &scales));
            coded.columns.extend(scales);
        }
        coded
    }

    /// Centroids [B·H, C, D] and [B·H, C, E] beside these keys and values, centred by the same means and under the
    /// same scales of columns.
    pub fn centroids(&self, s: &Sizes, count: usize, k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut keys, mut values) = (Vec::with_capacity(k.len()), Vec::with_capacity(v.len()));
        for head in 0..s.b * s.h {
            let k = centred(&k[head * count * s.d..][..count * s.d], &self.centres[head * s.d..][..s.d]);
            for block in k.chunks(CENTROIDS * s.d) {
                keys.extend(rounded(block, s.d, Granularity::Tensor));
            }
            values.extend(under(&v[head * count * s.e..][..count * s.e], &self.columns[head * s.e..][..s.e]));
        }
        (keys, values)
    }

    /// What centring took from every score of a query of this head.
    pub fn taken(&self, head: usize, query: &[f64]) -> f64 {
        dot(query, &self.centres[head * query.len()..][..query.len()])
    }
}

/// Blocks of `size` keys, the last ragged.
pub fn blocks_of(m: usize, size: usize) -> Vec<Range<usize>> {
    (0..m).step_by(size).map(|at| at..(at + size).min(m)).collect()
}

/// What others may differ by where codes are multiplied: half a step of a weight's code is up to 1/16 of the weight.
pub fn tolerance() -> Tolerance {
    Tolerance { absolute: 1e-6, relative: 1.0 / 16.0 }
}

/// The numbers that codes of x [.., k] stand for.
fn rounded(x: &[f64], k: usize, scale: Granularity) -> Vec<f64> {
    let (codes, scales) = quantize(x, k, scale);
    codes.iter().enumerate().map(|(i, code)| code * scales[scale.group(i, k)]).collect()
}

/// Rows less `centre`.
fn centred(rows: &[f64], centre: &[f64]) -> Vec<f64> {
    rows.iter().zip(centre.iter().cycle()).map(|(x, c)| x - c).collect()
}

/// The numbers that codes of rows under given scales of columns stand for.
fn under(rows: &[f64], scales: &[f64]) -> Vec<f64> {
    let code = |x: f64| e4m3_to_f32(f32_to_e4m3(x as f32)) as f64;
    rows.iter().zip(scales.iter().cycle()).map(|(x, s)| code(x / s) * s).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: &[f64], wanted: &[f64]) {
        assert!(found.iter().zip(wanted).all(|(f, w)| (f - w).abs() < 1e-6 * w.abs()), "{found:?} {wanted:?}");
    }

    /// Keys around 1000 would leave nothing of ±1 in three bits of mantissa; centred ones keep it.
    #[test]
    fn centring_keeps_what_tells_keys_apart() {
        let s = Sizes { b: 1, h: 1, n: 1, m: 2, d: 1, e: 1 };
        let coded = Coded::of(&s, &[3.0], &[1001.0, 999.0], &[1.0, -448.0], &blocks_of(2, KEYS));
        assert_close(&[coded.q, coded.k, coded.v].concat(), &[3.0, 1.0, -1.0, 1.0, -448.0]);
    }

    #[test]
    fn blocks_of_keys_have_scales_of_their_own() {
        let s = Sizes { b: 1, h: 1, n: 1, m: 4, d: 1, e: 1 };
        let k = [448.0, -448.0, 0.001, -0.001];
        let close = |coded: Coded| (coded.k[2] / 0.001 - 1.0).abs() < 0.05;
        assert!(close(Coded::of(&s, &[1.0], &k, &[0.0; 4], &blocks_of(4, 2))));
        assert!(!close(Coded::of(&s, &[1.0], &k, &[0.0; 4], &blocks_of(4, 4))));
    }

    #[test]
    fn centroids_are_coded_like_the_keys() {
        let s = Sizes { b: 1, h: 1, n: 1, m: 2, d: 1, e: 1 };
        let coded = Coded::of(&s, &[1.0], &[5.0, 7.0], &[448.0, 0.0], &blocks_of(2, KEYS));
        let (k, v) = coded.centroids(&s, 1, &[6.5], &[17.0]);
        assert_close(&[k, v].concat(), &[0.5, 16.0]);
        assert_eq!(coded.taken(0, &[2.0]), 12.0);
    }
}
