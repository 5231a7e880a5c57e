//! `lite3r-compile`: a model in, a plan out.

use std::path::{Path, PathBuf};

use clap::Parser;
use lite3r_ir::{
    Bindings, Graph,
    attr::AttrMap,
    passes::Step,
    text::{Printer, parse_calls},
};

use super::{Common, progress};
use crate::{
    Error, Kind, Result, atomic, backend,
    compile::{
        self, Compiled, Model,
        options::{AttentionRule, Bind, Options, Precision, ReferenceView, Requirement},
        pipeline, report,
        source::ArchWeights,
    },
    plan::{Plan, Storage},
};

const EXAMPLES: &str = "\
Examples:
  An exported model, four views, on the CPU:
    lite3r-compile vggt.onnx -o vggt.l3r --target cpu --bind S=4

  Global attention sparse (a tenth of the key blocks, centroids for the rest), linear layers in FP8:
    lite3r-compile vggt.onnx -o lite.l3r --target cpu --bind S=8 --precision fp8 \\
        --attention 'global=sla{keep=0.1,block_k=16,router=sub16,form=centroid}'

  One plan for 2, 4 and 8 views that share weights:
    lite3r-compile da3.onnx -o da3.l3r --target cpu --bind S=2,4,8

  A backbone built from its published weights, without ONNX:
    lite3r-compile --arch vggt-1b --size 518x518 --bind S=8 --weights model.safetensors -o vggt.l3r --target cpu

  What the compiler sees, and why an attention was not recognised:
    lite3r-compile model.onnx --target cpu --bind S=4 --emit ir --explain

Exit codes: 0 ok, 2 usage, 3 unsupported model, 4 bad file, 5 device, 6 accuracy gate, 13 compiler of kernels.";

/// Compiles an exported backbone to a plan that `lite3r` runs.
#[derive(Parser, Debug)]
#[command(name = "lite3r-compile", version, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: Common,

    /// The ONNX file; its external data lies beside it
    #[arg(value_name = "MODEL.onnx", required_unless_present = "arch", conflicts_with = "arch")]
    model: Option<PathBuf>,

    /// Build a known backbone instead: vggt-1b, da3-large, …
    #[arg(long, value_name = "NAME", requires = "size")]
    arch: Option<String>,
    /// Height x width of the images of `--arch`, multiples of 14
    #[arg(long, value_name = "HxW", value_parser = size)]
    size: Option<(usize, usize)>,
    /// The weights of `--arch`: safetensors with the published names
    #[arg(long, value_name = "FILE", requires = "arch")]
    weights: Option<PathBuf>,
    /// Weights that `lite3r train`, `distill` or `fit` has written, in front of the model's own; repeatable
    #[arg(long, value_name = "FILE")]
    trained: Vec<PathBuf>,
    /// The options of the pass `lora` that the model was trained with, `names=["qkv"],rank=8`; its weights come from
    /// `--trained` and become part of those that they adapt
    #[arg(long, value_name = "OPTIONS", value_parser = lora)]
    lora: Option<Adapters>,
    /// Random weights of this seed, for measuring
    #[arg(long, value_name = "SEED", conflicts_with = "weights")]
    random_weights: Option<u64>,

    /// Where the plan goes
    #[arg(short, long, value_name = "PLAN.l3r")]
    output: Option<PathBuf>,
    /// What the plan runs on: cpu, cuda:sm_90a, cuda:sm_89, cuda:sm_80, wgsl, or wgsl:binding=2GiB for devices whose shaders
    /// see so much of a buffer at once (wgsl: 128MiB)
    #[arg(long, value_name = "TARGET", default_value = "cpu")]
    target: String,
    /// What comes out: the plan, or the text of the graph on standard output
    #[arg(long, value_enum, default_value = "plan")]
    emit: Emit,

    /// Give a symbolic dimension its value; several values make several entries of one plan
    #[arg(long, value_name = "S=N[,N…]")]
    bind: Vec<Bind>,
    /// Which axis of the images counts views, where the compiler cannot tell
    #[arg(long, value_name = "AXIS")]
    views: Option<usize>,
    /// Keep only these outputs, and what they need
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    outputs: Vec<String>,
    /// The view that the model takes as its reference, where it chooses one: auto, first, or a number from 0
    #[arg(long, value_name = "VIEW", default_value = "auto")]
    reference_view: ReferenceView,

    /// How attentions of a kind (encoder, frame, global, camera) compute: `global=sla{…}`, `global.3=dense` by number,
    /// `global.blocks.7.=dense` by name; repeatable, later ones win
    #[arg(long, value_name = "KIND=FORM")]
    attention: Vec<AttentionRule>,
    /// What products compute in: f32, bf16, f16, fp8 (weights and activations of linear layers), fp8w (weights only);
    /// beside FP8 all else is bf16 for cuda, f16 for wgsl, f32 for cpu, unless `fp8w{rest=f32}` says otherwise
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// Run these passes instead of the usual ones: `a,b{option=value}`
    #[arg(long, value_name = "PASSES")]
    passes: Option<String>,

    /// Fail unless this many were recognised: `attention=88`; repeatable
    #[arg(long, value_name = "NAME=COUNT")]
    require: Vec<Requirement>,
    /// Say what nearly matched, and which node stood in the way
    #[arg(long)]
    explain: bool,
    /// Print the graph after a pass; repeatable
    #[arg(long, value_name = "PASS")]
    print_after: Vec<String>,
    /// Stop after a pass and print the graph
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    /// Write the graph after every pass into this folder
    #[arg(long, value_name = "FOLDER")]
    dump_dir: Option<PathBuf>,
    /// Print how long each pass took
    #[arg(long)]
    time: bool,
}

