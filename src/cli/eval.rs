//! `lite3r eval`: plans against data whose truth is known, by named protocols.

use std::path::PathBuf;

use lite3r_ir::attr::AttrField;

use super::{Common, progress, run::DeviceArgs};
use crate::{
    Error, Result,
    benchmark::{
        Options, Pick, Report, Run, measure,
        report::{Entry, Notes},
        sources::{self, Choice, Request, Source},
    },
    data::Broken,
    eval::{Protocol, points},
    predict,
    session::Session,
};

const EXAMPLES: &str = "\
Examples:
  A dense plan and a lite one on 64 rendered scenes, with the ratio of their errors:
    lite3r eval dense.l3r lite.l3r --data synthetic --scenes 64

  By every alignment of depth, as JSON with every sample:
    lite3r eval plan.l3r --data synthetic --protocol depth --json > report.json

  The published tables: BlendedMVS (its 7 validation scenes) and DTU-64 (poses of 13 scans), by the standard protocols
  and by the definitions of the published Lite3R code:
    lite3r eval plan.l3r --data blendedmvs:BlendedMVS/ --protocol standard,lite3r-compat --views 8
    lite3r eval plan.l3r --data dtu64:dtu/ --protocol pose,ate,lite3r-compat --views 64

  Three seeds of one training as one row, with their mean and spread:
    lite3r eval dense.l3r lite.0.l3r,lite.1.l3r,lite.2.l3r --data synthetic

  The same samples again for another plan:
    lite3r eval other.l3r --data synthetic --samples report.json

Protocols: standard, all, a family (depth, pose, ate, points) or a name; an unknown name lists all.";

/// Measure plans on data whose truth is known; every number stands beside the name of its protocol
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Plans; ratios are to the first. Several with commas between them are one row: the same but for the seed of training
    #[arg(value_name = "PLAN.l3r[,…]", required = true, value_parser = row)]
    plans: Vec<Row>,
    /// The data: blendedmvs:FOLDER, dtu64:FOLDER (poses), dtu:FOLDER (points), synthetic (the scenes of the demo),
    /// synthetic:arc or synthetic:varied (as `lite3r data synth` makes them), synthetic:test
    #[arg(long, value_name = "NAME[:PLACE]")]
    data: String,
    /// Which scenes: train, val, test, or all; by default those that results are reported on
    #[arg(long, value_name = "SPLIT")]
    split: Option<String>,
    /// Leave out broken views of scenes, and say which; otherwise they are an error
    #[arg(long)]
    leave_out_broken: bool,
    /// How results are measured; repeatable, or with commas
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "standard")]
    protocol: Vec<String>,
    /// At most so many scenes; all by default, 64 that are rendered
    #[arg(long, value_name = "N")]
    scenes: Option<usize>,
    /// Views a sample; by default what the first plan takes, if it takes one number only
    #[arg(long, value_name = "N")]
    views: Option<usize>,
    /// Samples a scene
    #[arg(long, value_name = "N", default_value_t = 1)]
    draws: usize,
    /// How views are drawn: overlap, random, first; by default overlapping ones where the data ranks pairs, and at random
    /// for `lite3r-compat` alone
    #[arg(long, value_name = "HOW")]
    choice: Option<String>,
    /// Draws scenes, views, points and resamples
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Measure the samples of an earlier report, as `--json` printed it
    #[arg(long, value_name = "REPORT.json", conflicts_with_all = ["views", "draws", "choice"])]
    samples: Option<PathBuf>,
    /// How pictures become the frames of the model; by default as the plan says
    #[arg(long, value_name = "MODE")]
    preprocess: Option<String>,
    /// The threshold of F-scores, in units of the median true depth
    #[arg(long, value_name = "T", default_value_t = points::THRESHOLD)]
    threshold: f64,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The plans of a row.
#[derive(Clone, Debug)]
struct Row(Vec<PathBuf>);

