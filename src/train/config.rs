//! What a training run is told, as TOML: every default stands in the copy that a run keeps.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{adamw::AdamW, init, schedule::Scheduled, step::Loss};
use crate::{Error, Kind, Result};

/// A training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is trained.
    pub model: Model,
    /// What it learns from.
    pub data: Data,
    /// How long and how fast.
    pub run: Run,
    /// What it is measured by while it learns; weights of losses that are zero throughout leave them out.
    pub loss: Losses,
    /// Which attentions learn to match.
    pub matching: Matching,
    /// How weights follow gradients.
    pub optimizer: AdamW,
    /// How a student is made of the model; none: the model itself learns.
    pub student: Option<Student>,
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The name of an architecture: `vggt-small`. Empty where `onnx` is given.
    pub arch: String,
    /// A file to import instead.
    pub onnx: Option<PathBuf>,
    /// Weights to begin with, safetensors; none: random ones of `seed` for an architecture, its own for a file.
    pub weights: Option<PathBuf>,
    /// Of random weights.
    pub seed: u64,
    /// What LayerScale begins with among random weights.
    pub layer_scale: f64,
    /// Rows and columns of the images, for an architecture.
    pub size: [usize; 2],
    /// Patterns of the names of weights that change: `["proj_lin"]`, `["*"]`.
    pub train: Vec<String>,
    /// Factors of the learning rate by pattern; the first that matches counts, 1 otherwise.
    pub rates: Vec<(String, f64)>,
    /// Patterns of the names of weights that are not written in the end: of heads that only taught, `["point_head.*"]`.
    pub leave_out: Vec<String>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            arch: String::new(),
            onnx: None,
            weights: None,
            seed: 0,
            layer_scale: init::LAYER_SCALE,
            size: [224, 224],
            train: vec!["*".into()],
            rates: Vec::new(),
            leave_out: Vec::new(),
        }
    }
}

impl Model {
    /// Takes the model of that name: an ONNX file, or an architecture.
    pub fn choose(&mut self, name: &str) {
        match name.ends_with(".onnx") {
            true => self.onnx = Some(name.into()),
            false => self.arch = name.into(),
        }
    }
}

/// What a model learns from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// `synthetic`, `synthetic:arc`: rendered scenes; or where a data set lies: `blendedmvs:DIR`, `dtu:DIR`.
    pub source: String,
    /// Rendered scenes of an epoch.
    pub scenes: u64,
    /// The numbers of views that scenes are seen from, one drawn a scene.
    pub views: Vec<usize>,
    /// Of what is drawn.
    pub seed: u64,
    /// Threads that prepare scenes.
    pub threads: usize,
    /// Scenes that the loss is measured on without learning from them.
    pub validation: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self { source: "synthetic".into(), scenes: 100_000, views: vec![2, 4, 8], seed: 0, threads: 2, validation: 8 }
    }
}

/// How long and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Steps of the optimiser.
    pub steps: u64,
    /// Scenes a step, all of as many views, whose gradients are gathered.
    pub scenes: usize,
    /// How many of them are computed at once, as one graph; more than one for VGGT by its name alone.
    pub together: usize,
    /// What products are computed in; sums, weights and what they are updated by are f32.
    pub precision: Precision,
    /// The highest learning rate.
    pub rate: f64,
    /// Steps of its rise.
    pub warmup: u64,
    /// What is left of it at the end.
    pub last: f64,
    /// Steps between checkpoints.
    pub checkpoint: u64,
    /// Steps between measurements of validation scenes.
    pub validate: u64,
    /// Bytes of activations that may be kept for the reverse pass; what exceeds them is computed again. None: all are kept.
    pub activation_memory: Option<usize>,
    /// Steps in a row without a finite gradient after which the run stops.
    pub patience: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            steps: 1000,
            scenes: 4,
            together: 1,
            precision: Precision::F32,
            rate: 1e-3,
            warmup: 30,
            last: 0.01,
            checkpoint: 100,
            validate: 100,
            activation_memory: None,
            patience: 20,
        }
    }
}

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, as the pass `bf16` has it; for CUDA.
    Bf16,
}

/// Which attentions [`Loss::Matching`] is about, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matching {
    /// As the pass `sla` chooses them.
    pub attentions: String,
    /// The head that matches.
    pub head: usize,
}

impl Default for Matching {
    fn default() -> Self {
        Self { attentions: "kind=global,layers=[1,2]".into(), head: 0 }
    }
}

/// What losses count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Losses {
    /// Of VGGT's cameras.
    pub camera: Scheduled,
    /// Of depth.
    pub depth: Scheduled,
    /// Of world points.
    pub points: Scheduled,
    /// Of DA3's ray maps.
    pub rays: Scheduled,
    /// Of DA3's cameras.
    pub pose: Scheduled,
    /// Of attention modules against those of the teacher.
    pub attention: Scheduled,
    /// Of routers with weights against where attention is.
    pub router: Scheduled,
    /// Of a head of early global attentions against where the same surface is seen.
    pub matching: Scheduled,
}

