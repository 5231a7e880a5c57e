//! `cuda/attention_grad_sm90.cu`: gradients of attention on Hopper's tensor cores, over all keys or over lists of key blocks
//! with centroids.

use std::f64::consts::LOG2_E;

use lite3r_ir::{DType, Op};

use super::{
    Arch, Kernel,
    attention::{Rows, Sizes},
    attention_grad::{Gradient, Of, gradient, grid},
    attention_wgmma::sizes,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, SHARED, Swizzle, TensorMap},
};
use crate::backend::Request;

/// The rows of this file: bf16, head dimensions of 64 and 128; lists of at most 128 queries a block over key blocks of 8 to
/// 64.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention_grad.wgmma", op: "attention_grad", dtypes: &[DType::BF16], lower: attention_grad },
    Kernel {
        name: "block_attention_grad.wgmma",
        op: "block_attention_grad",
        dtypes: &[DType::BF16],
        lower: block_attention_grad,
    },
];

/// A variant of the kernel.
#[derive(Clone, Copy)]
struct Variant {
    /// Warpgroups of 64 owned rows that share the others.
    groups: usize,
    /// Such teams a block.
    teams: usize,
    /// Rows of a tile of the others.
    others: usize,
    stages: usize,
    /// Tiles of owned rows in flight.
    owns: usize,
    /// Registers of producer and consumers.
    registers: (u32, u32),
}

impl Variant {
    /// For all rows of the other side. Wider tiles would leave no registers.
    fn dense(of: Of, s: Sizes) -> Self {
        let (others, stages) = match (of, s.d) {
            (Of::Queries, 64) => {
                let read = |tile: usize| s.m.div_ceil(tile) * tile;
                (if 10 * read(96) < 9 * read(128) { 96 } else { 128 }, 4)
            }
            (_, 64) => (96, 4),
            (Of::Queries, _) => (64, 3),
            _ => (32, 4),
        };
        Self { groups: 2, teams: 1, others, stages, owns: 2, registers: (24, 240) }
    }

    /// For lists of query blocks of so many tokens.
    fn listed(of: Of, width: usize, block: usize) -> Self {
        let groups = if of == Of::Queries { block.div_ceil(64) } else { 1 };
        let (others, stages, owns) = match (of, width) {
            (_, 64) => (64, 4, 2),
            (Of::Queries, _) => (64, groups + 1, 1),
            _ => (32, 3, 2),
        };
        Self { groups, teams: 2 / groups, others, stages, owns, registers: (40, 232) }
    }
}

/// Refuses what no variant takes.
fn checked(request: &Request<'_>, arch: Arch) -> Result<Gradient, String> {
    let gradient = gradient(request)?;
    sizes(request, arch, gradient.scale, 1)?;
    Ok(gradient)
}

fn attention_grad(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let gradient = checked(request, arch)?;
    gradient.lowered(|of| launch(&gradient, of, Variant::dense(of, gradient.s), 0))
}

fn block_attention_grad(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockAttentionGrad(op) = request.op else { return Err("computes block_attention_grad".into()) };
    let gradient = checked(request, arch)?;
    if !64usize.is_multiple_of(op.block_k) || !op.block_k.is_multiple_of(8) {
        return Err(format!("takes key blocks of 8, 16, 32 and 64, not {}", op.block_k));
    }
    if op.block_q > 128 {
        return Err(format!("takes query blocks of up to 128, not {}", op.block_q));
    }
    let variant = |of| Variant::listed(of, gradient.s.d, op.block_q);
    let mut lowered = gradient.lowered(|of| launch(&gradient, of, variant(of), op.block_k))?;
    let (cuts, _, _) = gradient.counts(Of::Queries, 64)?;
    let centroids = gradient.lists.as_ref().map_or(0, |lists| lists.counts[3]);
    if centroids > 0 {
        let mut args = vec![Arg::scratch(table(&gradient)), Arg::of(cuts[1]), Arg::of(cuts[2])];
        args.extend([Arg::of(centroids as u32), Arg::of((gradient.scale * LOG2_E) as f32)]);
        let module = module(gradient.s, Of::Queries, variant(Of::Queries), true);
        let grid = grid(centroids.div_ceil(256))?;
        let weigh = Launch { module, function: "weigh_centroids", grid, block: 256, shared: 0, args };
        lowered.launches.insert(0, weigh);
        lowered.scratch = table(&gradient) + 8 * centroids;
    }
    Ok(lowered)
}

/// Where scratch memory has what centroids add to scores, behind two numbers a query.
fn table(gradient: &Gradient) -> usize {
    gradient.scratch().next_multiple_of(256)
}

/// `rows` tokens of 64 columns of an operand whose heads lie where `places` says.
fn map(operand: usize, s: Sizes, tokens: usize, places: Rows, rows: usize) -> Arg {
    Arg::TensorMap(TensorMap {
        base: Pointer { base: Base::Operand(operand), offset: 0 },
        dtype: DType::BF16,
        dims: [s.d, tokens, s.image_heads(), s.images].map(|size| size as u64).to_vec(),
        strides: places.steps().map(|step| 2 * step as u64).to_vec(),
        tile: vec![64, rows as u32, 1, 1],
        steps: vec![1; 4],
        swizzle: Swizzle::B128,
    })
}

