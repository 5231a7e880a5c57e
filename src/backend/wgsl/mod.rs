//! The WGSL backend: shaders for any GPU with Vulkan, Metal or DirectX 12.
//!
//! A row of [`KERNELS`] lowers an operation on concrete types to launches of shaders from `shaders/`. Plans carry the text
//! of their shaders; running them takes a driver and nothing else. [`shader`] says how texts are made, [`exec`] runs them.

pub mod adapter;
mod attention;
#[cfg(test)]
mod conformance;
mod conv;
mod elementwise;
pub mod exec;
mod gemm;
mod heads;
mod indexing;
pub mod launch;
mod movement;
mod quantize;
mod reduce;
mod resize;
mod rows;
pub mod shader;
mod sparse;
mod wide;

use std::collections::BTreeMap;

use lite3r_ir::{DType, Op, ValueType};

use self::launch::{Base, Binding, Launch, Lowered};
pub(crate) use super::gpu::dims;
use super::{Choice, Gap, Request, Target, gpu::floats};
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
    /// The launches that compute a request, or the clause that refuses it.
    pub lower: fn(&Request<'_>) -> Result<Lowered, String>,
}

/// Every kernel, the fast ones first: the first row that accepts is taken.
pub const KERNELS: &[&[Kernel]] = &[
    elementwise::KERNELS,
    movement::KERNELS,
    gemm::KERNELS,
    rows::KERNELS,
    reduce::KERNELS,
    indexing::KERNELS,
    conv::KERNELS,
    resize::KERNELS,
    quantize::KERNELS,
    heads::KERNELS,
    attention::KERNELS,
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

/// Plans for any GPU.
pub struct Wgsl;

impl Target for Wgsl {
    fn name(&self) -> &'static str {
        "wgsl"
    }

    fn multiplies_codes(&self) -> bool {
        false
    }

    fn limits(&self, entries: &[Entry]) -> BTreeMap<String, u64> {
        let steps = entries.iter().flat_map(|e| e.steps.iter().map(move |s| (e, s))).filter(|(_, s)| s.kernel != ALIAS);
        let lowered = steps.filter_map(|(entry, step)| lower(entry, step).ok());
        let launches: Vec<Launch> = lowered.flat_map(|l| l.launches).collect();
        let most = |of: &dyn Fn(&Launch) -> u64| launches.iter().map(of).max().unwrap_or(0);
        let bytes = |l: &Launch| l.bindings.iter().map(|b| b.bytes).max().unwrap_or(0);
        BTreeMap::from([
            (BINDING_BYTES.to_string(), most(&bytes)),
            (BINDINGS.to_string(), most(&|l| l.bindings.len() as u64)),
        ])
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        let (kernel, lowered) = kernel(request)?;
        Ok(Choice { kernel: kernel.name, scratch: lowered.scratch })
    }

    fn modules(&self, entries: &[Entry]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut texts = BTreeMap::new();
        for entry in entries {
            for step in entry.steps.iter().filter(|s| s.kernel != ALIAS) {
                let lowered = lower(entry, step).map_err(|e| Error::unsupported("plan.gap", e))?;
                for launch in lowered.launches {
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

/// The first row that takes a request and what it launches, or why the last row of its operation refused.
pub fn kernel(request: &Request<'_>) -> Result<(&'static Kernel, Lowered), Gap> {
    let clause = match request.op {
        Op::ScaledLinear(_) | Op::ScaledConv2d(_) => {
            "it multiplies activations of 8 bits; compile with --precision fp8w"
        }
        _ => "no kernel computes it",
    };
    let mut gap = Gap { nearest: None, clause: clause.into() };
    for kernel in rows().filter(|k| k.op == request.op.name()) {
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
    let types = |all: &[(ValueType, Binding)]| all.iter().map(|(ty, _)| ty.clone()).collect::<Vec<_>>();
    let (taken, given) = (types(operands), types(results));
    let (_, mut lowered) = kernel(&Request { op, operands: &taken, results: &given }).map_err(|gap| gap.clause)?;
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

/// What a step of a plan launches.
pub fn lower(entry: &Entry, step: &Step) -> Result<Lowered, String> {
    let types = |all: &[u32]| all.iter().map(|n| entry.buffers[*n as usize].ty.clone()).collect::<Vec<_>>();
    let (operands, results) = (types(&step.operands), types(&step.results));
    let name = &step.kernel;
    let kernel = rows().find(|k| k.name == name);
    let kernel = kernel.ok_or_else(|| format!("this lite3r has no kernel `{name}`: compile the model again"))?;
    if kernel.op != step.op.name() {
        return Err(format!("kernel `{name}` computes {}", kernel.op));
    }
    let request = Request { op: &step.op, operands: &operands, results: &results };
    (kernel.lower)(&request).map_err(|clause| format!("kernel `{name}` refuses: {clause}"))
}
