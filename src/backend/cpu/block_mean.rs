//! `block_mean`: sums of rows, block by block, in f64.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    Op,
    ops::{BlockMean, blocks::Blocks},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, only, operand, store},
    gemm::all_floats,
    lanes::{self, Shared},
};

/// `block_mean` by blocks.
pub const BLOCK_MEAN: Kernel = Kernel {
    name: "block_mean.rows",
    op: "block_mean",
    dtypes: FLOATS,
    accepts: all_floats,
    lane: |_| 0,
    run: |op, args, results, _| match op {
        Op::BlockMean(op) => block_mean(op, operand(args, 0)?, only(results)?),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn block_mean(op: &BlockMean, x: &Arg<'_>, y: &mut ArgMut<'_>) -> Result<(), String> {
    const SEGMENT: usize = 128;
    let &[b, h, n, d] = x.shape else { return Err("takes [B,H,N,D]".into()) };
    let blocks = Blocks::cut(n, &op.runs, op.block)?;
    let x = Floats::of(x)?;
    let (dtype, size) = (y.dtype, y.dtype.size());
    let out = Shared::new(&mut *y.bytes);
    lanes::run(b * h * blocks.len(), 0, &mut [], |task, _| {
        let (head, tokens) = (task / blocks.len(), &blocks.tokens[task % blocks.len()]);
        let (mut sums, mut buffer) = ([0f64; SEGMENT], [0f32; SEGMENT]);
        for first in (0..d).step_by(SEGMENT) {
            let width = SEGMENT.min(d - first);
            sums.fill(0.0);
            for row in tokens.clone() {
                let values = x.view((head * n + row) * d + first, &mut buffer[..width]);
                sums.iter_mut().zip(values).for_each(|(s, v)| *s += *v as f64);
            }
            let means = sums.map(|s| (s / tokens.len() as f64) as f32);
            // SAFETY: every row of y belongs to one task.
            store(dtype, &means[..width], unsafe { out.slice((task * d + first) * size, width * size) })?;
        }
        Ok(())
    })
}
