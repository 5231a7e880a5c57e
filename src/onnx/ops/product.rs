//! Matrix products.

use lite3r_ir::{
    Dim,
    ops::{self},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    known::Val,
    node::{Node, Problem},
};

/// The operators.
pub const ROWS: &[Row] = &[row("MatMul", 1, matmul), row("Gemm", 1, gemm)];

/// NumPy matmul: a vector on one side is a row or a column that goes again.
fn matmul(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let (left, right) = (importer.shape(a), importer.shape(b));
    let row = if left.len() == 1 { importer.reshape(a, vec![Dim::from(1), left[0].clone()])? } else { a.clone() };
    let column = if right.len() == 1 { importer.reshape(b, vec![right[0].clone(), Dim::from(1)])? } else { b.clone() };
    let y = importer.emit(ops::MatMul { transpose_b: false }, &[&row, &column])?;
    let mut shape = importer.shape(&y);
    if right.len() == 1 {
        shape.pop();
    }
    if left.len() == 1 {
        shape.remove(shape.len() + usize::from(right.len() == 1) - 2);
    }
    Ok(vec![importer.reshape(&y, shape)?])
}

/// alpha·A B + beta·C; a B that is stored transposed makes a `linear`.
fn gemm(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (alpha, beta) = (node.float("alpha")?.unwrap_or(1.0), node.float("beta")?.unwrap_or(1.0));
    let a = match node.int_or("transA", 0)? {
        0 => node.input(0)?.clone(),
        _ => importer.transpose(node.input(0)?, vec![1, 0])?,
    };
    let (b, transposed) = (node.input(1)?, node.int_or("transB", 0)? != 0);
    if importer.shape(&a).len() != 2 || importer.shape(b).len() != 2 {
        return Err(format!("takes matrices, not {} and {}", importer.ty(&a), importer.ty(b)).into());
    }
    let bias = match (node.get(2), beta) {
        (None, _) | (_, 0.0) => None,
        (Some(c), 1.0) => Some(c.clone()),
        (Some(c), _) => Some(scaled(importer, c, beta)?),
    };
    // A bias of one value a column is part of the layer.
    let columns = importer.shape(b)[usize::from(!transposed)].clone();
    if let (true, 1.0, Some(bias)) = (transposed, alpha, &bias)
        && importer.shape(bias) == [columns]
    {
        return importer.emit_all(ops::Linear::new(true), &[&a, b, bias]);
    }
    let mut y = match transposed {
        true => importer.emit(ops::Linear::new(false), &[&a, b])?,
        false => importer.emit(ops::MatMul { transpose_b: false }, &[&a, b])?,
    };
    if alpha != 1.0 {
        y = scaled(importer, &y, alpha)?;
    }
    match bias {
        Some(bias) => importer.emit_all(ops::Add {}, &[&y, &bias]),
        None => Ok(vec![y]),
    }
}

fn scaled(importer: &mut Importer<'_>, x: &Val, by: f32) -> Result<Val, Problem> {
    let by = importer.scalar(importer.ty(x).dtype, f64::from(by));
    importer.emit(ops::Mul {}, &[x, &by])
}
