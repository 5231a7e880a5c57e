//! The CUDA backend: kernels of `cuda/`, compiled by NVRTC when a plan is made, launched as one graph when it runs.
//!
//! A row of [`KERNELS`] lowers an operation on concrete types to launches ([`launch`]). The plan carries the machine
//! code of every module that its steps launch, so that running needs the driver alone.

pub mod attention;
pub mod attention_e4m3;
pub mod attention_e4m3_mma;
pub mod attention_grad;
pub mod attention_grad_mma;
pub mod attention_grad_wgmma;
pub mod attention_mma;
pub mod attention_wgmma;
pub mod block_mean;
pub mod block_route_mma;
pub mod conv;
pub mod conv_pixels;
pub mod conv_transpose2d;
pub mod conv_weight_grad;
pub mod conv_weight_grad_few;
pub mod conv_weight_grad_wgmma;
pub mod conv_wgmma;
pub mod driver;
pub mod elementwise;
pub mod exec;
pub mod gemm;
pub mod gemm_narrow;
pub mod gemm_wgmma;
pub mod gemv;
pub mod indexing;
pub mod launch;
pub mod linear_attention_mma;
pub mod movement;
pub mod norm;
pub mod nvrtc;
pub mod product;
pub mod qkv_heads;
pub mod qkv_linear;
pub mod quantize_items;
pub mod reduce;
pub mod resize;
pub mod rope;
pub mod sass;
pub mod self_attention;
pub mod softmax;
pub mod sparse;
mod staging;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;

use launch::{Arg, Base, Lowered, Module, Pointer};
use lite3r_ir::{DType, Op, ValueType};
use rayon::prelude::*;

pub(crate) use super::gpu::dims;
use super::{Ceilings, Choice, DenseHeads, Gap, Request, Target, gpu::floats};
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

    /// The best of a card of this generation.
    pub const fn ceilings(self) -> Ceilings {
        match self {
            Self::Sm80 => {
                Ceilings { fp8: 312e12, half: 312e12, f32: 19.5e12, bytes: 1.56e12, source: "A100 40 GB, as published" }
            }
            Self::Sm89 => {
                Ceilings { fp8: 362e12, half: 181e12, f32: 91.6e12, bytes: 0.864e12, source: "L40, as published" }
            }
            Self::Sm90a => {
                Ceilings { fp8: 1736e12, half: 850e12, f32: 60e12, bytes: 4.1e12, source: "H200, as measured" }
            }
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
    gemm_narrow::KERNELS,
    gemm_wgmma::KERNELS,
    gemm::KERNELS,
    conv_pixels::KERNELS,
    conv_wgmma::KERNELS,
    conv::KERNELS,
    qkv_heads::KERNELS,
    movement::KERNELS,
    softmax::KERNELS,
    resize::KERNELS,
    conv_transpose2d::KERNELS,
    conv_weight_grad_few::KERNELS,
    conv_weight_grad_wgmma::KERNELS,
    conv_weight_grad::KERNELS,
    indexing::KERNELS,
    reduce::KERNELS,
    block_mean::KERNELS,
    norm::KERNELS,
    quantize_items::KERNELS,
    rope::KERNELS,
    self_attention::KERNELS,
    attention_wgmma::KERNELS,
    attention_mma::KERNELS,
    attention_e4m3::KERNELS,
    attention_e4m3_mma::KERNELS,
    attention::KERNELS,
    attention_grad_wgmma::KERNELS,
    attention_grad_mma::KERNELS,
    attention_grad::KERNELS,
    block_route_mma::KERNELS,
    linear_attention_mma::KERNELS,
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

    /// The version of CUDA that a driver must know to run what the compiler of this machine makes.
    fn limits(&self, _: &[Entry]) -> BTreeMap<String, u64> {
        let version = nvrtc::version().ok().and_then(|(major, _)| u64::try_from(major).ok());
        version.map(|major| (DRIVER.to_string(), major * 1000)).into_iter().collect()
    }

    fn ceilings(&self) -> Option<Ceilings> {
        Some(self.arch.ceilings())
    }

    fn prefers(&self) -> Option<DType> {
        Some(DType::BF16)
    }

    fn multiplies_codes(&self) -> bool {
        self.arch != Arch::Sm80
    }

    fn dense_heads(&self) -> DenseHeads {
        DenseHeads { channels_last: true, frames: Some(8) }
    }

    fn joint_heads(&self) -> Option<&'static str> {
        (self.arch == Arch::Sm90a).then_some("{widths=[64,128]}")
    }

    fn coded_attention(&self) -> Option<&'static str> {
        (self.arch == Arch::Sm90a).then_some("{widths=[64,128],blocks=[16,32,64,128],queries=128}")
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
            wanted.extend(tallies(entry).map(tally).map(|module| (module.key(), module)));
        }
        let wanted: Vec<(String, Module)> = wanted.into_iter().collect();
        wanted.into_par_iter().map(|(key, module)| Ok((key, nvrtc::cubin(&module, self.arch)?))).collect()
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        rows().map(|k| (k.op, k.name, k.dtypes.to_vec())).collect()
    }
}

