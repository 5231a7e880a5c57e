//! Reductions along axes.

use lite3r_ir::{
    Op,
    ops::{self},
};

use super::{Results, Row, row};
use crate::onnx::{build::Importer, node::Node};

/// The operators.
pub const ROWS: &[Row] = &[
    row("ReduceSum", 1, sum),
    row("ReduceMean", 1, mean),
    row("ReduceMax", 1, max),
    row("ReduceMin", 1, min),
    row("ReduceProd", 1, prod),
    row("ReduceL2", 1, l2),
    row("ReduceSumSquare", 1, sum_square),
    row("GlobalAveragePool", 1, global_average_pool),
    row("ArgMax", 1, arg_max),
    row("ArgMin", 1, arg_min),
];

/// Axes, and whether they stay. `None`: the operand itself is the result.
fn axes(importer: &Importer<'_>, node: &Node<'_>) -> Result<Option<(Vec<usize>, bool)>, crate::onnx::node::Problem> {
    let rank = importer.shape(node.input(0)?).len();
    let keep = node.int_or("keepdims", 1)? != 0;
    let given = importer.axes(node, 1, rank)?.filter(|axes| !axes.is_empty());
    if given.is_none() && node.int_or("noop_with_empty_axes", 0)? != 0 {
        return Ok(None);
    }
    Ok(Some((given.unwrap_or_else(|| (0..rank).collect()), keep)))
}

fn reduce(importer: &mut Importer<'_>, node: &Node<'_>, op: impl Fn(Vec<usize>, bool) -> Op) -> Results {
    let x = node.input(0)?;
    match axes(importer, node)? {
        Some((axes, keep)) => importer.emit_all(op(axes, keep), &[x]),
        None => Ok(vec![x.clone()]),
    }
}

fn sum(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    reduce(importer, node, |axes, keep| ops::ReduceSum { axes, keep }.into())
}

fn mean(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    reduce(importer, node, |axes, keep| ops::ReduceMean { axes, keep }.into())
}

fn max(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    reduce(importer, node, |axes, keep| ops::ReduceMax { axes, keep }.into())
}

fn min(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    reduce(importer, node, |axes, keep| ops::ReduceMin { axes, keep }.into())
}

fn prod(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    reduce(importer, node, |axes, keep| ops::ReduceProd { axes, keep }.into())
}

fn sum_square(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let square = importer.emit(ops::Mul {}, &[x, x])?;
    match axes(importer, node)? {
        Some((axes, keep)) => importer.emit_all(ops::ReduceSum { axes, keep }, &[&square]),
        None => Ok(vec![square]),
    }
}

fn l2(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let sum = sum_square(importer, node)?;
    importer.emit_all(ops::Sqrt {}, &[&sum[0]])
}

fn global_average_pool(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let axes = (2..importer.shape(x).len()).collect();
    importer.emit_all(ops::ReduceMean { axes, keep: true }, &[x])
}

fn arg_max(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    node.only("select_last_index", 0)?;
    let x = node.input(0)?;
    let axis = importer.axis(node, 0, importer.shape(x).len())?;
    importer.emit_all(ops::ArgMax { axis, keep: node.int_or("keepdims", 1)? != 0 }, &[x])
}

fn arg_min(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    node.only("select_last_index", 0)?;
    let x = node.input(0)?;
    let axis = importer.axis(node, 0, importer.shape(x).len())?;
    importer.emit_all(ops::ArgMin { axis, keep: node.int_or("keepdims", 1)? != 0 }, &[x])
}
