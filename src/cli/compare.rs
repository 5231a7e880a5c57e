//! `lite3r compare`: a plan against recorded results.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lite3r_ir::{Tensor, interpret::InterpretError};
use serde::Serialize;

use super::{Common, run::DeviceArgs};
use crate::{
    Error, Kind, Result,
    backend::{Probe, StepRun},
    npy,
    session::Session,
};

const HELP: &str = "\
A reference folder holds in_NAME.npy and out_NAME.npy; further cases of symbolic sizes are in_S4_NAME.npy and
out_S4_NAME.npy. An archive holds arrays in_NAME and out_NAME. Cases whose sizes the plan has no entry for are counted
and named. The error of an output is its relative Frobenius norm.";

/// Compare a plan with recorded results
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct Args {
    /// The plan
    #[arg(value_name = "PLAN.l3r")]
    plan: PathBuf,
    /// Recorded inputs and outputs: a folder of .npy files, or an .npz archive
    #[arg(long = "ref", value_name = "FOLDER|FILE.npz")]
    reference: PathBuf,
    /// Fail with exit code 6 if the error of an output is larger
    #[arg(long, value_name = "ERROR")]
    tolerance: Option<f64>,
    /// Hold every step against the reference evaluation of its own operands, worst first
    #[arg(long)]
    per_node: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Inputs and outputs that belong together.
#[derive(Debug, Default)]
struct Case {
    inputs: BTreeMap<String, Tensor>,
    outputs: BTreeMap<String, Tensor>,
}

#[derive(Serialize)]
struct Row {
    case: String,
    output: String,
    error: f64,
}

#[derive(Serialize)]
struct NodeRow {
    step: usize,
    kernel: String,
    origin: String,
    error: f64,
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let cases = read_cases(&args.reference)?;
    let mut session = Session::open(&args.plan, &args.device.options())?;
    let (mut rows, mut nodes, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for (name, case) in &cases {
        let Ok(entry) = session.entry_for(&case.inputs) else {
            skipped.push(name.clone());
            continue;
        };
        let outputs = match args.per_node {
            true => per_node(&mut session, entry, &case.inputs, &mut nodes)?,
            false => session.run(entry, &case.inputs)?,
        };
        for (output, got) in &outputs {
            let Some(want) = case.outputs.get(output) else { continue };
            rows.push(Row { case: name.clone(), output: output.clone(), error: relative_error(got, want)? });
        }
    }
    if rows.is_empty() {
        let why = format!("no case of {} fits the plan: {}", args.reference.display(), skipped.join(", "));
        return Err(Error::bad_file("compare.reference", why));
    }
    nodes.sort_by(|a: &NodeRow, b| b.error.total_cmp(&a.error));
    print(common, &rows, &nodes, &skipped)?;
    let limit = args.tolerance.unwrap_or(f64::INFINITY);
    let over = rows.iter().filter(|r| r.error > limit || r.error.is_nan() && args.tolerance.is_some());
    let problems: Vec<String> =
        over.map(|r| format!("{} of case {}: error {:.3e} is over {limit:e}", r.output, r.case, r.error)).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Accuracy, "compare.tolerance", problems)) }
}

fn print(common: &Common, rows: &[Row], nodes: &[NodeRow], skipped: &[String]) -> Result<()> {
    if common.json {
        return super::print_json(&serde_json::json!({ "outputs": rows, "nodes": nodes, "skipped": skipped }));
    }
    super::say!("{:<12} {:<24} error", "case", "output");
    rows.iter().for_each(|r| super::say!("{:<12} {:<24} {:.3e}", r.case, r.output, r.error));
    if !skipped.is_empty() && !common.quiet {
        super::say!("{} cases have sizes that the plan has no entry for: {}", skipped.len(), skipped.join(", "));
    }
    if !nodes.is_empty() {
        super::say!("\n{:>5} {:<28} {:<10} origin", "step", "kernel", "error");
        let worst = nodes.iter().take(40);
        worst.for_each(|n| super::say!("{:>5} {:<28} {:<10.2e} {}", n.step, n.kernel, n.error, n.origin));
    }
    Ok(())
}

