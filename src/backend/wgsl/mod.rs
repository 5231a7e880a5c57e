//! The WGSL backend: shaders for any GPU with Vulkan, Metal or DirectX 12.
//!
//! A row of [`KERNELS`] lowers an operation on concrete types to launches of shaders from `shaders/`. Plans carry the text
//! of their shaders; running them takes a driver and nothing else. [`shader`] says how texts are made, [`exec`] runs them.
//!
//! A plan runs on any adapter: a step names the first row that needs no [`features`], and has scratch memory for every
//! row that takes it. On an adapter the first row runs whose needs it offers, if the plan carries its shaders.

pub mod adapter;
pub mod alone;
mod attention;
mod attention_grad;
mod bind;
#[cfg(test)]
mod conformance;
mod conv;
mod conv_weight_grad;
mod cuts;
mod elementwise;
pub mod exec;
pub mod features;
mod gemm;
mod gemm_matrices;
mod heads;
mod indexing;
pub mod launch;
mod movement;
mod pipelines;
mod quantize;
mod reduce;
mod resize;
mod rows;
mod run;
pub mod shader;
mod sparse;
mod split;
mod staging;
mod wide;

use std::collections::BTreeMap;

use lite3r_ir::{DType, Op, ValueType};

pub use self::features::Features;
use self::{
    adapter::padded,
    launch::{Base, Binding, Launch, Lowered},
};
pub(crate) use super::gpu::dims;
use super::{Choice, DenseHeads, Gap, Request, Target, gpu::floats};
use crate::{
    Error, Result,
    plan::{ALIAS, Entry, Step},
};

/// A row of the kernel table.
pub struct Kernel {
    /// `linear.tiled`: unique; what plans and `inspect` print.
    pub name: &'static str,
    /// The operation that it computes.
    pub op: &'static str,
    /// The element types of the first floating-point operand that it takes; for the coverage table.
    pub dtypes: &'static [DType],
    /// What its shaders use beyond what every adapter offers. Rows that need something stand before one that does not.
    pub needs: Features,
    /// The launches that compute a request, or the clause that refuses it.
    pub lower: Lower,
}

/// What a row of the table does.
pub type Lower = fn(&Request<'_>) -> Result<Lowered, String>;

impl Kernel {
    /// A row that every adapter can run.
    pub const fn plain(name: &'static str, op: &'static str, dtypes: &'static [DType], lower: Lower) -> Self {
        Self { name, op, dtypes, needs: Features::NONE, lower }
    }

    /// Whether every adapter can run it.
    pub fn is_plain(&self) -> bool {
        self.needs == Features::NONE
    }
}

/// Every kernel, the fast ones first: the first row that accepts, and whose needs are offered, is taken.
pub const KERNELS: &[&[Kernel]] = &[
    elementwise::KERNELS,
    movement::KERNELS,
    gemm_matrices::KERNELS,
    gemm::KERNELS,
    rows::KERNELS,
    reduce::KERNELS,
    indexing::KERNELS,
    conv::KERNELS,
    conv_weight_grad::KERNELS,
    resize::KERNELS,
    quantize::KERNELS,
    heads::KERNELS,
    attention::KERNELS,
    attention_grad::KERNELS,
    sparse::KERNELS,
];

/// Every row of [`KERNELS`], in its order.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().copied().flatten()
}

/// The limit of plans that says how many bytes of a buffer a shader must see at once.
pub const BINDING_BYTES: &str = "wgsl_binding_bytes";
/// The limit of plans that says how many tensors a shader is bound to.
pub const BINDINGS: &str = "wgsl_bindings";

/// Plans for any GPU whose shaders see so many bytes of a buffer at once. What is larger is computed in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgsl {
    /// A multiple of 256.
    pub binding: u64,
}

/// Plans that run wherever WebGPU does.
pub const PORTABLE: Wgsl = Wgsl { binding: 128 << 20 };

