//! `pointwise`: an expression in f32, function by function over a segment that stays in the cache.

use lite3r_ir::{
    Op,
    ops::pointwise::{Expression, MOST_OPERANDS},
};
use rayon::prelude::*;

use super::{
    Arg, ArgMut, Kernel,
    elementwise::{Walk, load},
    floats::{FLOATS, Floats, only, store},
    gemm::all_floats,
    lanes::CHUNK,
    math::{self, vectorised},
};

/// The row.
pub const POINTWISE: Kernel = Kernel {
    name: "pointwise.float",
    op: "pointwise",
    dtypes: FLOATS,
    accepts: all_floats,
    lane: |_| 0,
    run: |op, args, results, _| run(op, args, results),
};

/// Elements at a time.
const SEGMENT: usize = 256;

fn run(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>]) -> Result<(), String> {
    let Op::Pointwise(op) = op else { return Err(format!("is no kernel for {}", op.name())) };
    let y = only(results)?;
    let shapes: [&[usize]; MOST_OPERANDS] = std::array::from_fn(|i| args.get(i).map_or(&[][..], |a| a.shape));
    let walk = Walk::new(y.shape, shapes);
    let operands: Vec<Floats<'_>> = args.iter().map(Floats::of).collect::<Result<_, _>>()?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    y.bytes.par_chunks_mut(CHUNK * size).enumerate().try_for_each(|(i, out)| {
        let start = i * CHUNK;
        walk.runs(start, out.len() / size, SEGMENT, |at, len, offsets| {
            let read = |operand: usize, to: &mut [f32]| {
                load(&operands[operand], offsets[operand], walk.contiguous[operand], to);
            };
            let mut values = [0.0; SEGMENT];
            evaluate(&op.expr, &read, &mut values[..len]);
            store(dtype, &values[..len], &mut out[(at - start) * size..][..len * size])
        })
    })
}

fn evaluate(expr: &Expression, read: &dyn Fn(usize, &mut [f32]), out: &mut [f32]) {
    match expr {
        Expression::Operand(i) => read(*i, out),
        Expression::Number(number) => out.fill(*number as f32),
        Expression::Call(function, arguments) => {
            evaluate(&arguments[0], read, out);
            let mut second = [0.0; SEGMENT];
            let second = &mut second[..out.len()];
            if let Some(argument) = arguments.get(1) {
                evaluate(argument, read, second);
            }
            apply(function.name, out, second);
        }
    }
}

/// The function of that name over values, and over those of its second argument.
fn apply(name: &str, x: &mut [f32], second: &[f32]) {
    match name {
        "neg" => map(x, |x| -x),
        "abs" => map(x, f32::abs),
        "exp" => map(x, math::exp),
        "log" => map(x, f32::ln),
        "sqrt" => map(x, f32::sqrt),
        "reciprocal" => map(x, |x| 1.0 / x),
        "tanh" => map(x, math::tanh),
        "sigmoid" => map(x, math::sigmoid),
        "silu" => map(x, math::silu),
        "gelu" => map(x, math::gelu),
        "erf" => map(x, math::erf),
        "relu" => map(x, math::relu),
        "sign" => map(x, |x| if x == 0.0 { 0.0 } else { x.signum() }),
        "add" => zip(x, second, |a, b| a + b),
        "sub" => zip(x, second, |a, b| a - b),
        "mul" => zip(x, second, |a, b| a * b),
        "div" => zip(x, second, |a, b| a / b),
        "max" => zip(x, second, f32::max),
        "min" => zip(x, second, f32::min),
        other => unreachable!("`{other}` is no function of expressions"),
    }
}

fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x = f(*x)),
    );
}

fn zip(x: &mut [f32], second: &[f32], f: impl Fn(f32, f32) -> f32) {
    vectorised(
        #[inline(always)]
        || x.iter_mut().zip(second).for_each(|(a, b)| *a = f(*a, *b)),
    );
}
