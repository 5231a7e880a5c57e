//! Convolutions of images.

use lite3r_ir::{
    Dim,
    ops::{self, activation::Activation},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    node::{Node, Problem},
};

/// The operators.
pub const ROWS: &[Row] = &[row("Conv", 1, conv), row("ConvTranspose", 1, conv_transpose)];

/// Attributes that both have, and the sizes of kernel and image.
struct Geometry {
    strides: Vec<usize>,
    dilations: Vec<usize>,
    pads: Vec<usize>,
    groups: usize,
    bias: bool,
}

fn geometry(importer: &Importer<'_>, node: &Node<'_>) -> Result<Geometry, Problem> {
    let (x, w) = (importer.ty(node.input(0)?), importer.ty(node.input(1)?));
    if x.rank() != 4 || w.rank() != 4 {
        return Err(Problem::unsupported(format!("only images [N,C,H,W] are supported, not {x} with {w}")));
    }
    let pair = |name: &str| -> Result<Vec<usize>, Problem> {
        match node.sizes(name)? {
            None => Ok(vec![1, 1]),
            Some(list) if list.len() == 2 => Ok(list),
            Some(list) => Err(format!("{name} {list:?} for an image").into()),
        }
    };
    let (strides, dilations) = (pair("strides")?, pair("dilations")?);
    let kernel: Vec<usize> =
        w.shape[2..].iter().map(|d| d.size().ok_or("the kernel must be static")).collect::<Result<_, _>>()?;
    if let Some(given) = node.sizes("kernel_shape")?.filter(|k| *k != kernel) {
        return Err(format!("kernel_shape {given:?} does not fit the weights {w}").into());
    }
    let pads = match node.text("auto_pad")?.unwrap_or("NOTSET") {
        "NOTSET" => node.sizes("pads")?.unwrap_or_else(|| vec![0; 4]),
        "VALID" => vec![0; 4],
        mode @ ("SAME_UPPER" | "SAME_LOWER") if node.op() == "Conv" => {
            same(&x.shape[2..], &kernel, &strides, &dilations, mode)?
        }
        other => return Err(Problem::unsupported(format!("auto_pad={other} is not supported"))),
    };
    let groups = usize::try_from(node.int_or("group", 1)?).map_err(|_| "group is negative")?;
    Ok(Geometry { strides, dilations, pads, groups, bias: node.get(2).is_some() })
}

/// Padding under which the result has ⌈size / stride⌉ pixels.
fn same(
    image: &[Dim],
    kernel: &[usize],
    strides: &[usize],
    dilations: &[usize],
    mode: &str,
) -> Result<Vec<usize>, Problem> {
    let mut pads = vec![0; 4];
    for axis in 0..2 {
        let size = image[axis].size().ok_or("auto_pad needs static image sizes")?;
        let reach = (kernel[axis].max(1) - 1) * dilations[axis] + 1;
        let total = (size.div_ceil(strides[axis].max(1)).max(1) - 1) * strides[axis] + reach;
        let total = total.saturating_sub(size);
        let less = total / 2;
        (pads[axis], pads[axis + 2]) = if mode == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
    }
    Ok(pads)
}

fn conv(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let Geometry { strides, dilations, pads, groups, bias } = geometry(importer, node)?;
    let activation = Activation::None;
    let op = ops::Conv2d { strides, pads, dilations, groups, activation, ..ops::Conv2d::same(0, bias) };
    importer.emit_all(op, &node.all()?)
}

fn conv_transpose(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    if node.has("output_shape") {
        return Err(Problem::unsupported("output_shape is not supported"));
    }
    let Geometry { strides, dilations, pads, groups, bias } = geometry(importer, node)?;
    let output_padding = node.sizes("output_padding")?.unwrap_or_else(|| vec![0, 0]);
    let op = ops::ConvTranspose2d { strides, pads, output_padding, dilations, groups, bias };
    importer.emit_all(op, &node.all()?)
}
