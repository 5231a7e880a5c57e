//! Operators that read shapes or give tensors another one.

use lite3r_ir::{
    Dim,
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
    row("Shape", 1, shape),
    row("Size", 1, size),
    row("Reshape", 5, reshape),
    row("Flatten", 1, flatten),
    row("Squeeze", 1, squeeze),
    row("Unsqueeze", 1, unsqueeze),
    row("Transpose", 1, transpose),
    row("Expand", 8, expand),
    row("Tile", 6, tile),
    row("Concat", 4, concat),
    row("DepthToSpace", 1, depth_to_space),
    row("SpaceToDepth", 1, space_to_depth),
    row("Pad", 2, pad),
];

fn shape(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let shape = importer.shape(node.input(0)?);
    let rank = shape.len() as i64;
    let at = |value: i64| (if value < 0 { value + rank } else { value }).clamp(0, rank) as usize;
    let (start, end) = (at(node.int_or("start", 0)?), at(node.int_or("end", rank)?));
    let part = shape[start..end.max(start)].to_vec();
    Ok(vec![Val::dims(vec![part.len()], part)])
}

fn size(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    Ok(vec![Val::dims(vec![], vec![dims::product(&importer.shape(node.input(0)?))])])
}

fn reshape(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let target = importer.known_dims(node.input(1)?, "the new shape")?;
    let from = importer.shape(x);
    let to = dims::reshape(&from, &target, node.int_or("allowzero", 0)? != 0)?;
    if dims::product(&from) != dims::product(&to) && from.iter().any(|d| d.constant().is_none()) {
        let ty = importer.ty(x);
        return Err(Problem::unsupported(format!(
            "{ty} has {} elements, the new shape {}; the exporter wrote sizes of its example instead of symbols: bind them to \
             the sizes of the example (--bind S=N), or export anew",
            dims::product(&from),
            ty.with_shape(to)
        )));
    }
    Ok(vec![importer.reshape(x, to)?])
}

fn flatten(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let shape = importer.shape(x);
    let rank = shape.len() as i64;
    let axis = node.int_or("axis", 1)?;
    let axis = if axis < 0 { axis + rank } else { axis };
    let axis = usize::try_from(axis).ok().filter(|a| *a <= shape.len()).ok_or(format!("axis {axis} of {rank}"))?;
    Ok(vec![importer.reshape(x, vec![dims::product(&shape[..axis]), dims::product(&shape[axis..])])?])
}

fn squeeze(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let shape = importer.shape(x);
    let axes = match importer.axes(node, 1, shape.len())? {
        Some(axes) => axes,
        None => (0..shape.len()).filter(|i| shape[*i].is_one()).collect(),
    };
    if let Some(axis) = axes.iter().find(|a| !shape[**a].is_one()) {
        return Err(format!("axis {axis} of {} has size {}", importer.ty(x), shape[*axis]).into());
    }
    let rest = (0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i].clone()).collect();
    Ok(vec![importer.reshape(x, rest)?])
}

fn unsqueeze(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let old = importer.shape(x);
    // Axes count in the result; their number is needed before they can be counted from its end.
    let count = match node.get(1) {
        Some(axes) => importer.known_ints(axes, "the list of axes")?.len(),
        None => node.ints("axes")?.map_or(0, <[i64]>::len),
    };
    let axes = importer.axes(node, 1, old.len() + count)?.ok_or("there are no axes")?;
    let mut old = old.into_iter();
    let new = (0..old.len() + count).map(|i| if axes.contains(&i) { Some(Dim::from(1)) } else { old.next() });
    let new = new.collect::<Option<Vec<Dim>>>().ok_or("the axes do not fit")?;
    Ok(vec![importer.reshape(x, new)?])
}

fn transpose(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let rank = importer.shape(x).len();
    let perm = node.sizes("perm")?.unwrap_or_else(|| (0..rank).rev().collect());
    if perm.len() != rank {
        return Err(format!("perm {perm:?} does not fit {}", importer.ty(x)).into());
    }
    Ok(vec![importer.transpose(x, perm)?])
}

/// Both sides broadcast: a one in the given shape keeps the size of x.
fn expand(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let given = importer.known_dims(node.input(1)?, "the shape")?;
    let shape = shape_rules::broadcast(&[&importer.shape(x), &given])?;
    Ok(vec![importer.expand(x, shape)?])
}

