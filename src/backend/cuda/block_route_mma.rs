//! `cuda/block_route_mma.cu`: which key blocks are attended to, scored by tensor cores.

use std::f64::consts::LOG2_E;

use lite3r_ir::{
    DType, Op,
    ops::{
        block_route::{Own, Router},
        blocks::Blocks,
    },
};

use super::{
    Arch, Kernel,
    attention::{Cut, Sizes},
    dims,
    launch::{Arg, Launch, Lowered, Module, PROCESSORS, THREADS},
};
use crate::backend::Request;

/// The row of this file: bf16, heads of 64 columns, query blocks in up to 16 parts.
pub const KERNELS: &[Kernel] = &[Kernel { name: "block_route.mma", op: "block_route", dtypes: &[DType::BF16], lower }];

/// Columns of a head.
const WIDTH: usize = 64;
/// Bytes of a mean.
const MEAN: usize = 4 * WIDTH;
/// Parts that a block of threads weighs.
const WEIGHED: usize = 64;
const MAX_RANGES: usize = 32;

/// Bytes of shared memory that a block needs beside its scores: what the kernel declares, and what the device keeps.
const BESIDE: usize = 2 << 10;

/// Bytes of shared memory of a processor.
const fn shared(arch: Arch) -> usize {
    match arch {
        Arch::Sm80 => 164 << 10,
        Arch::Sm89 => 100 << 10,
        Arch::Sm90a => 228 << 10,
    }
}

/// What is always kept, as `cuda/block_route_mma.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Kept {
    count: i32,
    ranges: i32,
    first: [i32; MAX_RANGES],
    last: [i32; MAX_RANGES],
    own: i32,
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockRoute(op) = request.op else { return Err("computes block_route".into()) };
    let [q, k] = request.operands else { return Err("takes q and k".into()) };
    let s = Sizes::of(&[q.clone(), k.clone(), k.clone()])?;
    if q.dtype != DType::BF16 || s.d != WIDTH || s.n == 0 || s.m == 0 {
        return Err(format!("takes bf16 [B,H,N,{WIDTH}] with tokens, not {q} and {k}"));
    }
    let (part, parts) = match op.router {
        Router::Pooled => (op.block_q, 1),
        Router::Sub(rows) => (rows, op.block_q.div_ceil(rows).next_power_of_two()),
    };
    if parts > 16 || (parts == 1 && op.router != Router::Pooled) {
        return Err(format!("takes query blocks in 2 to 16 parts, not {parts}"));
    }
    let list = dims(&request.results[0])?;
    let (queries, longest, keys) = (list[2], list[3], Blocks::cut(s.m, &op.runs, op.block_k)?);
    if op.always.len() > MAX_RANGES {
        return Err(format!("takes up to {MAX_RANGES} runs that are always kept, not {}", op.always.len()));
    }
    let own = match op.own {
        Own::None => 0,
        Own::Block => 1,
        Own::Run => 2,
    };
    let ranges = op.always.len() as i32;
    let mut kept = Kept { count: op.kept as i32, ranges, first: [0; MAX_RANGES], last: [0; MAX_RANGES], own };
    for (i, run) in op.always.iter().enumerate() {
        (kept.first[i], kept.last[i]) = (keys.runs[*run].start as i32, keys.runs[*run].end as i32);
    }
    // Scores of all key blocks of every list. Many lists a block read means of keys less often, if two blocks fit a
    // processor; few fill the device.
    let stride = keys.len().next_multiple_of(128) + 8;
    let bytes = |tiles: usize| 4 * tiles * 16 / parts * stride;
    let blocks = |tiles: usize| s.heads * queries.div_ceil(tiles * 16 / parts);
    let fit = |tiles: usize| shared(arch) / (bytes(tiles) + BESIDE);
    let tiles = if parts > 1 && fit(2) >= 2 && blocks(2) >= PROCESSORS { 2 } else { 1 };
    if fit(tiles) == 0 {
        return Err(format!("has no shared memory for the scores of {} key blocks", keys.len()));
    }
    let together = fit(tiles).min(2);
    let (query_cut, key_cut) = (Cut::new(s.n, &op.runs, op.block_q)?, Cut::new(s.m, &op.runs, op.block_k)?);
    let module = Module::new("block_route_mma.cu")
        .define("PARTS", parts)
        .define("TILES", tiles)
        .define("ATOMS", tiles)
        .define("WARPS", THREADS / 32)
        .define("BLOCKS", together)
        .define("MASS", i32::from(op.mass));
    let launch = |function, blocks: usize, shared: usize, args| {
        let grid = [u32::try_from(blocks).map_err(|_| "takes fewer than 2^32 blocks")?, 1, 1];
        let (module, shared) = (module.clone(), shared as u32);
        Ok::<_, String>(Launch { module, function, grid, block: THREADS, shared, args })
    };
    let count = |size: usize| Arg::of(size as u32);
    let part = part.min(s.n);
    // Rows of means a head, whole tiles of them; means of keys and what parts weigh stand behind those of queries.
    let (rows, columns) = ((queries * parts).next_multiple_of(16), keys.len().next_multiple_of(8));
    let keys_at = s.heads * rows * MEAN;
    let offs_at = keys_at + s.heads * columns * MEAN;
    let (query_means, key_means, offs) = (Arg::scratch(0), Arg::scratch(keys_at), Arg::scratch(offs_at));
    // Means that a block of threads makes.
    let made = if parts == 1 { 8 } else { 32 };
    let groups = [queries * parts, keys.len()].map(|means| means.div_ceil(made));
    let mut means = vec![Arg::operand(0), Arg::operand(1), query_means.clone(), key_means.clone()];
    means.extend([Arg::of(query_cut), Arg::of(key_cut)]);
    let sizes = [part, queries * parts, keys.len(), rows, columns, groups[0], groups[1], s.heads, s.n, s.m];
    means.extend(sizes.map(count));
    means.push(Arg::of((op.scale * LOG2_E) as f32));
    let mut launches = vec![launch("write_all_means", s.heads * (groups[0] + groups[1]), 0, means)?];
    if parts > 1 {
        let groups = rows.div_ceil(WEIGHED);
        let mut weigh = vec![query_means.clone(), key_means.clone(), offs.clone(), Arg::of(query_cut)];
        weigh.extend([queries, keys.len(), rows, columns, groups, part].map(count));
        launches.push(launch("weigh_parts", s.heads * groups, 0, weigh)?);
    }
    let groups = queries.div_ceil(tiles * 16 / parts);
    let mut lists = vec![query_means, key_means, offs, Arg::result(0), Arg::result(1)];
    lists.push(if op.mass { Arg::result(2) } else { Arg::Null });
    lists.extend([Arg::of(query_cut), Arg::of(key_cut), Arg::of(kept)]);
    lists.extend([queries, keys.len(), rows, columns, longest, groups].map(count));
    launches.push(launch("route_mma", blocks(tiles), bytes(tiles), lists)?);
    Ok(Lowered { launches, scratch: offs_at + 4 * s.heads * rows })
}
