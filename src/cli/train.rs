//! `lite3r train` and `lite3r distill`: learning from scenes.

use std::path::{Path, PathBuf};

use super::{Common, progress, run::DeviceArgs, say};
use crate::{
    Error, Result,
    backend::target,
    cli::bytes,
    plan::{ALIAS, Entry, Storage},
    train::{
        config::{Config, Student},
        run::{self, Folder, Line},
        schedule::Scheduled,
        source::Source,
        trainer::Trainer,
    },
};

const EXAMPLES: &str = "\
Examples:
  A small model from scratch, on rendered scenes:
    lite3r train --arch vggt-small --steps 2000 -o run/

  With everything said in a file; the copy in the folder names every default:
    lite3r train config.toml -o run/

  Going on after an interruption:
    lite3r train -o run/ --resume";

/// Train a model
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What the run is told; what is not said has its default
    #[arg(value_name = "CONFIG.toml", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// The architecture, in place of `model.arch`
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    arch: Option<String>,
    #[command(flatten)]
    how: RunArgs,
}

const STUDENTS: &str = "\
Examples:
  The projections of sparse-linear attention under FP8, everything else frozen:
    lite3r distill --teacher backbone.onnx --train proj_lin -o run/ \\
      --student-passes 'token_layout{kind=global};sla{kind=global,keep=0.1};fp8{mode=fake}'";

/// Train what a rewrite has added to a model, beside the model as it was
#[derive(clap::Args, Debug)]
#[command(after_help = STUDENTS)]
pub struct DistillArgs {
    /// What the run is told beside this command line
    #[arg(value_name = "CONFIG.toml", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// The model: an ONNX file, or the name of an architecture whose weights the configuration names
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["resume", "config"], conflicts_with = "resume")]
    teacher: Option<String>,
    /// The passes that make the student, over the recognised model
    #[arg(long, value_name = "PASSES", required_unless_present_any = ["resume", "config"], conflicts_with = "resume")]
    student_passes: Option<String>,
    /// Which weights change, by pattern; repeatable
    #[arg(long, value_name = "PATTERN", default_value = "proj_lin", conflicts_with = "resume")]
    train: Vec<String>,
    #[command(flatten)]
    how: RunArgs,
}

/// What both take.
#[derive(clap::Args, Debug)]
struct RunArgs {
    /// The folder of the run
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Go on with the run in the folder, from its last checkpoint
    #[arg(long)]
    resume: bool,
    /// Steps, in place of `run.steps`
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    steps: Option<u64>,
    /// The seed of weights and scenes, in place of `model.seed` and `data.seed`
    #[arg(long, value_name = "SEED", conflicts_with = "resume")]
    seed: Option<u64>,
    /// How much of the activations may be kept for the reverse pass (`4GiB`, `500MiB`); what exceeds it is computed again
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "resume")]
    activation_memory: Option<usize>,
    /// Also write the plan of a step, for `lite3r inspect` and `lite3r bench`
    #[arg(long, value_name = "PLAN.l3r")]
    save_plan: Option<PathBuf>,
    /// The target to train on
    #[arg(long, value_name = "TARGET", default_value = "cpu")]
    target: String,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Carries `lite3r train` out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let mut config = read(args.config.as_deref())?;
    if let Some(arch) = &args.arch {
        config.model.arch = arch.clone();
    }
    learn(config, &args.how, common)
}

/// Carries `lite3r distill` out.
pub fn distill(args: &DistillArgs, common: &Common) -> Result<()> {
    let mut config = read(args.config.as_deref())?;
    if let Some(teacher) = &args.teacher {
        config.model.choose(teacher);
    }
    config.model.train = args.train.clone();
    if let Some(passes) = &args.student_passes {
        config.student = Some(Student { passes: passes.clone(), attentions: "kind=global".into() });
    }
    let of_students = config.loss.used().into_iter().any(|loss| loss.needs_student());
    if !of_students && !args.how.resume {
        config.loss.attention = Scheduled::Cosine { from: 0.1, to: 0.01 };
    }
    learn(config, &args.how, common)
}

