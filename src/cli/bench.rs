//! `lite3r bench`: how long a plan takes, and which kernels the time goes to.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use lite3r_ir::Tensor;

use super::{Common, bytes, run::DeviceArgs};
use crate::{
    Error, Result,
    backend::Probe,
    eval::depth::median,
    plan::{Entry, inspect},
    rng::Stream,
    session::Session,
};

/// Time a plan on random inputs, whole and kernel by kernel
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The plan
    #[arg(value_name = "PLAN.l3r")]
    plan: PathBuf,
    /// Which entry, where the plan has several
    #[arg(long, value_name = "N", default_value_t = 0)]
    entry: usize,
    /// Timed runs; three more warm the device up
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// Every step by itself, not only sums over kernels
    #[arg(long)]
    steps: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What the steps of one kernel take together.
#[derive(Default)]
struct Row {
    steps: usize,
    seconds: f64,
    flops: f64,
    bytes: f64,
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let start = Instant::now();
    let mut session = Session::open(&args.plan, &args.device.options())?;
    let load = start.elapsed();
    let view = inspect::inspect(session.plan());
    let entry = session.plan().entries().get(args.entry);
    let entry = entry.ok_or_else(|| Error::usage("run.entry", format!("the plan has no entry {}", args.entry)))?;
    let inputs = random(entry);
    let start = Instant::now();
    session.run(args.entry, &inputs)?;
    let first = start.elapsed();
    session.time(args.entry, &inputs, 3)?;
    let times = session.time(args.entry, &inputs, args.runs.max(1))?;
    let whole = median(times.iter().map(Duration::as_secs_f64));

    let steps = &view.entries[args.entry].steps;
    let mut each: Vec<Vec<f64>> = vec![Vec::new(); steps.len()];
    for _ in 0..5 {
        let mut seen = |run: crate::backend::StepRun<'_>| each[run.index].push(run.time.as_secs_f64());
        session.run_with(args.entry, &inputs, Probe::Times(&mut seen))?;
    }
    let each: Vec<f64> = each.into_iter().map(|times| median(times.into_iter())).collect();
    let mut kernels: BTreeMap<&str, Row> = BTreeMap::new();
    for (step, seconds) in steps.iter().zip(&each).filter(|(s, _)| s.kernel != crate::plan::ALIAS) {
        let row = kernels.entry(&step.kernel).or_default();
        row.steps += 1;
        row.seconds += seconds;
        row.flops += step.flops;
        row.bytes += step.bytes;
    }
    let mut kernels: Vec<(&str, Row)> = kernels.into_iter().collect();
    kernels.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let sum: f64 = kernels.iter().map(|(_, r)| r.seconds).sum();
    if common.json {
        let rows = kernels.iter().map(|(name, r)| {
            serde_json::json!({ "kernel": name, "steps": r.steps, "seconds": r.seconds, "flops": r.flops, "bytes": r.bytes })
        });
        return super::print_json(&serde_json::json!({
            "seconds": whole, "load_seconds": load.as_secs_f64(), "first_run_seconds": first.as_secs_f64(),
            "allocated_bytes": session.allocated_bytes(), "kernels": rows.collect::<Vec<_>>(),
        }));
    }
    println!(
        "{:.3} ms a run (median of {}), {} allocated, loaded in {:.2} s, first run {:.3} s",
        whole * 1e3,
        times.len(),
        bytes(session.allocated_bytes()),
        load.as_secs_f64(),
        first.as_secs_f64()
    );
    println!("kernels one by one: {:.3} ms together", sum * 1e3);
    println!("kernel                         steps         ms  share   TFLOP/s      GB/s");
    for (name, row) in &kernels {
        println!("{name:<28} {}", line(row, sum));
    }
    if args.steps {
        println!("\nstep kernel                            ms   TFLOP/s      GB/s  types, origin");
        for (i, (step, seconds)) in
            steps.iter().zip(&each).enumerate().filter(|(_, (s, _))| s.kernel != crate::plan::ALIAS)
        {
            println!(
                "{i:>4} {:<26} {:>9.4} {:>9.1} {:>9.0}  {} {}",
                step.kernel,
                seconds * 1e3,
                step.flops / seconds / 1e12,
                step.bytes / seconds / 1e9,
                step.operands.join(", "),
                step.origin
            );
        }
    }
    Ok(())
}

fn line(row: &Row, sum: f64) -> String {
    let Row { steps, seconds, flops, bytes } = row;
    let share = 100.0 * seconds / sum;
    let (rate, traffic) = (flops / seconds / 1e12, bytes / seconds / 1e9);
    format!("{steps:>7} {:>10.3} {share:>5.1}% {rate:>9.1} {traffic:>9.0}", seconds * 1e3)
}

/// Numbers in 0..1 for every floating-point input, zeros for the others; seeded.
fn random(entry: &Entry) -> BTreeMap<String, Tensor> {
    let mut rng = Stream::new(&[1]);
    let mut tensor = |port: &crate::plan::Port| {
        let ty = &entry.buffers[port.buffer as usize].ty;
        let shape = ty.dims().unwrap_or_default();
        let count = shape.iter().product();
        let tensor = match ty.dtype.is_float() {
            true => {
                Tensor::from_f32(&shape, (0..count).map(|_| rng.unit() as f32).collect::<Vec<f32>>()).cast(ty.dtype)
            }
            false => Tensor::from_i64(ty.dtype, &shape, &vec![0; count]),
        };
        (port.name.clone(), tensor)
    };
    entry.inputs.iter().map(&mut tensor).collect()
}
