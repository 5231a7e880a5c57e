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
    if common.json {
        let devices = serde_json::json!([{ "name": "cpu", "target": "cpu", "cores": cores, "vectors": lanes }]);
        return super::print_json(&serde_json::json!({ "devices": devices, "missing": MISSING }));
    }
    println!("cpu     target cpu, {cores} cores, vectors: {lanes}");
    MISSING.iter().for_each(|why| println!("-       {why}"));
    Ok(())
}

/// What this build has no devices for.
const MISSING: &[&str] = &["cuda: this build has no CUDA backend", "wgsl: this build has no WGSL backend"];