fn read(path: Option<&Path>) -> Result<Config> {
    path.map_or_else(|| Ok(Config::default()), Config::read)
}

fn learn(mut config: Config, args: &RunArgs, common: &Common) -> Result<()> {
    let folder = if args.resume { Folder::open(&args.output)? } else { Folder::new(&args.output)? };
    if args.resume {
        config = Config::read(&folder.config())?;
    }
    config.run.steps = args.steps.unwrap_or(config.run.steps);
    if let Some(seed) = args.seed {
        (config.model.seed, config.data.seed) = (seed, seed);
    }
    config.run.activation_memory = args.activation_memory.or(config.run.activation_memory);
    config.check()?;
    let spinner = progress::spinner(common.quiet, "building, differentiating, planning");
    let mut trainer = Trainer::new(config.clone(), target(&args.target)?, &args.device.options())?;
    spinner.finish_and_clear();
    if args.resume {
        trainer.resume(&folder.checkpoint())?;
    }
    let plan = trainer.plan();
    if let Some(path) = &args.save_plan {
        plan.save(path, Storage::Embedded)?;
    }
    let largest = plan.entries().iter().map(|e| e.arena_bytes).max().unwrap_or(0);
    if !common.quiet {
        let count: usize = trainer.trained().iter().filter_map(|t| t.ty.elements()).sum();
        let (weights, kernels) = (plan.weight_bytes(), plan.entries().iter().map(kernels).max().unwrap_or(0));
        eprintln!(
            "{count} numbers in {} weights are trained; {} of weights and states, {} of activations, {kernels} kernels a scene",
            trainer.trained().len(),
            bytes(weights),
            bytes(largest)
        );
    }
    if !common.quiet {
        trainer.notes().iter().for_each(|note| eprintln!("{note}"));
    }
    let mut scenes = Source::new(&config, trainer.image_size()?)?;
    let bar = progress::bar(common.quiet, config.run.steps, "training");
    bar.set_position(trainer.made().0);
    let lines = run::run(&mut trainer, &folder, &mut scenes, &mut |line| {
        bar.set_position(line.step);
        bar.set_message(format!("loss {:.4}", line.loss));
    })?;
    bar.finish_and_clear();
    let Some(last) = lines.last() else {
        return Err(Error::usage("train.config", "the run has made all of its steps already"));
    };
    report(last, &lines, trainer.made().1, &folder, common);
    Ok(())
}

/// `4GiB`, `500MiB`, `65536`.
fn size(text: &str) -> std::result::Result<usize, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0), ("", 0)];
    let parsed = units.into_iter().find_map(|(unit, shift)| {
        let number: usize = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(1 << shift)
    });
    parsed.ok_or_else(|| format!("`{text}` is no size such as 4GiB, 500MiB or 65536"))
}

/// Launches of an entry.
fn kernels(entry: &Entry) -> usize {
    entry.steps.iter().filter(|step| step.kernel != ALIAS).count()
}

fn report(last: &Line, lines: &[Line], skipped: u64, folder: &Folder, common: &Common) {
    let seconds: f64 = lines.iter().map(|l| l.seconds).sum();
    if common.json {
        let value = serde_json::json!({ "steps": last.step, "skipped": skipped, "loss": last.loss, "losses": last.losses,
            "validation": last.validation, "seconds": seconds, "weights": folder.weights() });
        say!("{value}");
        return;
    }
    say!("{} steps in {seconds:.1} s, {skipped} skipped", last.step);
    say!("loss {:.5}", last.loss);
    last.losses.iter().for_each(|(name, loss)| say!("  {name:<10} {loss:.5}"));
    last.validation.into_iter().for_each(|loss| say!("validation {loss:.5}"));
    say!("weights    {}", folder.weights().display());
}
