//! `cuda/attention_mma.cu`: attention on the tensor cores of every architecture, over all keys or over lists of key
//! blocks.

use std::f64::consts::LOG2_E;

use lite3r_ir::{DType, Op};

use super::{
    Arch, Kernel,
    attention::{Cut, Lists, Rows, Sizes, listed_pointers},
    launch::{Arg, Launch, Lowered, Module, PROCESSORS},
};
use crate::backend::Request;

/// The rows of this file: bf16 and f16, head dimensions of 32, 64 and 128.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention.mma", op: "attention", dtypes: HALVES, lower: attention },
    Kernel { name: "block_attention.mma", op: "block_attention", dtypes: HALVES, lower: block_attention },
];

const HALVES: &[DType] = &[DType::F16, DType::BF16];

/// Bytes of shared memory that a block may have beside what the kernel declares.
pub const fn shared(arch: Arch) -> usize {
    match arch {
        Arch::Sm80 => 160 << 10,
        Arch::Sm89 => 96 << 10,
        Arch::Sm90a => 224 << 10,
    }
}

/// A variant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    warps: usize,
    /// Times 16 queries a warp.
    atoms: usize,
    /// Keys of a tile.
    keys: usize,
}

impl Variant {
    /// For `rows` queries that see the same keys; `many` of them.
    fn of(width: usize, rows: usize, many: bool, arch: Arch) -> Self {
        // Two atoms a warp read shared memory half as often. Ada's tensor cores do not need that, and its processors
        // have room for few blocks.
        let (warps, atoms) = match rows {
            0..=16 => (1, 1),
            17..=32 => (2, 1),
            33..=64 if arch == Arch::Sm89 || !many => (4, 1),
            33..=64 => (2, 2),
            _ if !many => (4, 1),
            129..=192 if arch != Arch::Sm89 => (6, 2),
            _ => (4, 2),
        };
        Self { warps, atoms, keys: if width == 128 { 32 } else { 64 } }
    }

    fn queries(self) -> usize {
        self.warps * self.atoms * 16
    }
}

/// What both operations share, or why not.
fn sizes(request: &Request<'_>, scale: f64) -> Result<Sizes, String> {
    let s = Sizes::of(request.operands)?;
    let dtype = request.operands[0].dtype;
    if !HALVES.contains(&dtype) || request.results[0].dtype != dtype {
        return Err(format!("takes f16 or bf16 and gives the same, not {dtype} and {}", request.results[0].dtype));
    }
    if s.d != s.e || ![32, 64, 128].contains(&s.d) {
        return Err(format!("takes head dimensions of 32, 64 and 128, not {} and {}", s.d, s.e));
    }
    match scale > 0.0 {
        true if s.m > 0 => Ok(s),
        true => Err("takes at least a key".into()),
        false => Err(format!("takes a scale above zero, not {scale}")),
    }
}

/// `rows` queries that see the same keys are cut into tiles; `lists` unless these are all keys.
fn launch(
    request: &Request<'_>,
    s: Sizes,
    variant: Variant,
    (rows, lists): (usize, Option<&Lists>),
    (scale, merged): (f64, bool),
    pointers: Vec<Arg>,
    arch: Arch,
) -> Result<Launch, String> {
    let Variant { warps, atoms, keys } = variant;
    let none = Cut::new(1, &[], 1)?;
    let (cuts, counts) = lists.map_or(([none; 3], [1, 0, 0, 0]), |l| ([l.queries, l.keys, l.centroid], l.counts));
    let tiles = rows.div_ceil(variant.queries());
    let (stage, queries) = (2 * keys * s.d * 2, variant.queries() * s.d * 2);
    let panels = if s.d <= 64 { stage + stage.max(queries) } else { 2 * stage + queries };
    let bytes = panels + 8 * counts[2] + 4 * counts[1].div_ceil(32);
    if bytes > shared(arch) {
        return Err(format!("has no shared memory for lists of {} of {} key blocks", counts[2], counts[1]));
    }
    let module = Module::new("attention_mma.cu")
        .element("T", request.operands[0].dtype)
        .define("WIDTH", s.d)
        .define("WARPS", warps)
        .define("ATOMS", atoms)
        .define("KEYS", keys)
        .define("LISTED", i32::from(lists.is_some()))
        .define("BLOCKS", if atoms == 2 { (8 / warps).max(1) } else { 12 / warps });
    let mut args = pointers;
    args.extend(cuts.map(Arg::of));
    args.push(Arg::of(Rows::of(s, merged)));
    for size in counts.into_iter().chain([tiles, s.n, s.m]) {
        args.push(Arg::of(u32::try_from(size).map_err(|_| "takes sizes below 2^32")?));
    }
    args.push(Arg::of((scale * LOG2_E) as f32));
    Ok(Launch {
        module,
        function: "attend_mma",
        grid: [u32::try_from(s.heads * counts[0] * tiles).map_err(|_| "takes fewer than 2^32 tiles")?, 1, 1],
        block: 32 * warps as u32,
        shared: bytes as u32,
        args,
    })
}

