//! `cuda/attention_grad_sm90.cu`: gradients of attention on Hopper's tensor cores, over all keys.

use lite3r_ir::DType;

use super::{
    Arch, Kernel,
    attention::{Rows, Sizes},
    attention_grad::{Gradient, Of, gradient, grid},
    attention_wgmma::{SHARED, sizes},
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, Swizzle, TensorMap},
};
use crate::backend::Request;

/// The row of this file: bf16, head dimensions of 64 and 128.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "attention_grad.wgmma", op: "attention_grad", dtypes: &[DType::BF16], lower }];

/// Warpgroups of a block, each with 64 rows of its own.
const GROUPS: usize = 2;
/// Tiles of owned rows in flight.
const OWNS: usize = 2;

/// How many rows of the other side a tile has, and how many tiles are in flight.
fn variant(of: Of, s: Sizes) -> (usize, usize) {
    match (of, s.d) {
        (Of::Queries, 64) => {
            let read = |tile: usize| s.m.div_ceil(tile) * tile;
            (if 10 * read(96) < 9 * read(128) { 96 } else { 128 }, 4)
        }
        // Wider tiles leave no registers.
        (_, 64) => (96, 4),
        (Of::Queries, _) => (64, 3),
        _ => (32, 4),
    }
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let gradient = gradient(request)?;
    sizes(request, arch, gradient.scale, 1)?;
    gradient.lowered(|of| reverse(&gradient, of))
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

/// The launch of `reverse_wgmma`.
fn reverse(gradient: &Gradient, of: Of) -> Result<Launch, String> {
    let (s, owned) = (gradient.s, GROUPS * 64);
    let (others, stages) = variant(of, s);
    let (_, counts, tiles) = gradient.counts(of, owned)?;
    let of_keys = of != Of::Queries;
    let deltas = if of_keys { 8 * others } else { 0 };
    let shared = OWNS * (4 * owned * s.d + 16) + stages * (4 * others * s.d + 16 + deltas);
    assert!(shared <= SHARED, "tiles fit");
    let module = Module::new("attention_grad_sm90.cu")
        .define("WIDTH", s.d)
        .define("OF_KEYS", i32::from(of_keys))
        .define("GROUPS", GROUPS)
        .define("OTHERS", others)
        .define("STAGES", stages)
        .define("OWNS", OWNS)
        .define("PRODUCER", 24)
        .define("CONSUMER", 240);
    let (queries, keys) = if of_keys { (others, owned) } else { (owned, others) };
    let dense = |tokens| Rows::of(Sizes { n: tokens, ..s }, false);
    let mut args = vec![
        map(0, s, s.n, dense(s.n), queries),
        map(gradient.first + 2, s, s.n, gradient.rows, queries),
        map(1, s, s.m, dense(s.m), keys),
        map(2, s, s.m, dense(s.m), keys),
        Arg::scratch(0),
    ];
    args.extend(if of_keys { [1, 2].map(Arg::result) } else { [Arg::result(0), Arg::Null] });
    args.extend([s.heads, s.image_heads()].map(|size| Arg::of(size as u32)));
    args.push(Arg::of(counts));
    // As many tiles as a word can count.
    grid(tiles)?;
    let grid = grid(tiles.min(PROCESSORS))?;
    Ok(Launch {
        module,
        function: "reverse_wgmma",
        grid,
        block: 128 * (GROUPS as u32 + 1),
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
        // Few keys have tiles of their own.
        let ty = |dtype, shape: &[usize]| ValueType::new(dtype, shape.iter().map(|n| Dim::from(*n)));
        let heads = ty(DType::BF16, &[120, 3, 261, 64]);
        let few = [vec![heads.clone(); 4], vec![ty(DType::F32, &[120, 3, 261]), heads]].concat();
        let mut all = requests(DType::BF16, &[64, 128]);
        all.push((AttentionGrad { scale: 0.125, merged: false }.into(), few));
        conformance::compiles(&all, "_grad.wgmma");
    }
}
