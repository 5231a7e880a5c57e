//! Rules for slices, gathers and scatters.

use super::{Context, first, rewrite};
use crate::{
    dim::Dim,
    graph::{Graph, NodeId, Value},
    ops::{Concat, Gather, Op, Reshape, Slice, gather_elements::offsets, shape_rules::strides},
    passes::PassError,
    patch::Patch,
    tensor::Tensor,
};

fn range(axis: usize, start: Dim, end: Dim) -> Slice {
    Slice { axis, start, end, step: 1 }
}

/// Every part of a split is a slice.
pub(super) fn split_to_slices(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Split(split) = graph.op(id).clone() else { return Ok(false) };
    let x = graph.operands(id)[0];
    let results: Vec<Value> = graph.results(id).collect();
    let mut patch = Patch::new(graph, "split_to_slices", first(id));
    let mut start = Dim::from(0);
    for (old, size) in results.into_iter().zip(split.sizes) {
        let end = start.clone() + size;
        let new = patch.wire(range(split.axis, start, end.clone()), &[x])?;
        patch.shunt(old, new)?;
        start = end;
    }
    patch.apply();
    Ok(true)
}

/// A slice of a slice along the same axis is one slice.
pub(super) fn slice_of_slice(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Slice(outer) = graph.op(id) else { return Ok(false) };
    let operand = graph.operands(id)[0];
    let Op::Slice(inner) = graph.op(operand.node) else { return Ok(false) };
    if inner.axis != outer.axis || inner.step != 1 {
        return Ok(false);
    }
    let offset = |d: &Dim| inner.start.clone() + d.clone();
    let merged = Slice { start: offset(&outer.start), end: offset(&outer.end), ..outer.clone() };
    let x = graph.operands(operand.node)[0];
    rewrite(graph, "slice_of_slice", id, merged, &[x])
}

/// A slice that lies within one operand of a concatenation is a slice of that operand.
pub(super) fn slice_of_concat(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Slice(slice) = graph.op(id) else { return Ok(false) };
    let operand = graph.operands(id)[0];
    let Op::Concat(concat) = graph.op(operand.node) else { return Ok(false) };
    if slice.axis != concat.axis || slice.step != 1 {
        return Ok(false);
    }
    let at_least = |a: &Dim, b: &Dim| (a.clone() - b.clone()).constant().is_some_and(|d| d >= 0);
    let mut begin = Dim::from(0);
    for part in graph.operands(operand.node) {
        let end = begin.clone() + graph.ty(part).shape[concat.axis].clone();
        if at_least(&slice.start, &begin) && at_least(&end, &slice.end) {
            let inner = range(slice.axis, slice.start.clone() - begin.clone(), slice.end.clone() - begin);
            return rewrite(graph, "slice_of_concat", id, inner, &[part]);
        }
        begin = end;
    }
    Ok(false)
}

/// A gather with one constant index, or with consecutive ones, is a slice.
pub(super) fn gather_to_slice(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::Gather(gather) = graph.op(id) else { return Ok(false) };
    let axis = gather.axis;
    let [x, indices] = graph.operands(id)[..] else { return Ok(false) };
    let Op::Constant(constant) = graph.op(indices.node) else { return Ok(false) };
    let indices = constant.value.to_i64();
    let Some(start) = indices.first().copied() else { return Ok(false) };
    let consecutive = indices.iter().zip(start..).all(|(i, expected)| *i == expected);
    if !consecutive || (start < 0 && start + indices.len() as i64 > 0) {
        return Ok(false);
    }
    let base = if start < 0 { graph.ty(x).shape[axis].clone() } else { Dim::from(0) };
    let start = base + Dim::from(start);
    let slice = range(axis, start.clone(), start + Dim::from(indices.len()));
    let shape = graph.ty(first(id)).shape.clone();
    let mut patch = Patch::new(graph, "gather_to_slice", first(id));
    let part = patch.wire(slice, &[x])?;
    let new = patch.wire(Reshape { shape }, &[part])?;
    patch.shunt(first(id), new)?;
    patch.apply();
    Ok(true)
}

