//! Operators that take tensors apart or put elements into them.

use lite3r_ir::{
    DType, Dim,
    ops::{self, shape_rules},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    dims,
    known::Val,
    node::{Node, Problem},
};

/// The operators.
pub const ROWS: &[Row] = &[
    row("Slice", 10, slice),
    row("Split", 1, split),
    row("Gather", 1, gather),
    row("GatherElements", 11, gather_elements),
    row("GatherND", 11, gather_nd),
    row("ScatterElements", 11, scatter_elements),
    row("ScatterND", 11, scatter_nd),
];

fn slice(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let mut x = node.input(0)?.clone();
    let rank = importer.shape(&x).len();
    let starts = importer.known_dims(node.input(1)?, "the list of starts")?;
    let ends = importer.known_dims(node.input(2)?, "the list of ends")?;
    let axes = match node.get(3) {
        Some(axes) => importer.known_ints(axes, "the list of axes")?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match node.get(4) {
        Some(steps) => importer.known_ints(steps, "the list of steps")?,
        None => vec![1; starts.len()],
    };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(axes).zip(steps) {
        let axis = shape_rules::axis(axis, rank)?;
        let size = importer.shape(&x)[axis].clone();
        x = match step {
            1 => {
                let (start, end) = (bound(start, &size), bound(end, &size));
                let end = if dims::at_most(&end, &start) { start.clone() } else { end };
                importer.slice(&x, axis, start, end)?
            }
            step => strided(importer, &x, axis, (start, end, step), &size)?,
        };
    }
    Ok(vec![x])
}

/// A bound of a range by 1: counted from the end where negative, limited to the size as far as is known. A bound that
/// only some symbols keep inside is checked when they are bound.
fn bound(at: &Dim, size: &Dim) -> Dim {
    let from_end = dims::sign(at).is_some_and(std::cmp::Ordering::is_lt);
    let at = if from_end { at.clone() + size.clone() } else { at.clone() };
    if dims::sign(&at).is_some_and(std::cmp::Ordering::is_lt) {
        return Dim::from(0);
    }
    // The largest integers stand for the end, whatever the size is.
    let open = at.constant().is_some_and(|c| c >= i64::from(i32::MAX));
    if open || dims::at_most(size, &at) { size.clone() } else { at }
}

/// Steps other than 1, of known bounds; backwards by a list of indices.
fn strided(
    importer: &mut Importer<'_>,
    x: &Val,
    axis: usize,
    (start, end, step): (&Dim, &Dim, i64),
    size: &Dim,
) -> Result<Val, Problem> {
    let known = start.constant().zip(end.constant()).zip(size.constant());
    let ((start, end), n) = known.ok_or_else(|| {
        Problem::unsupported(format!(
            "{start}..{end} by {step} of {size}; bind the symbols before the import (--bind S=N)"
        ))
    })?;
    let wrap = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
    match step {
        0 => Err("the step is zero".into()),
        1.. => {
            let (start, end) = (wrap(start).clamp(0, n), wrap(end).clamp(0, n));
            let step = usize::try_from(step).map_err(|_| "the step is too large")?;
            importer.emit(ops::Slice { axis, start: start.into(), end: end.max(start).into(), step }, &[x])
        }
        _ => {
            let (start, end) = (wrap(start).clamp(-1, n - 1), wrap(end).clamp(-1, n - 1));
            let count = if start > end { (start - end - 1) / step.saturating_neg() + 1 } else { 0 };
            let indices = importer.sequence(start.into(), count.into(), step)?;
            importer.emit(ops::Gather { axis }, &[x, &indices])
        }
    }
}

/// By sizes, or into equal parts of which the last may be shorter.
fn split(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let shape = importer.shape(x);
    let axis = importer.axis(node, 0, shape.len())?;
    let size = &shape[axis];
    let parts = node.int_or("num_outputs", node.outputs() as i64)?;
    let sizes = match (node.get(1), node.ints("split")?) {
        (Some(sizes), _) => importer.known_dims(sizes, "the list of sizes")?,
        (None, Some(sizes)) => sizes.iter().map(|s| Dim::from(*s)).collect(),
        (None, None) if parts < 1 || parts > node.outputs() as i64 => {
            return Err(format!("{parts} parts for {} results", node.outputs()).into());
        }
        (None, None) => match size.constant() {
            Some(n) => {
                let part = (n + parts - 1) / parts;
                (0..parts).map(|i| Dim::from((n - i * part).clamp(0, part))).collect()
            }
            None => {
                let part = size.divide(&Dim::from(parts)).ok_or_else(|| {
                    Problem::unsupported(format!("{size} in {parts} parts; bind the symbols before the import"))
                })?;
                vec![part; parts as usize]
            }
        },
    };
    dims::checked(&sizes)?;
    if matches!(x, Val::Dims(_)) {
        let mut start = Dim::from(0);
        let part = |size: Dim| {
            let end = start.clone() + size;
            importer.slice(x, axis, std::mem::replace(&mut start, end.clone()), end)
        };
        return sizes.into_iter().map(part).collect();
    }
    importer.emit_all(ops::Split { axis, sizes }, &[x])
}

/// One constant index is a slice, which passes and planners see through.
fn gather(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (x, indices) = (node.input(0)?, node.input(1)?);
    let mut shape = importer.shape(x);
    let axis = importer.axis(node, 0, shape.len())?;
    if let (Val::Graph(_), Val::Tensor(index)) = (x, indices)
        && index.len() == 1
        && index.shape().len() <= 1
    {
        let at = index.to_i64()[0];
        let start = if at < 0 { shape[axis].clone() + Dim::from(at) } else { Dim::from(at) };
        let row = importer.slice(x, axis, start.clone(), start + Dim::from(1))?;
        if index.shape().is_empty() {
            shape.remove(axis);
        } else {
            shape[axis] = Dim::from(1);
        }
        return Ok(vec![importer.reshape(&row, shape)?]);
    }
    let indices = integers(importer, indices)?;
    importer.emit_all(ops::Gather { axis }, &[x, &indices])
}

fn gather_elements(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let axis = importer.axis(node, 0, importer.shape(x).len())?;
    importer.emit_all(ops::GatherElements { axis }, &[x, node.input(1)?])
}

fn gather_nd(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let batch_dims = usize::try_from(node.int_or("batch_dims", 0)?).map_err(|_| "batch_dims is negative")?;
    importer.emit_all(ops::GatherNd { batch_dims }, &[node.input(0)?, node.input(1)?])
}

fn scatter_elements(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    no_reduction(node)?;
    let x = node.input(0)?;
    let axis = importer.axis(node, 0, importer.shape(x).len())?;
    importer.emit_all(ops::ScatterElements { axis }, &node.all()?)
}

fn scatter_nd(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    no_reduction(node)?;
    importer.emit_all(ops::ScatterNd {}, &node.all()?)
}

fn no_reduction(node: &Node<'_>) -> Result<(), Problem> {
    match node.text("reduction")? {
        None | Some("none") => Ok(()),
        Some(other) => Err(Problem::unsupported(format!("reduction={other} is not supported, only none"))),
    }
}

/// Indices as the operations take them.
fn integers(importer: &mut Importer<'_>, indices: &Val) -> Result<Val, Problem> {
    match importer.ty(indices).dtype {
        DType::I64 | DType::I32 => Ok(indices.clone()),
        other => Err(format!("indices are {other}").into()),
    }
}
