//! `lite3r bench`: how long a plan takes, and which kernels the time goes to.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use lite3r_ir::{DType, Tensor};

use super::{
    Common, bytes,
    run::{DeviceArgs, finite},
    say,
};
use crate::{
    Error, Result,
    backend::{Ceilings, Probe, StepRun, target},
    eval::depth::median,
    plan::{ALIAS, Entry, Port, Step, inspect},
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
    /// Sums over operations and over the first parts of nodes' names, beside those over kernels
    #[arg(long)]
    profile: bool,
    /// How many parts of a node's name make a group of the profile
    #[arg(long, value_name = "N", default_value_t = 2)]
    depth: usize,
    /// Every step by itself, not only sums
    #[arg(long)]
    steps: bool,
    /// Look at the results of every step before any is timed, as `lite3r run --check-finite` does
    #[arg(long)]
    check_finite: bool,
    /// Print what each part of loading takes
    #[arg(long)]
    time: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What some steps take together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    steps: usize,
    seconds: f64,
    flops: f64,
    bytes: f64,
    /// The least time by the ceilings of the device, if they are known.
    least: f64,
}

impl Row {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.seconds += other.seconds;
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.least += other.least;
    }

    /// Percent of the ceiling.
    fn reached(&self) -> f64 {
        100.0 * self.least / self.seconds
    }

    fn text(&self, whole: f64, ceilings: bool) -> String {
        let Self { steps, seconds, flops, bytes, .. } = self;
        let reached = if ceilings { format!("{:>7.1}%", self.reached()) } else { "       -".into() };
        format!(
            "{steps:>6} {:>10.4} {:>5.1}% {:>9.2} {:>9.1} {:>8.1} {:>8.0} {reached}",
            seconds * 1e3,
            100.0 * seconds / whole,
            flops / 1e9,
            bytes / 1e6,
            flops / seconds / 1e12,
            bytes / seconds / 1e9
        )
    }

    fn json(&self, name: &str) -> serde_json::Value {
        serde_json::json!({
            "name": name, "steps": self.steps, "seconds": self.seconds, "flops": self.flops, "bytes": self.bytes,
            "least_seconds": self.least,
        })
    }
}

const COLUMNS: &str = " steps         ms  share     GFLOP        MB  TFLOP/s     GB/s  ceiling";

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let start = Instant::now();
    let mut session = Session::open(&args.plan, &args.device.options())?;
    let load = start.elapsed();
    let entry = session.plan().entries().get(args.entry).cloned();
    let entry = entry.ok_or_else(|| Error::usage("run.entry", format!("the plan has no entry {}", args.entry)))?;
    let inputs = random(&entry);
    let start = Instant::now();
    session.run(args.entry, &inputs)?;
    let first = start.elapsed();
    if args.check_finite {
        let (_, saturated) = session.check_finite(args.entry, &inputs)?;
        eprint!("{}", finite(entry.steps.len(), &saturated));
    }
    session.time(args.entry, &inputs, 3)?;
    let times = session.time(args.entry, &inputs, args.runs.max(1))?;
    let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);

    let mut each: Vec<Vec<f64>> = vec![Vec::new(); entry.steps.len()];
    for _ in 0..5 {
        let mut seen = |run: StepRun<'_>| each[run.index].push(run.time.as_secs_f64());
        session.run_with(args.entry, &inputs, Probe::Times(&mut seen))?;
    }
    let ceilings = target(&session.plan().header().target)?.ceilings();
    let views = &inspect::inspect(session.plan()).entries[args.entry].steps;
    let rows: Vec<Row> = (entry.steps.iter().zip(views).zip(each))
        .map(|((step, view), times)| {
            let seconds = median(times.into_iter());
            let least = ceilings.map_or(0.0, |c| least(&c, &entry, step, view.flops, view.bytes));
            Row { steps: 1, seconds, flops: view.flops, bytes: view.bytes, least }
        })
        .collect();
    // By the rows that ran, which are not those of the plan where the device has better ones.
    let mut ran = entry.steps.clone();
    ran.iter_mut().enumerate().for_each(|(i, step)| step.kernel = session.kernel(args.entry, i).into());
    let steps: Vec<(&Step, &Row)> = ran.iter().zip(&rows).filter(|(s, _)| s.kernel != ALIAS).collect();
    let mut all = Row::default();
    steps.iter().for_each(|(_, row)| all.add(row));
    let kernels = groups(&steps, |step| step.kernel.clone());
    let ops = groups(&steps, |step| step.op.name().to_string());
    let nodes = groups(&steps, |step| prefix(&step.origin, args.depth));
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    if common.json {
        let json = |rows: &[(String, Row)]| rows.iter().map(|(name, row)| row.json(name)).collect::<Vec<_>>();
        let parts: BTreeMap<&str, f64> = session.load_times().iter().map(|(p, t)| (*p, t.as_secs_f64())).collect();
        return super::print_json(&serde_json::json!({
            "seconds": at(0.5), "seconds_10": at(0.1), "seconds_90": at(0.9), "runs": times.len(),
            "load_seconds": load.as_secs_f64(), "load_parts": parts, "first_run_seconds": first.as_secs_f64(),
            "allocated_bytes": session.allocated_bytes(), "kernels": json(&kernels), "ops": json(&ops),
            "nodes": json(&nodes),
        }));
    }
    say!(
        "{:.3} ms a run (median of {}; {:.3} to {:.3} without the fastest and slowest tenth), {} allocated",
        at(0.5) * 1e3,
        times.len(),
        at(0.1) * 1e3,
        at(0.9) * 1e3,
        bytes(session.allocated_bytes())
    );
    say!("loaded in {:.2} s, first run {:.3} s", load.as_secs_f64(), first.as_secs_f64());
    if args.time {
        session.load_times().iter().for_each(|(part, time)| say!("  {part:<10} {:>9.1} ms", time.as_secs_f64() * 1e3));
    }
    let (known, whole) = (ceilings.is_some(), all.seconds);
    say!("kernels one by one: {:.3} ms together", whole * 1e3);
    if let Some(Ceilings { fp8, half, f32, bytes, source }) = ceilings {
        let [fp8, half, f32] = [fp8, half, f32].map(|rate| rate / 1e12);
        say!(
            "ceiling: {fp8:.0} TFLOP/s in FP8, {half:.0} in 16 bits, {f32:.0} in f32, {:.2} TB/s ({source})",
            bytes / 1e12
        );
    }
    let table = |title: &str, rows: &[(String, Row)]| {
        say!("\n{title:<36}{COLUMNS}");
        rows.iter().for_each(|(name, row)| say!("{name:<36}{}", row.text(whole, known)));
    };
    table("kernel", &kernels);
    if args.profile {
        table("operation", &ops);
        table("nodes", &nodes);
    }
    say!("{:<36}{}", "together", all.text(whole, known));
    if args.steps {
        say!("\n{:<36}{COLUMNS}  types, origin", "step");
        for (i, (step, row)) in ran.iter().zip(&rows).enumerate().filter(|(_, (s, _))| s.kernel != ALIAS) {
            let name = format!("{i:>4} {}", step.kernel);
            say!("{name:<36}{}  {} {}", row.text(whole, known), views[i].operands.join(", "), step.origin);
        }
    }
    Ok(())
}

