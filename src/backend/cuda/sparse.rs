//! `cuda/block_route.cu` and `cuda/linear_attention.cu`: which key blocks are attended to, and attention through a
//! feature map.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{
        Add,
        block_route::{Own, Router},
        blocks::Blocks,
        linear_attention::{FeatureMap, LinearAttention, Scope},
    },
};

use super::{
    Arch, Kernel,
    attention::{Cut, Keys, Lists, Rows, Sizes, attend},
    dims,
    floats::{FLOATS, only},
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer},
};
use crate::backend::Request;

/// The rows of this file: head dimensions up to 256, f32, f16 and bf16.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "block_route.fma", op: "block_route", dtypes: FLOATS, lower: block_route },
    Kernel { name: "linear_attention.fma", op: "linear_attention", dtypes: FLOATS, lower: linear_attention },
    Kernel { name: "linear_attention.sum", op: "linear_attention", dtypes: FLOATS, lower: sum },
];

const MAX_ALWAYS: usize = 32;

/// What is always kept, as `cuda/block_route.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Kept {
    count: i32,
    always: i32,
    runs: [i32; MAX_ALWAYS],
    own: i32,
}

fn grid(blocks: usize) -> Result<[u32; 3], String> {
    Ok([u32::try_from(blocks).map_err(|_| "takes fewer than 2^32 blocks")?, 1, 1])
}

fn block_route(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockRoute(op) = request.op else { return Err("computes block_route".into()) };
    let [q, k] = request.operands else { return Err("takes q and k".into()) };
    let s = Sizes::of(&[q.clone(), k.clone(), k.clone()])?;
    let list = dims(&request.results[0])?;
    let (queries, longest) = (list[2], list[3]);
    let keys = Blocks::cut(s.m, &op.runs, op.block_k)?.len();
    let (query_cut, key_cut) = (Cut::new(s.n, &op.runs, op.block_q)?, Cut::new(s.m, &op.runs, op.block_k)?);
    if op.always.len() > MAX_ALWAYS {
        return Err(format!("takes up to {MAX_ALWAYS} runs that are always kept, not {}", op.always.len()));
    }
    let mut runs = [0; MAX_ALWAYS];
    runs.iter_mut().zip(&op.always).for_each(|(to, run)| *to = *run as i32);
    let own = match op.own {
        Own::None => 0,
        Own::Block => 1,
        Own::Run => 2,
    };
    let kept = Kept { count: op.kept as i32, always: op.always.len() as i32, runs, own };
    let sub = match op.router {
        Router::Pooled => None,
        Router::Sub(rows) => Some(rows.min(op.block_q)),
    };
    // Scores of every key block, those of sub-blocks beside them, means of queries and keys, a bit a block.
    let rounded = keys.next_multiple_of(256);
    let bytes = |together: usize| {
        let products = if sub.is_some() { together * rounded } else { 0 };
        4 * (rounded + products + together * s.d + s.d + rounded / 32)
    };
    let room = if arch == Arch::Sm90a { 220 << 10 } else { 96 << 10 };
    let parts = sub.map_or(1, |rows| op.block_q.div_ceil(rows));
    let together = [4, 2, 1].into_iter().find(|t| *t <= parts.next_power_of_two() && bytes(*t) <= room);
    let together = together.ok_or_else(|| format!("has no shared memory for the scores of {keys} key blocks"))?;
    let module = Module::new("block_route.cu")
        .element("TX", q.dtype)
        .define("SUB", i32::from(sub.is_some()))
        .define("TOGETHER", together)
        .define("MASS", i32::from(op.mass));
    let launch = |function, grid, block, shared: usize, args| Launch {
        module: module.clone(),
        function,
        grid,
        block,
        shared: shared as u32,
        args,
    };
    let count = |size: usize| Arg::of(size as u32);
    let mean = (4 * s.heads * s.d * keys).next_multiple_of(256);
    let means = vec![Arg::operand(1), Arg::scratch(0), Arg::of(key_cut), count(keys), count(s.m), count(s.d)];
    let whole = vec![
        Arg::scratch(0),
        Arg::scratch(mean),
        Arg::of(key_cut),
        count(keys),
        count(s.m),
        Arg::of((s.heads * s.d) as i64),
    ];
    let mut lists = vec![Arg::operand(0), Arg::scratch(0), Arg::scratch(mean), Arg::result(0), Arg::result(1)];
    lists.push(if op.mass { Arg::result(2) } else { Arg::Null });
    lists.extend([Arg::of(query_cut), Arg::of(key_cut), Arg::of(kept)]);
    let sub = sub.unwrap_or(op.block_q).min(s.n.max(1));
    lists.extend([queries, keys, longest, s.n, s.d, sub].map(count));
    lists.push(Arg::of(op.scale as f32));
    Ok(Lowered {
        launches: vec![
            launch("key_means", grid(s.heads * keys)?, 128, 0, means),
            launch("mean_of_means", grid((s.heads * s.d).div_ceil(8))?, 256, 0, whole),
            launch("route", grid(s.heads * queries)?, 256, bytes(together), lists),
        ],
        scratch: mean + 4 * s.heads * s.d,
    })
}

