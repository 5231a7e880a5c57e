//! `cuda/attention_sm90.cu`: attention on Hopper's tensor cores, over all keys or over lists of key blocks.

use std::f64::consts::LOG2_E;

use lite3r_ir::{DType, Op, ops::blocks::Blocks};

use super::{
    Arch, Kernel,
    attention::{Cut, Rows, Sizes},
    dims,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, SHARED, Swizzle, TensorMap},
};
use crate::backend::Request;

/// The rows of this file: bf16, head dimensions of 64 and 128, more than 16 queries; lists of at most 192 queries a
/// block (128 where heads are 128 wide) over key blocks of 8 to 128.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention.wgmma", op: "attention", dtypes: &[DType::BF16], lower: attention },
    Kernel { name: "block_attention.wgmma", op: "block_attention", dtypes: &[DType::BF16], lower: block_attention },
];

/// Fewer queries than this would leave most of a tile empty.
const FEWEST: usize = 17;

/// A variant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    /// Warpgroups of 64 queries that share keys.
    groups: usize,
    /// Such teams a block.
    teams: usize,
    /// Whether the warpgroups of a team take turns.
    turns: bool,
    /// Keys of a tile.
    keys: usize,
    stages: usize,
    /// Blocks a processor.
    blocks: usize,
    /// Registers of producer and consumers.
    registers: (u32, u32),
}

impl Variant {
    /// For all keys.
    fn dense(width: usize, groups: usize) -> Self {
        let (turns, stages, blocks, registers) = match (width, groups) {
            (64, 1) => (false, 2, 2, (40, 208)),
            (64, _) => (true, 3, 1, (32, 160)),
            (_, 1) => (false, 2, 1, (40, 232)),
            _ => (false, 2, 1, (24, 240)),
        };
        Self { groups, teams: 1, turns, keys: 128, stages, blocks, registers }
    }

    /// For lists of query blocks that need so many warpgroups, over key blocks of `block` tokens.
    fn listed(width: usize, groups: usize, block: usize) -> Self {
        let (teams, turns, keys, stages, registers) = match (width, groups) {
            (64, 1) => (3, false, 128, 2, (32, 160)),
            (64, 2) if 192 % block == 0 => (1, false, 192, 3, (40, 232)),
            (64, 2) => (1, false, 128, 3, (40, 232)),
            (64, _) => (1, true, 128, 3, (32, 160)),
            _ => (1, false, 128, 2, (40, 232)),
        };
        Self { groups, teams, turns, keys, stages, blocks: 1, registers }
    }
}

/// What all attention on warpgroups shares, or why not; `fewest` queries.
pub fn sizes(request: &Request<'_>, arch: Arch, scale: f64, fewest: usize) -> Result<Sizes, String> {
    if arch != Arch::Sm90a {
        return Err("needs sm_90a".into());
    }
    let s = Sizes::of(request.operands)?;
    if let Some(odd) = [&request.operands[0], &request.results[0]].into_iter().find(|t| t.dtype != DType::BF16) {
        return Err(format!("takes bf16, not {odd}"));
    }
    if s.d != s.e || !(s.d == 64 || s.d == 128) {
        return Err(format!("takes head dimensions of 64 and 128, not {} and {}", s.d, s.e));
    }
    match scale > 0.0 {
        true if s.heads > 0 && s.m > 0 && s.n >= fewest => Ok(s),
        true => Err(format!("takes {fewest} queries and a key at least, not {} and {}", s.n, s.m)),
        false => Err(format!("takes a scale above zero, not {scale}")),
    }
}

/// `rows` tokens of 64 columns of an operand [heads, tokens, width].
fn map(operand: usize, s: Sizes, tokens: usize, rows: usize) -> Arg {
    Arg::TensorMap(TensorMap {
        base: Pointer { base: Base::Operand(operand), offset: 0 },
        dtype: DType::BF16,
        dims: [s.d, tokens, s.heads].map(|size| size as u64).to_vec(),
        strides: [s.d * 2, s.d * 2 * tokens].map(|size| size as u64).to_vec(),
        tile: vec![64, rows as u32, 1],
        steps: vec![1; 3],
        swizzle: Swizzle::B128,
    })
}

/// Lists of key blocks, as the kernel takes them.
struct Listed {
    /// Queries and keys.
    cuts: [Cut; 2],
    /// Tokens a key block.
    block: usize,
    longest: usize,
    key_blocks: usize,
    centroids: usize,
    query_blocks: usize,
}

/// What both kernels of the file are compiled with.
fn module(s: Sizes, variant: Variant, listed: bool) -> Module {
    Module::new("attention_sm90.cu")
        .define("WIDTH", s.d)
        .define("GROUPS", variant.groups)
        .define("TEAMS", variant.teams)
        .define("TURNS", i32::from(variant.turns))
        .define("KEYS", variant.keys)
        .define("STAGES", variant.stages)
        .define("LISTED", i32::from(listed))
        .define("BLOCKS", variant.blocks)
        .define("PRODUCER", variant.registers.0)
        .define("CONSUMER", variant.registers.1)
}