fn module(s: Sizes, of: Of, variant: Variant, listed: bool) -> Module {
    Module::new("attention_grad_sm90.cu")
        .define("WIDTH", s.d)
        .define("OF_KEYS", i32::from(of != Of::Queries))
        .define("LISTED", i32::from(listed))
        .define("CENTRAL", i32::from(of == Of::Centroids))
        .define("GROUPS", variant.groups)
        .define("TEAMS", variant.teams)
        .define("OTHERS", variant.others)
        .define("STAGES", variant.stages)
        .define("OWNS", variant.owns)
        .define("PRODUCER", variant.registers.0)
        .define("CONSUMER", variant.registers.1)
}

/// The launch of `reverse_wgmma`; over key blocks of `block` tokens if there are lists.
fn launch(gradient: &Gradient, of: Of, variant: Variant, block: usize) -> Result<Launch, String> {
    let (s, lists) = (gradient.s, gradient.lists.as_ref());
    let Variant { groups, teams, others, stages, owns, .. } = variant;
    let (owned, of_keys, listed) = (groups * 64, of != Of::Queries, lists.is_some());
    let (cuts, counts, tiles) = gradient.counts(of, owned)?;
    // Biases, deltas, what a stage is and who sees it; which key blocks a list holds.
    let words = match (of_keys, listed) {
        (true, _) => 2 * others + if listed { 3 } else { 0 },
        (false, true) => others + 1,
        (false, false) => 0,
    };
    let rings = owns * (4 * owned * s.d + 16) + stages * (4 * others * s.d + 16);
    let words = 4 * (stages * words).next_multiple_of(4);
    let taken = if listed && !of_keys { 4 * counts.key_blocks().div_ceil(32) } else { 0 };
    let shared = teams * (rings + words + taken);
    if shared > SHARED {
        return Err(format!("has no shared memory for {} key blocks", counts.key_blocks()));
    }
    let dense = |operand: usize, tokens: usize, rows: usize| {
        map(operand, s, tokens, Rows::of(Sizes { n: tokens, ..s }, false), rows)
    };
    let centroids = lists.map_or(0, |lists| lists.counts[3]);
    let (queries, keys) = match (of_keys, listed) {
        (true, _) => (others, owned),
        (false, true) => (owned, block),
        (false, false) => (owned, others),
    };
    let mut args = vec![dense(0, s.n, queries), map(gradient.first + 2, s, s.n, gradient.rows, queries)];
    let (first_key, tokens) = if of == Of::Centroids { (6, centroids) } else { (1, s.m) };
    args.extend([first_key, first_key + 1].map(|operand| dense(operand, tokens, keys)));
    let (first_centroid, tokens) = if centroids > 0 { (6, centroids) } else { (1, s.m) };
    args.extend([first_centroid, first_centroid + 1].map(|operand| dense(operand, tokens, others)));
    args.push(Arg::scratch(0));
    let operands = if of_keys { [Some(5), None] } else { [Some(3), Some(4)] };
    args.extend(operands.map(|operand| Arg::maybe(operand.filter(|_| listed))));
    args.push(if centroids > 0 { Arg::scratch(table(gradient)) } else { Arg::Null });
    args.extend(match of {
        Of::Queries => [Arg::result(0), Arg::Null],
        Of::Keys => [1, 2].map(Arg::result),
        Of::Centroids => [3, 4].map(Arg::result),
    });
    args.extend(cuts.map(Arg::of));
    args.extend([s.heads, s.image_heads(), block].map(|size| Arg::of(size as u32)));
    args.push(Arg::of(counts));
    // The kernel counts tiles in 32 bits.
    grid(tiles)?;
    Ok(Launch {
        module: module(s, of, variant, listed),
        function: "reverse_wgmma",
        grid: grid(tiles.div_ceil(teams).min(PROCESSORS))?,
        block: 128 * (groups * teams) as u32 + 128,
        shared: shared as u32,
        args,
    })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{Dim, ValueType, ops::AttentionGrad};

    use super::*;
    use crate::backend::cuda::{attention_grad::tests::requests, conformance};

    #[test]
    fn gradients_of_attention_compile_without_spills() {
        // Few keys have tiles of their own, and so have query blocks of two warpgroups.
        let ty = |dtype, shape: &[usize]| ValueType::new(dtype, shape.iter().map(|n| Dim::from(*n)));
        let heads = ty(DType::BF16, &[120, 3, 261, 64]);
        let few = [vec![heads.clone(); 4], vec![ty(DType::F32, &[120, 3, 261]), heads]].concat();
        let mut all = requests(DType::BF16, &[64, 128]);
        for (op, operands) in all.clone() {
            let Op::BlockAttentionGrad(mut op) = op else { continue };
            let blocks = 2748_usize.div_ceil(128);
            op.block_q = 128;
            let mut operands = operands;
            operands[3] = ty(DType::I32, &[2, 16, blocks, 5]);
            operands[4] = ty(DType::I32, &[2, 16, blocks]);
            operands[5] = ty(DType::I32, &[2, 16, 2748_usize.div_ceil(op.block_k) + 1 + blocks * 5]);
            all.push((op.into(), operands));
        }
        all.push((AttentionGrad { scale: 0.125, merged: false }.into(), few));
        conformance::compiles(&all, "_grad.wgmma");
    }
}
