//! How operations fall into parts that can be computed one after the other: along which axis, and what a part reads.

use std::collections::BTreeMap;

use lite3r_ir::{
    Op, ValueType,
    ops::{images::ImageLayout, quantize::Granularity, shape_rules},
};

use super::{dims, elementwise};
use crate::backend::Request;

/// Along which axis a tensor falls apart, and how many of its elements there belong to one step of the cut.
type Along = Option<(usize, usize)>;

/// A cut through an operation. What has no axis is read whole by every part.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Steps along the cut.
    pub size: usize,
    /// Of each operand.
    pub operands: Vec<Along>,
    /// Of each result.
    pub results: Vec<Along>,
    /// Whether steps are rows of a convolution's result, whose parts read some rows in common.
    rows: bool,
}

/// Neighbours along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which axis.
    pub axis: usize,
    /// The first.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// A part of an operation: itself an operation on slices of operands, giving slices of results.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What it computes.
    pub op: Op,
    /// Of each operand; the whole where there is none.
    pub operands: Vec<Option<Slice>>,
    /// Of each result.
    pub results: Vec<Option<Slice>>,
}

impl Cut {
    /// Steps `start` to `start + len`. Errors: a convolution's part would see nothing but padding.
    pub fn part(&self, request: &Request<'_>, start: usize, len: usize) -> Result<Part, String> {
        let slice = |along: &Along| along.map(|(axis, per)| Slice { axis, start: start * per, len: len * per });
        let mut part = Part {
            op: request.op.clone(),
            operands: self.operands.iter().map(slice).collect(),
            results: self.results.iter().map(slice).collect(),
        };
        if let (true, Op::Conv2d(op)) = (self.rows, &mut part.op) {
            let axis = row_axis(op.layout);
            let (rows, taps) = (dims(&request.operands[0])?[axis], dims(&request.operands[1])?[axis]);
            // Counted with the padding above, from its top on.
            let first = start * op.strides[0];
            let end = (start + len - 1) * op.strides[0] + op.dilations[0] * (taps - 1) + 1;
            let (above, below) = (op.pads[0], op.pads[0] + rows);
            let (from, to) = (first.max(above), end.min(below));
            if from >= to {
                return Err("rows that see nothing but padding".into());
            }
            (op.pads[0], op.pads[2]) = (from - first, end - to);
            part.operands[0] = Some(Slice { axis, start: from - above, len: to - from });
        }
        Ok(part)
    }
}

/// The axis of rows.
fn row_axis(layout: ImageLayout) -> usize {
    if layout == ImageLayout::Planes { 2 } else { 1 }
}

