//! `lite3r inspect`: what a plan holds.

use std::path::PathBuf;

use super::{Common, bytes};
use crate::{
    Result,
    plan::{OpenOptions, Plan, inspect::inspect},
};

/// Show what a plan holds: steps, kernels, memory, weights
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The plan
    #[arg(value_name = "PLAN.l3r")]
    plan: PathBuf,
    /// Every step with its floating-point operations, bytes and the memory in use
    #[arg(long)]
    cost: bool,
    /// The text of the graph of every entry
    #[arg(long)]
    ir: bool,
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let plan = Plan::open(&args.plan, &OpenOptions { verify: false, ..OpenOptions::default() })?;
    let view = inspect(&plan);
    if common.json {
        return super::print_json(&view);
    }
    let meta = plan.meta();
    super::say!("{} for {}, family {:?}", view.producer, view.target, meta.family);
    if let Some(images) = &meta.images {
        let (height, width) = images.size;
        let normalised = if images.normalised_in_graph { "in the graph" } else { "by the runner" };
        super::say!("images `{}` {height}x{width}, {}, normalised {normalised}", images.name, images.preprocess);
    }
    meta.provenance.iter().for_each(|(key, value)| super::say!("{key}: {value}"));
    super::say!("{} weights, {}", view.weights.len(), bytes(view.weight_bytes));
    for (entry, source) in view.entries.iter().zip(plan.entries()) {
        let bindings: Vec<String> = entry.bindings.iter().map(|(s, n)| format!("{s}={n}")).collect();
        super::say!("\nentry {}", if bindings.is_empty() { "as exported".into() } else { bindings.join(",") });
        entry.inputs.iter().for_each(|(name, ty)| super::say!("  in  {name}: {ty}"));
        entry.outputs.iter().for_each(|(name, ty)| super::say!("  out {name}: {ty}"));
        super::say!(
            "  {} steps, {:.2} GFLOP, arena {}, peak of a run {}",
            entry.steps.len(),
            entry.flops / 1e9,
            bytes(entry.arena_bytes),
            bytes(entry.peak_bytes)
        );
        for (kernel, (steps, flops)) in &entry.kernels {
            super::say!("  {kernel:<28} {steps:>5}  {:>10.3} GFLOP", flops / 1e9);
            for (other, needs) in entry.stand_ins.get(kernel).into_iter().flatten() {
                super::say!("    or {other} where a device has {needs}");
            }
        }
        if args.cost {
            super::say!("  step kernel                         MFLOP        MB    live MB  origin");
            for (i, step) in entry.steps.iter().enumerate() {
                super::say!(
                    "  {i:>4} {:<26} {:>10.2} {:>9.2} {:>10.2}  {}",
                    step.kernel,
                    step.flops / 1e6,
                    step.bytes / 1e6,
                    step.live_bytes as f64 / 1e6,
                    step.origin
                );
            }
        }
        if args.ir {
            super::say!("{}", source.ir);
        }
    }
    Ok(())
}
