//! `cuda/block_mean.cu`: the mean token of every block.

use lite3r_ir::Op;

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, blocks},
};
use crate::backend::Request;

const MAX_RUNS: usize = 32;
const THREADS: u32 = 256;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[Kernel { name: "block_mean.rows", op: "block_mean", dtypes: FLOATS, lower }];

/// Runs of tokens, as `cuda/block_mean.cu` lays them out.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Runs {
    count: i64,
    first_block: [i64; MAX_RUNS],
    first_token: [i64; MAX_RUNS],
    length: [i64; MAX_RUNS],
}

impl Runs {
    /// The runs of `n` tokens by a pattern, in blocks of `size`.
    fn new(n: usize, pattern: &[usize], size: usize) -> Result<Self, String> {
        let pattern = if pattern.is_empty() { &[n] } else { pattern };
        if pattern.len() > MAX_RUNS {
            return Err(format!("takes patterns of up to {MAX_RUNS} runs, not {}", pattern.len()));
        }
        let mut runs: Self = bytemuck::Zeroable::zeroed();
        runs.count = pattern.len() as i64;
        let (mut block, mut token) = (0, 0);
        for (i, length) in pattern.iter().enumerate() {
            (runs.first_block[i], runs.first_token[i], runs.length[i]) = (block, token, *length as i64);
            block += length.div_ceil(size) as i64;
            token += *length as i64;
        }
        Ok(runs)
    }
}

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::BlockMean(op) = request.op else { return Err("computes block_mean".into()) };
    floats(request)?;
    let (x, y) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    let ([b, h, n, d], [_, _, count, _]) = (&x[..], &y[..]) else { return Err("takes [B,H,N,D]".into()) };
    let runs = Runs::new(*n, &op.runs, op.block)?;
    let total = b * h * count;
    let sizes = [op.block, *n, *d, *count, total].map(|v| Arg::of(v as i64));
    Ok(Launch {
        module: Module::new("block_mean.cu")
            .element("TX", request.operands[0].dtype)
            .element("TR", request.results[0].dtype),
        function: "block_mean",
        grid: [blocks(total as u64, 1), 1, 1],
        block: THREADS,
        cluster: 1,
        shared: 0,
        args: [Arg::operand(0), Arg::result(0), Arg::of(runs)].into_iter().chain(sizes).collect(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::ops::blocks::Blocks;

    use super::*;

    #[test]
    fn runs_name_the_tokens_that_blocks_have() {
        for (n, pattern, size) in [
            (84, vec![10, 37], 16),
            (5, vec![], 2),
            (80, vec![0, 40], 16),
            (2748, vec![10, 1369], 64),
            (7, vec![3, 0, 4], 2),
        ] {
            let (runs, cut) = (Runs::new(n, &pattern, size).unwrap(), Blocks::cut(n, &pattern, size).unwrap());
            for (block, tokens) in cut.tokens.iter().enumerate() {
                let mut run = 0;
                while run + 1 < runs.count as usize && runs.first_block[run + 1] <= block as i64 {
                    run += 1;
                }
                let length = runs.length[run] as usize;
                let a_run = length.div_ceil(size);
                let within = block - runs.first_block[run] as usize;
                let start = runs.first_token[run] as usize + within / a_run * length;
                let first = start + within % a_run * size;
                assert_eq!(first..(first + size).min(start + length), *tokens, "{n} {pattern:?} {size}");
            }
        }
    }
}
