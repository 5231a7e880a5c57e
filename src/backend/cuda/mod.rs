//! The CUDA backend: kernels of `cuda/`, compiled by NVRTC when a plan is made, launched as one graph when it runs.
//!
//! A row of [`KERNELS`] lowers an operation on concrete types to launches ([`launch`]). The plan carries the machine
//! code of every module that its steps launch, so that running needs the driver alone.

pub mod attention;
pub mod attention_wgmma;
pub mod block_mean;
pub mod conv;
pub mod conv_transpose2d;
pub mod conv_wgmma;
pub mod driver;
pub mod elementwise;
pub mod exec;
pub mod floats;
pub mod gemm;
pub mod gemm_wgmma;
pub mod gemv;
pub mod indexing;
pub mod launch;
pub mod movement;
pub mod norm;
pub mod nvrtc;
pub mod product;
pub mod qkv_heads;
pub mod reduce;
pub mod resize;
pub mod rope;
pub mod sass;
pub mod self_attention;
pub mod softmax;
pub mod sparse;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;

use launch::{Arg, Base, Lowered, Module, Pointer};
use lite3r_ir::{DType, Op, ValueType};
use rayon::prelude::*;

use super::{Choice, Gap, Request, Target};
use crate::{
    Error, Result,
    plan::{ALIAS, Entry, Step},
};

/// A generation of devices that machine code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// Ampere: A100, A30. No FP8 arithmetic.
    Sm80,
    /// Ada: L4, L40, RTX 40. FP8 by `mma.sync`.
    Sm89,
    /// Hopper: H100, H200. FP8 and bf16 by `wgmma`, copies by the copy engine.
    Sm90a,
}

impl Arch {
    /// As NVRTC writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
        }
    }
}

/// A row of the kernel table.
pub struct Kernel {
    /// `linear.wgmma`: unique; what plans and `inspect` print.
    pub name: &'static str,
    /// The operation that it computes.
    pub op: &'static str,
    /// The element types of the first floating-point operand that it takes; for the coverage table.
    pub dtypes: &'static [DType],
    /// The launches that compute a request, or the clause that refuses it.
    pub lower: fn(&Request<'_>, Arch) -> Result<Lowered, String>,
}

/// Every kernel, the fast ones first: the first row that accepts is taken.
#[rustfmt::skip]
pub const KERNELS: &[&[Kernel]] = &[
    elementwise::KERNELS,
    gemv::KERNELS,
    gemm_wgmma::KERNELS,
    gemm::KERNELS,
    conv_wgmma::KERNELS,
    conv::KERNELS,
    qkv_heads::KERNELS,
    movement::KERNELS,
    softmax::KERNELS,
    resize::KERNELS,
    conv_transpose2d::KERNELS,
    indexing::KERNELS,
    reduce::KERNELS,
    block_mean::KERNELS,
    norm::KERNELS,
    rope::KERNELS,
    self_attention::KERNELS,
    attention_wgmma::KERNELS,
    attention::KERNELS,
    sparse::KERNELS,
];

/// Every row of [`KERNELS`], in its order.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().copied().flatten()
}

/// Plans for one architecture.
pub struct Cuda {
    name: &'static str,
    arch: Arch,
}

/// Hopper.
pub const SM_90A: Cuda = Cuda { name: "cuda:sm_90a", arch: Arch::Sm90a };
/// Ada.
pub const SM_89: Cuda = Cuda { name: "cuda:sm_89", arch: Arch::Sm89 };
/// Ampere.
pub const SM_80: Cuda = Cuda { name: "cuda:sm_80", arch: Arch::Sm80 };

impl Target for Cuda {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prefers_bf16(&self) -> bool {
        true
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        let (kernel, lowered) = kernel(request, self.arch)?;
        Ok(Choice { kernel: kernel.name, scratch: lowered.scratch })
    }

    fn modules(&self, entries: &[Entry]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut wanted: BTreeMap<String, Module> = BTreeMap::new();
        for entry in entries {
            for step in entry.steps.iter().filter(|s| s.kernel != ALIAS) {
                let lowered = lower(entry, step, self.arch).map_err(|e| Error::unsupported("plan.gap", e))?;
                wanted.extend(lowered.launches.into_iter().map(|l| (l.module.key(), l.module)));
            }
        }
        let wanted: Vec<(String, Module)> = wanted.into_iter().collect();
        wanted.into_par_iter().map(|(key, module)| Ok((key, nvrtc::cubin(&module, self.arch)?))).collect()
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        rows().map(|k| (k.op, k.name, k.dtypes.to_vec())).collect()
    }
}

/// The first row that takes a request and what it launches, or why the last row of its operation refused.
pub fn kernel(request: &Request<'_>, arch: Arch) -> Result<(&'static Kernel, Lowered), Gap> {
    let mut gap = Gap { nearest: None, clause: "no kernel computes it".into() };
    for kernel in rows().filter(|k| k.op == request.op.name()) {
        match (kernel.lower)(request, arch) {
            Ok(lowered) => return Ok((kernel, lowered)),
            Err(clause) => gap = Gap { nearest: Some(kernel.name), clause },
        }
    }
    Err(gap)
}

/// The row of that name.
pub fn named(name: &str) -> Option<&'static Kernel> {
    rows().find(|k| k.name == name)
}

/// What a step of a plan launches.
pub fn lower(entry: &Entry, step: &Step, arch: Arch) -> Result<Lowered, String> {
    let types = |all: &[u32]| all.iter().map(|n| entry.buffers[*n as usize].ty.clone()).collect::<Vec<_>>();
    let (operands, results) = (types(&step.operands), types(&step.results));
    let name = &step.kernel;
    let kernel = named(name).ok_or_else(|| format!("this lite3r has no kernel `{name}`: compile the model again"))?;
    if kernel.op != step.op.name() {
        return Err(format!("kernel `{name}` computes {}", kernel.op));
    }
    let request = Request { op: &step.op, operands: &operands, results: &results };
    (kernel.lower)(&request, arch).map_err(|clause| format!("kernel `{name}` refuses: {clause}"))
}

/// What computes an operation whose operands, results and scratch memory lie elsewhere: a part of a larger one.
pub(crate) fn within(
    op: &Op,
    operands: &[(ValueType, Pointer)],
    results: &[Pointer],
    scratch: Pointer,
    arch: Arch,
) -> Result<Lowered, String> {
    let types: Vec<ValueType> = operands.iter().map(|(ty, _)| ty.clone()).collect();
    let request = Request { op, operands: &types, results: &op.infer(&types)? };
    let (_, mut lowered) = kernel(&request, arch).map_err(|gap| gap.clause)?;
    let moved = |pointer: &mut Pointer| {
        let target = match pointer.base {
            Base::Operand(index) => operands[index].1,
            Base::Result(index) => results[index],
            Base::Scratch => scratch,
        };
        *pointer = Pointer { base: target.base, offset: target.offset + pointer.offset };
    };
    for arg in lowered.launches.iter_mut().flat_map(|l| &mut l.args) {
        match arg {
            Arg::Pointer(pointer) => moved(pointer),
            Arg::TensorMap(map) => moved(&mut map.base),
            Arg::Null | Arg::Value(_) => {}
        }
    }
    Ok(lowered)
}

/// Sizes of a static type.
pub(crate) fn dims(ty: &lite3r_ir::ValueType) -> Result<Vec<usize>, String> {
    ty.dims().ok_or_else(|| "needs static shapes".to_string())
}
