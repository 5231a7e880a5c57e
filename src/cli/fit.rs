//! `lite3r fit`: the projections of sparse-linear attention in closed form.

use std::{collections::HashMap, path::PathBuf};

use super::{Common, progress, run::DeviceArgs, say};
use crate::{
    Error, Kind, Result,
    backend::target,
    train::{
        config::{Config, Data, Model, Student},
        fit::{Fit, fit},
        models::{Models, image_size},
        run::Scenes,
        source::Source,
    },
    weights,
};

const EXAMPLES: &str = "\
Examples:
  The projections of a student that keeps a tenth of all keys, from 16 rendered scenes:
    lite3r fit --teacher backbone.onnx -o weights.safetensors \\
      --student-passes 'token_layout{kind=global};sla{kind=global,keep=0.1,form=add}'";

/// Fit the projections of a rewritten model by ridge regression, layer by layer
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model: an ONNX file, or the name of an architecture
    #[arg(long, value_name = "MODEL")]
    teacher: String,
    /// Its weights, safetensors, where they are not those of the file
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// The passes that make the student, over the recognised model
    #[arg(long, value_name = "PASSES")]
    student_passes: String,
    /// Where the projections go, safetensors
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Calibration scenes
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    scenes: u64,
    /// Views a scene
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    views: u64,
    /// Where scenes come from
    #[arg(long, value_name = "SOURCE", default_value = "synthetic")]
    data: String,
    /// The seed of the scenes
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// How much the sizes of projections cost, in parts of the mean square of what they project; what linear branches give
    /// is nearly the same everywhere, so that projections which cost little fit these scenes and no others
    #[arg(long, value_name = "λ", default_value_t = 1.0)]
    ridge: f64,
    /// The target to compute on
    #[arg(long, value_name = "TARGET", default_value = "cpu")]
    target: String,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    if !(args.ridge.is_finite() && args.ridge >= 0.0) {
        return Err(Error::usage("train.ridge", format!("`--ridge` must be finite and from 0, not {}", args.ridge)));
    }
    let mut model = Model { weights: args.weights.clone(), ..Model::default() };
    model.choose(&args.teacher);
    let config = Config {
        model,
        data: Data { source: args.data.clone(), views: vec![args.views as usize], seed: args.seed, ..Data::default() },
        student: Some(Student { passes: args.student_passes.clone(), attentions: "kind=global".into() }),
        ..Config::default()
    };
    let Models { by_views, weights: own } = Models::of(&config)?;
    let model = by_views.into_values().next().expect("one number of views");
    let mut source = Source::new(&config, image_size(&model)?)?;
    let bar = progress::bar(common.quiet, args.scenes, "preparing scenes");
    let scenes = (0..args.scenes).map(|_| {
        bar.inc(1);
        source.next()
    });
    let scenes = scenes.collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    let spinner = progress::spinner(common.quiet, "fitting");
    let how = Fit { student: args.student_passes.clone(), ridge: args.ridge };
    let on = (target(&args.target)?, &args.device.options());
    let (found, report) = fit(&model, &own, &how, on, &scenes, &mut |fitted| {
        spinner.set_message(fitted.weight.clone());
    })?;
    spinner.finish_and_clear();
    if report.iter().any(|f| !f.after.is_finite()) {
        return Err(Error::new(Kind::NotFinite, "train.fit", "a projection explains nothing that is finite"));
    }
    weights::safetensors::write(&args.output, &found, HashMap::new())?;
    if common.json {
        return super::print_json(&report);
    }
    say!("attention errors on the calibration scenes themselves:");
    say!("{:<48} {:>10} {:>10}", "projection", "without", "with");
    report.iter().for_each(|f| say!("{:<48} {:>10.4} {:>10.4}", f.weight, f.before, f.after));
    say!("written to {}", args.output.display());
    Ok(())
}
