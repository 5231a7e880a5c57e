//! `cuda/linear_attention_mma.cu`: attention through a feature map on tensor cores.

use lite3r_ir::{
    DType, Op,
    ops::{
        blocks::Blocks,
        linear_attention::{FeatureMap, Scope},
    },
};

use super::{
    Arch, Kernel,
    attention::{Cut, Rows, Sizes},
    dims,
    floats::only,
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
};
use crate::backend::Request;

/// The row of this file: bf16, heads of 64 columns.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "linear_attention.mma", op: "linear_attention", dtypes: &[DType::BF16], lower }];

/// Columns of a head.
const WIDTH: usize = 64;
/// Bytes of a state: H and z.
const STATE: usize = 4 * WIDTH * (WIDTH + 1);
/// Bytes of a state that rows are multiplied with: H rounded, z.
const JOINED: usize = 2 * WIDTH * WIDTH + 4 * WIDTH;
/// Lists that a block takes, and rows of their states.
const LISTS: usize = 32;
const ROWS: usize = 4;

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::LinearAttention(op) = request.op else { return Err("computes linear_attention".into()) };
    let (s, operands) = (Sizes::of(request.operands)?, request.operands);
    if let Some(odd) = [&operands[0], &request.results[0]].into_iter().find(|t| t.dtype != DType::BF16) {
        return Err(format!("takes bf16, not {odd}"));
    }
    if (s.d, s.e) != (WIDTH, WIDTH) {
        return Err(format!("takes heads of {WIDTH} columns, not {} and {}", s.d, s.e));
    }
    let w = op.weights_at();
    only(w.map(|i| &operands[i]))?;
    let module = Module::new("linear_attention_mma.cu")
        .element("TW", w.map_or(DType::F32, |i| operands[i].dtype))
        .define("PROJECT", i32::from(op.proj))
        .define("RESIDUAL", i32::from(op.residual))
        .define("SOFTMAX", i32::from(op.map == FeatureMap::Softmax));
    let launch = |function, grid: [usize; 3], block, shared, args| {
        let grid = grid.map(|size| u32::try_from(size).map_err(|_| "takes fewer than 2^32 blocks"));
        let [x, y, z] = grid;
        let grid = [x?, y?, z?];
        Ok::<_, String>(Launch { module: module.clone(), function, grid, block, shared, args })
    };
    let count = |size: usize| Arg::of(size as u32);
    // Blocks of keys whose states are kept apart; of queries; of queries with a state of their own.
    let (keys, queries, states, key_blocks, query_blocks) = match op.scope {
        Scope::All => {
            let wanted = (4 * PROCESSORS).div_ceil(s.heads.max(1));
            let stretch = s.m.div_ceil(wanted).max(256).next_multiple_of(64);
            let rows = if s.heads * s.n >= 256 * 4 * PROCESSORS { 256 } else { 64 };
            let cuts = (Cut::new(s.m, &[], stretch)?, Cut::new(s.n, &[], rows)?);
            (cuts.0, cuts.1, 1, s.m.div_ceil(stretch), s.n.div_ceil(rows))
        }
        Scope::Rest => {
            let keys = Blocks::cut(s.m, &op.runs, op.block_k)?.len();
            let queries = dims(&operands[3])?[2];
            let cuts = (Cut::new(s.m, &op.runs, op.block_k)?, Cut::new(s.n, &op.runs, op.block_q)?);
            (cuts.0, cuts.1, queries, keys, queries)
        }
    };
    let joined = (s.heads * key_blocks * STATE).next_multiple_of(256);
    let sums = vec![Arg::operand(1), Arg::operand(2), Arg::scratch(0), Arg::of(keys), count(key_blocks), count(s.m)];
    let join = match op.scope {
        Scope::All => {
            let args = vec![Arg::scratch(0), Arg::maybe(w), Arg::scratch(joined), count(key_blocks)];
            let parts = (WIDTH + 1).div_ceil(ROWS);
            launch("join_states", [s.heads * parts, 1, 1], (ROWS * WIDTH) as u32, 0, args)?
        }
        Scope::Rest => {
            let groups = query_blocks.div_ceil(LISTS);
            let mut args = vec![Arg::scratch(0), Arg::operand(3), Arg::operand(4), Arg::maybe(w), Arg::scratch(joined)];
            args.extend([key_blocks, query_blocks, dims(&operands[3])?[3], groups].map(count));
            if 4 * key_blocks > 48 << 10 {
                return Err(format!("takes fewer key blocks than {key_blocks}"));
            }
            let grid = [s.heads * groups, (WIDTH + 1).div_ceil(ROWS), 1];
            launch("rest_states", grid, (ROWS * WIDTH) as u32, 4 * key_blocks as u32, args)?
        }
    };
    let mut apply = vec![Arg::operand(0), Arg::scratch(joined), Arg::maybe(op.residual_at())];
    apply.extend([Arg::result(0), Arg::of(queries)]);
    apply.push(Arg::of(Rows::of(s, op.merged)));
    apply.extend([query_blocks, states, s.n].map(count));
    Ok(Lowered {
        launches: vec![
            launch("sum_states", [s.heads * key_blocks, 1, 1], 128, 0, sums)?,
            join,
            launch("apply_states", [s.heads * query_blocks, 1, 1], 128, 0, apply)?,
        ],
        scratch: joined + s.heads * states * JOINED,
    })
}
