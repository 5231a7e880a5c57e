//! NVRTC: from a source file of `cuda/` to a cubin, on any machine that has the library.
//!
//! Cubins are kept in a cache by the hash of everything that they depend on: sources, macros, architecture, version of
//! the compiler. `LITE3R_CACHE` names the folder; otherwise it is `lite3r` in the user's cache folder.

#![allow(unsafe_code)] // calls into a C library

use std::{
    ffi::{CStr, CString, c_char},
    path::{Path, PathBuf},
    ptr,
};

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};

use super::{super::gpu::cache, Arch, launch::Module};
use crate::{Error, Kind, Result};

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../../cuda/", $name)))),*] };
}

/// The kernels.
pub const FILES: &[(&str, &str)] = sources![
    "qkv_heads.cu",
    "elementwise.cu",
    "tally.cu",
    "gemm.cu",
    "gemm_mma.cu",
    "gemm_narrow.cu",
    "gemm_wgmma.cu",
    "gemv.cu",
    "conv2d.cu",
    "conv2d_mma.cu",
    "conv2d_pixels.cu",
    "conv2d_wgmma.cu",
    "conv2d_weight_grad.cu",
    "conv2d_weight_grad_few.cu",
    "conv2d_weight_grad_mma.cu",
    "conv2d_weight_grad_wgmma.cu",
    "parts.cu",
    "movement.cu",
    "softmax.cu",
    "resize.cu",
    "resize_pixels.cu",
    "resize_grad.cu",
    "conv_transpose2d.cu",
    "indexing.cu",
    "scatter_add.cu",
    "reduce.cu",
    "block_mean.cu",
    "layer_norm.cu",
    "layer_norm_grad.cu",
    "dequantize.cu",
    "quantize_items.cu",
    "rope.cu",
    "attention.cu",
    "attention_grad.cu",
    "attention_grad_mma.cu",
    "attention_grad_sm90.cu",
    "self_attention.cu",
    "attention_codes.cu",
    "attention_e4m3_mma.cu",
    "attention_e4m3_sm90.cu",
    "attention_sm90.cu",
    "attention_mma.cu",
    "block_route.cu",
    "block_transpose.cu",
    "block_route_mma.cu",
    "linear_attention.cu",
    "linear_attention_mma.cu",
];

/// What the kernels include, by the name in the `#include`.
const HEADERS: &[(&str, &str)] = &[
    ("activations.cuh", include_str!("../../../cuda/include/activations.cuh")),
    ("rows.cuh", include_str!("../../../cuda/include/rows.cuh")),
    ("pairs.cuh", include_str!("../../../cuda/include/pairs.cuh")),
    ("vectors.cuh", include_str!("../../../cuda/include/vectors.cuh")),
    ("types.cuh", include_str!("../../../cuda/include/types.cuh")),
    ("blocks.cuh", include_str!("../../../cuda/include/blocks.cuh")),
    ("centroids.cuh", include_str!("../../../cuda/include/centroids.cuh")),
    ("strides.cuh", include_str!("../../../cuda/include/strides.cuh")),
    ("epilogue.cuh", include_str!("../../../cuda/include/epilogue.cuh")),
    ("resize.cuh", include_str!("../../../cuda/include/resize.cuh")),
    ("weight_grad.cuh", include_str!("../../../cuda/include/weight_grad.cuh")),
    ("convolution.cuh", include_str!("../../../cuda/include/convolution.cuh")),
    ("attention_grad.cuh", include_str!("../../../cuda/include/attention_grad.cuh")),
    ("attention_codes.cuh", include_str!("../../../cuda/include/attention_codes.cuh")),
    ("attention_weights.cuh", include_str!("../../../cuda/include/attention_weights.cuh")),
    ("halves.cuh", include_str!("../../../cuda/include/halves.cuh")),
    ("tiles.cuh", include_str!("../../../cuda/include/tiles.cuh")),
    ("shared.cuh", include_str!("../../../cuda/include/shared.cuh")),
    ("heads.cuh", include_str!("../../../cuda/include/heads.cuh")),
    ("mma.cuh", include_str!("../../../cuda/include/mma.cuh")),
    ("sm90.cuh", include_str!("../../../cuda/include/sm90.cuh")),
    ("wgmma.cuh", include_str!("../../../cuda/include/wgmma.cuh")),
];

/// Machine code with what the compiler said about it.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// An ELF file for one architecture.
    pub bytes: Vec<u8>,
    /// Registers, spills and warnings of every kernel. Empty if it came from the cache.
    pub log: String,
}

/// Whether this machine has NVRTC.
pub fn is_present() -> bool {
    // SAFETY: looks a library up; the functions that run when it is loaded are NVIDIA's own.
    unsafe { sys::is_culib_present() }
}

/// The machine code of a module, from the cache where it is there. Errors: `cuda.nvrtc` without the library,
/// `cuda.compile` with the compiler's log.
pub fn cubin(module: &Module, arch: Arch) -> Result<Vec<u8>> {
    let Some(folder) = cache::folder() else { return Ok(compile(module, arch)?.bytes) };
    let path = folder.join("kernels").join(format!("{}.cubin", key(module, arch)?));
    if let Ok(bytes) = std::fs::read(&path) {
        return Ok(bytes);
    }
    let made = compile(module, arch)?;
    cache::keep(&path, &made.bytes)?;
    cache::keep(&own(&folder, &made.bytes), module.key().as_bytes())?;
    Ok(made.bytes)
}