/// The limit of plans that the driver must meet: its version of CUDA, 13000 for 13.0.
pub const DRIVER: &str = "cuda_driver";

/// The module that tallies tensors of an element type, see [`super::Tally`].
pub fn tally(dtype: DType) -> Module {
    Module::new("tally.cu").element("TX", dtype)
}

/// The element types of results that are tallied.
pub fn tallies(entry: &Entry) -> impl Iterator<Item = DType> {
    let results = entry.steps.iter().flat_map(|s| &s.results).map(|n| entry.buffers[*n as usize].ty.dtype);
    let mut all: Vec<DType> = results.filter(|dtype| dtype.is_float()).collect();
    all.sort_by_key(|dtype| dtype.name());
    all.dedup();
    all.into_iter()
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
            Arg::PixelMap(map) => moved(&mut map.base),
            Arg::Null | Arg::Value(_) => {}
        }
    }
    Ok(lowered)
}

/// What computes an operation to scratch memory, and behind it `codes`, whose results are those of the request.
pub(crate) fn quantized_behind(plain: &Op, codes: &Op, request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let y = plain.infer(request.operands)?.remove(0);
    let inner_at = y.bytes().ok_or("needs static shapes")?.next_multiple_of(256);
    let at = |base, offset: usize| Pointer { base, offset: offset as u64 };
    let operands: Vec<(ValueType, Pointer)> =
        request.operands.iter().enumerate().map(|(i, ty)| (ty.clone(), at(Base::Operand(i), 0))).collect();
    let (wide, inner) = (at(Base::Scratch, 0), at(Base::Scratch, inner_at));
    let product = within(plain, &operands, &[wide], inner, arch)?;
    let results = [at(Base::Result(0), 0), at(Base::Result(1), 0)];
    let codes = within(codes, &[(y, wide)], &results, inner, arch)?;
    let scratch = inner_at + product.scratch.max(codes.scratch);
    Ok(Lowered { launches: [product.launches, codes.launches].concat(), scratch })
}

/// What computes an operation as result 0, and behind it max(y, 0) as result 1.
pub(crate) fn rectified_behind(plain: &Op, request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let y = plain.infer(request.operands)?.remove(0);
    let at = |base| Pointer { base, offset: 0 };
    let operands: Vec<(ValueType, Pointer)> =
        request.operands.iter().enumerate().map(|(i, ty)| (ty.clone(), at(Base::Operand(i)))).collect();
    let mut all = within(plain, &operands, &[at(Base::Result(0))], at(Base::Scratch), arch)?;
    let relu = lite3r_ir::ops::Relu {}.into();
    let positive = within(&relu, &[(y, at(Base::Result(0)))], &[at(Base::Result(1))], at(Base::Scratch), arch)?;
    all.launches.extend(positive.launches);
    Ok(Lowered { scratch: all.scratch.max(positive.scratch), ..all })
}
