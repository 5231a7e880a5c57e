//! What sparsity and FP8 cost in accuracy: the small backbone on rendered scenes whose depth and cameras are known.
//!
//! ```text
//! cargo bench --bench quality -- [--scenes 64] [--views 8] [--seed 1] [--threads N] [--target cpu] [--variant NAME,…]
//! ```
//!
//! A row holds means over scenes with bootstrap intervals of 95 %, ratios to dense f32 on the same scenes; AbsRel
//! without alignment, and aligned by the median of all views of a scene; and the attention error: the mean over global
//! layers and scenes of ‖o − o′‖/‖o‖ between dense and rewritten attention on the queries, keys and values of the
//! dense run.

use std::{collections::BTreeMap, io::Write, process::ExitCode, time::Instant};

use clap::Parser;
use lite3r::{
    Error, Result,
    backend::{self, Probe, Target},
    cli::compare::relative_error,
    demo::{LITE, Models, Outcome, Shot, Variant, measure, session},
    eval::bootstrap,
    plan::{self, EntrySource, Meta},
    session::{Options, Session},
    weights::Weights,
};
use lite3r_ir::{
    Bindings, Builder, Graph, Op, Tensor,
    ops::{Attention, MergeHeads, attention::AttentionKind},
    passes::{self, pipeline},
};

/// Name, `--attention`, `--precision`.
const fn without_training(name: &'static str, attention: &'static [&'static str], precision: &'static str) -> Variant {
    Variant { name, attention, precision, student: false }
}

/// What is measured: forms without training, then the student of the demo.
const VARIANTS: &[Variant] = &[
    without_training("dense f32", &[], "f32"),
    without_training("dense bf16", &[], "bf16"),
    without_training("dense fp8", &[], "fp8"),
    without_training("dense fp8 narrow", &[], "fp8{activation=auto,rest=bf16,residual=bf16}"),
    without_training("dense fp8 wide", &[], "fp8{attention=none}"),
    without_training("dense fp8 codes", &[], "fp8{attention=all}"),
    without_training(
        "64x64 pooled .3",
        &["global=sla{keep=0.3,block_q=64,block_k=64,router=pooled,form=sparse,layout=raw}"],
        "f32",
    ),
    without_training(
        "64x64 pooled .1",
        &["global=sla{keep=0.1,block_q=64,block_k=64,router=pooled,form=sparse,layout=raw}"],
        "f32",
    ),
    without_training("64x16 sub16 .3", &["global=sla{keep=0.3,block_q=64,block_k=16,router=sub16,form=sparse}"], "f32"),
    without_training("64x16 sub16 .1", &["global=sla{keep=0.1,block_q=64,block_k=16,router=sub16,form=sparse}"], "f32"),
    without_training(
        "64x16 centroid .3",
        &["global=sla{keep=0.3,block_q=64,block_k=16,router=sub16,form=centroid}"],
        "f32",
    ),
    without_training(
        "64x16 centroid .1",
        &["global=sla{keep=0.1,block_q=64,block_k=16,router=sub16,form=centroid}"],
        "f32",
    ),
    without_training(
        "64x16 centroid .1 fp8",
        &["global=sla{keep=0.1,block_q=64,block_k=16,router=sub16,form=centroid}"],
        "fp8",
    ),
    without_training(
        "64x16 centroid .1 fp8 codes",
        &["global=sla{keep=0.1,block_q=64,block_k=16,router=sub16,form=centroid}"],
        "fp8{attention=all}",
    ),
    LITE,
];

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 64)]
    scenes: u64,
    #[arg(long, default_value_t = 8)]
    views: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    threads: Option<usize>,
    /// What the variants are compiled for
    #[arg(long, default_value = "cpu")]
    target: String,
    /// Only variants whose names contain one of these, besides dense f32
    #[arg(long, value_delimiter = ',')]
    variant: Vec<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            error.exit_code().into()
        }
    }
}

