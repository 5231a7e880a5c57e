//! `cuda/block_mean.cu`: the mean token of every block.

use lite3r_ir::Op;

use super::{
    Arch, Kernel,
    attention::Cut,
    dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, THREADS},
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[Kernel { name: "block_mean.rows", op: "block_mean", dtypes: FLOATS, lower }];

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::BlockMean(op) = request.op else { return Err("computes block_mean".into()) };
    floats(request)?;
    let (x, y) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    let (&[b, h, n, d], &[_, _, count, _]) = (&x[..], &y[..]) else { return Err("takes [B,H,N,D]".into()) };
    let lanes = if d % 8 == 0 && (d / 8).is_power_of_two() && d <= 256 { d / 8 } else { 0 };
    let total = b * h * count;
    let mut args = vec![Arg::operand(0), Arg::result(0), Arg::of(Cut::new(n, &op.runs, op.block)?)];
    for size in [count, total, n, d] {
        args.push(Arg::of(u32::try_from(size).map_err(|_| "takes sizes below 2^32")?));
    }
    Ok(Launch {
        module: Module::new("block_mean.cu")
            .element("TX", request.operands[0].dtype)
            .element("TR", request.results[0].dtype)
            .define("LANES", lanes),
        function: "block_mean",
        // A warp a block.
        grid: [total.div_ceil(8) as u32, 1, 1],
        block: THREADS,
        shared: 0,
        args,
    }
    .into())
}
