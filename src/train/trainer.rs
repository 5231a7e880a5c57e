//! A training run on a device: steps, measurements without learning, checkpoints.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use lite3r_ir::{Bindings, DType, Tensor, ValueType, passes::glob::matches};
use serde::Serialize;

use super::{
    adamw::{Trained, gradient_name, moment_names},
    checkpoint::Checkpoint,
    config::{self, Config},
    join::teacher_name,
    models::{IMAGES, Models, rows_and_columns},
    sample::Sample,
    schedule::rate,
    step::{ADD, Loss, Recipe, SHARE, TOTAL, finished, gradients},
};
use crate::{
    Error, Kind, Result,
    backend::Target,
    compile,
    plan::{self, EntrySource, Meta},
    session::{self, Session},
    weights::{self, Weights},
};

/// A run between two steps.
pub struct Trainer {
    config: Config,
    session: Session,
    trained: Vec<Trained>,
    frozen: Weights,
    losses: Vec<Loss>,
    notes: Vec<String>,
    /// The gradients entry of a number of views.
    entries: HashMap<usize, usize>,
    update: usize,
    step: u64,
    skipped: u64,
    /// Steps in a row that were skipped.
    stuck: u64,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// The weighted sum of the losses, a mean over the scenes.
    pub loss: f64,
    /// Each loss by itself, means over the scenes.
    pub losses: BTreeMap<&'static str, f64>,
    /// The norm of the gradient before it was clipped.
    pub norm: f64,
    /// The learning rate.
    pub rate: f64,
    /// Whether the gradient was not finite, so that nothing changed.
    pub skipped: bool,
}

impl Trainer {
    /// Builds a model for every number of views, differentiates it and brings it to a device.
    ///
    /// # Errors
    /// `train.config`; those of [`compile::bound`], [`gradients`], [`plan::build()`] and [`Session::new`].
    pub fn new(config: Config, target: &dyn Target, options: &session::Options) -> Result<Self> {
        config.check()?;
        let losses = config.loss.used();
        let recipe = recipe(&config, &losses, target)?;
        let Models { by_views, weights: mut frozen } = Models::of(&config)?;
        let mut sources = Vec::new();
        let (mut entries, mut trained, mut notes) = (HashMap::new(), Vec::new(), Vec::new());
        for (views, model) in by_views {
            let (graph, own, said) = gradients(&model, &recipe)?;
            notes.extend(said.into_iter().map(|note| format!("{views} views: {note}")));
            entries.insert(views, sources.len());
            sources.push(EntrySource { bindings: Bindings::from([("S".to_string(), views)]), graph });
            trained = own;
        }
        // A teacher keeps what its student changes.
        let kept = trained.iter().filter_map(|t| Some((teacher_name(&t.name), frozen.get(&t.name)?.clone())));
        let kept: Vec<_> = kept.collect();
        kept.into_iter().for_each(|(name, weight)| drop(frozen.insert(name, weight)));
        let update = sources.len();
        let graph = config.optimizer.graph(&trained).map_err(|e| Error::unsupported("train.model", e.to_string()));
        let graph = finished(graph?)?;
        sources.push(EntrySource { bindings: Bindings::new(), graph });
        let plan = plan::build(&sources, &frozen, target, Meta::default())?;
        let session = Session::new(plan, options)?;
        Ok(Self { config, session, trained, frozen, losses, notes, entries, update, step: 0, skipped: 0, stuck: 0 })
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What it trains.
    pub fn trained(&self) -> &[Trained] {
        &self.trained
    }

    /// What is remarkable about the memory of a step.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Steps that have been made, and those among them that were skipped.
    pub fn made(&self) -> (u64, u64) {
        (self.step, self.skipped)
    }

    /// The plan that runs.
    pub fn plan(&self) -> &plan::Plan {
        self.session.plan()
    }

    /// Learns from the scenes of one step.
    ///
    /// # Errors
    /// `train.views` for a number of views that was not announced; `train.diverged` where gradients have not been finite
    /// for too long; those of [`Session::run`].
    pub fn learn(&mut self, scenes: &[Sample]) -> Result<StepReport> {
        let (loss, losses) = self.run(scenes)?;
        let config::Run { steps, warmup, rate: peak, last, patience, .. } = self.config.run;
        let now = rate(self.step, steps, warmup, peak, last);
        self.step += 1;
        // Steps that were skipped have not moved the moments.
        let moved = (self.step - self.skipped) as i32;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powi(moved));
        let adam = &self.config.optimizer;
        let inputs = [("rate", now), ("correction1", correction(adam.beta1)), ("correction2", correction(adam.beta2))];
        let outputs = self.session.run(self.update, &numbers(inputs))?;
        let norm = outputs["norm"].item().unwrap_or(f64::NAN);
        let skipped = !norm.is_finite();
        self.skipped += u64::from(skipped);
        self.stuck = if skipped { self.stuck + 1 } else { 0 };
        if self.stuck >= patience {
            let problem = format!(
                "no gradient has been finite for {patience} steps, the last one being step {}: lower `run.rate` or `optimizer.clip`",
                self.step
            );
            return Err(Error::new(Kind::NotFinite, "train.diverged", problem));
        }
        Ok(StepReport { step: self.step, loss, losses, norm, rate: now, skipped })
    }

