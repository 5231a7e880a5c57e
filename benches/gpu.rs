//! The CUDA kernels against the reference, on the device of this machine.
//!
//! ```text
//! cargo bench --features cuda --bench gpu -- compile [--arch sm_90a]     every module of every case, into the cache
//! cargo bench --features cuda --bench gpu -- check [--only NAME] [--repeats 3] [--jobs 1] [--small]
//! cargo bench --features cuda --bench gpu -- time [--only NAME] [--torch python3]
//! ```
//!
//! `check` runs every case of every operation on every row that takes it: results in poisoned memory against the
//! evaluation in f64 within the operation's own tolerance, and repeats bit for bit. With `--small` it takes the two
//! smallest cases of every row, in one process: for `tools/sanitize.sh`.

#[path = "gpu/random.rs"]
mod random;
#[path = "gpu/time.rs"]
mod time;

use std::{collections::BTreeMap, process::ExitCode};

use clap::{Parser, Subcommand};
use lite3r::{
    Result,
    backend::{
        Choice, Gap, Request, Target, Trust, cuda,
        cuda::{Arch, Kernel},
    },
    plan::{Entry, EntrySource, Meta, build},
    session::{Options, Session},
    weights::Weights,
};
use lite3r_ir::{
    Bindings, Builder, DType, Graph, Op, Tensor,
    ops::{
        ArgMax, Attention, Case, Linear, MatMul, ReduceMax, ReduceMean, ReduceSum, Resize, ResizeGrad, ScaledLinear,
        Transpose,
        activation::Activation,
        images::ImageLayout,
        quantize::Granularity,
        resize::{Coordinates, ResizeMode},
    },
};
use rayon::prelude::*;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Given by cargo
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Time kernels on the shapes of the models
    Time(time::Args),
    /// Compile what `check` needs
    Compile {
        /// Only rows whose names contain this
        #[arg(long, default_value = "")]
        only: String,
        /// Only the two smallest cases of every row
        #[arg(long)]
        small: bool,
    },
    /// Hold every row against the reference
    Check {
        /// Only rows whose names contain this
        #[arg(long, default_value = "")]
        only: String,
        /// Only the two smallest cases of every row
        #[arg(long)]
        small: bool,
        /// Runs that must agree bit for bit
        #[arg(long, default_value_t = 3)]
        repeats: usize,
        /// Rows that are held at the same time
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        /// The row of exactly this name, in this process
        #[arg(long)]
        row: Option<String>,
        /// The case of the row to begin with
        #[arg(long, default_value_t = 0)]
        from: usize,
    },
}

/// A target with one row.
struct Only(&'static Kernel);

impl Target for Only {
    fn name(&self) -> &'static str {
        cuda::SM_90A.name()
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        match (self.0.lower)(request, Arch::Sm90a) {
            Ok(lowered) => Ok(Choice { kernel: self.0.name, scratch: lowered.scratch }),
            Err(clause) => Err(Gap { nearest: Some(self.0.name), clause }),
        }
    }

    fn modules(&self, entries: &[Entry]) -> Result<Vec<(String, Vec<u8>)>> {
        cuda::SM_90A.modules(entries)
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        vec![(self.0.op, self.0.name, self.0.dtypes.to_vec())]
    }
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Time(args) => time::main(&args),
        Command::Compile { only, small } => compile(&only, small),
        Command::Check { repeats, row: Some(row), from, .. } => return check_row(&row, from, repeats),
        Command::Check { only, repeats, small: true, .. } => return check_small(&only, repeats),
        Command::Check { only, repeats, jobs, row: None, .. } => check(&only, repeats, jobs),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => 6.into(),
        Err(error) => {
            eprintln!("{error}");
            error.exit_code().into()
        }
    }
}