/// Every cut through an operation. Empty for one that is computed as a whole.
pub fn cuts(request: &Request<'_>) -> Result<Vec<Cut>, String> {
    let shapes = |types: &[ValueType]| types.iter().map(dims).collect::<Result<Vec<_>, _>>();
    let of = Shapes { x: shapes(request.operands)?, y: shapes(request.results)? };
    let rank = of.y.first().map_or(0, Vec::len);
    let rows = 0..rank.saturating_sub(1);
    let last = request.operands.len().saturating_sub(1);
    let all = |_: usize| true;
    let first = |i: usize| i == 0;
    Ok(match request.op {
        op if elementwise::KERNELS.iter().any(|k| k.op == op.name()) => of.beside(all, 0..rank),
        Op::Softmax(op) => {
            let axis = shape_rules::axis(op.axis, rank)?;
            of.beside(first, (0..rank).filter(|d| *d != axis))
        }
        Op::LayerNorm(_) => of.beside(first, rows),
        Op::LayerNormGrad(_) => of.beside(|i| i < 2, rows),
        Op::LayerNormQuantize(op) if op.scale != Granularity::Tensor => of.beside(first, rows),
        Op::Quantize(op) if op.scale != Granularity::Tensor => of.beside(first, rows),
        Op::FakeQuantize(op) if op.scale != Granularity::Tensor => of.beside(first, rows),
        Op::Dequantize(op) if op.scale != Granularity::Tensor => of.beside(all, rows),
        Op::Rope(_) => of.beside(all, rows),
        Op::Linear(op) => {
            let mut cuts = of.beside(|i| i == 0 || op.residual && i == last, rows);
            let columns = op.residual.then_some((last, rank - 1));
            cuts.push(of.cut([Some((1, 0)), op.bias.then_some((2, 0)), columns].into_iter().flatten(), rank - 1));
            cuts
        }
        Op::WeightScaledLinear(op) => {
            let mut cuts = of.beside(|i| i == 0 || op.residual && i == last, rows);
            let scales = (op.w_scale != Granularity::Tensor).then_some((2, 0));
            let columns = op.residual.then_some((last, rank - 1));
            let cut = [Some((1, 0)), scales, op.bias.then_some((3, 0)), columns];
            cuts.push(of.cut(cut.into_iter().flatten(), rank - 1));
            cuts
        }
        Op::MatMul(op) => {
            let (a, b) = (of.x[0].len(), of.x[1].len());
            let mut cuts = of.beside(all, 0..rank.saturating_sub(2));
            cuts.push(of.cut([(0, a - 2)], rank - 2));
            cuts.push(of.cut([(1, if op.transpose_b { b - 2 } else { b - 1 })], rank - 1));
            cuts
        }
        Op::ReduceSum(op) => of.kept(&op.axes, op.keep),
        Op::ReduceMean(op) => of.kept(&op.axes, op.keep),
        Op::ReduceMax(op) => of.kept(&op.axes, op.keep),
        Op::ReduceMin(op) => of.kept(&op.axes, op.keep),
        Op::ReduceProd(op) => of.kept(&op.axes, op.keep),
        Op::ArgMax(op) => of.kept(&[op.axis], op.keep),
        Op::ArgMin(op) => of.kept(&[op.axis], op.keep),
        Op::Conv2d(op) => {
            let residual = op.residual.then_some(last);
            let along = |axis: usize| residual.map(|i| (i, axis));
            let rows = row_axis(op.layout);
            let channels = if op.layout == ImageLayout::Planes { 1 } else { 3 };
            let mut cuts = vec![
                of.cut([Some((0, 0)), along(0)].into_iter().flatten(), 0),
                Cut { rows: true, ..of.cut([Some((0, rows)), along(rows)].into_iter().flatten(), rows) },
            ];
            if op.groups == 1 {
                let bias = op.bias.then_some((2, 0));
                let cut = [Some((1, 0)), bias, along(channels)];
                cuts.push(of.cut(cut.into_iter().flatten(), channels));
            }
            cuts
        }
        Op::Conv2dWeightGrad(op) if op.groups == 1 => {
            let channels = if op.layout == ImageLayout::Planes { 1 } else { 3 };
            vec![of.cut([(1, channels)], 0), of.cut([(0, channels)], channels)]
        }
        Op::ConvTranspose2d(op) => {
            let mut cuts = vec![of.cut([(0, 0)], 0)];
            if op.groups == 1 {
                let bias = op.bias.then_some((2, 0));
                cuts.push(of.cut([Some((1, 1)), bias].into_iter().flatten(), 1));
            }
            if op.stamps_lie_apart(&of.x[1][2..]) {
                let mut rows = of.cut([(0, 2)], 2);
                (rows.size, rows.results) = (of.x[0][2], vec![Some((2, op.strides[0]))]);
                cuts.push(rows);
            }
            cuts
        }
        Op::Resize(op) => match op.layout {
            ImageLayout::Planes => of.beside(all, 0..rank.saturating_sub(2)),
            ImageLayout::Pixels => of.beside(all, [0, 3]),
        },
        Op::ResizeGrad(op) => match op.layout {
            ImageLayout::Planes => of.beside(all, 0..rank.saturating_sub(2)),
            ImageLayout::Pixels => of.beside(all, [0, 3]),
        },
        Op::QkvHeads(op) => of.tokens(request.operands.len() - op.parts(request.operands).1.len()),
        Op::QkvLinear(op) => of.tokens(request.operands.len() - usize::from(op.segments > 0)),
        Op::Attention(op) => {
            let mut cuts = of.heads(op.merged, 0..=last);
            let mut queries = of.cut([(0, 2)], if op.merged { 1 } else { 2 });
            queries.results.iter_mut().skip(1).for_each(|lse| *lse = Some((2, 1)));
            cuts.push(queries);
            cuts
        }
        Op::SelfAttention(_) => vec![of.cut([(0, 0)], 0)],
        Op::AttentionGrad(op) => of.heads_of_gradients(op.merged, 3),
        Op::BlockAttentionGrad(op) => of.heads_of_gradients(op.merged, op.results_at()),
        Op::BlockAttention(op) => of.heads(op.merged, 0..=last),
        Op::LinearAttention(op) => {
            let shared = op.weights_at();
            let mut cuts = of.heads(op.merged, (0..=last).filter(|i| Some(*i) != shared));
            if let (Some(i), [_, heads]) = (op.residual_at(), &mut cuts[..]) {
                heads.operands[i] = heads.results[0];
            }
            cuts
        }
        Op::BlockMean(_) | Op::BlockRoute(_) | Op::BlockTranspose(_) => of.heads(false, 0..=last),
        Op::Gather(op) => {
            let indices = of.x[1].len();
            let beside = |d: usize| of.cut([(0, d)], if d < op.axis { d } else { d - 1 + indices });
            let picked = (0..indices).map(|d| of.cut([(1, d)], op.axis + d));
            (0..of.x[0].len()).filter(|d| *d != op.axis).map(beside).chain(picked).collect()
        }
        Op::ScatterAdd(op) => {
            let indices = of.x[1].len();
            let own = |d: usize| if d < op.axis { d } else { d - 1 + indices };
            (0..rank).filter(|d| *d != op.axis).map(|d| of.cut([(0, own(d))], d)).collect()
        }
        Op::GatherElements(op) => {
            let others = (0..rank).filter(|d| *d != op.axis);
            others.map(|d| of.cut([(0, d), (1, d)], d)).chain([of.cut([(1, op.axis)], op.axis)]).collect()
        }
        _ => Vec::new(),
    })
}