fn attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::Attention(op) = request.op else { return Err("computes attention".into()) };
    op.codes.none()?;
    let s = sizes(request, op.scale)?;
    // With fewer large tiles than this the last ones leave much of the device idle; wide heads gain more by them.
    let enough = PROCESSORS * if s.d == 128 { 2 } else { 8 };
    let variant = Variant::of(s.d, s.n, s.heads * s.n.div_ceil(128) >= enough, arch);
    let pointers = [0, 1, 2].map(Arg::operand).into_iter().chain([0; 4].map(|_| Arg::Null));
    let lse = if op.lse { Arg::result(1) } else { Arg::Null };
    let pointers = pointers.chain([Arg::result(0), lse]).collect();
    Ok(launch(request, s, variant, (s.n, None), (op.scale, op.merged), pointers, arch)?.into())
}

fn block_attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockAttention(op) = request.op else { return Err("computes block_attention".into()) };
    op.codes.none()?;
    let s = sizes(request, op.scale)?;
    let lists = Lists::of(op, s, request.operands)?;
    let rows = op.block_q.min(s.n.max(1));
    let variant = Variant::of(s.d, rows, true, arch);
    let listed = (rows, Some(&lists));
    Ok(launch(request, s, variant, listed, (op.scale, op.merged), listed_pointers(op), arch)?.into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Attention, BlockAttention, attention::AttentionKind, attention_codes::Codes},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    #[test]
    fn attention_of_models_compiles_without_spills() {
        let heads = |dtype, n: usize, d: usize| ValueType::new(dtype, [2, 16, n, d]);
        let mut requests: Vec<conformance::Typed> = Vec::new();
        for (dtype, n, d) in [(DType::BF16, 1374, 64), (DType::F16, 1374, 64), (DType::BF16, 1374, 128)] {
            requests.push((Attention::new(0.125).into(), vec![heads(dtype, n, d); 3]));
        }
        requests.push((Attention::new(0.125).into(), vec![heads(DType::BF16, 2748, 32); 3]));
        for (block_q, block_k, centroid, d) in [(64, 64, 0, 64), (192, 64, 0, 64), (128, 16, 16, 128), (16, 16, 16, 32)]
        {
            let op = BlockAttention {
                block_q,
                block_k,
                scale: 0.125,
                runs: Vec::new(),
                centroid,
                kind: AttentionKind::Global,
                merged: true,
                codes: Codes::None,
            };
            let n = 2748usize;
            let list = |shape: &[usize]| ValueType::new(DType::I32, shape.iter().copied());
            let queries = n.div_ceil(block_q);
            let mut operands = vec![heads(DType::BF16, n, d); 3];
            operands.extend([list(&[2, 16, queries, 5]), list(&[2, 16, queries])]);
            if centroid > 0 {
                operands.extend(vec![heads(DType::BF16, n.div_ceil(centroid), d); 2]);
            }
            requests.push((op.into(), operands));
        }
        conformance::compiles(&requests, "mma");
    }

    #[test]
    fn tiles_hold_the_queries_that_share_keys() {
        for arch in [Arch::Sm80, Arch::Sm89, Arch::Sm90a] {
            for rows in [1, 16, 17, 33, 64, 65, 128, 192] {
                let variant = Variant::of(64, rows, true, arch);
                assert!(
                    variant.queries() >= rows.min(128) && variant.queries() < 2 * rows.max(16),
                    "{rows}: {variant:?}"
                );
            }
        }
    }
}
