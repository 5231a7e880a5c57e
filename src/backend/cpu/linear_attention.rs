//! `linear_attention`: sums H and z of every head by matrix products, then its queries, block by block.
//!
//! With `scope=rest` the sums of every key block are kept, and a query block adds those that its list leaves out: what
//! a subtraction from the total would leave of cancelled sums is larger than the denominator's 1e-6. A projection W is
//! folded into H, so that it costs nothing a query.

#![allow(unsafe_code)] // tasks write their own parts of one result

use std::ops::Range;

use lite3r_ir::{
    Op,
    ops::{
        LinearAttention,
        attention::Sizes,
        blocks::Blocks,
        linear_attention::{EPS, FeatureMap, Scope},
    },
};

use super::{
    Arg, ArgMut, Kernel,
    attention::{Rows, qkv},
    block_attention::Lists,
    floats::{FLOATS, Floats, cast_mut, first_are_floats, only, operand},
    gemm::{View, multiply},
    lanes::{self, Shared},
    math::{exp, vectorised},
    softmax,
};

/// Rows that are mapped and multiplied at a time.
const ROWS: usize = 256;

/// `linear_attention` by heads.
pub const LINEAR_ATTENTION: Kernel = Kernel {
    name: "linear_attention.heads",
    op: "linear_attention",
    dtypes: FLOATS,
    accepts: |request| first_are_floats(request, 3),
    lane: |request| match request.op {
        Op::LinearAttention(op) => {
            let size = |operand: usize, axis: usize| request.operands[operand].shape[axis].size().unwrap_or(0);
            let blocks = key_blocks(op, size(1, 2)).map_or(0, |b| b.len());
            lane(size(0, 3), size(2, 3), blocks)
        }
        _ => 0,
    },
    run: |op, args, results, scratch| match op {
        Op::LinearAttention(op) => linear_attention(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Bytes a task: mapped rows and values, results; the sums of every block, those of a query block, those after W; W.
fn lane(d: usize, e: usize, blocks: usize) -> usize {
    (ROWS * (d + 2 * e) + (blocks + 1) * d * (e + 1) + d * e + e * e) * size_of::<f32>()
}

/// The blocks whose sums are kept apart: one over all keys where no list tells them apart.
fn key_blocks(op: &LinearAttention, m: usize) -> Result<Blocks, String> {
    match op.scope {
        Scope::All => Blocks::cut(m, &[], m.max(1)),
        Scope::Rest => Blocks::cut(m, &op.runs, op.block_k),
    }
}

/// φ of rows of width `d`, in place.
fn map(feature: FeatureMap, rows: &mut [f32], d: usize) {
    match feature {
        FeatureMap::Elu1 => vectorised(
            #[inline(always)]
            || rows.iter_mut().for_each(|x| *x = if *x > 0.0 { *x + 1.0 } else { exp(*x) }),
        ),
        FeatureMap::Softmax => rows.chunks_exact_mut(d.max(1)).for_each(softmax::normalise),
    }
}

fn linear_attention(
    op: &LinearAttention,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let ([q, k, v], Sizes { b, h, n, m, d, e }) = qkv(args)?;
    let keys = key_blocks(op, m)?;
    let (queries, lists) = match op.scope {
        Scope::All => (Blocks::cut(n, &[], n.max(1))?, None),
        Scope::Rest => {
            (Blocks::cut(n, &op.runs, op.block_q)?, Some(Lists::of(operand(args, 3)?, operand(args, 4)?, keys.len())?))
        }
    };
    let (q, k, v, y) = (Floats::of(q)?, Floats::of(k)?, Floats::of(v)?, only(results)?);
    let w = op.weights_at().map(|at| Floats::of(operand(args, at)?)).transpose()?;
    let residual = op.residual_at().map(|at| Floats::of(operand(args, at)?)).transpose()?;
    let (dtype, places) = (y.dtype, Rows { heads: h, n, e, merged: op.merged });
    let out = Shared::new(&mut *y.bytes);
    lanes::run(b * h, lane(d, e, keys.len()), scratch, |head, memory| {
        let mut memory = cast_mut::<f32>(memory)?;
        let mut take = |len: usize| {
            let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            part
        };
        let (phi, values, output) = (take(ROWS * d), take(ROWS * e), take(ROWS * e));
        let (sums, state) = (take(keys.len() * d * (e + 1)), take(d * (e + 1)));
        let (folded, weights) = (take(d * e), take(e * e));
        if let Some(w) = &w {
            w.read(0, weights);
        }
        for (sum, tokens) in sums.chunks_exact_mut((d * (e + 1)).max(1)).zip(&keys.tokens) {
            sum.fill(0.0);
            let (state, norm) = sum.split_at_mut(d * e);
            for rows in steps(tokens) {
                let (phi, values) = (&mut phi[..rows.len() * d], &mut values[..rows.len() * e]);
                k.read((head * m + rows.start) * d, phi);
                v.read((head * m + rows.start) * e, values);
                map(op.map, phi, d);
                let (left, right) = (View::rows(phi, rows.len(), d, d).t(), View::rows(values, rows.len(), e, e));
                multiply(left, right, state, e, true);
                for row in phi.chunks_exact(d.max(1)) {
                    norm.iter_mut().zip(row).for_each(|(z, x)| *z += x);
                }
            }
        }
        for (block, tokens) in queries.tokens.iter().enumerate() {
            state.fill(0.0);
            let mut left_out = vec![true; keys.len()];
            if let Some(lists) = &lists {
                lists.get(head * queries.len() + block)?.for_each(|j| left_out[j] = false);
            }
            for (sum, _) in sums.chunks_exact((d * (e + 1)).max(1)).zip(&left_out).filter(|(_, left)| **left) {
                vectorised(
                    #[inline(always)]
                    || state.iter_mut().zip(sum).for_each(|(a, b)| *a += b),
                );
            }
            let (total, norm) = state.split_at(d * e);
            let total = match &w {
                Some(_) => {
                    multiply(View::rows(total, d, e, e), View::rows(weights, e, e, e).t(), folded, e, false);
                    &*folded
                }
                None => total,
            };
            for rows in steps(tokens) {
                let (phi, output) = (&mut phi[..rows.len() * d], &mut output[..rows.len() * e]);
                q.read((head * n + rows.start) * d, phi);
                map(op.map, phi, d);
                multiply(View::rows(phi, rows.len(), d, d), View::rows(total, d, e, e), output, e, false);
                for (out, phi) in output.chunks_exact_mut(e.max(1)).zip(phi.chunks_exact(d.max(1))) {
                    let weight: f32 = phi.iter().zip(norm).map(|(a, b)| a * b).sum();
                    out.iter_mut().for_each(|o| *o /= weight + EPS as f32);
                }
                if let Some(residual) = &residual {
                    let added = &mut values[..e];
                    for (i, out) in output.chunks_exact_mut(e.max(1)).enumerate() {
                        residual.read(places.at(head, rows.start + i), added);
                        out.iter_mut().zip(&*added).for_each(|(o, r)| *o += r);
                    }
                }
                // SAFETY: every head belongs to one task.
                unsafe { places.store(dtype, output, &out, head, rows.start)? };
            }
        }
        Ok(())
    })
}

/// A range of rows in steps of [`ROWS`].
fn steps(rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = rows.end;
    rows.clone().step_by(ROWS).map(move |at| at..(at + ROWS).min(end))
}
