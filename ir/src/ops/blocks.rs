//! How a sequence is cut into blocks of tokens: the vocabulary of block-sparse attention.
//!
//! A sequence is a row of *runs*, stretches that no block crosses: the special tokens of all views, then one run a
//! view. A pattern `runs=[40,256]` gives their lengths, the last one repeated to the end of the sequence; an empty
//! pattern is one run. Every run is cut by itself into blocks of a given size, the last of a run ragged. So blocks are
//! numbered through the sequence, and a device needs no more than the table of their first tokens, [`Blocks::starts`].

use std::ops::Range;

use super::attention::Sizes;
use crate::{tensor::Tensor, types::ValueType};

/// A sequence, cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// The tokens of every block; all tokens, in order, each once.
    pub tokens: Vec<Range<usize>>,
    /// The blocks of every run.
    pub runs: Vec<Range<usize>>,
}

impl Blocks {
    /// Cuts `n` tokens by the pattern of runs into blocks of `size`.
    pub fn cut(n: usize, pattern: &[usize], size: usize) -> Result<Self, String> {
        if size == 0 {
            return Err("a block needs a token".into());
        }
        let misfit = || format!("runs {pattern:?} do not fill {n} tokens");
        let mut cut = Self { tokens: Vec::with_capacity(n / size + 1), runs: Vec::new() };
        let mut lengths = pattern.iter().copied();
        let mut length = if pattern.is_empty() { n } else { 0 };
        let mut start = 0;
        while start < n || lengths.len() > 0 {
            length = lengths.next().unwrap_or(length);
            let end = start + length;
            if end > n || (length == 0 && lengths.len() == 0) {
                return Err(misfit());
            }
            let first = cut.tokens.len();
            cut.tokens.extend((start..end).step_by(size).map(|at| at..(at + size).min(end)));
            cut.runs.push(first..cut.tokens.len());
            start = end;
        }
        Ok(cut)
    }

    /// Of dimension 2 of [B, H, N, D].
    pub fn of(ty: &ValueType, pattern: &[usize], size: usize) -> Result<Self, String> {
        let n = ty.shape.get(2).ok_or_else(|| format!("takes operands of rank 4, not {ty}"))?;
        let n =
            n.size().ok_or_else(|| format!("blocks need a fixed number of tokens, not {n}: bind the symbols first"))?;
        Self::cut(n, pattern, size)
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The first token of every block, then the number of tokens.
    pub fn starts(&self) -> Vec<usize> {
        let end = self.tokens.last().map_or(0, |t| t.end);
        self.tokens.iter().map(|t| t.start).chain([end]).collect()
    }

    /// The blocks that hold any of these tokens.
    pub fn overlapping(&self, tokens: &Range<usize>) -> Range<usize> {
        let first = self.tokens.partition_point(|t| t.end <= tokens.start);
        let last = self.tokens.partition_point(|t| t.start < tokens.end);
        first..last.max(first)
    }

    /// The run of a block.
    pub fn run_of(&self, block: usize) -> usize {
        self.runs.partition_point(|r| r.end <= block)
    }

    /// The mean row of every block of `x` [N, width], divided by the true number of rows: [blocks, width].
    pub fn means(&self, x: &[f64], width: usize) -> Vec<f64> {
        self.tokens.iter().flat_map(|t| mean(x, width, t.clone())).collect()
    }
}

/// The mean of rows of `x` [N, width].
pub fn mean(x: &[f64], width: usize, rows: Range<usize>) -> Vec<f64> {
    let count = rows.len().max(1) as f64;
    let mut sum = vec![0.0; width];
    for row in rows {
        sum.iter_mut().zip(&x[row * width..][..width]).for_each(|(s, v)| *s += v);
    }
    sum.iter_mut().for_each(|s| *s /= count);
    sum
}

/// Σ aᵢbᵢ.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks the lists `idx` [B, H, Tq, L] and `cnt` [B, H, Tq], both i32, against the queries and their blocks.
pub fn infer_lists(q: &ValueType, blocks: usize, idx: &ValueType, cnt: &ValueType) -> Result<(), String> {
    use crate::{dim::Dim, types::DType};
    let rows = [q.shape[0].clone(), q.shape[1].clone(), Dim::from(blocks)];
    let fits = idx.rank() == 4 && idx.shape[..3] == rows && cnt.shape == rows;
    match fits && idx.dtype == DType::I32 && cnt.dtype == DType::I32 {
        true => Ok(()),
        false => Err(format!(
            "lists for {blocks} query blocks of {q} must be i32 [B,H,Tq,L] and [B,H,Tq], not {idx} and {cnt}"
        )),
    }
}

/// The lists as block numbers: `lists[(b·H + h)·Tq + i]`.
pub fn lists(idx: &Tensor, cnt: &Tensor, blocks: usize) -> Result<Vec<Vec<usize>>, String> {
    let width = idx.shape().last().copied().unwrap_or(0);
    let (idx, cnt) = (idx.to_i64(), cnt.to_i64());
    let take = |(row, count): (usize, &i64)| {
        let count = usize::try_from(*count).ok().filter(|c| *c <= width);
        let count = count.ok_or_else(|| format!("a list of {width} cannot hold {}", cnt[row]))?;
        idx[row * width..][..count]
            .iter()
            .map(|j| usize::try_from(*j).ok().filter(|j| *j < blocks))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| format!("list {row} names a block outside {blocks}"))
    };
    cnt.iter().enumerate().map(take).collect()
}

