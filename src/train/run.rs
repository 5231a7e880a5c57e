//! A run in its folder: what it was told, every step's figures, the last checkpoint, curves, and what was learnt.
//!
//! | file | what |
//! | --- | --- |
//! | `config.toml` | the configuration with every default |
//! | `metrics.jsonl` | a line a step: step, loss, every loss, norm, rate, whether it was skipped; `validation` and `validation_losses` where they were measured |
//! | `last.safetensors` | the checkpoint that `--resume` goes on from |
//! | `curves.svg` | losses over steps |
//! | `weights.safetensors` | in f16, at the end: what was trained, and the rest of a model that was trained from its architecture |

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{
    curves,
    sample::Sample,
    trainer::{StepReport, Trainer},
};
use crate::{Error, Result, atomic};

/// Where scenes come from, in an order that their position alone decides.
pub trait Scenes {
    /// The sample behind the last one: as many scenes as are computed together.
    fn next(&mut self) -> Result<Sample>;

    /// Goes to a position: the number of samples in front of it.
    fn seek(&mut self, position: u64) -> Result<()>;

    /// Samples that are never learnt from.
    fn validation(&mut self) -> Result<Vec<Sample>>;
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The number of the step, from 1.
    pub step: u64,
    /// The weighted loss.
    pub loss: f64,
    /// Each loss.
    pub losses: BTreeMap<String, f64>,
    /// The norm of the gradient; none where it was not finite.
    pub norm: Option<f64>,
    /// The learning rate.
    pub rate: f64,
    /// Whether nothing changed.
    pub skipped: bool,
    /// Seconds that the step took, scenes included.
    pub seconds: f64,
    /// The weighted loss of validation scenes after the step, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// Each loss of validation scenes, where they were measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation_losses: BTreeMap<String, f64>,
}

/// The files of a run.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder of a new run. Errors: `train.folder` where a run is there already; `file.io`.
    pub fn new(path: &Path) -> Result<Self> {
        let folder = Self(path.into());
        if folder.metrics().exists() || folder.checkpoint().exists() {
            let problem =
                format!("{} holds a run: `--resume` goes on with it, or choose another folder", path.display());
            return Err(Error::usage("train.folder", problem));
        }
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, "cannot be made", &e))?;
        Ok(folder)
    }

    /// The folder of a run that goes on. Errors: `train.folder` where there is no checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Self(path.into());
        match folder.checkpoint().exists() {
            true => Ok(folder),
            false => {
                let problem = format!("{} holds no checkpoint to go on from", path.display());
                Err(Error::usage("train.folder", problem))
            }
        }
    }

    /// What the run was told.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// What `--resume` goes on from.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("last.safetensors")
    }

    /// The figures of every step.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// What was learnt.
    pub fn weights(&self) -> PathBuf {
        self.0.join("weights.safetensors")
    }

    /// Lines of steps up to `last`. Errors: `file.io`; `train.metrics` for a line that is none.
    fn lines(&self, last: u64) -> Result<Vec<Line>> {
        let path = self.metrics();
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot be read", &e))?;
        let mut lines: Vec<Line> = Vec::new();
        for (i, text) in text.lines().enumerate() {
            match serde_json::from_str::<Line>(text) {
                Ok(line) if line.step <= last => lines.push(line),
                Ok(_) => break,
                // A run that was cut short may have left half a line behind its last checkpoint.
                Err(_) if lines.last().is_some_and(|l| l.step == last) => break,
                Err(e) => {
                    let problem = format!("{}, line {}: {e}", path.display(), i + 1);
                    return Err(Error::bad_file("train.metrics", problem));
                }
            }
        }
        Ok(lines)
    }
}

/// Learns to the end of the configured steps; `watch` sees every step. A run that is stopped loses what came after its
/// last checkpoint.
///
/// # Errors
/// Those of [`Trainer::learn`], of the scenes, and `file.io`.
pub fn run(
    trainer: &mut Trainer,
    folder: &Folder,
    scenes: &mut dyn Scenes,
    watch: &mut dyn FnMut(&Line),
) -> Result<Vec<Line>> {
    let config = trainer.config().clone();
    let (mut lines, (made, _)) = (Vec::new(), trainer.made());
    if made > 0 {
        lines = folder.lines(made)?;
    }
    atomic::write_bytes(&folder.config(), config.text()?.as_bytes())?;
    let text: String = lines.iter().map(|line| text_of(line) + "\n").collect();
    atomic::write_bytes(&folder.metrics(), text.as_bytes())?;
    let path = folder.metrics();
    let io = |e: std::io::Error| Error::io(&path, "cannot be written", &e);
    let mut out = std::fs::OpenOptions::new().append(true).open(&path).map_err(io)?;
    let validation = if config.data.validation > 0 { scenes.validation()? } else { Vec::new() };
    let samples = config.run.scenes / config.run.together;
    scenes.seek(made * samples as u64)?;
    for step in made + 1..=config.run.steps {
        let begun = Instant::now();
        let batch = (0..samples).map(|_| scenes.next()).collect::<Result<Vec<Sample>>>()?;
        let report = trainer.learn(&batch)?;
        let seconds = begun.elapsed().as_secs_f64();
        let last = step == config.run.steps;
        let measured = !validation.is_empty() && (last || step.is_multiple_of(config.run.validate));
        let measured = if measured { Some(trainer.measure(&validation)?) } else { None };
        let line = line(report, seconds, measured);
        writeln!(out, "{}", text_of(&line)).map_err(io)?;
        watch(&line);
        lines.push(line);
        if last || step.is_multiple_of(config.run.checkpoint) {
            out.sync_data().map_err(io)?;
            trainer.save(&folder.checkpoint())?;
            atomic::write_bytes(&folder.0.join("curves.svg"), curves::svg(&lines).as_bytes())?;
        }
    }
    trainer.export(&folder.weights(), config.model.onnx.is_none())?;
    Ok(lines)
}

fn line(report: StepReport, seconds: f64, measured: Option<(f64, BTreeMap<&'static str, f64>)>) -> Line {
    let StepReport { step, loss, losses, norm, rate, skipped } = report;
    let named = |losses: BTreeMap<&str, f64>| losses.into_iter().map(|(name, loss)| (name.to_string(), loss)).collect();
    let (validation, validation_losses) = measured.map(|(total, each)| (total, named(each))).unzip();
    let validation_losses = validation_losses.unwrap_or_default();
    let norm = norm.is_finite().then_some(norm);
    Line { step, loss, losses: named(losses), norm, rate, skipped, seconds, validation, validation_losses }
}

fn text_of(line: &Line) -> String {
    serde_json::to_string(line).expect("numbers and names are always JSON")
}