/// The target of that name: `wgsl`, or `wgsl:binding=2GiB` for devices that offer so much.
pub fn target(name: &str) -> Result<Wgsl, String> {
    let Some(size) = name.strip_prefix("wgsl:binding=") else {
        return if name == "wgsl" { Ok(PORTABLE) } else { Err(format!("`{name}` is not `wgsl:binding=SIZE`")) };
    };
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];
    let (digits, shift) =
        units.into_iter().find_map(|(unit, shift)| Some((size.strip_suffix(unit)?, shift))).unwrap_or((size, 0));
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0 && n % 256 == 0);
    bytes.map(|binding| Wgsl { binding }).ok_or_else(|| format!("`{size}` is no size: 128MiB, 2GiB, bytes by 256"))
}

impl Target for Wgsl {
    fn name(&self) -> &'static str {
        "wgsl"
    }

    /// What cooperative matrices multiply.
    fn prefers(&self) -> Option<DType> {
        Some(DType::F16)
    }

    fn multiplies_codes(&self) -> bool {
        false
    }

    fn dense_heads(&self) -> DenseHeads {
        DenseHeads { channels_last: true, frames: Some(8) }
    }

    fn limits(&self, entries: &[Entry]) -> BTreeMap<String, u64> {
        let steps = entries.iter().flat_map(|e| e.steps.iter().map(move |s| (e, s))).filter(|(_, s)| s.kernel != ALIAS);
        // Those of the rows that run everywhere: an adapter that lacks what another row binds goes without that row.
        let lowered = steps.filter_map(|(entry, step)| lower(entry, step, self.binding).ok());
        let launches: Vec<Launch> = lowered.flat_map(|l| l.launches).collect();
        let most = |of: &dyn Fn(&Launch) -> u64| launches.iter().map(of).max().unwrap_or(0);
        let bytes = |l: &Launch| l.bindings.iter().map(|b| padded(b.bytes)).max().unwrap_or(0);
        BTreeMap::from([
            (BINDING_BYTES.to_string(), most(&bytes)),
            (BINDINGS.to_string(), most(&|l| l.bindings.len() as u64)),
        ])
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        let (kernel, lowered) = kernel(request)?;
        let lowered = split::bounded(request, lowered, self.binding)
            .map_err(|clause| Gap { nearest: Some(kernel.name), clause })?;
        let scratch = variants(request).map(|(_, variant)| variant.scratch).fold(lowered.scratch, usize::max);
        Ok(Choice { kernel: kernel.name, scratch })
    }

    fn stands_in(&self, entry: &Entry, step: &Step) -> Vec<(&'static str, String)> {
        asked(entry, step, |request| {
            variants(request).map(|(kernel, _)| (kernel.name, kernel.needs.to_string())).collect()
        })
    }

    fn modules(&self, entries: &[Entry]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut texts = BTreeMap::new();
        for entry in entries {
            for step in entry.steps.iter().filter(|s| s.kernel != ALIAS) {
                let plain = lower(entry, step, self.binding).map_err(|e| Error::unsupported("plan.gap", e))?;
                let others: Vec<Lowered> = asked(entry, step, |r| variants(r).map(|(_, lowered)| lowered).collect());
                for launch in std::iter::once(plain).chain(others).flat_map(|lowered| lowered.launches) {
                    texts.insert(launch.shader.key(), launch.shader.text().into_bytes());
                }
            }
        }
        Ok(texts.into_iter().collect())
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        rows().map(|k| (k.op, k.name, k.dtypes.to_vec())).collect()
    }
}

/// The first row that takes a request on every adapter and what it launches, or why the last such row of its operation
/// refused.
pub fn kernel(request: &Request<'_>) -> Result<(&'static Kernel, Lowered), Gap> {
    kernel_with(request, &Features::NONE)
}

/// The rows that may stand in for the one that runs on every adapter, and what they launch.
pub fn variants<'r>(request: &'r Request<'r>) -> impl Iterator<Item = (&'static Kernel, Lowered)> + 'r {
    let ours = rows().filter(|k| k.op == request.op.name() && !k.is_plain());
    ours.filter_map(|kernel| Some((kernel, (kernel.lower)(request).ok()?)))
}