fn row(text: &str) -> std::result::Result<Row, String> {
    let paths: Vec<PathBuf> = text.split(',').map(PathBuf::from).collect();
    match paths.iter().any(|path| path.as_os_str().is_empty()) {
        true => Err(format!("`{text}` lacks a plan beside a comma")),
        false => Ok(Row(paths)),
    }
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let protocols = protocols(&args.protocol)?;
    if !(args.threshold > 0.0 && args.threshold.is_finite()) || args.draws == 0 {
        return Err(Error::usage("cli.usage", "--threshold and --draws must be positive"));
    }
    let options =
        Options { protocols, preprocess: args.preprocess.clone(), threshold: args.threshold, seed: args.seed };
    let first = Session::open(&args.plans[0].0[0], &args.device.options())?;
    let frozen = args.samples.as_deref().map(read_samples).transpose()?;
    let views = match (&frozen, args.views) {
        (Some(picks), _) => picks.iter().map(|p| p.views.len()).max().unwrap_or(0),
        (None, Some(views)) => views,
        (None, None) => only_views(&first)?,
    };
    let size = predict::image_input(first.plan())?.size;
    let broken = if args.leave_out_broken { Broken::LeaveOut } else { Broken::Refuse };
    let split = sources::split(args.split.as_deref())?;
    let request = Request { scenes: args.scenes, split, broken, seed: args.seed, size, views };
    let source = sources::open(&args.data, &request)?;
    let picks = match frozen {
        Some(picks) => picks,
        None => sources::draw(source.as_ref(), views, args.draws, choice(args, &options, source.as_ref())?, args.seed)?,
    };
    let scenes = find_scenes(source.as_ref(), &picks)?;
    let mut session = Some(first);
    let mut runs = Vec::new();
    for Row(paths) in &args.plans {
        let (mut plans, mut made, mut entries) = (Vec::new(), None, Vec::new());
        for (plan, path) in paths.iter().enumerate() {
            let mut session = match session.take() {
                Some(first) => first,
                None => Session::open(path, &args.device.options())?,
            };
            let bar = progress::bar(common.quiet, picks.len() as u64, &path.display().to_string());
            for (pick, scene) in picks.iter().zip(&scenes) {
                let sample = source.load(*scene, &pick.views)?;
                let measured = measure(&mut session, &sample, &options)?;
                let group = source.scenes()[*scene].group.as_deref();
                entries.push(Entry { plan, scene: (*scene, group), pick, measured });
                bar.inc(1);
            }
            bar.finish_and_clear();
            let input = predict::image_input(session.plan())?;
            let mode = args.preprocess.clone().unwrap_or(input.preprocess);
            let own = (session.plan().header().target.clone(), (mode, input.size));
            if *made.get_or_insert_with(|| own.clone()) != own {
                let problem =
                    format!("{} has another target or other frames than {}", path.display(), paths[0].display());
                return Err(Error::usage("eval.seeds", problem));
            }
            plans.push((path.display().to_string(), session.plan().weight_bytes()));
        }
        let Some((target, frames)) = made else { continue };
        runs.push(Run::new(&plans, target, frames, &entries, &options));
    }
    let notes = |p: &Protocol| Notes { protocol: p.name(), notes: p.notes(args.threshold) };
    let report = Report {
        data: source.name(),
        about: source.about(),
        seed: args.seed,
        samples: picks,
        notes: options.protocols.iter().map(notes).collect(),
        runs,
    };
    if common.json {
        return super::print_json(&report);
    }
    super::say!("{}", report.text().trim_end());
    Ok(())
}

/// The protocols of all names, each once, in the order of tables.
fn protocols(names: &[String]) -> Result<Vec<Protocol>> {
    let mut wanted = Vec::new();
    for name in names {
        wanted.extend(Protocol::named(name)?);
    }
    Ok(Protocol::all().into_iter().filter(|p| wanted.contains(p)).collect())
}

fn choice(args: &Args, options: &Options, source: &dyn Source) -> Result<Choice> {
    let Some(word) = &args.choice else {
        let alone = options.protocols == [Protocol::Compat];
        return Ok(if alone { Choice::Random } else { source.choice() });
    };
    let found = Choice::WORDS.iter().find(|(w, _)| w == word).map(|(_, choice)| *choice);
    found.ok_or_else(|| Error::usage("eval.choice", format!("views are drawn {}, not `{word}`", Choice::EXPECTS)))
}

/// How many views a plan takes. Errors: `eval.views` where it takes several numbers.
fn only_views(session: &Session) -> Result<usize> {
    let input = predict::image_input(session.plan())?;
    let views = |entry: &crate::plan::Entry| {
        let port = entry.inputs.iter().find(|p| p.name == input.name)?;
        entry.buffers[port.buffer as usize].ty.shape.get(1).and_then(lite3r_ir::Dim::size)
    };
    let mut found: Vec<usize> = session.plan().entries().iter().filter_map(views).collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [views] => Ok(*views),
        several => Err(Error::usage("eval.views", format!("the plan takes {several:?} views: choose with --views"))),
    }
}

/// The samples of a report.
fn read_samples(path: &std::path::Path) -> Result<Vec<Pick>> {
    #[derive(serde::Deserialize)]
    struct Frozen {
        samples: Vec<Pick>,
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot be read", &e))?;
    let frozen: Frozen = serde_json::from_slice(&bytes).map_err(|e| {
        Error::bad_file("eval.samples", format!("{}: is no report of `lite3r eval --json`: {e}", path.display()))
    })?;
    match frozen.samples.iter().all(|p| !p.views.is_empty()) && !frozen.samples.is_empty() {
        true => Ok(frozen.samples),
        false => Err(Error::bad_file("eval.samples", format!("{}: has a sample without views", path.display()))),
    }
}

/// The scene of every sample. Errors: `eval.samples` with every scene that the data does not have.
fn find_scenes(source: &dyn Source, picks: &[Pick]) -> Result<Vec<usize>> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for pick in picks {
        match source.scenes().iter().position(|s| s.name == pick.scene) {
            Some(scene) => found.push(scene),
            None => problems.push(format!("{} has no scene `{}`", source.name(), pick.scene)),
        }
    }
    match problems.is_empty() {
        true => Ok(found),
        false => Err(Error::all(crate::Kind::BadFile, "eval.samples", problems)),
    }
}
