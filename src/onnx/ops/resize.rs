//! Resize of images.

use lite3r_ir::{
    Dim,
    ops::{
        self,
        resize::{Coordinates, Nearest, ResizeMode},
        shape_rules,
    },
};

use super::{
    Results, Row, row,
    tools::{may_equal, shortest},
};
use crate::onnx::{
    build::Importer,
    dims,
    known::Val,
    node::{Node, Problem},
};

/// The operator.
pub const ROWS: &[Row] = &[row("Resize", 11, resize)];

fn resize(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let shape = importer.shape(x);
    let rank = shape.len();
    if rank < 2 {
        return Err(format!("takes images, not {}", importer.ty(x)).into());
    }
    if let Some(policy) = node.text("keep_aspect_ratio_policy")?.filter(|p| *p != "stretch") {
        return Err(Problem::unsupported(format!("keep_aspect_ratio_policy={policy} is not supported, only stretch")));
    }
    let mode = match node.text("mode")?.unwrap_or("nearest") {
        "nearest" => ResizeMode::Nearest,
        "linear" => ResizeMode::Linear,
        "cubic" => ResizeMode::Cubic,
        other => return Err(format!("mode=`{other}`").into()),
    };
    let coordinates = match node.text("coordinate_transformation_mode")?.unwrap_or("half_pixel") {
        "half_pixel" => Coordinates::HalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        other => {
            return Err(Problem::unsupported(format!("coordinate_transformation_mode={other} is not supported")));
        }
    };
    let nearest = match node.text("nearest_mode")?.unwrap_or("round_prefer_floor") {
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        "round_prefer_floor" => Nearest::RoundPreferFloor,
        "round_prefer_ceil" => Nearest::RoundPreferCeil,
        other => return Err(format!("nearest_mode=`{other}`").into()),
    };
    let (size, scales) = target(importer, node, &shape)?;
    let op = ops::Resize {
        // Where corners are aligned, only sizes count.
        scales: if coordinates == Coordinates::AlignCorners { Vec::new() } else { scales },
        // The kernel of the other modes has no parameter, nor do they round.
        cubic_a: match mode {
            ResizeMode::Cubic => shortest(node.float("cubic_coeff_a")?.unwrap_or(-0.75)),
            _ => -0.75,
        },
        antialias: node.int_or("antialias", 0)? != 0,
        exclude_outside: node.int_or("exclude_outside", 0)? != 0,
        nearest: if mode == ResizeMode::Nearest { nearest } else { Nearest::RoundPreferFloor },
        ..ops::Resize::new(mode, coordinates, size)
    };
    importer.emit_all(op, &[x])
}

/// Height and width of the result, and the scales where they were given.
fn target(importer: &Importer<'_>, node: &Node<'_>, shape: &[Dim]) -> Result<(Vec<Dim>, Vec<f64>), Problem> {
    let rank = shape.len();
    let axes: Vec<usize> = match node.ints("axes")? {
        Some(axes) => axes.iter().map(|a| shape_rules::axis(*a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    let filled = |i: usize| node.get(i).filter(|v| importer.shape(v) != [Dim::from(0)]);
    let fit = |n: usize| match n == axes.len() {
        true => Ok(()),
        false => Err(Problem::from(format!("{n} sizes for {} axes", axes.len()))),
    };
    let moved = || Problem::unsupported("only the last two dimensions can be resized");
    match (filled(3), filled(2)) {
        (Some(sizes), _) => {
            let mut to = shape.to_vec();
            let sizes = importer.known_dims(sizes, "the list of sizes")?;
            fit(sizes.len())?;
            for (axis, size) in axes.into_iter().zip(sizes) {
                to[axis] = size;
            }
            if (0..rank - 2).any(|i| !may_equal(&to[i], &shape[i])) {
                return Err(moved());
            }
            dims::checked(&to)?;
            Ok((to.split_off(rank - 2), Vec::new()))
        }
        (None, Some(scales)) => {
            let mut all = vec![1.0; rank];
            let scales: Vec<f64> = known_scales(importer, scales)?;
            fit(scales.len())?;
            for (axis, scale) in axes.into_iter().zip(scales) {
                all[axis] = scale;
            }
            if all[..rank - 2].iter().any(|s| *s != 1.0) {
                return Err(moved());
            }
            let scales = all.split_off(rank - 2);
            let mut to = Vec::new();
            for (size, scale) in shape[rank - 2..].iter().zip(&scales) {
                let size = size.size().ok_or_else(|| Problem::unsupported(format!("scales of {size} pixels")))?;
                to.push(Dim::from((size as f64 * scale).floor() as i64));
            }
            dims::checked(&to)?;
            Ok((to, scales))
        }
        (None, None) => Err("there are neither sizes nor scales".into()),
    }
}

fn known_scales(importer: &Importer<'_>, val: &Val) -> Result<Vec<f64>, Problem> {
    importer.known_floats(val, "the list of scales")
}