/// The least seconds of a step.
fn least(ceilings: &Ceilings, entry: &Entry, step: &Step, flops: f64, bytes: f64) -> f64 {
    let dtype = step.operands.first().map_or(DType::F32, |n| entry.buffers[*n as usize].ty.dtype);
    ceilings.seconds(&step.kernel, dtype, flops, bytes)
}

/// Sums over groups, the longest first.
fn groups(steps: &[(&Step, &Row)], name: impl Fn(&Step) -> String) -> Vec<(String, Row)> {
    let mut sums: BTreeMap<String, Row> = BTreeMap::new();
    steps.iter().for_each(|(step, row)| sums.entry(name(step)).or_default().add(row));
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    sums
}

/// The first parts of a node's name, numbers left out: `blocks.3.attn.proj` is of `blocks.*.attn` at depth 2.
fn prefix(origin: &str, depth: usize) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut named = 0;
    for part in origin.split(['.', '/']).filter(|part| !part.is_empty()) {
        let number = part.bytes().all(|b| b.is_ascii_digit());
        if !number && named == depth {
            break;
        }
        named += usize::from(!number);
        parts.push(if number { "*" } else { part });
    }
    if parts.is_empty() { "(unnamed)".into() } else { parts.join(".") }
}

/// Numbers in 0..1 for every floating-point input, zeros for the others; seeded.
fn random(entry: &Entry) -> BTreeMap<String, Tensor> {
    let mut rng = Stream::new(&[1]);
    let mut tensor = |port: &Port| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_grouped_by_the_beginning_of_their_names() {
        let shown = ["blocks.3.attn.proj", "/head/conv.1/Add", "norm", ""].map(|origin| prefix(origin, 2));
        assert_eq!(shown, ["blocks.*.attn", "head.conv.*", "norm", "(unnamed)"]);
    }

    #[test]
    fn the_ceiling_is_the_longer_of_computing_and_moving() {
        let ceilings = Ceilings { fp8: 1000.0, half: 500.0, f32: 100.0, bytes: 10.0, source: "made up" };
        let seconds = |kernel: &str, dtype, flops, bytes| ceilings.seconds(kernel, dtype, flops, bytes);
        assert_eq!(seconds("scaled_linear.wgmma", DType::F8E4M3, 1000.0, 5.0), 1.0);
        assert_eq!(seconds("linear.mma", DType::BF16, 1000.0, 5.0), 2.0);
        assert_eq!(seconds("linear.fma", DType::BF16, 1000.0, 5.0), 10.0);
        assert_eq!(seconds("add.elementwise", DType::F32, 1.0, 50.0), 5.0);
    }
}