/// Index tuples whose leading parts run over dimensions of size one are plain row indices.
pub(super) fn gather_nd_to_gather(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Op::GatherNd(gather) = graph.op(id) else { return Ok(false) };
    let [x, indices] = graph.operands(id)[..] else { return Ok(false) };
    let (shape, table) = (graph.ty(x).shape.clone(), graph.ty(indices).shape.clone());
    let Some((tuple, outer)) = table.split_last() else { return Ok(false) };
    let Some(tuple) = tuple.size().filter(|r| *r > 0) else { return Ok(false) };
    if gather.batch_dims != 0 || !shape[..tuple - 1].iter().all(Dim::is_one) {
        return Ok(false);
    }
    let (outer, rest) = (outer.to_vec(), shape[tuple - 1..].to_vec());
    let mut patch = Patch::new(graph, "gather_nd_to_gather", first(id));
    let rows = patch.wire(Reshape { shape: rest }, &[x])?;
    let last = range(table.len() - 1, (tuple - 1).into(), tuple.into());
    let last = patch.wire(last, &[indices])?;
    let last = patch.wire(Reshape { shape: outer }, &[last])?;
    let new = patch.wire(Gather { axis: 0 }, &[rows, last])?;
    patch.shunt(first(id), new)?;
    patch.apply();
    Ok(true)
}

/// A scatter whose updates fill consecutive rows along one axis is x before, the updates, and x after.
pub(super) fn scatter_to_concat(_: &Context, graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let operands = graph.operands(id);
    let filled = match graph.op(id) {
        Op::ScatterElements(op) => elements_filled(graph, operands[0], operands[1], op.axis),
        Op::ScatterNd(_) => slices_filled(graph, operands[0], operands[1]),
        _ => return Ok(false),
    };
    let Some((axis, start, end)) = filled else { return Ok(false) };
    let (x, updates) = (operands[0], operands[2]);
    let shape = graph.ty(x).shape.clone();
    let mut rows = shape.clone();
    rows[axis] = end.clone() - start.clone();
    let mut patch = Patch::new(graph, "scatter_to_concat", first(id));
    let updates = patch.wire(Reshape { shape: rows }, &[updates])?;
    let mut parts = Vec::new();
    if start != Dim::from(0) {
        parts.push(patch.wire(range(axis, Dim::from(0), start), &[x])?);
    }
    parts.push(updates);
    if end != shape[axis] {
        parts.push(patch.wire(range(axis, end, shape[axis].clone()), &[x])?);
    }
    let new = patch.wire(Concat { axis }, &parts)?;
    patch.shunt(first(id), new)?;
    patch.apply();
    Ok(true)
}

/// (axis, first row, one past the last) where ScatterElements with these indices fills whole rows in order. With
/// symbols in the shape, the index must be one number everywhere.
fn elements_filled(graph: &Graph, x: Value, indices: Value, axis: usize) -> Option<(usize, Dim, Dim)> {
    let (shape, table) = (&graph.ty(x).shape, &graph.ty(indices).shape);
    let whole = (0..shape.len()).all(|d| d == axis || shape[d] == table[d]);
    if let Some(index) = repeated(graph, indices).filter(|_| whole && table[axis].is_one()) {
        let base = if index < 0.0 { shape[axis].clone() } else { Dim::from(0) };
        let start = base + Dim::from(index as i64);
        return Some((axis, start.clone(), start + Dim::from(1)));
    }
    let sizes = graph.ty(x).dims()?;
    let Op::Constant(constant) = graph.op(indices.node) else { return None };
    filled(&sizes, &offsets(&sizes, &constant.value, axis).ok()?)
}

/// The same for ScatterND.
fn slices_filled(graph: &Graph, x: Value, indices: Value) -> Option<(usize, Dim, Dim)> {
    let Op::Constant(constant) = graph.op(indices.node) else { return columns_filled(graph, x, indices) };
    let sizes = graph.ty(x).dims()?;
    filled(&sizes, &slice_offsets(&sizes, &constant.value)?)
}

