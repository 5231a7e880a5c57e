//! `scaled_linear` and `weight_scaled_linear`: products over e4m3 codes, which are widened and scaled panel by panel.
//!
//! What the codes stand for is exact in f32 up to the rounding of one product, so this is the oracle's arithmetic in
//! f32.

use lite3r_ir::{DType, Op, ops::ScaledLinear};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast, operand},
    gemm::{Epilogue, Factor, Problem, Shape, lane, takes_codes},
    quantize::Scales,
};
use crate::backend::Request;

/// `scaled_linear` by tiles.
pub const SCALED_LINEAR: Kernel =
    Kernel { name: "scaled_linear.gemm", op: "scaled_linear", dtypes: &[DType::F8E4M3], accepts, lane, run };

/// `weight_scaled_linear` by tiles.
pub const WEIGHT_SCALED_LINEAR: Kernel =
    Kernel { name: "weight_scaled_linear.gemm", op: "weight_scaled_linear", dtypes: FLOATS, accepts, lane, run };

fn accepts(request: &Request<'_>) -> Result<(), String> {
    if let Op::ScaledLinear(ScaledLinear { quantize: Some(scale), out, .. }) = request.op {
        takes_codes(*scale, *out)?;
    }
    let known = |t: &&lite3r_ir::ValueType| FLOATS.contains(&t.dtype) || t.dtype == DType::F8E4M3;
    match request.operands.iter().chain(request.results).find(|t| !known(t)) {
        Some(odd) => Err(format!("takes f8e4m3, f32, f16 and bf16, not {odd}")),
        None => Ok(()),
    }
}

fn run(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    // Operands: x, [xs], w, ws, [b], [residual].
    let (x_scale, w_scale, activation, bias, residual, quantize) = match op {
        Op::ScaledLinear(op) => (Some(op.x_scale), op.w_scale, op.activation, op.bias, op.residual, op.quantize),
        Op::WeightScaledLinear(op) => (None, op.w_scale, op.activation, op.bias, op.residual, None),
        other => return Err(format!("is no kernel for {}", other.name())),
    };
    let mut next = args.iter();
    let mut take = || next.next().ok_or("an operand is missing");
    let x = take()?;
    let x_scales = match x_scale {
        Some(granularity) => Some(Scales { values: cast(take()?.bytes)?, granularity }),
        None => None,
    };
    let (w, w_scales) = (take()?, Scales { values: cast(take()?.bytes)?, granularity: w_scale });
    let &[n, k] = w.shape else { return Err("w must be a matrix".into()) };
    let m = operand(args, 0)?.shape[..x.shape.len() - 1].iter().product();
    let epilogue = Epilogue {
        activation,
        bias: if bias { Some(Floats::of(take()?)?) } else { None },
        residual: if residual { Some(Floats::of(take()?)?) } else { None },
    };
    let problem = Problem {
        shape: Shape { m, n, k },
        a: Factor { floats: Floats::of(x)?, scales: x_scales },
        b: Factor { floats: Floats::of(w)?, scales: Some(w_scales) },
        transposed: true,
        starts: vec![[0, 0]],
        epilogue,
        quantize,
    };
    problem.solve(results, scratch)
}
