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
    launch::{Arg, Launch, Lowered, Module, THREADS},
};
use crate::backend::Request;

/// The row of this file: bf16, heads of 64 columns, query blocks in up to 16 parts.
pub const KERNELS: &[Kernel] = &[Kernel { name: "block_route.mma", op: "block_route", dtypes: &[DType::BF16], lower }];

/// Columns of a head.
const WIDTH: usize = 64;
/// Bytes of a mean.
const MEAN: usize = 4 * WIDTH;
/// Means that a block of threads makes.
const MEANS: usize = 64;
const MAX_RANGES: usize = 32;

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
    // Scores of all key blocks of every list; two blocks of threads a processor where a list has many parts.
    let stride = keys.len().next_multiple_of(32) + 8;
    let bytes = |tiles: usize| 4 * tiles * 16 / parts * stride;
    let room = if arch == Arch::Sm90a { 220 << 10 } else { 96 << 10 };
    let most = if parts == 1 { 1 } else { 4 };
    let tiles = [4, 2].into_iter().find(|t| *t <= most && bytes(*t) <= room / 2).unwrap_or(1);
    if bytes(tiles) > room {
        return Err(format!("has no shared memory for the scores of {} key blocks", keys.len()));
    }
    let (query_cut, key_cut) = (Cut::new(s.n, &op.runs, op.block_q)?, Cut::new(s.m, &op.runs, op.block_k)?);
    let module = Module::new("block_route_mma.cu")
        .define("PARTS", parts)
        .define("TILES", tiles)
        .define("MASS", i32::from(op.mass));
    let launch = |function, blocks: usize, shared: usize, args| {
        let grid = [u32::try_from(blocks).map_err(|_| "takes fewer than 2^32 blocks")?, 1, 1];
        let (module, shared) = (module.clone(), shared as u32);
        Ok::<_, String>(Launch { module, function, grid, block: THREADS, shared, args })
    };
    let count = |size: usize| Arg::of(size as u32);
    let scratch = s.heads * queries * parts * MEAN;
    let part = part.min(s.n);
    let groups = (queries * parts).div_ceil(MEANS);
    let mut of_queries = vec![Arg::operand(0), Arg::scratch(0), Arg::of(query_cut)];
    of_queries.extend([part, queries * parts, groups, s.n].map(count));
    of_queries.push(Arg::of((op.scale * LOG2_E) as f32));
    let key_groups = keys.len().div_ceil(MEANS);
    let mut of_keys = vec![Arg::operand(1), Arg::scratch(scratch), Arg::of(key_cut)];
    of_keys.extend([keys.len(), key_groups, s.m].map(count));
    let a_block = tiles * 16 / parts;
    let list_groups = queries.div_ceil(a_block);
    let mut lists = vec![Arg::scratch(0), Arg::scratch(scratch), Arg::result(0), Arg::result(1)];
    lists.push(if op.mass { Arg::result(2) } else { Arg::Null });
    lists.extend([Arg::of(query_cut), Arg::of(key_cut), Arg::of(kept)]);
    lists.extend([queries, keys.len(), longest, list_groups, part].map(count));
    Ok(Lowered {
        launches: vec![
            launch("query_means", s.heads * groups, 0, of_queries)?,
            launch("key_means", s.heads * key_groups, 0, of_keys)?,
            launch("route_mma", s.heads * list_groups, bytes(tiles), lists)?,
        ],
        scratch: scratch + s.heads * keys.len() * MEAN,
    })
}