    /// The losses of scenes, without learning from them. Errors: as [`Trainer::learn`].
    pub fn measure(&mut self, scenes: &[Sample]) -> Result<(f64, BTreeMap<&'static str, f64>)> {
        self.run(scenes)
    }

    /// Gathers the gradients of some scenes; answers the weighted loss and each loss, means over them.
    fn run(&mut self, scenes: &[Sample]) -> Result<(f64, BTreeMap<&'static str, f64>)> {
        let (mut total, mut losses) = (0.0, BTreeMap::new());
        let count: usize = scenes.iter().map(|s| s.scenes).sum();
        for (number, scene) in scenes.iter().enumerate() {
            let share = scene.scenes as f64 / count.max(1) as f64;
            let entry = *self.entries.get(&scene.views).ok_or_else(|| {
                let problem =
                    format!("a scene has {} views, `data.views` are {:?}", scene.views, self.config.data.views);
                Error::usage("train.views", problem)
            })?;
            let (step, steps) = (self.step, self.config.run.steps);
            let weights = self.losses.iter().map(|loss| (loss.weight(), self.config.loss.of(*loss).at(step, steps)));
            let mut inputs = numbers([(SHARE, share), (ADD, f64::from(u8::from(number > 0)))]);
            inputs.extend(weights.map(|(name, value)| (name, Tensor::scalar(DType::F32, value))));
            inputs.extend(scene.inputs(&self.session.plan().entries()[entry]));
            let outputs = self.session.run(entry, &inputs)?;
            let number = |name: &str| outputs.get(name).and_then(Tensor::item).unwrap_or(f64::NAN);
            total += share * number(TOTAL);
            for loss in &self.losses {
                *losses.entry(loss.name()).or_insert(0.0) += share * number(&loss.output());
            }
        }
        Ok((total, losses))
    }

    /// Names and types of the states that a checkpoint holds.
    fn states(&self) -> BTreeMap<String, ValueType> {
        let of = |t: &Trained| {
            let [first, second] = moment_names(&t.name);
            [t.name.clone(), first, second].map(|name| (name, t.ty.clone()))
        };
        self.trained.iter().flat_map(of).collect()
    }

    /// Writes where the run stands. Errors: those of [`Checkpoint::save`] and [`Session::state`].
    pub fn save(&mut self, path: &Path) -> Result<()> {
        let mut states = BTreeMap::new();
        for name in self.states().into_keys() {
            let value = self.session.state(&name)?;
            states.insert(name, value);
        }
        Checkpoint { step: self.step, skipped: self.skipped, states }.save(path)
    }