/// q, k, v of one head, and its sizes: what block operations work on.
pub struct Head<'a> {
    /// Queries [N, D].
    pub q: &'a [f64],
    /// Keys [M, D].
    pub k: &'a [f64],
    /// Values [M, E].
    pub v: &'a [f64],
}

impl<'a> Head<'a> {
    /// Head `at` of all B·H.
    pub fn of(at: usize, s: &Sizes, q: &'a [f64], k: &'a [f64], v: &'a [f64]) -> Self {
        Self {
            q: &q[at * s.n * s.d..][..s.n * s.d],
            k: &k[at * s.m * s.d..][..s.m * s.d],
            v: &v[at * s.m * s.e..][..s.m * s.e],
        }
    }
}

/// Lists for cases: query block i of head h takes every block j with (i + j + h) odd, and the first one always.
pub fn checkered(heads: usize, query_blocks: usize, key_blocks: usize) -> (Tensor, Tensor) {
    use crate::types::DType;
    let (mut idx, mut cnt) = (Vec::new(), Vec::new());
    for (h, i) in (0..heads).flat_map(|h| (0..query_blocks).map(move |i| (h, i))) {
        let list: Vec<i64> = (0..key_blocks).filter(|j| *j == 0 || (i + j + h) % 2 == 1).map(|j| j as i64).collect();
        cnt.push(list.len() as i64);
        idx.extend(list.iter().copied().chain(std::iter::repeat(-1)).take(key_blocks));
    }
    (
        Tensor::from_i64(DType::I32, &[1, heads, query_blocks, key_blocks], &idx),
        Tensor::from_i64(DType::I32, &[1, heads, query_blocks], &cnt),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_never_cross_runs() {
        let cut = Blocks::cut(10 + 2 * 37, &[10, 37], 16).unwrap();
        assert_eq!(cut.starts(), [0, 10, 26, 42, 47, 63, 79, 84]);
        assert_eq!(cut.runs, [0..1, 1..4, 4..7]);
        assert_eq!((cut.run_of(0), cut.run_of(3), cut.run_of(4)), (0, 1, 2));
        assert_eq!(cut.overlapping(&(20..47)), 1..4);
        assert_eq!(Blocks::cut(65, &[], 64).unwrap().tokens, [0..64, 64..65]);
        assert_eq!(Blocks::cut(0, &[], 64).unwrap().len(), 0);
    }

    #[test]
    fn patterns_that_do_not_fill_the_sequence_are_refused() {
        for pattern in [&[10usize, 37][..], &[90], &[0], &[40, 0]] {
            assert!(Blocks::cut(80, pattern, 16).is_err(), "{pattern:?}");
        }
        assert!(Blocks::cut(80, &[], 0).is_err());
        assert_eq!(Blocks::cut(80, &[0, 40], 16).unwrap().runs, [0..0, 0..3, 3..6]);
    }

    #[test]
    fn means_divide_by_the_true_count() {
        let cut = Blocks::cut(3, &[], 2).unwrap();
        assert_eq!(cut.means(&[1.0, 3.0, 7.0], 1), [2.0, 7.0]);
    }
}
