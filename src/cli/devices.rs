//! `lite3r devices`: what plans can run on here, and what this build cannot.

use super::Common;
use crate::Result;

/// List the devices of this machine, and what adapters lack of what some shaders use; `wgsl:0:plain` names one with all
/// of that held back
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Carries the command out.
pub fn main(common: &Common) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = match pulp::Arch::new() {
        arch if format!("{arch:?}").contains("Scalar") => "baseline",
        _ => "AVX2 and FMA or wider",
    };
    let (cuda, mut missing) = cuda();
    let (wgsl, none) = wgsl();
    missing.extend(none);
    if common.json {
        let mut devices = vec![serde_json::json!({ "name": "cpu", "target": "cpu", "cores": cores, "vectors": lanes })];
        devices.extend(cuda.iter().map(
            |d| serde_json::json!({ "name": d.name, "target": d.target, "card": d.card, "memory_bytes": d.memory }),
        ));
        devices.extend(wgsl.iter().map(|(name, adapter)| {
            serde_json::json!({
                "name": name, "target": "wgsl", "adapter": adapter.name, "api": adapter.api,
                "software": adapter.software, "lacks": adapter.lacks,
            })
        }));
        return super::print_json(&serde_json::json!({ "devices": devices, "missing": missing }));
    }
    super::say!("cpu     target cpu, {cores} cores, vectors: {lanes}");
    for Cuda { name, target, card, memory } in &cuda {
        super::say!("{name:<7} target {target}, {card}, {}", super::bytes(*memory));
    }
    for (name, adapter) in &wgsl {
        let software = if adapter.software { ", software: computes on the CPU" } else { "" };
        let lacks =
            if adapter.lacks.is_empty() { String::new() } else { format!(", lacks {}", adapter.lacks.join(", ")) };
        super::say!("{name:<7} target wgsl, {} through {}{software}{lacks}", adapter.name, adapter.api);
    }
    missing.iter().for_each(|why| super::say!("-       {why}"));
    Ok(())
}

/// A CUDA device.
struct Cuda {
    name: String,
    target: &'static str,
    card: String,
    memory: u64,
}

/// An adapter as builds with and without wgpu know it.
struct Adapter {
    name: String,
    api: String,
    software: bool,
    lacks: Vec<&'static str>,
}

#[cfg(not(feature = "wgpu"))]
fn wgsl() -> (Vec<(String, Adapter)>, Option<String>) {
    (Vec::new(), Some("wgsl: this build has no WGSL backend; build it with `--features wgpu`".into()))
}

/// The adapters of this machine, and why there is none.
#[cfg(feature = "wgpu")]
fn wgsl() -> (Vec<(String, Adapter)>, Option<String>) {
    let named = |(i, a): (usize, crate::backend::wgsl::adapter::Adapter)| {
        (format!("wgsl:{i}"), Adapter { name: a.name, api: a.api, software: a.software, lacks: a.lacks })
    };
    let found: Vec<_> = crate::backend::wgsl::adapter::adapters().into_iter().enumerate().map(named).collect();
    let none = found.is_empty().then(|| "wgsl: no Vulkan, Metal or DirectX 12 driver offers an adapter".to_string());
    (found, none)
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> (Vec<Cuda>, Vec<String>) {
    (Vec::new(), vec!["cuda: this build has no CUDA backend; build it with `--features cuda`".into()])
}

/// The CUDA devices of this machine, and why others are none.
#[cfg(feature = "cuda")]
fn cuda() -> (Vec<Cuda>, Vec<String>) {
    use crate::backend::{
        Device, Trust,
        cuda::{driver, exec::CudaDevice},
    };
    let names = match driver::devices() {
        Ok(names) => names,
        Err(error) => return (Vec::new(), error.problems.iter().map(|p| format!("cuda: {p}")).collect()),
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (ordinal, card) in (0..).zip(names) {
        let device = CudaDevice::new(ordinal, Trust::Own).and_then(|d| Ok((d.target(), d.memory()?)));
        match device {
            Ok((target, memory)) => found.push(Cuda { name: format!("cuda:{ordinal}"), target, card, memory }),
            Err(error) => missing.extend(error.problems.iter().map(|p| format!("cuda:{ordinal}: {p}"))),
        }
    }
    if found.is_empty() && missing.is_empty() {
        missing.push("cuda: the driver knows of no device".into());
    }
    (found, missing)
}
