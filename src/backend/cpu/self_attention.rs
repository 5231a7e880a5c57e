//! `self_attention`: a head at a time, scores of a query after those of another.

#![allow(unsafe_code)] // tasks write their own parts of the result

use lite3r_ir::{Op, ops::SelfAttention};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::all_floats,
    lanes::{self, Shared},
    math,
};
use crate::backend::Request;

/// `self_attention` by heads.
pub const SELF_ATTENTION: Kernel = Kernel {
    name: "self_attention.heads",
    op: "self_attention",
    dtypes: FLOATS,
    accepts: all_floats,
    lane,
    run: |op, args, results, scratch| match op {
        Op::SelfAttention(op) => self_attention(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Floats of a task: q, k and v of a head, a row of scores and one of the result.
fn floats(n: usize, d: usize) -> usize {
    3 * n * d + n + d
}

fn lane(request: &Request<'_>) -> usize {
    let Op::SelfAttention(op) = request.op else { return 0 };
    let sizes = request.results[0].dims();
    sizes.map_or(0, |y| 4 * floats(y[1], y[2] / op.heads.max(1)))
}

fn self_attention(
    op: &SelfAttention,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let (x, y) = (Floats::of(operand(args, 0)?)?, only(results)?);
    let &[batch, n, width] = y.shape else { return Err("gives a result of rank 3".into()) };
    if y.bytes.is_empty() {
        return Ok(());
    }
    let (d, dtype, size, scale) = (width / op.heads, y.dtype, y.dtype.size(), op.scale as f32);
    let out = Shared::new(&mut *y.bytes);
    lanes::run(batch * op.heads, 4 * floats(n, d), scratch, |task, memory| {
        let (image, column) = (task / op.heads, task % op.heads * d);
        let (parts, rest) = cast_mut::<f32>(memory)?.split_at_mut(3 * n * d);
        let (scores, result) = rest.split_at_mut(n);
        for (i, row) in parts.chunks_exact_mut(d).enumerate() {
            let (part, token) = (i / n, i % n);
            x.read((image * n + token) * 3 * width + part * width + column, row);
        }
        let (queries, rest) = parts.split_at(n * d);
        let (keys, values) = rest.split_at(n * d);
        for (token, query) in queries.chunks_exact(d).enumerate() {
            let dot = |key: &[f32]| scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>();
            scores.iter_mut().zip(keys.chunks_exact(d)).for_each(|(s, key)| *s = dot(key));
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = math::exp(*s - most));
            let sum: f32 = scores.iter().sum();
            result.fill(0.0);
            for (share, value) in scores.iter().zip(values.chunks_exact(d)) {
                result.iter_mut().zip(value).for_each(|(r, v)| *r += share / sum * v);
            }
            let at = ((image * n + token) * width + column) * size;
            // SAFETY: every head of a token belongs to one task.
            store(dtype, result, unsafe { out.slice(at, d * size) })?;
        }
        Ok(())
    })
}