/// Sizes of operands and results.
struct Shapes {
    x: Vec<Vec<usize>>,
    y: Vec<Vec<usize>>,
}

impl Shapes {
    /// Through these axes of operands and this axis of every result.
    fn cut(&self, operands: impl IntoIterator<Item = (usize, usize)>, result: usize) -> Cut {
        let axes: BTreeMap<usize, usize> = operands.into_iter().collect();
        let along = |i: usize| axes.get(&i).map(|axis| (*axis, 1));
        Cut {
            size: self.y[0][result],
            operands: (0..self.x.len()).map(along).collect(),
            results: vec![Some((result, 1)); self.y.len()],
            rows: false,
        }
    }

    /// Through axes of the results and, aligned at the right, those operands that are taken, where they do not stretch.
    fn beside(&self, taken: impl Fn(usize) -> bool, axes: impl IntoIterator<Item = usize>) -> Vec<Cut> {
        let rank = self.y[0].len();
        let cut = |axis: usize| {
            let along = |(i, shape): (usize, &Vec<usize>)| {
                let own = (axis + shape.len()).checked_sub(rank)?;
                (taken(i) && shape[own] != 1).then_some((i, own))
            };
            self.cut(self.x.iter().enumerate().filter_map(along), axis)
        };
        axes.into_iter().map(cut).collect()
    }

    /// Through what a reduction keeps.
    fn kept(&self, gone: &[usize], keep: bool) -> Vec<Cut> {
        let kept = (0..self.x[0].len()).filter(|d| !gone.contains(d)).enumerate();
        kept.map(|(at, d)| self.cut([(0, d)], if keep { d } else { at })).collect()
    }

    /// Through batch and tokens of x [B, N, ..] and results [B, H, N, D], which operands from `tables` on broadcast to.
    fn tokens(&self, tables: usize) -> Vec<Cut> {
        let through = |x: usize, y: usize| {
            let along = |(i, shape): (usize, &Vec<usize>)| {
                let own = (y + shape.len()).checked_sub(4)?;
                (shape[own] != 1).then_some((i, own))
            };
            let tables = self.x.iter().enumerate().skip(tables).filter_map(along);
            self.cut(std::iter::once((0, x)).chain(tables), y)
        };
        vec![through(0, 0), through(1, 2)]
    }

    /// Through batch and heads of these operands and all results [B, H, ..], the first perhaps [B, N, H·E].
    fn heads(&self, merged: bool, operands: impl Iterator<Item = usize>) -> Vec<Cut> {
        let operands: Vec<usize> = operands.collect();
        let through = |axis: usize| self.cut(operands.iter().map(|i| (*i, axis)), 0);
        let count = self.x[0][1];
        let mut heads = Cut { size: count, results: vec![Some((1, 1)); self.y.len()], ..through(1) };
        if merged {
            heads.results[0] = Some((2, self.y[0][2].checked_div(count).unwrap_or(0)));
        }
        vec![through(0), heads]
    }

    /// The same where operands `first` and its next but one are perhaps [B, N, H·E], and no result is.
    fn heads_of_gradients(&self, merged: bool, first: usize) -> Vec<Cut> {
        let mut cuts = self.heads(false, 0..self.x.len());
        if let (true, [_, heads]) = (merged, &mut cuts[..]) {
            let width = self.x[first][2].checked_div(heads.size).unwrap_or(0);
            (heads.operands[first], heads.operands[first + 2]) = (Some((2, width)), Some((2, width)));
        }
        cuts
    }
}
