//! `cuda/self_attention.cu`: attention of few tokens within a joint projection.

use lite3r_ir::Op;

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module},
};
use crate::backend::Request;

/// The rows of this file: any number of tokens, heads of up to 128 columns.
pub const KERNELS: &[Kernel] = &[Kernel {
    name: "self_attention.fma",
    op: "self_attention",
    dtypes: FLOATS,
    lower: |request, _: Arch| lower(request),
}];

/// Queries of a block.
const WARPS: usize = 8;

fn lower(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::SelfAttention(op) = request.op else { return Err("computes self_attention".into()) };
    floats(request)?;
    let &[batch, tokens, width] = &dims(&request.results[0])?[..] else { return Err("gives [B, N, C]".into()) };
    let d = width / op.heads;
    if d > 128 {
        return Err(format!("takes heads of up to 128 columns, not {d}"));
    }
    let int = |n: usize| u32::try_from(n).map_err(|_| "takes sizes below 2^32".to_string());
    let queries = tokens.div_ceil(WARPS);
    if queries > 65_535 {
        return Err(format!("takes up to {} tokens, not {tokens}", 65_535 * WARPS));
    }
    Ok(Launch {
        module: Module::new("self_attention.cu")
            .element("TX", request.operands[0].dtype)
            .define("PER", d.div_ceil(32).max(1)),
        function: "self_attention",
        grid: [int(batch * op.heads)?, queries as u32, 1],
        block: 32 * WARPS as u32,
        shared: 0,
        args: vec![
            Arg::operand(0),
            Arg::result(0),
            Arg::of(int(tokens)?),
            Arg::of(int(op.heads)?),
            Arg::of(int(d)?),
            Arg::of(op.scale as f32),
        ],
    }
    .into())
}