/// Repetition as broadcasting along a new axis before each old one.
fn tile(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let repeats = importer.known_dims(node.input(1)?, "the repeats")?;
    let shape = importer.shape(x);
    if repeats.len() != shape.len() {
        return Err(format!("{} repeats for {}", repeats.len(), importer.ty(x)).into());
    }
    let (mut apart, mut wide, mut joined) = (Vec::new(), Vec::new(), Vec::new());
    for (n, size) in repeats.into_iter().zip(shape) {
        if !n.is_one() {
            apart.push(Dim::from(1));
            wide.push(n.clone());
        }
        apart.push(size.clone());
        wide.push(size.clone());
        joined.push(n * size);
    }
    let x = importer.reshape(x, apart)?;
    let x = importer.expand(&x, wide)?;
    Ok(vec![importer.reshape(&x, joined)?])
}

fn concat(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let parts = node.all()?;
    let rank = importer.shape(node.input(0)?).len();
    let axis = node.int("axis")?.ok_or("attribute `axis` is missing")?;
    let axis = shape_rules::axis(axis, rank)?;
    // An empty vector may stand among shapes; it has the rank of the others.
    if let Some(odd) = parts.iter().find(|p| importer.shape(p).len() != rank) {
        return Err(format!("{} does not continue rank {rank}", importer.ty(odd)).into());
    }
    Ok(vec![importer.concat(&parts, axis)?])
}

fn depth_to_space(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (x, b) = (node.input(0)?, block(node)?);
    let [n, c, h, w] = image(importer, x)?;
    let rest = c.divide(&(b.clone() * b.clone())).ok_or_else(|| format!("{c} channels in blocks of {b}"))?;
    // (channels, rows, columns) of the block: depth-column-row or column-row-depth.
    let crd = node.text("mode")?.unwrap_or("DCR") == "CRD";
    let (split, perm) = match crd {
        true => ([rest.clone(), b.clone(), b.clone()], vec![0, 1, 4, 2, 5, 3]),
        false => ([b.clone(), b.clone(), rest.clone()], vec![0, 3, 4, 1, 5, 2]),
    };
    let [p, q, r] = split;
    let x = importer.reshape(x, vec![n.clone(), p, q, r, h.clone(), w.clone()])?;
    let x = importer.transpose(&x, perm)?;
    Ok(vec![importer.reshape(&x, vec![n, rest, h * b.clone(), w * b])?])
}

fn space_to_depth(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (x, b) = (node.input(0)?, block(node)?);
    let [n, c, h, w] = image(importer, x)?;
    let part = |d: &Dim| d.divide(&b).ok_or_else(|| format!("{d} pixels in blocks of {b}"));
    let (rows, columns) = (part(&h)?, part(&w)?);
    let apart = vec![n.clone(), c.clone(), rows.clone(), b.clone(), columns.clone(), b.clone()];
    let x = importer.reshape(x, apart)?;
    let x = importer.transpose(&x, vec![0, 3, 5, 1, 2, 4])?;
    Ok(vec![importer.reshape(&x, vec![n, c * b.clone() * b, rows, columns])?])
}

fn block(node: &Node<'_>) -> Result<Dim, Problem> {
    let size = node.int("blocksize")?.filter(|b| *b > 0).ok_or("attribute `blocksize` is missing or not positive")?;
    Ok(Dim::from(size))
}

fn image(importer: &Importer<'_>, x: &Val) -> Result<[Dim; 4], Problem> {
    importer.shape(x).try_into().map_err(|_| format!("takes images [N,C,H,W], not {}", importer.ty(x)).into())
}

fn pad(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let mode = node.text("mode")?.unwrap_or("constant");
    if mode != "constant" {
        return Err(Problem::unsupported(format!("mode={mode} is not supported, only constant")));
    }
    let rank = importer.shape(x).len();
    let pads = importer.known_ints(node.input(1)?, "the list of pads")?;
    let axes = match node.get(3) {
        Some(axes) => importer.known_ints(axes, "the list of axes")?,
        None => (0..rank as i64).collect(),
    };
    let axes = axes.iter().map(|a| shape_rules::axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()).into());
    }
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    for (i, axis) in axes.iter().enumerate() {
        let size = |p: i64| {
            let within = usize::try_from(p).ok().filter(|_| p <= dims::LARGEST);
            within.ok_or_else(|| Problem::unsupported(format!("a pad of {p}")))
        };
        (before[*axis], after[*axis]) = (size(pads[i])?, size(pads[i + axes.len()])?);
    }
    let value = node.get(2).map_or(Ok(0.0), |v| importer.known_item(v, "the value"))?;
    importer.emit_all(ops::Pad { before, after, value }, &[x])
}