/// Cases that the operations do not bring themselves: the shapes of the models, and ragged ones around the tiles.
fn shapes() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |op: Op, dtypes: &[DType], shapes: &[&[usize]]| {
        let inputs = shapes.iter().zip(dtypes).zip(1..).map(|((shape, dtype), seed)| Tensor::wave(*dtype, shape, seed));
        cases.push(Case::new("shapes", op, inputs.collect()));
    };
    let (f, b) = (DType::F32, DType::BF16);
    for m in [1, 63, 64, 65, 94, 1374] {
        for (n, k) in [(65, 64), (1024, 592), (192, 192)] {
            let op = |activation, bias, residual, out| Linear { activation, residual, out, ..Linear::new(bias) };
            add(op(Activation::Gelu, true, false, None).into(), &[b, b, b], &[&[m, k], &[n, k], &[n]]);
            add(op(Activation::None, true, true, Some(f)).into(), &[b, b, f, f], &[&[m, k], &[n, k], &[n], &[m, n]]);
            add(op(Activation::None, true, true, None).into(), &[f, f, f, f], &[&[m, k], &[n, k], &[n], &[m, n]]);
        }
        let (q, k) = (m.min(300), 300);
        for d in [32, 64, 128] {
            let scale = (d as f64).powf(-0.5);
            add(Attention::new(scale).into(), &[b, b, b], &[&[2, 3, q, d], &[2, 3, k, d], &[2, 3, k, d]]);
            add(Attention::new(scale).into(), &[f, f, f], &[&[2, 3, q, d], &[2, 3, k, d], &[2, 3, k, d]]);
        }
        add(MatMul { transpose_b: true }.into(), &[b, b], &[&[3, m, 64], &[3, 65, 64]]);
        add(Transpose { perm: vec![1, 0] }.into(), &[b], &[&[m, 192]]);
        // Codes within the range that waves of e4m3 cover; scales around one.
        for (n, k, x_scale, columns) in [
            (192, 192, Granularity::Row, 1),
            (1024, 1024, Granularity::Row, 1),
            (65, 64, Granularity::Tensor, 1),
            (256, 1024, Granularity::Columns(256), 4),
            (4096, 128, Granularity::Row, 1),
        ] {
            let scales: &[usize] = match x_scale {
                Granularity::Tensor => &[1, 1],
                _ => &[m, columns],
            };
            for (residual, out, activation) in [(true, f, Activation::None), (false, b, Activation::Gelu)] {
                let w_scale = Granularity::Row;
                let op = ScaledLinear { activation, bias: true, residual, x_scale, w_scale, out, quantize: None };
                let e = DType::F8E4M3;
                let all: [(DType, &[usize]); 6] =
                    [(e, &[m, k]), (f, scales), (e, &[n, k]), (f, &[n, 1]), (f, &[n]), (f, &[m, n])];
                let used = &all[..if residual { 6 } else { 5 }];
                let (dtypes, shapes): (Vec<DType>, Vec<&[usize]>) = used.iter().copied().unzip();
                add(op.into(), &dtypes, &shapes);
            }
        }
    }
    // Few results of many terms, which are reduced in pieces.
    for (shape, axes) in [(&[5, 1374, 192][..], &[0, 1][..]), (&[65, 63, 94], &[0, 1, 2]), (&[6, 4122, 7], &[1])] {
        let axes = axes.to_vec();
        add(ReduceSum { axes: axes.clone(), keep: false }.into(), &[f], &[shape]);
        add(ReduceMax { axes: axes.clone(), keep: false }.into(), &[b], &[shape]);
        add(ReduceMean { axes, keep: true }.into(), &[b], &[shape]);
    }
    add(ArgMax { axis: 1, keep: false }.into(), &[f], &[&[1, 20_000, 3]]);
    let resize = Resize {
        layout: ImageLayout::Pixels,
        ..Resize::new(ResizeMode::Linear, Coordinates::AlignCorners, [63.into(), 94.into()])
    };
    for channels in [24, 9] {
        add(ResizeGrad::of(&resize, [37.into(), 64.into()]).into(), &[b], &[&[2, 63, 94, channels]]);
    }
    cases
}

fn types(case: &Case) -> Vec<lite3r_ir::ValueType> {
    case.inputs.iter().map(Tensor::value_type).collect()
}

/// Every pair of a case and a row that takes it. Cases whose types do not fit the operation are a defect of this file.
fn pairs(only: &str) -> Vec<(Case, &'static Kernel)> {
    let mut pairs = Vec::new();
    for case in Op::all_cases().into_iter().chain(shapes()) {
        let operands = types(&case);
        let results = case.op.infer(&operands).unwrap_or_else(|e| panic!("{} {operands:?}: {e}", case.op.name()));
        let request = Request { op: &case.op, operands: &operands, results: &results };
        for kernel in cuda::rows() {
            let wanted = kernel.op == case.op.name() && kernel.name.contains(only);
            if wanted && (kernel.lower)(&request, Arch::Sm90a).is_ok() {
                pairs.push((case.clone(), kernel));
            }
        }
    }
    pairs
}