impl Default for Losses {
    fn default() -> Self {
        let one = Scheduled::Constant;
        Self {
            camera: one(5.0),
            depth: one(1.0),
            points: one(0.0),
            rays: one(0.0),
            pose: one(0.0),
            attention: one(0.0),
            router: one(0.0),
            matching: one(0.0),
        }
    }
}

impl Losses {
    /// The weight of a loss.
    pub fn of(&self, loss: Loss) -> Scheduled {
        match loss {
            Loss::Camera => self.camera,
            Loss::Depth => self.depth,
            Loss::Points => self.points,
            Loss::Rays => self.rays,
            Loss::Pose => self.pose,
            Loss::Attention => self.attention,
            Loss::Router => self.router,
            Loss::Matching => self.matching,
        }
    }

    /// Those that count.
    pub fn used(&self) -> Vec<Loss> {
        Loss::ALL.into_iter().filter(|loss| !self.of(*loss).is_zero()).collect()
    }
}

/// How a student is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// Passes over the recognised model: `token_layout{kind=global};sla{kind=global,keep=0.1};fp8{mode=fake}`.
    pub passes: String,
    /// Which attentions are compared with the teacher's, as the pass `sla` chooses them: `kind=global`.
    #[serde(default = "global")]
    pub attentions: String,
}

fn global() -> String {
    "kind=global".into()
}

impl Config {
    /// Reads a file; a command line may add to it before [`Config::check`]. Errors: `file.io`; `train.config` for text that is
    /// no configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot be read", &e))?;
        let wrong = |e: toml::de::Error| Error::usage("train.config", format!("{}: {e}", path.display()));
        toml::from_str(&text).map_err(wrong)
    }

    /// As TOML, with everything written out.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::usage("train.config", e.to_string()))
    }

    /// Errors: `train.config`, with everything that is wrong.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut require = |fits: bool, what: &str| {
            if !fits {
                problems.push(what.to_string());
            }
        };
        let Self { model, data, run, loss, matching: _, optimizer, student } = self;
        let named = usize::from(!model.arch.is_empty()) + usize::from(model.onnx.is_some());
        require(named == 1, "`model` names either `arch` or `onnx`");
        require(!model.train.is_empty(), "`model.train` names no weight");
        require(model.layer_scale.is_finite(), "`model.layer_scale` must be finite");
        require(model.rates.iter().all(|(_, r)| r.is_finite() && *r >= 0.0), "`model.rates` are finite, from 0");
        require(!data.views.is_empty() && !data.views.contains(&0), "`data.views` are numbers from 1");
        require(data.threads > 0, "`data.threads` must be at least 1");
        require(run.steps > 0 && run.scenes > 0, "`run.steps` and `run.scenes` must be at least 1");
        let together = run.together.max(1);
        require(run.together > 0, "`run.together` must be at least 1");
        require(run.scenes.is_multiple_of(together), "`run.scenes` must be a multiple of `run.together`");
        require(data.validation.is_multiple_of(together), "`data.validation` must be a multiple of `run.together`");
        require(together == 1 || model.onnx.is_none(), "`run.together`: an imported model takes one scene at once");
        require(run.checkpoint > 0 && run.validate > 0 && run.patience > 0, "intervals must be at least 1 step");
        require(run.rate.is_finite() && run.rate > 0.0, "`run.rate` must be above 0");
        require((0.0..=1.0).contains(&run.last), "`run.last` must be between 0 and 1");
        let betas = [optimizer.beta1, optimizer.beta2].iter().all(|b| (0.0..1.0).contains(b));
        require(betas, "`optimizer.beta1` and `beta2` must be from 0 and below 1");
        require(optimizer.epsilon > 0.0 && optimizer.clip > 0.0, "`optimizer.epsilon` and `clip` must be above 0");
        require(optimizer.weight_decay >= 0.0, "`optimizer.weight_decay` must be at least 0");
        require(Loss::ALL.iter().all(|l| loss.of(*l).is_sound()), "weights in `loss` are finite, from 0");
        require(!loss.used().is_empty(), "every weight in `loss` is 0");
        let of_students = loss.used().into_iter().filter(|loss| loss.needs_student());
        for loss in of_students.filter(|_| student.is_none()) {
            require(false, &format!("`loss.{}` needs a `student`", loss.name()));
        }
        require(
            loss.matching.is_zero() || student.is_none(),
            "`loss.matching` is of a model itself: a `student` has other attentions",
        );
        if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Usage, "train.config", problems)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_visible_and_read_back() {
        let config = Config { model: Model { arch: "vggt-tiny".into(), ..Model::default() }, ..Config::default() };
        let text = config.text().unwrap();
        for line in ["rate = 0.001", "clip = 1.0", "views = [2, 4, 8]", "weight_decay = 0.05"] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        config.check().unwrap();
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let source =
            "[model]\ntrain = []\n[run]\nsteps = 0\nrate = -1.0\n[loss]\nattention = { from = 0.1, to = 0.01 }\n";
        let error = toml::from_str::<Config>(source).unwrap().check().unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("train.config", 5), "{error}");
        assert!(
            toml::from_str::<Config>("[run]\nstep = 1\n").unwrap_err().to_string().contains("unknown field `step`")
        );
    }
}
