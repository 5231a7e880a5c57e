//! `shaders/reduce.wgsl`: reductions over any axes, and positions of extremes.

use lite3r_ir::{DType, Op, ValueType};

use super::{
    Kernel, dims,
    elementwise::{DTYPES, packed},
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::through_f32,
};
use crate::backend::{
    Request,
    gpu::walk::{Axis, separate},
};

/// Fewer terms than this are taken by one thread.
const FEW_TERMS: usize = 16;
/// More terms than this are taken by a whole workgroup.
const MANY_TERMS: usize = 1024;

const fn row(name: &'static str, op: &'static str) -> Kernel {
    Kernel::plain(name, op, DTYPES, |request| through_f32(request, lower))
}

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    row("reduce_sum.groups", "reduce_sum"),
    row("reduce_mean.groups", "reduce_mean"),
    row("reduce_max.groups", "reduce_max"),
    row("reduce_min.groups", "reduce_min"),
    row("reduce_prod.groups", "reduce_prod"),
    row("arg_max.groups", "arg_max"),
    row("arg_min.groups", "arg_min"),
];

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let axes = match request.op {
        Op::ReduceSum(op) => op.axes.clone(),
        Op::ReduceMean(op) => op.axes.clone(),
        Op::ReduceMax(op) => op.axes.clone(),
        Op::ReduceMin(op) => op.axes.clone(),
        Op::ReduceProd(op) => op.axes.clone(),
        Op::ArgMax(op) => vec![op.axis],
        Op::ArgMin(op) => vec![op.axis],
        other => return Err(format!("does not compute {}", other.name())),
    };
    if let Some(odd) = request.operands.iter().chain(request.results).find(|t| !DTYPES.contains(&t.dtype)) {
        return Err(format!("does not take {odd}"));
    }
    let y = &request.results[0];
    if matches!(y.dtype, DType::Bool | DType::U8) {
        return Err(format!("gives words, not {y}"));
    }
    let x = dims(&request.operands[0])?;
    let (kept, gone) = separate(&x, &axes);
    let count = |axes: &[Axis]| axes.iter().map(|a| a.0).product::<usize>();
    let (results, terms) = (count(&kept), count(&gone));
    let group = match terms {
        0..=FEW_TERMS => 1,
        _ if terms <= MANY_TERMS => 32,
        _ => THREADS,
    };
    let tensors = Tensors::default().read("x", request.operands[0].dtype).single("y", y.dtype).sizes();
    let shader = Shader::new("reduce.wgsl", &tensors).constant("GROUP", group);
    let shader = match partial(request.op, &request.operands[0]) {
        Some(text) => shader.splice("partial", text),
        None => shader,
    };
    let mut sizes = vec![word(results)?, word(terms)?, kept.len() as u32, gone.len() as u32];
    sizes.extend(packed(&kept, 1)?);
    sizes.extend(packed(&gone, 1)?);
    let groups = folded(results.div_ceil(THREADS / group))?;
    Ok(Launch { shader, groups, bindings: Binding::all(request), sizes }.into())
}

/// How partial results are made and joined; `None` for sums of floats, which the file has.
fn partial(op: &Op, x: &ValueType) -> Option<String> {
    let float = x.dtype.is_float();
    let value = if float { "f32" } else { "i32" };
    let simple = |start: &str, joined: &str| {
        Some(format!(
            "struct Partial {{ value: {value} }}
fn start() -> Partial {{ return Partial({start}); }}
fn taken(p: Partial, term: {value}, at: u32) -> Partial {{ let a = p.value; let b = term; return Partial({joined}); }}
fn joined(p: Partial, q: Partial) -> Partial {{ return taken(p, q.value, 0u); }}
fn finished(p: Partial) -> {value} {{ return p.value; }}"
        ))
    };
    // What the first term of anything replaces.
    let (lowest, highest) = match float {
        true => ("bitcast<f32>(0xff800000u)", "bitcast<f32>(0x7f800000u)"),
        false => ("-2147483647 - 1", "2147483647"),
    };
    let first = |better: &str, start: &str| {
        Some(format!(
            "struct Partial {{ value: {value}, at: u32 }}
fn start() -> Partial {{ return Partial({start}, 0xffffffffu); }}
fn better(p: Partial, q: Partial) -> Partial {{
    let a = p.value;
    let b = q.value;
    if b {better} a || (b == a && q.at < p.at) {{ return q; }}
    return p;
}}
fn taken(p: Partial, term: {value}, at: u32) -> Partial {{ return better(p, Partial(term, at)); }}
fn joined(p: Partial, q: Partial) -> Partial {{ return better(p, q); }}
fn finished(p: Partial) -> i32 {{ return i32(p.at); }}"
        ))
    };
    match op {
        Op::ReduceSum(_) if float => None,
        Op::ReduceMean(_) if float => Some(
            "struct Partial { sum: f32, rest: f32 }
fn start() -> Partial { return Partial(0.0, 0.0); }
fn taken(p: Partial, term: f32, at: u32) -> Partial {
    let total = p.sum + term;
    let part = total - p.sum;
    return Partial(total, p.rest + ((p.sum - (total - part)) + (term - part)));
}
fn joined(p: Partial, q: Partial) -> Partial {
    let both = taken(p, q.sum, 0u);
    return Partial(both.sum, both.rest + q.rest);
}
fn finished(p: Partial) -> f32 { return select(p.sum, p.sum + p.rest, p.sum - p.sum == 0.0) / f32(sizes.terms); }"
                .into(),
        ),
        Op::ReduceSum(_) => simple("0", "a + b"),
        Op::ReduceMean(_) => simple("0", "a + b").map(|t| {
            t.replace("{ return p.value; }", "{ return select(p.value / i32(sizes.terms), 0, sizes.terms == 0u); }")
        }),
        Op::ReduceProd(_) => simple(if float { "1.0" } else { "1" }, "a * b"),
        Op::ReduceMax(_) if float => simple(lowest, "maximum(a, b)"),
        Op::ReduceMin(_) if float => simple(highest, "minimum(a, b)"),
        Op::ReduceMax(_) => simple(lowest, "max(a, b)"),
        Op::ReduceMin(_) => simple(highest, "min(a, b)"),
        Op::ArgMax(_) => first(">", lowest),
        _ => first("<", highest),
    }
}