/// Runs an entry and evaluates every step anew from the operands that it read.
fn per_node(
    session: &mut Session,
    entry: usize,
    inputs: &BTreeMap<String, Tensor>,
    rows: &mut Vec<NodeRow>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut failed = None;
    let mut probe =
        |run: StepRun<'_>, operands: &[Tensor], results: &[Tensor]| match step_error(&run, operands, results) {
            Ok(error) => rows.push(NodeRow {
                step: run.index,
                kernel: run.step.kernel.clone(),
                origin: run.step.origin.clone(),
                error,
            }),
            Err(error) => failed = failed.take().or(Some(error)),
        };
    let outputs = session.run_with(entry, inputs, Probe::Values(&mut probe))?;
    match failed {
        Some(error) => Err(Error::unsupported("compare.node", error.to_string())),
        None => Ok(outputs),
    }
}

fn step_error(run: &StepRun<'_>, operands: &[Tensor], results: &[Tensor]) -> std::result::Result<f64, InterpretError> {
    let op = &run.step.op;
    let fail = |problem| InterpretError::Op { op: op.name(), origin: run.step.origin.clone(), problem };
    let types: Vec<_> = results.iter().map(Tensor::value_type).collect();
    let want = op.eval(&operands.iter().collect::<Vec<_>>(), &types).map_err(fail)?;
    let errors = results.iter().zip(&want).map(|(got, want)| frobenius(got, want));
    Ok(errors.fold(0.0, f64::max))
}

/// ‖got − want‖ / ‖want‖. Errors: `compare.shape`.
pub fn relative_error(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.len() != want.len() {
        let problem = format!("the plan gives {}, the reference has {}", got.value_type(), want.value_type());
        return Err(Error::bad_file("compare.shape", problem));
    }
    Ok(frobenius(got, want))
}

fn frobenius(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.to_f64(), want.to_f64());
    let difference: f64 = got.iter().zip(&want).map(|(a, b)| if a == b { 0.0 } else { (a - b).powi(2) }).sum();
    let norm: f64 = want.iter().map(|b| b * b).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm.max(f64::MIN_POSITIVE)).sqrt() }
}

/// Cases by name; the one without a name is `default`.
fn read_cases(path: &Path) -> Result<BTreeMap<String, Case>> {
    let arrays = if path.is_dir() { read_folder(path)? } else { npy::read_archive(path)? };
    let mut all: BTreeMap<String, Case> = BTreeMap::new();
    for (name, tensor) in arrays {
        let (is_input, rest) = match (name.strip_prefix("in_"), name.strip_prefix("out_")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let (case, value) = split_case(rest);
        let case = all.entry(case.into()).or_default();
        let side = if is_input { &mut case.inputs } else { &mut case.outputs };
        side.insert(value.into(), tensor);
    }
    all.retain(|_, case| !case.inputs.is_empty() && !case.outputs.is_empty());
    if all.is_empty() {
        let problem = format!("{}: there is no pair of in_NAME and out_NAME", path.display());
        return Err(Error::bad_file("compare.reference", problem));
    }
    Ok(all)
}

/// `S4_depth` is `depth` of case `S4`.
fn split_case(name: &str) -> (&str, &str) {
    match name.split_once('_') {
        Some((case, rest))
            if case.len() > 1 && case.starts_with('S') && case[1..].bytes().all(|b| b.is_ascii_digit()) =>
        {
            (case, rest)
        }
        _ => ("default", name),
    }
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, Tensor>> {
    let fail = |e: &std::io::Error| Error::io(folder, "cannot be read", e);
    let mut tensors = BTreeMap::new();
    for file in std::fs::read_dir(folder).map_err(|e| fail(&e))? {
        let path = file.map_err(|e| fail(&e))?.path();
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if path.extension().is_some_and(|e| e == "npy") {
            tensors.insert(stem, npy::read(&path)?);
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_told_apart_by_name() {
        assert_eq!(split_case("S12_depth_conf"), ("S12", "depth_conf"));
        assert_eq!(split_case("depth_conf"), ("default", "depth_conf"));
        assert_eq!(split_case("S_x"), ("default", "S_x"));
    }

    #[test]
    fn errors_are_relative_and_see_infinities() {
        let t = |v: &[f32]| Tensor::from_f32(&[v.len()], v);
        assert_eq!(relative_error(&t(&[3.0, 4.0]), &t(&[3.0, 4.0])).unwrap(), 0.0);
        assert!((relative_error(&t(&[3.0, 5.0]), &t(&[3.0, 4.0])).unwrap() - 0.2).abs() < 1e-7);
        assert_eq!(relative_error(&t(&[f32::INFINITY]), &t(&[f32::INFINITY])).unwrap(), 0.0);
        assert!(relative_error(&t(&[1.0]), &t(&[1.0, 2.0])).is_err());
    }
}
