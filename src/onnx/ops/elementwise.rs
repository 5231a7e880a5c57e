//! Operators that act on each element, with broadcasting.

use lite3r_ir::{
    DType,
    ops::{self, Op, gelu::Approximate},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    known::Val,
    node::{Node, Problem},
};

/// Converters for operators that are one operation.
macro_rules! same {
    ($($convert:ident: $op:expr),* $(,)?) => {$(
        fn $convert(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
            importer.emit_all($op, &node.all()?)
        }
    )*};
}

/// The operators.
pub const ROWS: &[Row] = &[
    row("Abs", 1, abs),
    row("Add", 1, add),
    row("And", 1, and),
    row("Atan", 7, atan),
    row("Ceil", 1, ceil),
    row("Clip", 1, clip),
    row("Cos", 7, cos),
    row("Div", 1, div),
    row("Equal", 1, equal),
    row("Erf", 9, erf),
    row("Exp", 1, exp),
    row("Floor", 1, floor),
    row("Gelu", 20, gelu),
    row("Greater", 1, greater),
    row("GreaterOrEqual", 12, greater_or_equal),
    row("Less", 1, less),
    row("LessOrEqual", 12, less_or_equal),
    row("Log", 1, log),
    row("Max", 1, max),
    row("Min", 1, min),
    row("Mod", 10, modulo),
    row("Mul", 1, mul),
    row("Neg", 1, neg),
    row("Not", 1, not),
    row("Or", 1, or),
    row("Pow", 1, pow),
    row("Reciprocal", 1, reciprocal),
    row("Relu", 1, relu),
    row("Round", 11, round),
    row("Sigmoid", 1, sigmoid),
    row("Sign", 9, sign),
    row("Sin", 7, sin),
    row("Sqrt", 1, sqrt),
    row("Sub", 1, sub),
    row("Sum", 1, sum),
    row("Swish", 24, swish),
    row("Tan", 7, tan),
    row("Tanh", 1, tanh),
    row("Where", 9, select),
];

same! {
    abs: ops::Abs {},
    add: ops::Add {},
    and: ops::And {},
    atan: ops::Atan {},
    ceil: ops::Ceil {},
    cos: ops::Cos {},
    div: ops::Div {},
    equal: ops::Equal {},
    erf: ops::Erf {},
    exp: ops::Exp {},
    floor: ops::Floor {},
    less: ops::Less {},
    less_or_equal: ops::LessEqual {},
    log: ops::Log {},
    mul: ops::Mul {},
    neg: ops::Neg {},
    not: ops::Not {},
    or: ops::Or {},
    reciprocal: ops::Reciprocal {},
    relu: ops::Relu {},
    round: ops::Round {},
    sigmoid: ops::Sigmoid {},
    sign: ops::Sign {},
    sin: ops::Sin {},
    sqrt: ops::Sqrt {},
    sub: ops::Sub {},
    tan: ops::Tan {},
    tanh: ops::Tanh {},
    select: ops::Where {},
}

fn greater(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    importer.emit_all(ops::Less {}, &[node.input(1)?, node.input(0)?])
}

fn greater_or_equal(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    importer.emit_all(ops::LessEqual {}, &[node.input(1)?, node.input(0)?])
}

fn variadic(importer: &mut Importer<'_>, node: &Node<'_>, op: impl Into<Op>) -> Results {
    let (op, all) = (op.into(), node.all()?);
    let (first, rest) = all.split_first().ok_or("there are no operands")?;
    let fold = rest.iter().try_fold((*first).clone(), |a, b| importer.emit(op.clone(), &[&a, b]));
    Ok(vec![fold?])
}

fn max(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    variadic(importer, node, ops::Max {})
}

fn min(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    variadic(importer, node, ops::Min {})
}

fn sum(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    variadic(importer, node, ops::Add {})
}

/// Bounds that are known become attributes; else the bounds are operands of max and min.
fn clip(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let bound = |i: usize, absent: f64| match node.get(i) {
        None => Some(absent),
        Some(Val::Tensor(t)) => t.item(),
        Some(_) => None,
    };
    let known = bound(1, f64::NEG_INFINITY).zip(bound(2, f64::INFINITY)).filter(|(min, max)| min <= max);
    match known {
        Some((f64::NEG_INFINITY, f64::INFINITY)) => Ok(vec![x.clone()]),
        Some((min, max)) => importer.emit_all(ops::Clip { min, max }, &[x]),
        None => {
            let mut y = x.clone();
            if let Some(low) = node.get(1) {
                y = importer.emit(ops::Max {}, &[&y, low])?;
            }
            if let Some(high) = node.get(2) {
                y = importer.emit(ops::Min {}, &[&y, high])?;
            }
            Ok(vec![y])
        }
    }
}

fn gelu(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let approximate = match node.text("approximate")?.unwrap_or("none") {
        "none" => Approximate::None,
        "tanh" => Approximate::Tanh,
        other => return Err(format!("approximate=`{other}`").into()),
    };
    importer.emit_all(ops::Gelu { approximate }, &node.all()?)
}

fn swish(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    match node.float("alpha")? {
        None | Some(1.0) => importer.emit_all(ops::Silu {}, &[x]),
        Some(alpha) => Err(Problem::unsupported(format!("alpha={alpha} is not supported, only 1"))),
    }
}

/// The exponent may have another element type than the base.
fn pow(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let (base, exponent) = (node.input(0)?, node.input(1)?);
    let dtype = importer.ty(base).dtype;
    if !dtype.is_float() && importer.ty(exponent).dtype.is_float() {
        return Err(Problem::unsupported("an integer to a power that is no integer"));
    }
    let exponent = importer.cast(exponent, dtype)?;
    importer.emit_all(ops::Pow {}, &[base, &exponent])
}

fn modulo(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    // fmod=1 takes the sign of the dividend; on numbers from 0 both agree, but that is not known here.
    node.only("fmod", 0)?;
    if importer.ty(node.input(0)?).dtype == DType::Bool {
        return Err("takes numbers".into());
    }
    importer.emit_all(ops::Remainder {}, &node.all()?)
}
