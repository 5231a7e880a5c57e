//! Operators that make tensors out of nothing, and those that only pass them on.

use lite3r_ir::{
    DType, Dim, Tensor,
    ops::{self},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    known::Val,
    node::{Node, Problem},
    tensor,
};

/// The operators.
pub const ROWS: &[Row] = &[
    row("Constant", 1, constant),
    row("ConstantOfShape", 9, constant_of_shape),
    row("Identity", 1, identity),
    row("Dropout", 1, identity),
    row("Range", 11, range),
    row("EyeLike", 9, eye_like),
    row("Cast", 1, cast),
    row("CastLike", 15, cast_like),
    row("OneHot", 9, one_hot),
];

fn constant(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    if let Some(proto) = node.tensor("value")? {
        let name = node.output_name(0);
        return Ok(vec![importer.tensor(proto, name)?]);
    }
    let tensor = if let Some(v) = node.float("value_float")? {
        Tensor::from_f32(&[], vec![v])
    } else if let Some(v) = node.floats("value_floats")? {
        Tensor::from_f32(&[v.len()], v)
    } else if let Some(v) = node.int("value_int")? {
        Tensor::from_i64(DType::I64, &[], &[v])
    } else if let Some(v) = node.ints("value_ints")? {
        Tensor::from_i64(DType::I64, &[v.len()], v)
    } else {
        return Err(Problem::unsupported("only tensors and numbers are supported as values"));
    };
    Ok(vec![Val::Tensor(tensor)])
}

fn constant_of_shape(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let shape = importer.known_dims(node.input(0)?, "the shape")?;
    let value = match node.tensor("value")? {
        Some(proto) => importer.tensor(proto, node.output_name(0))?,
        None => importer.scalar(DType::F32, 0.0),
    };
    let Val::Tensor(value) = value else { return Err("the value must be one number".into()) };
    Ok(vec![importer.filled(&value, shape)?])
}

fn identity(_: &mut Importer<'_>, node: &Node<'_>) -> Results {
    Ok(vec![node.input(0)?.clone()])
}

fn range(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    if let [Val::Tensor(start), Val::Tensor(limit), Val::Tensor(delta)] = node.all()?.as_slice()
        && start.dtype().is_float()
    {
        let item = |t: &Tensor| t.item().ok_or("takes three numbers");
        let (start, limit, delta, dtype) = (item(start)?, item(limit)?, item(delta)?, start.dtype());
        let count = ((limit - start) / delta).ceil();
        if !count.is_finite() || count > (1u64 << 24) as f64 {
            return Err(Problem::unsupported(format!("{count} numbers from {start} to {limit}")));
        }
        // A range that runs the other way is empty.
        let values: Vec<f64> = (0..count.max(0.0) as usize).map(|i| start + i as f64 * delta).collect();
        return Ok(vec![Val::Tensor(Tensor::from_f64(dtype, &[values.len()], &values))]);
    }
    let one = |i: usize, what: &str| -> Result<Dim, Problem> {
        let mut dims = importer.known_dims(node.input(i)?, what)?;
        if dims.len() == 1 { Ok(dims.remove(0)) } else { Err(format!("{what} must be one number").into()) }
    };
    let (start, limit, delta) = (one(0, "the start")?, one(1, "the limit")?, one(2, "the step")?);
    let step = delta.constant().filter(|s| *s != 0).ok_or_else(|| format!("the step is {delta}"))?;
    let span = limit.clone() - start.clone();
    let count = match (span.constant(), step) {
        (Some(0), _) => Dim::from(0),
        (Some(span), step) if (span < 0) != (step < 0) => Dim::from(0),
        // Rounded up; the last step may be a part of one.
        (Some(span), step) => Dim::from(((span - span.signum()) / step).saturating_add(1)),
        (None, 1) => span,
        (None, step) => span.divide(&Dim::from(step)).ok_or_else(|| {
            Problem::unsupported(format!(
                "{start} to {limit} by {step}; bind the symbols before the import (--bind S=N)"
            ))
        })?,
    };
    Ok(vec![importer.sequence(start, count, step)?])
}

/// The identity matrix: row index = column index.
fn eye_like(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let like = importer.ty(node.input(0)?);
    let [rows, columns] = like.shape.as_slice() else { return Err(format!("takes a matrix, not {like}").into()) };
    let dtype = node.int("dtype")?.map_or(Ok(like.dtype), |d| tensor::dtype(d as i32)).map_err(Problem::unsupported)?;
    let i = importer.sequence(Dim::from(node.int_or("k", 0)?), rows.clone(), 1)?;
    let i = importer.reshape(&i, vec![rows.clone(), Dim::from(1)])?;
    let j = importer.sequence(Dim::from(0), columns.clone(), 1)?;
    let equal = importer.emit(ops::Equal {}, &[&i, &j])?;
    Ok(vec![importer.cast(&equal, dtype)?])
}

fn cast(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let to = node.int("to")?.ok_or("attribute `to` is missing")?;
    let to = tensor::dtype(to as i32).map_err(Problem::unsupported)?;
    Ok(vec![importer.cast(node.input(0)?, to)?])
}

fn cast_like(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let to = importer.ty(node.input(1)?).dtype;
    Ok(vec![importer.cast(node.input(0)?, to)?])
}

/// where(index = 0, 1, …, on, off), with a new axis of size `depth`.
fn one_hot(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (indices, values) = (node.input(0)?, node.input(2)?.clone());
    let depth = importer.known_dims(node.input(1)?, "the depth")?;
    let [depth] = depth.as_slice() else { return Err("the depth must be one number".into()) };
    let mut shape = importer.shape(indices);
    let rank = shape.len() + 1;
    let axis = ops::shape_rules::axis(node.int_or("axis", -1)?, rank)?;
    shape.insert(axis, Dim::from(1));
    let indices = importer.cast(indices, DType::I64)?;
    let indices = importer.reshape(&indices, shape)?;
    let zero = importer.scalar(DType::I64, 0.0);
    let negative = importer.emit(ops::Less {}, &[&indices, &zero])?;
    let count = Val::dims(vec![], vec![depth.clone()]);
    let wrapped = importer.emit(ops::Add {}, &[&indices, &count])?;
    let indices = importer.emit(ops::Where {}, &[&negative, &wrapped, &indices])?;
    let mut row = vec![Dim::from(1); rank];
    row[axis] = depth.clone();
    let positions = importer.sequence(Dim::from(0), depth.clone(), 1)?;
    let positions = importer.reshape(&positions, row)?;
    let hit = importer.emit(ops::Equal {}, &[&indices, &positions])?;
    let off = importer.slice(&values, 0, Dim::from(0), Dim::from(1))?;
    let on = importer.slice(&values, 0, Dim::from(1), Dim::from(2))?;
    Ok(vec![importer.emit(ops::Where {}, &[&hit, &on, &off])?])
}