    /// Goes on from where a run stood, to the bit. Errors: those of [`Checkpoint::open`] and [`Session::set_state`].
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let checkpoint = Checkpoint::open(path, &self.states())?;
        for (name, value) in &checkpoint.states {
            self.session.set_state(name, value)?;
        }
        (self.step, self.skipped, self.stuck) = (checkpoint.step, checkpoint.skipped, 0);
        Ok(())
    }

    /// The weights as they are now: what was trained, and with `all` what was not as well. Errors: those of
    /// [`Session::state`].
    pub fn weights(&mut self, all: bool) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        if all {
            let own = self.frozen.iter().filter(|(name, _)| !name.starts_with("teacher."));
            tensors.extend(own.map(|(name, weight)| (name.to_string(), weight.tensor())));
        }
        for name in self.trained.iter().map(|t| t.name.clone()).collect::<Vec<_>>() {
            let value = self.session.state(&name)?;
            tensors.insert(name, value);
        }
        Ok(tensors)
    }

    /// Writes weights in f16, for plans. Errors: those of [`Trainer::weights`] and [`weights::safetensors::write`].
    pub fn export(&mut self, path: &Path, all: bool) -> Result<()> {
        let weights = self.weights(all)?;
        let narrow = |t: Tensor| if t.dtype() == DType::F32 { t.cast(DType::F16) } else { t };
        let left = |name: &str| self.config.model.leave_out.iter().any(|pattern| matches(pattern, name));
        let kept = weights.into_iter().filter(|(name, t)| t.dtype().is_float() && !left(name));
        let narrow = kept.map(|(name, t)| (name, narrow(t)));
        weights::safetensors::write(path, &narrow.collect(), HashMap::new())
    }

    /// Rows and columns of the images. Errors: as [`super::models::image_size`].
    pub fn image_size(&self) -> Result<(usize, usize)> {
        let entries = self.plan().entries();
        let of = |port: &plan::Port, entry: &plan::Entry| entry.buffers[port.buffer as usize].ty.clone();
        let images = entries[0].inputs.iter().find(|p| IMAGES.contains(&p.name.as_str())).map(|p| of(p, &entries[0]));
        rows_and_columns(images)
    }

    /// The gathered gradient of a weight. Errors: those of [`Session::state`].
    pub fn gradient(&mut self, weight: &str) -> Result<Tensor> {
        self.session.state(&gradient_name(weight))
    }
}

fn numbers<const N: usize>(all: [(&str, f64); N]) -> BTreeMap<String, Tensor> {
    all.into_iter().map(|(name, x)| (name.to_string(), Tensor::scalar(DType::F32, x))).collect()
}

/// What a configuration says of the gradients of `losses`, as a target takes them best. Errors: those of
/// [`compile::pipeline::named`].
pub fn recipe(config: &Config, losses: &[Loss], target: &dyn Target) -> Result<Recipe> {
    let student = config.student.as_ref();
    let attentions = match student {
        Some(student) => {
            let calls = compile::pipeline::named(&format!("sla{{{}}}", student.attentions))?;
            calls.into_iter().next().map(|s| s.options).unwrap_or_default()
        }
        None => Default::default(),
    };
    let matching = compile::pipeline::named(&format!("sla{{{}}}", config.matching.attentions))?;
    let matching = matching.into_iter().next().map(|s| s.options).unwrap_or_default();
    Ok(Recipe {
        train: config.model.train.clone(),
        rates: config.model.rates.clone(),
        losses: losses.to_vec(),
        student: student.map(|s| s.passes.clone()),
        memory: config.run.activation_memory,
        attentions,
        channels_last: target.dense_heads().channels_last,
        matching: (matching, config.matching.head),
        narrow: match config.run.precision {
            config::Precision::F32 => None,
            config::Precision::Bf16 => Some("bf16"),
        },
    })
}