fn linear_attention(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::LinearAttention(op) = request.op else { return Err("computes linear_attention".into()) };
    let (s, operands) = (Sizes::of(request.operands)?, request.operands);
    if op.residual {
        return Err("adds nothing".into());
    }
    let w = op.weights_at();
    let w_type = w.map_or(DType::F32, |i| operands[i].dtype);
    only(w.map(|i| &operands[i]))?;
    let module = Module::new("linear_attention.cu")
        .element("TX", operands[0].dtype)
        .element("TW", w_type)
        .element("TY", request.results[0].dtype)
        .define("PROJECT", i32::from(op.proj))
        .define("SOFTMAX", i32::from(op.map == FeatureMap::Softmax));
    match op.scope {
        Scope::All => all(s, &module, w, op.merged),
        Scope::Rest => rest(op, request, s, module, w),
    }
}

/// Sums over all keys, in stretches that fill a device.
fn all(s: Sizes, module: &Module, w: Option<usize>, merged: bool) -> Result<Lowered, String> {
    let tiles = (s.d.div_ceil(64), s.e.div_ceil(64));
    let wanted = (2 * PROCESSORS).div_ceil((s.heads * tiles.0 * tiles.1).max(1));
    let stretch = s.m.div_ceil(wanted).max(128).next_multiple_of(32);
    let stretches = s.m.div_ceil(stretch).max(1);
    let size = s.d * (s.e + 1);
    let joined = (4 * s.heads * stretches * size).next_multiple_of(256);
    let count = |size: usize| Arg::of(size as u32);
    let launch = |function, grid, block, floats: usize, args| Launch {
        module: module.clone(),
        function,
        grid,
        block,
        shared: 4 * floats as u32,
        args,
    };
    let [across, ..] = grid(s.heads * stretches)?;
    let mut sums = vec![Arg::operand(1), Arg::operand(2), Arg::scratch(0)];
    sums.extend([stretches, stretch, s.m, s.d, s.e].map(count));
    let mut join = vec![Arg::scratch(0), Arg::maybe(w), Arg::scratch(joined)];
    join.extend([stretches, s.d, s.e].map(count));
    let rows = s.n.div_ceil(32);
    let mut apply = vec![Arg::operand(0), Arg::scratch(joined), Arg::result(0), Arg::of(Rows::of(s, merged))];
    apply.extend([rows, s.n, s.d, s.e].map(count));
    Ok(Lowered {
        launches: vec![
            launch("sum_states", [across, tiles.0 as u32, tiles.1 as u32], 256, 32 * (s.d + 1 + 64), sums),
            launch("join_states", grid(s.heads * s.d)?, 128, s.e, join),
            launch("apply_states", grid(s.heads * rows)?, 256, 32 * (s.d + 1), apply),
        ],
        scratch: joined + 4 * s.heads * size,
    })
}

/// Key by key, since every query block has sums of its own.
fn rest(
    op: &LinearAttention,
    request: &Request<'_>,
    s: Sizes,
    module: Module,
    w: Option<usize>,
) -> Result<Lowered, String> {
    let list = dims(&request.operands[3])?;
    let keys = Blocks::cut(s.m, &op.runs, op.block_k)?.len();
    let key_cut = Cut::new(s.m, &op.runs, op.block_k)?;
    let lists = Lists {
        queries: Cut::new(s.n, &op.runs, op.block_q)?,
        keys: key_cut,
        centroid: key_cut,
        counts: [list[2], keys, list[3], 0],
    };
    let (out, to) = match w {
        Some(_) => (DType::F32, Arg::scratch(0)),
        None => (request.results[0].dtype, Arg::result(0)),
    };
    let mut pointers: Vec<Arg> = (0..5).map(Arg::operand).collect();
    pointers.extend([Arg::Null, Arg::Null, to, Arg::Null]);
    let softmax = op.map == FeatureMap::Softmax;
    let types = (request.operands[0].dtype, out);
    let merged = op.merged && w.is_none();
    let summed = attend(s, types, Keys::Rest { softmax }, Some(&lists), 1.0, merged, pointers)?;
    let Some(w) = w else { return Ok(summed.into()) };
    let rows = s.heads * s.n;
    let project = Launch {
        module,
        function: "project",
        grid: grid(rows)?,
        block: 128,
        shared: 4 * s.e as u32,
        args: vec![
            Arg::scratch(0),
            Arg::operand(w),
            Arg::result(0),
            Arg::of(Rows::of(s, op.merged)),
            Arg::of(s.n as u32),
            Arg::of(s.e as u32),
        ],
    };
    Ok(Lowered { launches: vec![summed, project], scratch: 4 * rows * s.e })
}

/// The result to scratch memory, its sum with the residual from there.
fn sum(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::LinearAttention(op) = request.op else { return Err("computes linear_attention".into()) };
    let residual = op.residual_at().ok_or("adds a residual")?;
    let y = &request.results[0];
    let inner_at = y.bytes().ok_or("needs static shapes")?.next_multiple_of(256);
    let at = |base, offset: usize| Pointer { base, offset: offset as u64 };
    let operands: Vec<(ValueType, Pointer)> =
        request.operands.iter().enumerate().map(|(i, ty)| (ty.clone(), at(Base::Operand(i), 0))).collect();
    let (plain, inner) = (at(Base::Scratch, 0), at(Base::Scratch, inner_at));
    let alone = LinearAttention { residual: false, ..op.clone() };
    let summed = super::within(&alone.into(), &operands[..residual], &[plain], inner, arch)?;
    let both = [(y.clone(), plain), operands[residual].clone()];
    let added = super::within(&Add {}.into(), &both, &[at(Base::Result(0), 0)], inner, arch)?;
    let scratch = inner_at + summed.scratch.max(added.scratch);
    Ok(Lowered { launches: [summed.launches, added.launches].concat(), scratch })
}