/// The two smallest cases of every row.
fn small_pairs(only: &str) -> Vec<(Case, &'static Kernel)> {
    let mut rows: BTreeMap<&str, Vec<(Case, &'static Kernel)>> = BTreeMap::new();
    pairs(only).into_iter().for_each(|pair| rows.entry(pair.1.name).or_default().push(pair));
    let size = |case: &Case| case.inputs.iter().map(Tensor::len).sum::<usize>();
    rows.values_mut().for_each(|cases| cases.sort_by_key(|(case, _)| size(case)));
    rows.into_values().flat_map(|cases| cases.into_iter().take(2)).collect()
}

fn compile(only: &str, small: bool) -> Result<bool> {
    let mut modules = BTreeMap::new();
    for (case, kernel) in if small { small_pairs(only) } else { pairs(only) } {
        let operands = types(&case);
        let results = case.op.infer(&operands).expect("was inferred before");
        let request = Request { op: &case.op, operands: &operands, results: &results };
        let lowered = (kernel.lower)(&request, Arch::Sm90a).expect("was lowered before");
        modules.extend(lowered.launches.into_iter().map(|l| (l.module.key(), l.module)));
    }
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_float()) {
        modules.insert(cuda::tally(dtype).key(), cuda::tally(dtype));
    }
    println!("{} modules", modules.len());
    let modules: Vec<_> = modules.into_values().collect();
    modules.par_iter().try_for_each(|m| cuda::nvrtc::cubin(m, Arch::Sm90a).map(drop))?;
    Ok(true)
}

/// A case that this program has got wrong.
fn failed(error: &dyn std::fmt::Display) -> lite3r::Error {
    lite3r::Error::unsupported("bench.case", error.to_string())
}

/// A row on a case.
fn run(case: &Case, kernel: &'static Kernel, repeats: usize) -> Result<Vec<Vec<Tensor>>> {
    let mut graph = Graph::new("case");
    let inputs: Vec<_> =
        case.inputs.iter().enumerate().map(|(i, t)| graph.input(format!("x{i}"), t.value_type())).collect();
    let results = Builder::new(&mut graph, "case").ops(case.op.clone(), &inputs).map_err(|e| failed(&e))?;
    let names: Vec<String> = (0..results.len()).map(|i| format!("y{i}")).collect();
    names.iter().zip(results).for_each(|(name, value)| graph.output(name, value));
    let source = EntrySource { bindings: Bindings::new(), graph };
    let plan = build(&[source], &Weights::default(), &Only(kernel), Meta::default())?;
    let mut session = Session::new(plan, &Options { trust: Trust::Plan, ..Options::default() })?;
    let inputs = case.inputs.iter().enumerate().map(|(i, t)| (format!("x{i}"), t.clone())).collect();
    (0..repeats.max(1))
        .map(|_| {
            let mut outputs = session.run(0, &inputs)?;
            Ok(names.iter().filter_map(|n| outputs.remove(n)).collect())
        })
        .collect()
}

/// How far results are from the reference, in units of what is allowed; the first problem.
fn judge(case: &Case, kernel: &Kernel, runs: &[Vec<Tensor>]) -> (f64, Option<String>) {
    let results = case.op.infer(&types(case)).expect("was inferred before");
    let want = case.op.eval(&case.inputs.iter().collect::<Vec<_>>(), &results).expect("cases evaluate");
    let mut worst = 0f64;
    for (i, (got, want)) in runs[0].iter().zip(&want).enumerate() {
        let mut tolerance = case.op.tolerance(got.dtype());
        if kernel.name == "scaled_linear.wgmma" {
            // Hopper sums products of e4m3 in 14 bits (DeepSeek-V3, 2024): biased by up to 0.3 % at K = 1024.
            tolerance.relative = tolerance.relative.max(3e-3);
        }
        let (g, w) = (got.to_f64(), want.to_f64());
        let scale = w.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
        let allowed = tolerance.absolute + tolerance.relative * scale;
        for (at, (g, w)) in g.iter().zip(&w).enumerate() {
            if g == w || g.is_nan() && w.is_nan() {
                continue;
            }
            let off = (g - w).abs() / allowed;
            if off.is_nan() || off > 1.0 {
                let near = |g: f64, w: f64| (g - w).abs() <= allowed;
                let bad = got.to_f64().iter().zip(&want.to_f64()).filter(|(g, w)| !near(**g, **w)).count();
                return (off, Some(format!("result {i} [{at}]: {g} for {w}, {bad} of {} wrong", got.len())));
            }
            worst = worst.max(off);
        }
    }
    let differs = runs.iter().any(|r| r.iter().zip(&runs[0]).any(|(a, b)| a.bytes() != b.bytes()));
    (worst, differs.then(|| "repeats differ".to_string()))
}