/// Options of the pass `lora`.
#[derive(Clone, Debug)]
struct Adapters(AttrMap);

fn lora(text: &str) -> std::result::Result<Adapters, String> {
    let calls = parse_calls(&format!("lora{{{text}}}")).map_err(|e| e.to_string())?;
    match <[_; 1]>::try_from(calls) {
        Ok([(name, attrs)]) if name == "lora" => Ok(Adapters(attrs)),
        _ => Err(format!("`{text}` is not options such as names=[\"qkv\"],rank=8")),
    }
}

/// What a compilation writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Emit {
    /// The text of the graph.
    Ir,
    /// The plan.
    Plan,
}

fn size(text: &str) -> std::result::Result<(usize, usize), String> {
    let parts = text.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
    parts.filter(|(h, w)| *h > 0 && *w > 0).ok_or_else(|| format!("`{text}` is not HEIGHTxWIDTH, such as 518x518"))
}

impl Args {
    /// What every command takes.
    pub fn common(&self) -> &Common {
        &self.common
    }

    fn model(&self) -> Result<Model> {
        let usage = |problem: &str| Error::usage("cli.usage", problem);
        if let Some(path) = &self.model {
            return Ok(Model::Onnx { path: path.clone(), random_weights: self.random_weights });
        }
        let name = self.arch.clone().ok_or_else(|| usage("give a MODEL.onnx, or --arch with --size"))?;
        let weights = match (&self.weights, self.random_weights) {
            (Some(path), _) => ArchWeights::File(path.clone()),
            (None, Some(seed)) => ArchWeights::Random(seed),
            (None, None) => return Err(usage("`--arch` needs --weights FILE or --random-weights SEED")),
        };
        let size = self.size.ok_or_else(|| usage("`--arch` needs --size HEIGHTxWIDTH"))?;
        Ok(Model::Arch { name, scenes: 1, size, weights })
    }

    fn options(&self, target: &dyn backend::Target) -> Options {
        Options {
            bind: self.bind.clone(),
            views_axis: self.views,
            lora: self.lora.as_ref().map(|adapters| adapters.0.clone()),
            attention: self.attention.clone(),
            precision: self.precision.clone().for_target(target),
            heads: target.dense_heads(),
            joint_heads: target.joint_heads(),
            coded_attention: target.coded_attention(),
            reference_view: self.reference_view,
            trained: self.trained.clone(),
            outputs: self.outputs.clone(),
            passes: self.passes.clone(),
            require: self.require.clone(),
        }
    }

    /// Errors: `cli.usage` if a pass is named that there is not.
    fn check_pass_names(&self) -> Result<()> {
        let known: Vec<&str> = pipeline::table().iter().map(|p| p.name).collect();
        let unknown = self.print_after.iter().chain(&self.stop_after).filter(|n| !known.contains(&n.as_str()));
        let problems: Vec<String> =
            unknown.map(|n| format!("no such pass: {n}; known: {}", known.join(", "))).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Usage, "cli.usage", problems)) }
    }
}

/// Carries the command out.
pub fn main(args: Args) -> Result<()> {
    let model = args.model()?;
    args.check_pass_names()?;
    let target = backend::target(&args.target)?;
    let options = args.options(target);
    let planning = args.emit == Emit::Plan && args.stop_after.is_none();
    if planning && args.output.is_none() {
        return Err(Error::usage("cli.usage", "`-o PLAN.l3r` says where the plan goes"));
    }
    let quiet = args.common.quiet;

    let mut dump = args.dump_dir.as_deref().map(Dump::create).transpose()?;
    let mut failed = None;
    let spinner = progress::spinner(quiet, "compiling");
    let mut watch = |bindings: &Bindings, step: &Step, graph: &Graph| {
        spinner.set_message(format!("{}: {} nodes", step.pass, step.nodes));
        if args.print_after.iter().any(|n| n == step.pass) {
            spinner.suspend(|| super::say!("// after {}{}\n{}", step.pass, step.options, readable(graph)));
        }
        if let Some(Err(error)) = dump.as_mut().map(|d| d.write(bindings, step, graph)) {
            failed = Some(error);
            return false;
        }
        args.stop_after.as_deref() != Some(step.pass)
    };
    let compiled = compile::compile(&model, &options, &mut watch);
    spinner.finish_and_clear();
    if let Some(error) = failed {
        return Err(error);
    }
    let compiled = compiled?;
    if let Some(name) = args.stop_after.as_ref().filter(|_| !compiled.stopped) {
        return Err(Error::usage("cli.usage", format!("the pipeline never came to the pass `{name}`")));
    }
    if args.stop_after.is_some() || args.emit == Emit::Ir {
        return emit_ir(&args, &compiled);
    }
    emit_plan(&args, &compiled, target)
}

