//! `cuda/attention_e4m3_mma.cu`: attention over e4m3 codes by `mma.sync`, from Ada on, over all keys or over lists of
//! key blocks. Codes are those of [`super::attention_e4m3`].

use lite3r_ir::{DType, Op};

use super::{
    Arch, Kernel,
    attention::{Cut, Rows, Sizes},
    attention_e4m3::{Coded, Heads, Law, Listed, counts, narrow, over_all, over_lists, pointers},
    attention_mma::shared,
    launch::{Arg, Launch, Lowered, Module},
};
use crate::backend::Request;

/// The rows of this file: bf16 operands, head dimensions of 64 and 128, key blocks of 16 to 128.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention.e4m3_mma", op: "attention", dtypes: &[DType::BF16], lower: attention },
    Kernel { name: "block_attention.e4m3_mma", op: "block_attention", dtypes: &[DType::BF16], lower: block_attention },
];

/// Keys of a tile.
const TILE: usize = 64;

/// A variant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    warps: usize,
    /// Times 16 queries a warp.
    atoms: usize,
}

impl Variant {
    /// For `rows` queries that see the same keys, all keys (`dense`) or listed ones.
    fn of(width: usize, rows: usize, dense: bool, arch: Arch) -> Self {
        let (warps, atoms) = match rows {
            0..=16 => (1, 1),
            17..=32 => (2, 1),
            33..=64 => (4, 1),
            // Hopper widens codes to f16 in registers.
            _ if width == 64 && dense && arch == Arch::Sm90a => (4, 1),
            _ if width == 64 => (4, 2),
            _ => (8, 1),
        };
        Self { warps, atoms }
    }

    fn queries(self) -> usize {
        self.warps * self.atoms * 16
    }

    /// Blocks a processor, as far as registers go.
    fn blocks(self, width: usize) -> usize {
        if (width, self.atoms) == (64, 1) && self.warps > 1 { 12 / self.warps } else { 8 / self.warps }
    }
}

fn sizes(request: &Request<'_>, arch: Arch, scale: f64) -> Result<Sizes, String> {
    if arch == Arch::Sm80 {
        return Err("needs sm_89".into());
    }
    let s = Sizes::of(request.operands)?;
    if let Some(odd) = [&request.operands[0], &request.results[0]].into_iter().find(|t| t.dtype != DType::BF16) {
        return Err(format!("takes bf16, not {odd}"));
    }
    if s.d != s.e || ![64, 128].contains(&s.d) {
        return Err(format!("takes head dimensions of 64 and 128, not {} and {}", s.d, s.e));
    }
    match scale > 0.0 {
        true if s.heads > 0 && s.m > 0 && s.n > 0 => Ok(s),
        true => Err("takes at least a query and a key".into()),
        false => Err(format!("takes a scale above zero, not {scale}")),
    }
}

/// `rows` queries that see the same keys are cut into tiles; lists of blocks of `block` keys unless these are all keys.
fn attend(
    s: Sizes,
    (rows, block): (usize, usize),
    law: &Law,
    (heads, coded): (&Heads, &Coded),
    listed: Option<&Listed>,
    arch: Arch,
) -> Result<Launch, String> {
    let variant = Variant::of(s.d, rows, listed.is_none(), arch);
    let tiles = rows.div_ceil(variant.queries());
    let (query_blocks, longest) = listed.map_or((1, 0), |l| (l.query_blocks, l.longest));
    let lists = listed.map_or(0, |_| 4 * (longest + coded.blocks.div_ceil(32)));
    let bytes = 2 * TILE * (2 * s.d + 8) + lists;
    if bytes > shared(arch) {
        return Err(format!("has no shared memory for lists of {longest} of {} key blocks", coded.blocks));
    }
    let central = listed.and_then(|l| l.centroids.as_ref());
    let mut args = pointers(law, heads, coded, listed);
    args.push(Arg::of(listed.map_or(Cut::new(1, &[], 1)?, |l| l.queries)));
    args.push(Arg::of(Rows::of(s, law.merged)));
    args.extend(counts([query_blocks, longest, coded.blocks, coded.slots])?);
    args.extend(counts(central.map_or([0; 2], |(count, codes, _)| [*count, codes.slots]))?);
    args.extend(counts([tiles, s.n, s.m])?);
    args.push(law.spans());
    Ok(Launch {
        module: Module::new("attention_e4m3_mma.cu")
            .define("WIDTH", s.d)
            .define("WARPS", variant.warps)
            .define("ATOMS", variant.atoms)
            .define("KEYS", TILE)
            .define("BLOCK", block)
            .define("BLOCKS", variant.blocks(s.d)),
        function: "attend_codes_mma",
        grid: [narrow(s.heads * query_blocks * tiles)?, 1, 1],
        block: 32 * variant.warps as u32,
        shared: bytes as u32,
        args,
    })
}

fn attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::Attention(op) = request.op else { return Err("computes attention".into()) };
    let s = sizes(request, arch, op.scale)?;
    over_all(op, s, |law, heads, coded| attend(s, (s.n, 0), law, (heads, coded), None, arch))
}

fn block_attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockAttention(op) = request.op else { return Err("computes block_attention".into()) };
    let s = sizes(request, arch, op.scale)?;
    let rows = op.block_q.min(s.n);
    over_lists(op, s, request.operands, |law, heads, coded, listed| {
        attend(s, (rows, op.block_k), law, (heads, coded), Some(listed), arch)
    })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        ValueType,
        ops::{Attention, BlockAttention, attention_codes::Codes},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    fn heads(n: usize, d: usize) -> ValueType {
        ValueType::new(DType::BF16, [1, 16, n, d])
    }

    fn dense(n: usize, d: usize) -> conformance::Typed {
        (Attention { codes: Codes::E4m3, ..Attention::new(0.125) }.into(), vec![heads(n, d); 3])
    }

    fn lists(d: usize, block_q: usize, block_k: usize, centroid: usize) -> conformance::Typed {
        let n = 2748usize;
        let op = BlockAttention { codes: Codes::E4m3, centroid, ..BlockAttention::new(block_q, block_k, 0.125) };
        let list = |shape: &[usize]| ValueType::new(DType::I32, shape.iter().copied());
        let queries = n.div_ceil(block_q);
        let mut operands = vec![heads(n, d); 3];
        operands.extend([list(&[1, 16, queries, n.div_ceil(block_k).div_ceil(4)]), list(&[1, 16, queries])]);
        if centroid > 0 {
            operands.extend(vec![heads(n.div_ceil(centroid), d); 2]);
        }
        (op.into(), operands)
    }

    /// Every variant that models come to.
    #[test]
    fn variants_compile_without_spills() {
        let mut requests = Vec::new();
        for d in [64, 128] {
            requests.extend([16, 32, 64, 2748].map(|n| dense(n, d)));
            for block_k in [16, 32, 64, 128] {
                requests.extend([16, 64, 128, 192].map(|block_q| lists(d, block_q, block_k, 16)));
            }
        }
        conformance::compiles(&requests, "e4m3_mma");
    }

    #[test]
    fn ampere_is_refused() {
        let (op, operands) = dense(65, 64);
        let results = op.infer(&operands).unwrap();
        let request = Request { op: &op, operands: &operands, results: &results };
        assert!(attention(&request, Arch::Sm80).unwrap_err().contains("sm_89"));
        assert!(attention(&request, Arch::Sm89).is_ok());
    }
}