/// The first row that takes a request where so much is offered.
fn kernel_with(request: &Request<'_>, offered: &Features) -> Result<(&'static Kernel, Lowered), Gap> {
    let clause = match request.op {
        Op::ScaledLinear(_) | Op::ScaledConv2d(_) => {
            "it multiplies activations of 8 bits; compile with --precision fp8w"
        }
        _ => "no kernel computes it",
    };
    let mut gap = Gap { nearest: None, clause: clause.into() };
    for kernel in rows().filter(|k| k.op == request.op.name() && k.needs.are_in(offered)) {
        match (kernel.lower)(request) {
            Ok(lowered) => return Ok((kernel, lowered)),
            Err(clause) => gap = Gap { nearest: Some(kernel.name), clause },
        }
    }
    Err(gap)
}

/// What computes an operation whose operands and results lie elsewhere: a part of a larger one. Its own scratch memory
/// starts at `inner`.
pub(crate) fn within(
    op: &Op,
    operands: &[(ValueType, Binding)],
    results: &[(ValueType, Binding)],
    inner: usize,
) -> Result<Lowered, String> {
    within_with(&Features::NONE, op, operands, results, inner)
}

/// As [`within`], by the first row whose needs are among those of the row that it is a part of.
pub(crate) fn within_with(
    offered: &Features,
    op: &Op,
    operands: &[(ValueType, Binding)],
    results: &[(ValueType, Binding)],
    inner: usize,
) -> Result<Lowered, String> {
    let types = |all: &[(ValueType, Binding)]| all.iter().map(|(ty, _)| ty.clone()).collect::<Vec<_>>();
    let (taken, given) = (types(operands), types(results));
    let request = Request { op, operands: &taken, results: &given };
    let (_, mut lowered) = kernel_with(&request, offered).map_err(|gap| gap.clause)?;
    let inner = inner.next_multiple_of(256);
    for binding in lowered.launches.iter_mut().flat_map(|l| &mut l.bindings) {
        let (base, offset) = match binding.base {
            Base::Operand(index) => (operands[index].1.base, operands[index].1.offset),
            Base::Result(index) => (results[index].1.base, results[index].1.offset),
            Base::Scratch => (Base::Scratch, inner as u64),
        };
        *binding = Binding { base, offset: offset + binding.offset, ..*binding };
    }
    lowered.scratch += inner;
    Ok(lowered)
}

/// What a step of a plan requests.
fn asked<T>(entry: &Entry, step: &Step, of: impl FnOnce(&Request<'_>) -> T) -> T {
    let types = |buffers: &[u32]| buffers.iter().map(|n| entry.buffers[*n as usize].ty.clone()).collect::<Vec<_>>();
    let (operands, results) = (types(&step.operands), types(&step.results));
    of(&Request { op: &step.op, operands: &operands, results: &results })
}

/// What a step of a plan launches by the row that it names, where shaders see `most` bytes of a buffer at once.
pub fn lower(entry: &Entry, step: &Step, most: u64) -> Result<Lowered, String> {
    let name = &step.kernel;
    let kernel = rows().find(|k| k.name == name);
    let kernel = kernel.ok_or_else(|| format!("this lite3r has no kernel `{name}`: compile the model again"))?;
    if kernel.op != step.op.name() {
        return Err(format!("kernel `{name}` computes {}", kernel.op));
    }
    if !kernel.is_plain() {
        return Err(format!("kernel `{name}` runs on some adapters only"));
    }
    let lowered = asked(entry, step, |r| (kernel.lower)(r).and_then(|lowered| split::bounded(r, lowered, most)));
    lowered.map_err(|clause| format!("kernel `{name}` refuses: {clause}"))
}

/// The rows that may stand in for a step's own where so much is offered, and what they launch.
pub fn better(entry: &Entry, step: &Step, offered: &Features) -> Vec<(&'static Kernel, Lowered)> {
    asked(entry, step, |r| variants(r).filter(|(kernel, _)| kernel.needs.are_in(offered)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_how_much_shaders_see() {
        assert_eq!(target("wgsl"), Ok(PORTABLE));
        assert_eq!(target("wgsl:binding=2GiB"), Ok(Wgsl { binding: 2 << 30 }));
        assert_eq!(target("wgsl:binding=65536"), Ok(Wgsl { binding: 65536 }));
        assert!(["wgsl:2", "wgsl:binding=", "wgsl:binding=0", "wgsl:binding=100"].iter().all(|n| target(n).is_err()));
    }
}
