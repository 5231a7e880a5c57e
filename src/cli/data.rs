//! `lite3r data`: data sets written and checked.

use std::path::PathBuf;

use clap::Subcommand;
use image::ImageFormat;

use super::{Common, progress};
use crate::{
    Error, Kind, Result,
    data::{
        Split, Synthetic,
        check::{self, Report},
    },
    scenes::Recipe,
};

const EXAMPLES: &str = "\
Examples:
  A thousand scenes to train on and a hundred to test on, which share nothing:
    lite3r data synth scenes/ --scenes 1000 --split train
    lite3r data synth scenes/ --scenes 100 --split test

  What is in a folder, per split, and everything that is wrong with it:
    lite3r data check BlendedMVS/";

/// Write rendered scenes in BlendedMVS's layout, or check a data set
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Synth(Synth),
    Check(Check),
}

/// Render scenes with exact depth and cameras into a folder, in BlendedMVS's layout
///
/// Scenes are named by split, seed and number, and added to training_list.txt, validation_list.txt or test_list.txt of
/// the folder. The split is a part of the seed: scenes of different splits share no random number, whatever their
/// seeds. Each has blended_images (with and without what has no depth), cams with pair.txt, and rendered_depth_maps.
#[derive(clap::Args, Debug)]
struct Synth {
    /// Where the scenes go, a folder each
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// How many scenes
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    scenes: u64,
    /// Views of each scene
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=4096))]
    views: u64,
    /// Width and height of the images
    #[arg(long, value_name = "WxH", default_value = "768x576", value_parser = size)]
    size: [u32; 2],
    /// What the scenes are for: train, val or test
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    split: Split,
    /// What scenes are like: arc (what the small backbone was trained on) or varied (wider in everything)
    #[arg(long, value_name = "RECIPE", default_value = "varied")]
    recipe: Recipe,
    /// Which scenes of all that there are
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Format of the images: jpg, as in the published set, or png, without loss
    #[arg(long, value_name = "FORMAT", default_value = "jpg", value_parser = images)]
    images: ImageFormat,
}

/// Say what is in a data set, per split, and everything that is wrong with it
///
/// The folder holds scenes in BlendedMVS's layout, is one of them, or is DTU's (Rectified, Cameras). Exit code 4 if
/// anything is wrong. Missing scenes of an official split are told and are not wrong by themselves.
#[derive(clap::Args, Debug)]
struct Check {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Read headers and text files alone: no pixel, so neither damage inside files nor depth that cannot be
    #[arg(long)]
    headers: bool,
}

fn size(text: &str) -> Result<[u32; 2], String> {
    let side = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=16_384).contains(n));
    let sides = text.split_once('x').and_then(|(w, h)| Some([side(w)?, side(h)?]));
    sides.ok_or_else(|| "a size is WIDTHxHEIGHT in pixels, each 1 to 16384".into())
}

fn images(text: &str) -> Result<ImageFormat, String> {
    match text {
        "jpg" => Ok(ImageFormat::Jpeg),
        "png" => Ok(ImageFormat::Png),
        _ => Err("images are written as jpg or png".into()),
    }
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    match &args.command {
        Command::Synth(args) => synth(args, common),
        Command::Check(args) => look(args, common),
    }
}

fn synth(args: &Synth, common: &Common) -> Result<()> {
    let Synth { recipe, split, seed, scenes, views, size, .. } = *args;
    let synthetic = Synthetic { recipe, split, seed, scenes, views, size };
    let bar = progress::bar(common.quiet, scenes, "rendering");
    synthetic.write(&args.out, args.images, |_| bar.inc(1))?;
    bar.finish_and_clear();
    if common.json {
        let names: Vec<String> = (0..scenes).map(|i| synthetic.name(i)).collect();
        return super::print_json(&serde_json::json!({ "folder": args.out, "split": split, "scenes": names }));
    }
    super::say!("{}: {scenes} scenes of {views} views for {split}", args.out.display());
    Ok(())
}

fn look(args: &Check, common: &Common) -> Result<()> {
    let source = check::recognise(&args.folder)?;
    let bar = progress::bar(common.quiet, 0, "reading");
    let report = check::check(source, !args.headers, |all| {
        bar.set_length(all as u64);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    match common.json {
        true => super::print_json(&report)?,
        false => print(&report),
    }
    let problems = report.problems();
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::BadFile, "data.check", problems)) }
}

fn print(report: &Report) {
    super::say!("{}", report.source);
    let splits = Split::WORDS.iter().map(|(word, split)| (*word, Some(*split)));
    for (word, split) in splits.chain([("in no split", None)]) {
        let scenes: Vec<_> = report.scenes.iter().filter(|s| s.split == split).collect();
        let missing = split.and_then(|s| report.missing.get(&s));
        if scenes.is_empty() && missing.is_none() {
            continue;
        }
        let sum = |count: fn(&check::SceneReport) -> usize| scenes.iter().map(|s| count(s)).sum::<usize>();
        let wrong = scenes.iter().filter(|s| !s.problems.is_empty()).count();
        let (views, depth) = (sum(|s| s.views), sum(|s| s.with_depth));
        super::say!("{word}: {} scenes, {views} views, {depth} with depth, {wrong} scenes with problems", scenes.len());
        let (ranges, unpaired) = (sum(|s| s.without_range), sum(|s| s.unpaired));
        if ranges + unpaired > 0 {
            super::say!("  {ranges} views without a range of depth, {unpaired} paired with no other");
        }
        if let Some(missing) = missing {
            super::say!("  {} scenes of the split are missing: {}", missing.len(), missing.join(" "));
        }
        for scene in scenes {
            let sizes: Vec<String> = scene.sizes.iter().map(|(size, n)| format!("{n} of {size}")).collect();
            let covered = scene.covered.map(|c| format!(", depth on {:.0} % of pixels", 100.0 * c)).unwrap_or_default();
            let problems = match scene.problems.len() {
                0 => String::new(),
                n => format!(", {n} problems"),
            };
            super::say!("  {} {} views ({}){covered}{problems}", scene.name, scene.views, sizes.join(", "));
        }
    }
}
