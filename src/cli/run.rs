//! `lite3r run`: a plan and pictures in, depth, cameras and a point cloud out; or tensors in, tensors out.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use lite3r_ir::Tensor;

use super::{Common, progress};
use crate::{
    Error, Kind, Result,
    backend::{Probe, Trust},
    npy,
    plan::OpenOptions,
    predict,
    recon::{Formats, Reconstruction, load_images, load_masks, write_all},
    session::{self, Saturated, Session},
};

const EXAMPLES: &str = "\
Examples:
  Depth, cameras and a point cloud from a folder of pictures:
    lite3r run vggt.l3r photos/ -o out/

  Only the cloud, of the surest half of all pixels:
    lite3r run vggt.l3r photos/*.jpg -o out/ --formats ply,glb --confidence 50

  Tensors in, tensors out:
    lite3r run plan.l3r --input images=@images.npy --save-outputs outputs.npz";

/// Run a plan on pictures, or on tensors
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan
    #[arg(value_name = "PLAN.l3r")]
    plan: PathBuf,
    /// Pictures, or folders of pictures: PNG, JPEG, WebP, TIFF
    #[arg(value_name = "IMAGES", conflicts_with = "input")]
    images: Vec<PathBuf>,
    /// Where the results go
    #[arg(short, long, value_name = "FOLDER", requires = "images")]
    output: Option<PathBuf>,
    /// What is written: all, or some of cameras, npz, depth-png, depth-pfm, depth-color, ply, glb, colmap, colmap-text
    #[arg(long, value_name = "FORMAT,…", default_value = "all")]
    formats: String,
    /// How pictures become the frames of the model; by default as the plan says:
    /// vggt_crop, vggt_pad, da3_upper_bound_resize, da3_upper_bound_crop, plain_crop, plain_pad, plain_stretch
    #[arg(long, value_name = "MODE")]
    preprocess: Option<String>,
    /// A folder of masks named like the pictures; black pixels become no points
    #[arg(long, value_name = "FOLDER")]
    masks: Option<PathBuf>,
    /// Drop this percentage of pixels, the least sure ones, from the clouds
    #[arg(long, value_name = "PERCENT", default_value_t = 40.0)]
    confidence: f64,
    /// At most so many points in a cloud
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_points: usize,
    /// An input tensor: `images=@images.npy`; repeatable
    #[arg(long, value_name = "NAME=@FILE.npy")]
    input: Vec<String>,
    /// Write every output of the model as it is
    #[arg(long, value_name = "FILE.npz")]
    save_outputs: Option<PathBuf>,
    /// Look at the results of every step: the first NaN or infinity is an error that names the operation and the node;
    /// FP8 codes at the largest magnitude are counted. Slow
    #[arg(long)]
    check_finite: bool,
    /// Print what each part of loading takes
    #[arg(long)]
    time: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// On what a plan runs.
#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArgs {
    /// The device, as `lite3r devices` lists it; `wgsl:0:plain` holds back what better shaders use, `wgsl:0:f16+subgroups`
    /// all but these (of f16, subgroups and matrices)
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Threads of the CPU; all cores by default
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Run the machine code that the plan carries, whoever compiled it
    #[arg(long, conflicts_with = "rebuild")]
    trust: bool,
    /// Compile the kernels anew from this program's own sources, in place of those that the plan carries
    #[arg(long)]
    rebuild: bool,
    /// Files or folders that hold weights which the plan only refers to; repeatable
    #[arg(long, value_name = "PATH")]
    weights: Vec<PathBuf>,
}

impl DeviceArgs {
    /// As the session takes it.
    pub fn options(&self) -> session::Options {
        let plan = OpenOptions { weights: self.weights.clone(), ..OpenOptions::default() };
        let trust = match (self.trust, self.rebuild) {
            (true, _) => Trust::Plan,
            (_, true) => Trust::Nobody,
            _ => Trust::Own,
        };
        session::Options { device: self.device.clone(), threads: self.threads, trust, plan }
    }
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let mut session = Session::open(&args.plan, &args.device.options())?;
    if args.time {
        session
            .load_times()
            .iter()
            .for_each(|(part, time)| eprintln!("{part:<10} {:>9.1} ms", time.as_secs_f64() * 1e3));
    }
    if !args.input.is_empty() {
        let inputs = read_inputs(&args.input)?;
        let (outputs, seconds) = run(&mut session, &inputs, args, common)?;
        return finish_tensors(args, common, &outputs, seconds);
    }
    if args.images.is_empty() {
        return Err(Error::usage("cli.usage", "give pictures, or tensors with `--input NAME=@FILE.npy`"));
    }
    let formats = formats(args)?;
    let input = predict::image_input(session.plan())?;
    if args.output.is_none() && args.save_outputs.is_none() {
        return Err(Error::usage("cli.usage", "`-o FOLDER` says where the results go"));
    }
    let mut pictures = load_images(&args.images)?;
    if let Some(masks) = &args.masks {
        load_masks(masks, &mut pictures)?;
    }
    let prepared = predict::frames(&pictures, &input, args.preprocess.as_deref())?;
    let inputs = BTreeMap::from([(input.name.clone(), prepared.tensor.clone())]);
    let (outputs, seconds) = run(&mut session, &inputs, args, common)?;
    if let Some(path) = &args.save_outputs {
        npy::save_archive(path, &outputs)?;
    }
    let Some(folder) = &args.output else { return finish_tensors(args, common, &outputs, seconds) };
    let family = predict::family(session.plan(), &outputs)?;
    let reconstruction = Reconstruction::from_outputs(&outputs, &prepared, &pictures, family)?;
    let files = write_all(&reconstruction, folder, &formats)?;
    if common.json {
        let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        return super::print_json(&serde_json::json!({
            "views": reconstruction.views.len(), "seconds": seconds, "peak_bytes": session.allocated_bytes(),
            "dropped_pixels": reconstruction.dropped, "files": names,
        }));
    }
    if !common.quiet {
        let peak = super::bytes(session.allocated_bytes());
        super::say!("{} views in {seconds:.2} s, {peak} allocated", reconstruction.views.len());
        if reconstruction.dropped > 0 {
            super::say!("{} values of depth or confidence were not finite and are left out", reconstruction.dropped);
        }
        super::say!("{} files in {}", files.len(), folder.display());
    }
    Ok(())
}

fn run(
    session: &mut Session,
    inputs: &BTreeMap<String, Tensor>,
    args: &Args,
    common: &Common,
) -> Result<(BTreeMap<String, Tensor>, f64)> {
    let entry = session.entry_for(inputs)?;
    if args.check_finite {
        let start = Instant::now();
        let (outputs, saturated) = session.check_finite(entry, inputs)?;
        if !common.quiet {
            eprint!("{}", finite(session.plan().entries()[entry].steps.len(), &saturated));
        }
        return Ok((outputs, start.elapsed().as_secs_f64()));
    }
    let steps = session.plan().entries()[entry].steps.len() as u64;
    // A GPU is done before a bar could move, and watching its steps would slow it down.
    let bar = progress::bar(common.quiet || session.plan().header().target != "cpu", steps, "running");
    let start = Instant::now();
    let mut seen = |_: crate::backend::StepRun<'_>| bar.inc(1);
    let probe = match bar.is_hidden() {
        true => Probe::Nothing,
        false => Probe::Times(&mut seen),
    };
    let outputs = session.run_with(entry, inputs, probe)?;
    bar.finish_and_clear();
    Ok((outputs, start.elapsed().as_secs_f64()))
}

/// What a check has found where everything is finite.
pub fn finite(steps: usize, saturated: &[Saturated]) -> String {
    let mut text = format!("the results of all {steps} steps are finite\n");
    for Saturated { step, op, origin, codes, of } in saturated {
        let share = 100.0 * *codes as f64 / *of as f64;
        text += &format!("step {step}, {op} at `{origin}`: {codes} of {of} FP8 codes at the limit ({share:.4} %)\n");
    }
    text
}

fn finish_tensors(args: &Args, common: &Common, outputs: &BTreeMap<String, Tensor>, seconds: f64) -> Result<()> {
    if let Some(path) = &args.save_outputs {
        npy::save_archive(path, outputs)?;
    }
    let types: BTreeMap<&str, String> =
        outputs.iter().map(|(name, t)| (name.as_str(), t.value_type().to_string())).collect();
    if common.json {
        return super::print_json(&serde_json::json!({ "seconds": seconds, "outputs": types }));
    }
    if !common.quiet {
        types.iter().for_each(|(name, ty)| super::say!("{name}: {ty}"));
        super::say!("{seconds:.2} s");
    }
    Ok(())
}

fn formats(args: &Args) -> Result<Formats> {
    if !(0.0..100.0).contains(&args.confidence) {
        return Err(Error::usage(
            "cli.usage",
            format!("--confidence {} is not a percentage from 0 to 100", args.confidence),
        ));
    }
    let mut formats = Formats::parse(&args.formats)?;
    formats.points.confidence_percentile = args.confidence;
    formats.points.max_points = args.max_points;
    Ok(formats)
}

/// `NAME=@FILE.npy` for every input; all problems at once.
pub fn read_inputs(inputs: &[String]) -> Result<BTreeMap<String, Tensor>> {
    let (mut tensors, mut problems) = (BTreeMap::new(), Vec::new());
    let mut kind = Kind::Usage;
    for input in inputs {
        let Some((name, path)) = input.split_once("=@") else {
            problems.push(format!("`{input}` is not NAME=@FILE.npy"));
            continue;
        };
        match npy::read(path.as_ref()) {
            Ok(tensor) => drop(tensors.insert(name.to_string(), tensor)),
            Err(error) => {
                kind = error.kind;
                problems.extend(error.problems);
            }
        }
    }
    if problems.is_empty() { Ok(tensors) } else { Err(Error::all(kind, "run.input", problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_inputs_are_named() {
        let error = read_inputs(&["x".into(), "y=@/no/such.npy".into()]).unwrap_err();
        assert_eq!(error.problems.len(), 2);
    }
}