/// Every row in a process of its own: a kernel that fails takes the context of the device with it.
fn check(only: &str, repeats: usize, jobs: usize) -> Result<bool> {
    let mut rows: Vec<&str> = cuda::rows().map(|k| k.name).collect();
    rows.retain(|name| name.contains(only));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(jobs).build();
    let pool = pool.map_err(|e| lite3r::Error::device("bench.process", e.to_string()))?;
    println!("kernel                           cases   error/allowed");
    let held = pool.install(|| rows.par_iter().map(|row| processes(row, repeats)).collect::<Result<Vec<bool>>>())?;
    let bad = held.iter().filter(|good| !**good).count();
    println!("{} rows: {}", rows.len(), if bad == 0 { "all hold".into() } else { format!("{bad} do not hold") });
    Ok(bad == 0)
}

/// One row, in a process for its cases up to a fault, then in another behind it; whether all hold.
fn processes(row: &str, repeats: usize) -> Result<bool> {
    let failed = |e: std::io::Error| lite3r::Error::device("bench.process", e.to_string());
    let program = std::env::current_exe().map_err(failed)?;
    let (mut from, mut good) = (0, true);
    loop {
        let mut command = std::process::Command::new(&program);
        command.args(["check", "--row", row, "--from", &from.to_string(), "--repeats", &repeats.to_string()]);
        let output = command.output().map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{text}{}", String::from_utf8_lossy(&output.stderr));
        good &= output.status.success();
        match text.lines().last().and_then(|l| l.strip_prefix(FAULT)?.parse::<usize>().ok()) {
            Some(case) => from = case + 1,
            None => return Ok(good),
        }
    }
}

/// The two smallest cases of every row, all in this process.
fn check_small(only: &str, repeats: usize) -> ExitCode {
    let _held = cuda::exec::CudaDevice::new(0, Trust::Plan);
    let (mut cases, mut problems) = (0, Vec::new());
    for (case, kernel) in small_pairs(only) {
        let problem = match run(&case, kernel, repeats) {
            Ok(runs) => judge(&case, kernel, &runs).1,
            Err(error) => Some(error.to_string()),
        };
        cases += 1;
        problems.extend(problem.map(|problem| format!("WRONG {} {}: {problem}", kernel.name, case.name)));
    }
    println!("{cases} cases, {} wrong", problems.len());
    problems.iter().for_each(|p| println!("{p}"));
    if problems.is_empty() && cases > 0 { ExitCode::SUCCESS } else { 6.into() }
}

/// What a process says last that a kernel has taken down: the number of the case follows.
const FAULT: &str = "the device failed in case ";

/// The cases of one row, from a number on.
fn check_row(row: &str, from: usize, repeats: usize) -> ExitCode {
    // Holds the context of the device, which takes longer to make than a case to run.
    let _held = match cuda::exec::CudaDevice::new(0, Trust::Plan) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            return error.exit_code().into();
        }
    };
    let (mut cases, mut worst, mut problems, mut fault) = (0, 0f64, Vec::new(), None);
    let own = pairs(row).into_iter().filter(|(_, k)| k.name == row).enumerate().skip(from);
    for (number, (case, kernel)) in own {
        let shapes: Vec<String> = case.inputs.iter().map(|t| t.value_type().to_string()).collect();
        let what = format!("{row} {} ({}) {}", case.name, shapes.join(", "), lite3r_ir::text::print_op(&case.op));
        cases += 1;
        match run(&case, kernel, repeats) {
            Ok(runs) => {
                let (off, problem) = judge(&case, kernel, &runs);
                worst = worst.max(off);
                problems.extend(problem.map(|p| format!("{what}: {p}")));
            }
            // After a fault nothing runs in this process any more.
            Err(error) => {
                problems.push(format!("{what}: {}", error.problems.join("; ")));
                fault = Some(number);
                break;
            }
        }
    }
    println!("{row:<32} {cases:>5}   {worst:.3}");
    problems.iter().for_each(|p| println!("WRONG {p}"));
    if let Some(number) = fault {
        println!("{FAULT}{number}");
    }
    if problems.is_empty() && cases > 0 { ExitCode::SUCCESS } else { 6.into() }
}
