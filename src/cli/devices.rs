//! `lite3r devices`: what plans can run on here, and what this build cannot.

use super::Common;
use crate::Result;

/// List the devices of this machine
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
    missing.push("wgsl: this lite3r has no WGSL backend yet".into());
    if common.json {
        let mut devices = vec![serde_json::json!({ "name": "cpu", "target": "cpu", "cores": cores, "vectors": lanes })];
        devices.extend(cuda.iter().map(
            |d| serde_json::json!({ "name": d.name, "target": d.target, "card": d.card, "memory_bytes": d.memory }),
        ));
        return super::print_json(&serde_json::json!({ "devices": devices, "missing": missing }));
    }
    super::say!("cpu     target cpu, {cores} cores, vectors: {lanes}");
    for Cuda { name, target, card, memory } in &cuda {
        super::say!("{name:<7} target {target}, {card}, {}", super::bytes(*memory));
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