/// `slope` is the scale in base 2; `lse`: whether there is a second result.
fn launch(
    s: Sizes,
    variant: Variant,
    slope: f64,
    merged: bool,
    lse: bool,
    listed: Option<&Listed>,
) -> Result<Launch, String> {
    let Variant { groups, teams, keys, stages, .. } = variant;
    let queries = groups * 64;
    let none = Cut::new(1, &[], 1)?;
    let whole = Listed {
        cuts: [none; 2],
        block: keys,
        longest: 0,
        key_blocks: 0,
        centroids: 0,
        query_blocks: s.n.div_ceil(queries),
    };
    let lists = listed.unwrap_or(&whole);
    let total = s.heads * lists.query_blocks;
    let tile = |rows: usize| rows * s.d * 2;
    let biases = 4 * (stages * (keys + 1) + lists.key_blocks.div_ceil(32));
    let team = tile(queries) + 2 * stages * tile(keys) + 16 + 32 * stages + if listed.is_some() { biases } else { 0 };
    if teams * team > SHARED {
        return Err(format!("has no shared memory for lists of {} key blocks", lists.key_blocks));
    }
    let central = lists.centroids > 0;
    let (central_k, central_v, central_tokens) = if central { (5, 6, lists.centroids) } else { (1, 2, s.m) };
    let mut args = vec![
        map(0, s, s.n, queries),
        map(1, s, s.m, lists.block),
        map(2, s, s.m, lists.block),
        map(central_k, s, central_tokens, keys),
        map(central_v, s, central_tokens, keys),
        Arg::maybe(listed.map(|_| 3)),
        Arg::maybe(listed.map(|_| 4)),
        if central { Arg::scratch(0) } else { Arg::Null },
        Arg::result(0),
        if lse { Arg::result(1) } else { Arg::Null },
    ];
    args.extend(lists.cuts.map(Arg::of));
    args.push(Arg::of(Rows::of(s, merged)));
    let sizes = [lists.block, lists.longest, lists.key_blocks, lists.centroids, lists.query_blocks, total, s.n, s.m];
    for size in sizes {
        args.push(Arg::of(u32::try_from(size).map_err(|_| "takes sizes below 2^32")?));
    }
    args.push(Arg::of(slope as f32));
    Ok(Launch {
        module: module(s, variant, listed.is_some()),
        function: "attend_wgmma",
        grid: [total.div_ceil(teams).min(PROCESSORS * variant.blocks) as u32, 1, 1],
        block: 128 * (groups * teams) as u32 + 128,
        shared: (teams * team) as u32,
        args,
    })
}

fn attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::Attention(op) = request.op else { return Err("computes attention".into()) };
    op.codes.none()?;
    let s = sizes(request, arch, op.scale, FEWEST)?;
    let most = if s.d == 64 { 3 } else { 2 };
    // Fewer tiles than this leave much of the device idle.
    let groups = if s.heads * s.n.div_ceil(64 * most) < PROCESSORS * 3 / 4 { 1 } else { most };
    Ok(launch(s, Variant::dense(s.d, groups), op.scale * LOG2_E, op.merged, op.lse, None)?.into())
}

fn block_attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockAttention(op) = request.op else { return Err("computes block_attention".into()) };
    op.codes.none()?;
    let (s, operands) = (sizes(request, arch, op.scale, FEWEST)?, request.operands);
    if !128usize.is_multiple_of(op.block_k) || !op.block_k.is_multiple_of(8) {
        return Err(format!("takes key blocks of 8, 16, 32, 64 and 128, not {}", op.block_k));
    }
    let most = if s.d == 64 { 192 } else { 128 };
    if op.block_q > most {
        return Err(format!("takes query blocks of up to {most}, not {}", op.block_q));
    }
    let list = dims(&operands[3])?;
    let listed = Listed {
        cuts: [Cut::new(s.n, &op.runs, op.block_q)?, Cut::new(s.m, &op.runs, op.block_k)?],
        block: op.block_k,
        longest: list[3],
        key_blocks: Blocks::cut(s.m, &op.runs, op.block_k)?.len(),
        centroids: if op.centroid > 0 { dims(&operands[5])?[2] } else { 0 },
        query_blocks: list[2],
    };
    let (variant, slope) = (Variant::listed(s.d, op.block_q.div_ceil(64), op.block_k), op.scale * LOG2_E);
    let mut launches = vec![launch(s, variant, slope, op.merged, true, Some(&listed))?];
    if listed.centroids > 0 {
        let cuts = [listed.cuts[1], Cut::new(s.m, &op.runs, op.centroid)?].map(Arg::of);
        let sizes = [Arg::of(listed.centroids as u32), Arg::of(slope as f32)];
        let module = module(s, variant, true);
        let args = [Arg::scratch(0)].into_iter().chain(cuts).chain(sizes).collect();
        let grid = [listed.centroids.div_ceil(256) as u32, 1, 1];
        let weigh = Launch { module, function: "weigh_centroids", grid, block: 256, shared: 0, args };
        launches.insert(0, weigh);
    }
    Ok(Lowered { launches, scratch: 8 * listed.centroids })
}