/// Whether this machine has compiled these bytes itself, as far as its cache remembers.
pub fn is_own(cubin: &[u8]) -> bool {
    cache::folder().is_some_and(|folder| own(&folder, cubin).exists())
}

fn own(folder: &Path, cubin: &[u8]) -> PathBuf {
    folder.join("own").join(blake3::hash(cubin).to_hex().as_str())
}

/// A hash of all that the machine code of a module depends on.
fn key(module: &Module, arch: Arch) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let (major, minor) = version()?;
    let mut add = |part: &str| {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    add(&format!("{major}.{minor} {} {}", arch.name(), module.key()));
    add(if every_lane() { EVERY_LANE } else { "" });
    add(source(module)?);
    HEADERS.iter().for_each(|(_, text)| add(text));
    Ok(hash.finalize().to_hex().to_string())
}

/// Set to 1, all lanes of warps arrive at barriers where one arrives for them otherwise (`cuda/include/sm90.cuh`): for
/// `tools/sanitize.sh`.
const EVERY_LANE: &str = "LITE3R_EVERY_LANE";

fn every_lane() -> bool {
    std::env::var_os(EVERY_LANE).is_some_and(|value| value == "1")
}

fn source(module: &Module) -> Result<&'static str> {
    let found = FILES.iter().find(|(name, _)| *name == module.file);
    found.map(|(_, text)| *text).ok_or_else(|| {
        Error::new(Kind::Unsupported, "cuda.source", format!("this lite3r has no kernel file `{}`", module.file))
    })
}

/// The version of NVRTC: (13, 0).
pub fn version() -> Result<(i32, i32)> {
    if !is_present() {
        let problem = "kernels cannot be compiled: NVRTC (libnvrtc.so.12 or .13) was not found; install the CUDA \
                       toolkit or the wheel nvidia-cuda-nvrtc, and put its folder on LD_LIBRARY_PATH";
        return Err(Error::new(Kind::Compiler, "cuda.nvrtc", problem));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both point to integers that live through the call.
    check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) }, "nvrtcVersion")?;
    Ok((major, minor))
}

/// Compiles a module, whatever the cache holds. Errors: as [`cubin`].
pub fn compile(module: &Module, arch: Arch) -> Result<Cubin> {
    version()?;
    let key = module.key();
    let text = |s: &str| {
        CString::new(s).map_err(|_| Error::new(Kind::Compiler, "cuda.compile", format!("{key}: a zero byte")))
    };
    let (code, name) = (text(source(module)?)?, text(module.file)?);
    let headers: Vec<CString> = HEADERS.iter().map(|(_, t)| text(t)).collect::<Result<_>>()?;
    let names: Vec<CString> = HEADERS.iter().map(|(n, _)| text(n)).collect::<Result<_>>()?;
    let mut options =
        vec![format!("--gpu-architecture={}", arch.name()), "--std=c++17".into(), "--ptxas-options=-v".into()];
    options.extend(module.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options.extend(every_lane().then(|| "-DEVERY_LANE=1".into()));
    let options: Vec<CString> = options.iter().map(|o| text(o)).collect::<Result<_>>()?;
    let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
    let (headers, names, options) = (pointers(&headers), pointers(&names), pointers(&options));

    let mut program: nvrtcProgram = ptr::null_mut();
    // SAFETY: every string is terminated and lives through the call; the counts are those of the arrays.
    let made = unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            code.as_ptr(),
            name.as_ptr(),
            headers.len() as i32,
            headers.as_ptr(),
            names.as_ptr(),
        )
    };
    check(made, "nvrtcCreateProgram")?;
    let program = Program(program);
    // SAFETY: the program exists, the options live through the call.
    let done = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    let log = program.log()?;
    if done != nvrtcResult::NVRTC_SUCCESS {
        return Err(Error::new(Kind::Compiler, "cuda.compile", format!("{key} for {}:\n{log}", arch.name())));
    }
    Ok(Cubin { bytes: program.cubin()?, log })
}

struct Program(nvrtcProgram);

impl Program {
    fn log(&self) -> Result<String> {
        let mut size = 0;
        // SAFETY: the program exists; the size lives through the call.
        check(unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut size) }, "nvrtcGetProgramLogSize")?;
        let mut log = vec![0u8; size.max(1)];
        // SAFETY: the buffer has the length that was asked for.
        check(unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) }, "nvrtcGetProgramLog")?;
        let log = CStr::from_bytes_until_nul(&log).map(|s| s.to_string_lossy().into_owned());
        Ok(log.unwrap_or_default())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is compiled; the size lives through the call.
        check(unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) }, "nvrtcGetCUBINSize")?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the buffer has the length that was asked for.
        check(unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }, "nvrtcGetCUBIN")?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program exists and is not used afterwards. A failure would leak it, nothing more.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn check(result: nvrtcResult, call: &str) -> Result<()> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err(Error::new(Kind::Compiler, "cuda.nvrtc", format!("{call}: {error:?}"))),
    }
}