/// The same where the index tuples are columns side by side: numbers, and at most one sequence that runs over a whole
/// dimension. That sequence varies along the only dimension of the table that is not one, whatever its size.
fn columns_filled(graph: &Graph, x: Value, indices: Value) -> Option<(usize, Dim, Dim)> {
    let (shape, table) = (&graph.ty(x).shape, &graph.ty(indices).shape);
    let Op::Concat(concat) = graph.op(indices.node) else { return None };
    let columns = graph.operands(indices.node);
    let (tuple, outer) = table.split_last()?;
    if concat.axis != outer.len() || tuple.size() != Some(columns.len()) {
        return None;
    }
    let (mut row, mut sequences) = (None, 0);
    for (axis, column) in columns.into_iter().enumerate() {
        if let Some(index) = repeated(graph, column) {
            let base = if index < 0.0 { shape[axis].clone() } else { Dim::from(0) };
            if !shape[axis].is_one() && row.replace((axis, base + Dim::from(index as i64))).is_some() {
                return None;
            }
        } else {
            let Op::Range(range) = graph.op(source(graph, column).node) else { return None };
            if range.start != Dim::from(0) || range.step != 1 || range.count != shape[axis] {
                return None;
            }
            sequences += 1;
        }
    }
    let varying = outer.iter().filter(|d| !d.is_one()).count();
    let (axis, start) = row.filter(|_| sequences <= 1 && varying == sequences)?;
    Some((axis, start.clone(), start + Dim::from(1)))
}

/// The flat offset of every element that ScatterND replaces, in the order of its updates.
fn slice_offsets(sizes: &[usize], table: &Tensor) -> Option<Vec<usize>> {
    let tuple = *table.shape().last()?;
    let (own, inner) = (strides(sizes), sizes[tuple..].iter().product::<usize>());
    let mut all = Vec::new();
    for row in table.to_i64().chunks(tuple.max(1)) {
        let start = row.iter().enumerate().try_fold(0, |at, (k, i)| {
            let i = usize::try_from(if *i < 0 { i + sizes[k] as i64 } else { *i }).ok().filter(|i| *i < sizes[k])?;
            Some(at + i * own[k])
        })?;
        all.extend(start..start + inner);
    }
    Some(all)
}

/// The one axis along which these offsets are whole rows of a tensor of `sizes`, in row-major order; with the rows.
fn filled(sizes: &[usize], offsets: &[usize]) -> Option<(usize, Dim, Dim)> {
    let own = strides(sizes);
    let at = |offset: usize| -> Vec<usize> { own.iter().zip(sizes).map(|(s, n)| offset / s % n).collect() };
    let (low, high) = (at(*offsets.first()?), at(*offsets.last()?));
    if low.iter().zip(&high).any(|(l, h)| l > h) {
        return None;
    }
    let size = |d: usize| high[d] - low[d] + 1;
    let partial: Vec<usize> = (0..sizes.len()).filter(|d| size(*d) != sizes[*d]).collect();
    let axis = match partial[..] {
        [] => 0,
        [axis] => axis,
        _ => return None,
    };
    // Row-major over the box from `low` to `high`.
    let (inner, rows) = (own[axis], size(axis));
    let expected = |i: usize| i / (rows * inner) * sizes[axis] * inner + low[axis] * inner + i % (rows * inner);
    let count: usize = (0..sizes.len()).map(size).product();
    let all = offsets.len() == count && offsets.iter().enumerate().all(|(i, offset)| *offset == expected(i));
    all.then(|| (axis, low[axis].into(), (high[axis] + 1).into()))
}

/// The number that a value holds everywhere, seen through expansions and reshapes.
fn repeated(graph: &Graph, value: Value) -> Option<f64> {
    crate::pattern::number(graph, source(graph, value))
}

/// What was expanded and reshaped.
fn source(graph: &Graph, mut value: Value) -> Value {
    while let Op::Expand(_) | Op::Reshape(_) = graph.op(value.node) {
        value = graph.operands(value.node)[0];
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_rows_in_order_are_filled() {
        let found = |sizes: &[usize], offsets: &[usize]| {
            filled(sizes, offsets).map(|(axis, start, end)| (axis, start.to_string(), end.to_string()))
        };
        let some = |axis, start: &str, end: &str| Some((axis, start.to_string(), end.to_string()));
        assert_eq!(found(&[2, 3, 2], &[2, 3, 8, 9]), some(1, "1", "2"));
        assert_eq!(found(&[2, 3, 2], &[8, 9, 2, 3]), None);
        assert_eq!(found(&[2, 3], &[0, 1, 2, 3, 4, 5]), some(0, "0", "2"));
        assert_eq!(found(&[2, 3], &[1, 4]), some(1, "1", "2"));
        assert_eq!(found(&[2, 3], &[1]), None);
        assert_eq!(found(&[2, 3, 2], &[0, 1, 4, 5, 6, 7, 10, 11]), None);
        assert_eq!(found(&[2, 3], &[]), None);
    }
}