fn emit_ir(args: &Args, compiled: &Compiled) -> Result<()> {
    let text: String = compiled.entries.iter().map(|e| readable(&e.graph)).collect::<Vec<_>>().join("\n");
    match &args.output {
        Some(path) => atomic::write_bytes(path, text.as_bytes())?,
        None => super::say!("{text}"),
    }
    if !args.common.quiet {
        eprint!("{}", describe(args, compiled));
    }
    Ok(())
}

fn emit_plan(args: &Args, compiled: &Compiled, target: &dyn backend::Target) -> Result<()> {
    let path = args.output.as_deref().ok_or_else(|| Error::usage("cli.usage", "`-o PLAN.l3r` is missing"))?;
    let quiet = args.common.quiet;
    let plan = compile::plan(compiled, target)?;
    let bar = progress::bar(quiet, plan.weight_bytes(), "weights");
    let saved = plan.save_with(path, Storage::Embedded, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    saved?;
    let file_bytes = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot be examined", &e))?.len();
    if args.common.json {
        return super::print_json(&json(compiled, &plan, file_bytes));
    }
    if !quiet {
        print!("{}", describe(args, compiled));
        for entry in plan.entries() {
            let steps = entry.steps.len();
            let peak = super::bytes(entry.peak_bytes() + plan.weight_bytes());
            let arena = super::bytes(entry.arena_bytes);
            super::say!("entry {:<12} {steps} steps, arena {arena}, peak with weights {peak}", bound(&entry.bindings));
        }
        super::say!("{} {} for {}", path.display(), super::bytes(file_bytes), plan.header().target);
    }
    Ok(())
}

/// What was recognised, the attentions, and what the flags ask for.
fn describe(args: &Args, compiled: &Compiled) -> String {
    let mut text = format!("recognised and rewritten\n{}", report::summary(compiled));
    for entry in &compiled.entries {
        text += &format!("attentions, {}\n{}\n", bound(&entry.bindings), entry.inventory);
    }
    if args.explain {
        text += &format!("what nearly matched\n{}", report::notes(compiled));
    }
    if args.time {
        text += &format!("time\n{}", report::times(compiled));
    }
    text
}

fn json(compiled: &Compiled, plan: &Plan, file_bytes: u64) -> serde_json::Value {
    let entries = compiled.entries.iter().zip(plan.entries()).map(|(compiled, planned)| {
        let kinds: serde_json::Map<String, serde_json::Value> =
            compiled.inventory.counts().into_iter().map(|(k, n)| (k.word().into(), n.into())).collect();
        serde_json::json!({
            "bindings": planned.bindings, "steps": planned.steps.len(), "arena_bytes": planned.arena_bytes,
            "attentions": kinds, "flops": compiled.inventory.flops,
        })
    });
    serde_json::json!({
        "target": plan.header().target, "file_bytes": file_bytes, "weight_bytes": plan.weight_bytes(),
        "entries": entries.collect::<Vec<_>>(),
    })
}

/// The text of a graph for people: large constants by their hash.
fn readable(graph: &Graph) -> String {
    Printer { elide: Some(64), ..Printer::default() }.text(graph)
}

/// `S=4`, or `as exported`.
fn bound(bindings: &Bindings) -> String {
    if bindings.is_empty() {
        return "as exported".into();
    }
    bindings.iter().map(|(s, n)| format!("{s}={n}")).collect::<Vec<_>>().join(",")
}

/// A folder with the graph after every pass.
struct Dump {
    folder: PathBuf,
    next: usize,
}

impl Dump {
    fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot be created", &e))?;
        Ok(Self { folder: folder.into(), next: 0 })
    }

    fn write(&mut self, bindings: &Bindings, step: &Step, graph: &Graph) -> Result<()> {
        let binding = if bindings.is_empty() { String::new() } else { format!(".{}", bound(bindings)) };
        let path = self.folder.join(format!("{:03}.{}{binding}.ir", self.next, step.pass));
        self.next += 1;
        atomic::write_bytes(&path, readable(graph).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_missing_choice_is_named() {
        let args = |line: &str| Args::try_parse_from(line.split(' ')).unwrap();
        let error = main(args("lite3r-compile --arch vggt-tiny --size 28x42")).unwrap_err();
        assert!(error.to_string().contains("--random-weights SEED"), "{error}");
        let error = main(args("lite3r-compile m.onnx --stop-after nothing")).unwrap_err();
        assert!(error.to_string().contains("no such pass: nothing"), "{error}");
        let error = main(args("lite3r-compile m.onnx --target abacus -o x")).unwrap_err();
        assert!(error.to_string().contains("abacus"), "{error}");
    }
}
