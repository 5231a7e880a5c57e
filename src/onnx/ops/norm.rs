//! Normalisations.

use lite3r_ir::{Tensor, ops};

use super::{Results, Row, row, tools::shortest};
use crate::onnx::{build::Importer, dims, known::Val, node::Node};

/// The operators.
pub const ROWS: &[Row] = &[row("LayerNormalization", 17, layer_norm), row("Softmax", 13, softmax)];

/// Over the last axes; more than one are joined first.
fn layer_norm(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    node.only("stash_type", 1)?;
    let x = node.input(0)?;
    let shape = importer.shape(x);
    let axis = importer.axis(node, -1, shape.len())?;
    let width = dims::product(&shape[axis..]);
    let flat = |importer: &mut Importer<'_>, v: &Val| importer.reshape(v, vec![width.clone()]);
    let eps = shortest(node.float("epsilon")?.unwrap_or(1e-5));
    let op = ops::LayerNorm { eps, out: None };
    let rows = [&shape[..axis], std::slice::from_ref(&width)].concat();
    let rows = importer.reshape(x, rows)?;
    let y = match (node.get(1), node.get(2)) {
        // Normalisations without weights are exported with ones and zeros.
        (Some(g), b) if importer.holds(g, 1.0) && b.is_none_or(|b| importer.holds(b, 0.0)) => {
            importer.emit(op, &[&rows])?
        }
        (Some(g), b) => {
            let g = flat(importer, g)?;
            let b = match b {
                Some(b) => flat(importer, b)?,
                None => {
                    let zero = Tensor::scalar(importer.ty(&g).dtype, 0.0);
                    importer.filled(&zero, vec![width.clone()])?
                }
            };
            importer.emit(op, &[&rows, &g, &b])?
        }
        (None, _) => return Err("the scale is missing".into()),
    };
    Ok(vec![importer.reshape(&y, shape)?])
}

fn softmax(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let axis = importer.axis(node, -1, importer.shape(x).len())?;
    // Written from the end, so that the attribute is left out where it is the last.
    let axis = axis as i64 - importer.shape(x).len() as i64;
    importer.emit_all(ops::Softmax { axis }, &[x])
}
