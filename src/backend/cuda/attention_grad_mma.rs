//! `cuda/attention_grad_mma.cu`: gradients of attention on the tensor cores of every architecture, over all keys or over
//! lists of key blocks with centroids.

use lite3r_ir::DType;

use super::{
    Arch, Kernel,
    attention_grad::{Gradient, Of, gradient, grid},
    attention_mma::shared,
    launch::{Arg, Launch, Lowered, Module},
};
use crate::backend::Request;

/// The rows of this file: bf16, head dimensions of 32, 64 and 128.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention_grad.mma", op: "attention_grad", dtypes: &[DType::BF16], lower },
    Kernel { name: "block_attention_grad.mma", op: "block_attention_grad", dtypes: &[DType::BF16], lower },
];

/// Warps of a block, each with sixteen rows of its own.
const WARPS: usize = 4;

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let gradient = gradient(request)?;
    let s = gradient.s;
    if gradient.dtype != DType::BF16 {
        return Err(format!("takes bf16, not {}", gradient.dtype));
    }
    if s.d != s.e || ![32, 64, 128].contains(&s.d) {
        return Err(format!("takes head dimensions of 32, 64 and 128, not {} and {}", s.d, s.e));
    }
    gradient.lowered(|of| reverse(&gradient, of, arch))
}

/// The launch of `reverse_mma`.
fn reverse(gradient: &Gradient, of: Of, arch: Arch) -> Result<Launch, String> {
    let width = gradient.s.d;
    let (owned, others) = (WARPS * 16, if width == 128 { 32 } else { 64 });
    let (cuts, counts, blocks) = gradient.counts(of, owned)?;
    let bytes = 4 * owned * width + 8 * others * width + 4 * counts.key_blocks().div_ceil(32);
    if bytes > shared(arch) {
        return Err(format!("has no shared memory for {} key blocks", counts.key_blocks()));
    }
    let module = Module::new("attention_grad_mma.cu")
        .element("T", gradient.dtype)
        .define("WIDTH", width)
        .define("WARPS", WARPS)
        .define("OTHERS", others)
        .define("OF_KEYS", i32::from(of != Of::Queries))
        .define("CENTRAL", i32::from(of == Of::Centroids))
        .define("LISTED", i32::from(gradient.lists.is_some()))
        .define("BLOCKS", 2);
    let mut args = gradient.pointers(of);
    args.extend(cuts.map(Arg::of));
    args.extend([Arg::of(gradient.rows), Arg::of(counts)]);
    let threads = 32 * WARPS as u32;
    Ok(Launch { module, function: "reverse_mma", grid: grid(blocks)?, block: threads, shared: bytes as u32, args })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{attention_grad::tests::requests, conformance};

    #[test]
    fn gradients_of_attention_compile_without_spills() {
        conformance::compiles(&requests(DType::BF16, &[32, 64, 128]), "_grad.mma");
    }
}
