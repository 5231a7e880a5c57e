//! `cuda/softmax.cu`: softmax along any axis.

use lite3r_ir::{Op, ops::shape_rules};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, THREADS},
};
use crate::backend::Request;

/// The longest row that a warp takes; a block takes longer ones.
const WARP_ROW: usize = 512;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[Kernel { name: "softmax.float", op: "softmax", dtypes: FLOATS, lower }];

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::Softmax(op) = request.op else { return Err("computes softmax".into()) };
    floats(request)?;
    let shape = dims(&request.operands[0])?;
    let axis = shape_rules::axis(op.axis, shape.len())?;
    let (n, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let outer: usize = shape[..axis].iter().product();
    let group = if n <= WARP_ROW { 32 } else { THREADS };
    let module = Module::new("softmax.cu")
        .element("TX", request.operands[0].dtype)
        .element("TR", request.results[0].dtype)
        .define("GROUP", group);
    let mut args = vec![Arg::operand(0), Arg::result(0)];
    let (function, threads) = if inner == 1 {
        args.extend([outer, n].map(|v| Arg::of(v as i64)));
        ("softmax_rows", (outer as u64) * u64::from(group))
    } else {
        args.extend([n, inner, outer * inner].map(|v| Arg::of(v as i64)));
        ("softmax_columns", (outer * inner) as u64 * u64::from(THREADS / 32))
    };
    Ok(Launch::over(module, function, threads, args).into())
}
