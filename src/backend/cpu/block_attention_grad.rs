//! `block_attention_grad`: the steps of [`super::attention_grad`] over gathered keys, and `block_transpose`.
//!
//! A task has a head, and adds what each step gives its keys to f32 rows in its scratch memory: it needs no transposed
//! lists.

#![allow(unsafe_code)] // tasks write their own parts of one result

use std::ops::Range;

use lite3r_ir::{
    DType, Op,
    ops::{BlockAttentionGrad, BlockTranspose, attention::Sizes, blocks::Blocks},
};

use super::{
    Arg, ArgMut, Kernel,
    attention::{KEYS, Rows, qkv},
    attention_grad::{Back, Block, Out, Parts},
    block_attention::{Lists, Piece, Source, centroids, pieces, query_parts},
    floats::{FLOATS, Floats, cast_mut, first_are_floats, only, operand},
    lanes::{self, Shared},
};

/// `block_attention_grad` by gathered keys.
pub const BLOCK_ATTENTION_GRAD: Kernel = Kernel {
    name: "block_attention_grad.gathered",
    op: "block_attention_grad",
    dtypes: FLOATS,
    accepts: |request| first_are_floats(request, 3),
    lane: |request| match request.op {
        Op::BlockAttentionGrad(op) => {
            let size = |operand: usize, axis: usize| request.operands[operand].shape[axis].size().unwrap_or(0);
            let centroids = if op.centroid > 0 { size(6, 2) } else { 0 };
            lane(size(0, 3), size(2, 3), size(1, 2) + centroids)
        }
        _ => 0,
    },
    run: |op, args, results, scratch| match op {
        Op::BlockAttentionGrad(op) => block_attention_grad(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Bytes a task: a block of queries; gathered keys, values and biases with what they get; all keys with centroids.
fn lane(d: usize, e: usize, keys: usize) -> usize {
    (Block::floats(d, e) + KEYS * (2 * (d + e) + 1) + keys * (d + e)) * size_of::<f32>()
}

/// Rows of all keys or centroids that stand side by side in a step, from row `at` of it on.
struct Gathered {
    at: usize,
    rows: Range<usize>,
}

fn block_attention_grad(
    op: &BlockAttentionGrad,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let ([_, k, v], Sizes { b, h, n, m, d, e }) = qkv(args)?;
    let queries = Blocks::cut(n, &op.runs, op.block_q)?;
    let keys = Blocks::cut(m, &op.runs, op.block_k)?;
    let lists = Lists::of(operand(args, 3)?, operand(args, 4)?, keys.len())?;
    let dense = Source { k: Floats::of(k)?, v: Floats::of(v)?, rows: m };
    // Operand 5 is the transpose of the lists; the centroids are behind it.
    let coarse = centroids(op.centroid, m, &op.runs, &args[1..])?;
    let all = m + coarse.as_ref().map_or(0, |(source, _)| source.rows);
    let from = Back::of(args, op.results_at(), Rows { heads: h, n, e, merged: op.merged }, op.scale)?;
    let [dq, rest @ ..] = results else { return Err("has three results, or five".into()) };
    let (dq, rest) = (Out::of(dq)?, rest.iter_mut().map(Out::of).collect::<Result<Vec<_>, _>>()?);
    let parts = query_parts(&queries);
    lanes::run(b * h, lane(d, e, all), scratch, |head, memory| {
        let mut memory = Parts::of(memory)?;
        let mut block = Block::new(&mut memory, d, e, op.scale as f32);
        let (key, value, bias) = (memory.take(KEYS * d), memory.take(KEYS * e), memory.take(KEYS));
        let (own_keys, own_values) = (memory.take(KEYS * d), memory.take(KEYS * e));
        // Of keys, behind them of centroids.
        let (all_keys, all_values) = (memory.take(all * d), memory.take(all * e));
        all_keys.fill(0.0);
        all_values.fill(0.0);
        for (number, rows) in &parts {
            block.load(&from, head, rows.start, rows.len());
            let list = lists.get(head * queries.len() + number)?;
            let mut pieces = pieces(list, &keys, &dense, coarse.as_ref());
            let (mut filled, mut gathered) = (0, Vec::new());
            let mut step = |width: usize, gathered: &mut Vec<Gathered>, [key, value, bias]: [&[f32]; 3]| {
                let bias = coarse.is_some().then_some(bias);
                let (to_keys, to_values) = (&mut own_keys[..width * d], &mut own_values[..width * e]);
                to_keys.fill(0.0);
                to_values.fill(0.0);
                block.give([key, value], bias, [to_keys, to_values], width);
                for Gathered { at, rows } in gathered.drain(..) {
                    add(&mut all_keys[rows.start * d..rows.end * d], &own_keys[at * d..]);
                    add(&mut all_values[rows.start * e..rows.end * e], &own_values[at * e..]);
                }
            };
            for Piece { source, rows, bias: weight } in &mut pieces {
                let before = if std::ptr::eq(*source, &dense) { 0 } else { m };
                while rows.start < rows.end {
                    let len = rows.len().min(KEYS - filled);
                    let at = head * source.rows + rows.start;
                    source.k.read(at * d, &mut key[filled * d..][..len * d]);
                    source.v.read(at * e, &mut value[filled * e..][..len * e]);
                    bias[filled..filled + len].fill(*weight);
                    let first = before + rows.start;
                    gathered.push(Gathered { at: filled, rows: first..first + len });
                    (rows.start, filled) = (rows.start + len, filled + len);
                    if filled == KEYS {
                        step(KEYS, &mut gathered, [key, value, bias]);
                        filled = 0;
                    }
                }
            }
            if filled > 0 {
                step(filled, &mut gathered, [key, value, bias]);
            }
            // SAFETY: every head belongs to one task.
            unsafe { dq.store(block.finish(), head, rows.start)? };
        }
        let (dense_keys, coarse_keys) = all_keys.split_at(m * d);
        let (dense_values, coarse_values) = all_values.split_at(m * e);
        for (out, values) in rest.iter().zip([dense_keys, dense_values, coarse_keys, coarse_values]) {
            // SAFETY: as above.
            unsafe { out.store(values, head, 0)? };
        }
        Ok(())
    })
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, x)| *t += x);
}

/// `block_transpose` by counting.
pub const BLOCK_TRANSPOSE: Kernel = Kernel {
    name: "block_transpose.counted",
    op: "block_transpose",
    dtypes: &[DType::I32],
    accepts: |_| Ok(()),
    lane: |_| 0,
    run: |op, args, results, _| match op {
        Op::BlockTranspose(op) => block_transpose(op, args, only(results)?),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn block_transpose(op: &BlockTranspose, args: &[Arg<'_>], result: &mut ArgMut<'_>) -> Result<(), String> {
    let idx = operand(args, 0)?;
    let &[b, h, queries, longest] = idx.shape else { return Err("takes [B,H,Tq,L]".into()) };
    let (blocks, lists) = (op.blocks, Lists::of(idx, operand(args, 1)?, op.blocks)?);
    let size = blocks + 1 + queries * longest;
    let out = Shared::new(cast_mut::<i32>(result.bytes)?);
    lanes::run(b * h, 0, &mut [], |head, _| {
        // SAFETY: every head belongs to one task.
        let (starts, rows) = unsafe { out.slice(head * size, size) }.split_at_mut(blocks + 1);
        let lists = |i: usize| lists.get(head * queries + i);
        starts.fill(0);
        for i in 0..queries {
            lists(i)?.for_each(|j| starts[j + 1] += 1);
        }
        for j in 0..blocks {
            starts[j + 1] += starts[j];
        }
        rows.fill(-1);
        let mut ends: Vec<i32> = starts[..blocks].to_vec();
        for i in 0..queries {
            for j in lists(i)? {
                rows[ends[j] as usize] = i as i32;
                ends[j] += 1;
            }
        }
        Ok(())
    })
}