/// One variant over all scenes.
struct Measured<'v> {
    variant: &'v Variant,
    session: Session,
    attention: Option<AttentionError>,
    outcomes: Vec<Figures>,
    attention_errors: Vec<f64>,
}

/// What is kept of an outcome.
struct Figures {
    abs_rel: f64,
    aligned: f64,
    delta1: f64,
    rotation: f64,
    auc30: f64,
    seconds: f64,
}

impl From<Outcome> for Figures {
    fn from(outcome: Outcome) -> Self {
        Self {
            abs_rel: outcome.depth.abs_rel,
            aligned: outcome.aligned.abs_rel,
            delta1: outcome.depth.delta1,
            rotation: outcome.pose.rotation.0,
            auc30: outcome.pose.auc[3].1,
            seconds: outcome.seconds,
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder".as_ref(), "cannot be made", &e))?;
    let models = Models::write(folder.path())?;
    let target = backend::target(&args.target)?;
    let options = Options { threads: args.threads, ..Options::default() };
    let wanted = |v: &&Variant| {
        args.variant.is_empty() || v.name == "dense f32" || args.variant.iter().any(|w| v.name.contains(w.as_str()))
    };
    let mut all = Vec::new();
    for variant in VARIANTS.iter().filter(wanted) {
        let session = session(variant, &models, args.views, target, &options)?;
        all.push(Measured { variant, session, attention: None, outcomes: Vec::new(), attention_errors: Vec::new() });
    }
    let start = Instant::now();
    for index in 0..args.scenes {
        let shot = Shot::render(args.seed, index, args.views)?;
        let layers = global_attentions(&mut all[0].session, &shot)?;
        for row in &mut all {
            row.outcomes.push(measure(&mut row.session, &shot)?.into());
            // An attention alone has no trained routers.
            if !row.variant.attention.is_empty() && !row.variant.student {
                if row.attention.is_none() {
                    row.attention = Some(AttentionError::new(row.variant, &layers[0], args.views, target, &options)?);
                }
                if let Some(attention) = &mut row.attention {
                    let errors = layers.iter().map(|layer| attention.of(layer)).collect::<Result<Vec<f64>>>()?;
                    row.attention_errors.push(errors.iter().sum::<f64>() / errors.len() as f64);
                }
            }
        }
        eprint!("\r{} of {} scenes, {:.0} s ", index + 1, args.scenes, start.elapsed().as_secs_f64());
        // Progress that cannot be shown is no reason to stop.
        let _ = std::io::stderr().flush();
    }
    eprintln!();
    print(args, &all)
}

fn print(args: &Args, all: &[Measured<'_>]) -> Result<()> {
    println!("{} scenes, {} views, seed {}; intervals of 95 % over scenes\n", args.scenes, args.views, args.seed);
    println!(
        "| | AbsRel | δ1 | rotation | AUC@30 | AbsRel / dense | aligned AbsRel | aligned / dense | rotation / dense | attention error | s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let of = |row: &Measured<'_>, pick: fn(&Figures) -> f64| row.outcomes.iter().map(pick).collect::<Vec<f64>>();
    let dense = &all[0];
    for row in all {
        let interval = |pick| bootstrap::mean(&of(row, pick), 1);
        let ratio = |pick| bootstrap::ratio(&of(row, pick), &of(dense, pick), 1);
        let (abs_rel, rotation) = (interval(|f| f.abs_rel)?, interval(|f| f.rotation)?);
        let (abs_ratio, rotation_ratio) = (ratio(|f| f.abs_rel)?, ratio(|f| f.rotation)?);
        let aligned_ratio = ratio(|f| f.aligned)?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let attention = match row.attention_errors.is_empty() {
            true => "".into(),
            false => {
                let i = bootstrap::mean(&row.attention_errors, 1)?;
                format!("{:.3} ({:.3} to {:.3})", i.estimate, i.low, i.high)
            }
        };
        println!(
            "| {} | {:.4} ({:.4} to {:.4}) | {:.3} | {:.2}° ({:.2} to {:.2}) | {:.3} | {:.3} ({:.3} to {:.3}) | {:.4} | {:.3} ({:.3} to {:.3}) | {:.3} ({:.3} to {:.3}) | {attention} | {:.2} |",
            row.variant.name,
            abs_rel.estimate,
            abs_rel.low,
            abs_rel.high,
            mean(&of(row, |f| f.delta1)),
            rotation.estimate,
            rotation.low,
            rotation.high,
            mean(&of(row, |f| f.auc30)),
            abs_ratio.estimate,
            abs_ratio.low,
            abs_ratio.high,
            mean(&of(row, |f| f.aligned)),
            aligned_ratio.estimate,
            aligned_ratio.low,
            aligned_ratio.high,
            rotation_ratio.estimate,
            rotation_ratio.low,
            rotation_ratio.high,
            mean(&of(row, |f| f.seconds)),
        );
    }
    Ok(())
}

/// Queries, keys, values and result of an attention in a run.
struct Layer {
    op: Attention,
    qkv: [Tensor; 3],
    result: Tensor,
}

/// Every global attention of a dense run.
fn global_attentions(session: &mut Session, shot: &Shot) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let inputs = BTreeMap::from([("images".to_string(), shot.images())]);
    let entry = session.entry_for(&inputs)?;
    let mut keep = |run: backend::StepRun<'_>, operands: &[Tensor], results: &[Tensor]| {
        if let (Op::Attention(op), [q, k, v]) = (&run.step.op, operands)
            && op.kind == AttentionKind::Global
        {
            let qkv = [q.clone(), k.clone(), v.clone()];
            layers.push(Layer { op: op.clone(), qkv, result: results[0].clone() });
        }
    };
    session.run_with(entry, &inputs, Probe::Values(&mut keep))?;
    if layers.is_empty() {
        return Err(Error::unsupported("bench.attention", "the dense plan has no global attention"));
    }
    Ok(layers)
}

/// A plan of nothing but one rewritten attention.
struct AttentionError {
    session: Session,
}

impl AttentionError {
    fn new(variant: &Variant, layer: &Layer, views: usize, target: &dyn Target, options: &Options) -> Result<Self> {
        let mut graph = Graph::new("attention");
        let qkv = ["q", "k", "v"].iter().zip(&layer.qkv).map(|(name, t)| graph.input(*name, t.value_type()));
        let qkv: Vec<_> = qkv.collect();
        let fail = |e: &dyn std::fmt::Display| Error::unsupported("bench.attention", e.to_string());
        let op = Attention { views: views.into(), merged: false, ..layer.op.clone() };
        let mut builder = Builder::new(&mut graph, "attention");
        let mut result = builder.op(op, &qkv).map_err(|e| fail(&e))?;
        if layer.op.merged {
            result = builder.op(MergeHeads {}, &[result]).map_err(|e| fail(&e))?;
        }
        graph.output("o", result);
        let text = variant.attention.first().and_then(|a| a.split_once('=')).map_or("", |(_, sla)| sla);
        let raw = text.contains(",layout=raw");
        let text = text.replace(",layout=raw", "");
        let layout = if raw { "" } else { "token_layout{grid=[16,16]}," };
        let passes = pipeline::select(&format!("{layout}{text},dce"), passes::ALL).map_err(|e| fail(&e))?;
        pipeline::execute(&mut graph, &passes, true, &mut |_, _| true).map_err(|e| fail(&e))?;
        let source = EntrySource { bindings: Bindings::new(), graph };
        let plan = plan::build(&[source], &Weights::default(), target, Meta::default())?;
        Ok(Self { session: Session::new(plan, options)? })
    }

    fn of(&mut self, layer: &Layer) -> Result<f64> {
        let inputs = ["q", "k", "v"].iter().zip(&layer.qkv).map(|(n, t)| (n.to_string(), t.clone())).collect();
        let outputs = self.session.run(0, &inputs)?;
        relative_error(&outputs["o"], &layer.result)
    }
}
