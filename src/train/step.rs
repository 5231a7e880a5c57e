//! What some scenes add to the gradient: model, losses and their reverse, as the graph of one entry.

use std::collections::BTreeMap;

use lite3r_ir::{
    Builder, DType, Graph, Op, Value, ValueType,
    attr::{Attr, AttrMap},
    ops::{Add, Less, Where},
    passes::{
        self, Options, PassError,
        chosen_attentions::choose,
        grad::grad,
        pipeline::{Selected, execute, select},
        states::STATES,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    adamw::{Trained, gradient_name, state},
    join::join,
    losses::{self, Built, matching::Matched, router::Routed},
};
use crate::{Error, Kind, Result, backbones::PATCH, compile::pipeline::CHANNELS_LAST};

/// At last: what every graph gets, then epilogues and chains of elementwise operations.
pub const FINISH: &str =
    "fold,canonicalize,cse,dce,fuse,layout,canonicalize,cse,dce,fuse_pointwise,join_slices,cse,dce";

/// A loss that a model can be trained by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// [`losses::camera`]: takes `target.pose_enc` [B, S, 9].
    Camera,
    /// [`losses::dense`] of depth: takes `target.depth` [B, S, H, W, 1] and `target.mask` [B, S, H, W].
    Depth,
    /// [`losses::dense`] of world points: takes `target.points` [B, S, H, W, 3] and `target.mask`.
    Points,
    /// [`losses::rays`]: takes `target.ray` [1, S, h, w, 6], in the world of the first view.
    Rays,
    /// [`losses::pose`]: takes `target.pose` [1, S, 9], in the same world.
    Pose,
    /// [`losses::attention`]: needs a teacher.
    Attention,
    /// [`losses::router`]: needs a student whose routers have weights.
    Router,
    /// [`losses::matching`]: takes `target.match` [B, S, patches, 3].
    Matching,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Camera,
        Self::Depth,
        Self::Points,
        Self::Rays,
        Self::Pose,
        Self::Attention,
        Self::Router,
        Self::Matching,
    ];

    /// As configurations and outputs name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Camera => "camera",
            Self::Depth => "depth",
            Self::Points => "points",
            Self::Rays => "rays",
            Self::Pose => "pose",
            Self::Attention => "attention",
            Self::Router => "router",
            Self::Matching => "matching",
        }
    }

    /// Whether it says something about a student alone.
    pub fn needs_student(self) -> bool {
        matches!(self, Self::Attention | Self::Router)
    }

    /// The input that says how much it counts.
    pub fn weight(self) -> String {
        format!("weight.{}", self.name())
    }

    /// The output that says what it is.
    pub fn output(self) -> String {
        format!("loss.{}", self.name())
    }
}

/// What is trained, and by what.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Patterns of the weights that change.
    pub train: Vec<String>,
    /// Factors of the learning rate by pattern; the first that matches counts, 1 otherwise.
    pub rates: Vec<(String, f64)>,
    /// The losses, each once.
    pub losses: Vec<Loss>,
    /// The passes that make the student; none: the model itself is trained.
    pub student: Option<String>,
    /// Bytes of activations that may be kept for the reverse pass; what exceeds them is computed again. None: all are kept.
    pub memory: Option<usize>,
    /// Which attentions [`Loss::Attention`] compares, as the pass `sla` chooses them.
    pub attentions: Options,
    /// Which attentions [`Loss::Matching`] is about, as the pass `sla` chooses them, and which head of them.
    pub matching: (Options, usize),
    /// The pass that has products computed in 16 bits; none: they are f32.
    pub narrow: Option<&'static str>,
    /// Whether images keep the channels of a pixel side by side, as the target wants it.
    pub channels_last: bool,
}

/// The names of outputs and inputs of a gradients entry.
pub const TOTAL: &str = "loss";
/// How much the scenes count in the step: their part of its scenes.
pub const SHARE: &str = "share";
/// 1 if gradients are added to what is there, 0 if they replace it.
pub const ADD: &str = "add";

/// The gradients entry of a bound model with outputs as [`crate::backbones`] names them, what it trains, and what is
/// remarkable about its memory. Its outputs are [`TOTAL`] and one a loss; the gradients go to states.
///
/// # Errors
/// `train.model` with every output that a loss misses; `train.recipe` for patterns that match no weight, passes that
/// refuse the model or do not exist, a loss of students without what it needs; `train.gradient` with every operation without a gradient.
pub fn gradients(model: &Graph, recipe: &Recipe) -> Result<(Graph, Vec<Trained>, Vec<String>)> {
    let (mut graph, trained) = differentiated(model, recipe)?;
    let mut notes = Vec::new();
    if let Some(bytes) = recipe.memory {
        // Equal expressions are one before it is decided which are computed twice.
        run(&mut graph, &selected("fold,canonicalize,cse,dce")?)?;
        notes = run(&mut graph, &selected(&format!("recompute{{bytes={bytes}}}"))?)?;
    }
    if recipe.channels_last {
        run(&mut graph, &selected(CHANNELS_LAST)?)?;
    }
    Ok((finished(graph)?, trained, notes))
}

/// A graph after the passes of [`FINISH`]. Errors: `train.recipe` where one of them refuses it.
pub fn finished(mut graph: Graph) -> Result<Graph> {
    run(&mut graph, &selected(FINISH)?)?;
    Ok(graph)
}

/// As [`gradients`], before anything is fused: in terms of operations that stand for themselves.
///
/// # Errors
/// As [`gradients`].
pub fn differentiated(model: &Graph, recipe: &Recipe) -> Result<(Graph, Vec<Trained>)> {
    check(model, recipe)?;
    let mut base = model.clone();
    let distils = recipe.losses.contains(&Loss::Attention);
    if distils {
        tap(&mut base, &recipe.attentions)?;
    }
    let mut graph = base.clone();
    let matching = match recipe.losses.contains(&Loss::Matching) {
        true => Some(matched(&mut graph, &recipe.matching)?),
        false => None,
    };
    if let Some(text) = &recipe.student {
        run(&mut graph, &selected(text)?)?;
    }
    // What nothing reads is no weight of the student, and passes below would drop it.
    run(&mut graph, &selected("dce")?)?;
    let names: Vec<Attr> = recipe.train.iter().map(|pattern| Attr::Text(pattern.clone())).collect();
    let options = Options(AttrMap::from([("names".to_string(), Attr::List(names))]));
    passes::run(&STATES, &mut graph, &options).map_err(|e| wrong("train.recipe", e))?;
    let trained = trained(&graph, recipe)?;
    if recipe.losses.contains(&Loss::Router) && Routed::all(&graph).is_empty() {
        let problem = "loss `router` trains the weights of routers, and no attention of the student has any: \
                       `sla{…,router_weights=true}`";
        return Err(Error::usage("train.recipe", problem));
    }
    if let Some(pass) = recipe.narrow {
        let passes = selected(&format!("{pass},canonicalize,cse,dce"))?;
        for graph in [&mut graph, &mut base] {
            run(graph, &passes)?;
        }
    }
    let teacher = match distils {
        true => join(&mut graph, &base).map_err(|e| wrong("train.model", PassError::Op(e)))?,
        false => BTreeMap::new(),
    };
    let total = objective(&mut graph, recipe, &teacher, matching.as_ref())
        .map_err(|e| wrong("train.model", PassError::Op(e)))?;
    let states = states(&graph, &trained);
    let gradients = grad(&mut graph, total, &states).map_err(|e| wrong("train.gradient", e))?;
    let idle: Vec<String> = trained
        .iter()
        .zip(&gradients)
        .filter(|(_, gradient)| gradient.is_none())
        .map(|(t, _)| format!("no loss depends on `{}`", t.name))
        .collect();
    if !idle.is_empty() {
        return Err(Error::all(Kind::Usage, "train.recipe", idle));
    }
    gather(&mut graph, &trained, &gradients).map_err(|e| wrong("train.gradient", PassError::Op(e)))?;
    run(&mut graph, &selected("dce")?)?;
    Ok((graph, trained))
}

/// What a loss reads of a model.
pub(super) fn reads(loss: Loss) -> &'static [&'static str] {
    match loss {
        Loss::Camera => &["pose_enc"],
        Loss::Depth => &["depth", "depth_conf"],
        Loss::Points => &["world_points", "world_points_conf"],
        Loss::Rays => &["ray", "ray_conf"],
        Loss::Pose => &["pose"],
        Loss::Attention | Loss::Router | Loss::Matching => &[],
    }
}

fn check(model: &Graph, recipe: &Recipe) -> Result<()> {
    let has = |name: &str| model.outputs().iter().any(|(n, _)| n == name);
    let missing = recipe.losses.iter().flat_map(|loss| {
        let missing = reads(*loss).iter().filter(|name| !has(name));
        missing.map(|name| format!("loss `{}` needs the output `{name}`, which the model lacks", loss.name()))
    });
    let missing: Vec<String> = missing.collect();
    if !missing.is_empty() {
        return Err(Error::all(Kind::Unsupported, "train.model", missing));
    }
    let mut problems = Vec::new();
    if recipe.losses.is_empty() {
        problems.push("there is no loss".to_string());
    }
    if recipe.train.is_empty() {
        problems.push("there is nothing to train: name weights, such as `proj_lin`".to_string());
    }
    if recipe.student.is_none() {
        let of_students = recipe.losses.iter().filter(|loss| loss.needs_student());
        problems.extend(
            of_students.map(|loss| {
                format!("loss `{}` is one of students: say by which passes a student is made", loss.name())
            }),
        );
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Usage, "train.recipe", problems)) }
}

/// Names what chosen attentions give as outputs, which rewrites follow.
pub(super) fn tap(graph: &mut Graph, chosen: &Options) -> Result<()> {
    run(graph, &selected("dce")?)?;
    let attentions = choose(graph, chosen).map_err(|e| wrong("train.recipe", e))?;
    for (number, id) in attentions.into_iter().enumerate() {
        graph.output(format!("{TAP}{number}"), Value { node: id, slot: 0 });
    }
    Ok(())
}

/// What such outputs are called, a number behind it.
pub(super) const TAP: &str = "tap.";

/// What the loss of matches reads.
fn matched(graph: &mut Graph, (chosen, head): &(Options, usize)) -> Result<Matched> {
    let images = super::models::images(graph).and_then(|ty| ty.dims());
    let Some([scenes, views, _, height, width]) = images.and_then(|dims| <[usize; 5]>::try_from(dims).ok()) else {
        return Err(Error::unsupported("train.model", "matches need a model with `images` [B,S,3,H,W]"));
    };
    let sizes = [scenes, views, height / PATCH, width / PATCH];
    Matched::tap(graph, chosen, *head, sizes).map_err(|e| wrong("train.recipe", e))
}

/// The passes that a text names.
pub(super) fn selected(text: &str) -> Result<Vec<Selected>> {
    select(text, passes::ALL).map_err(|e| Error::usage("train.recipe", e.to_string()))
}

/// Runs passes; answers their notes.
pub(super) fn run(graph: &mut Graph, passes: &[Selected]) -> Result<Vec<String>> {
    let done = execute(graph, passes, cfg!(debug_assertions), &mut |_, _| true);
    let steps = done.map_err(|e| Error::unsupported("train.recipe", e.to_string()))?;
    Ok(steps.into_iter().flat_map(|step| step.report.notes).collect())
}

/// The states of a graph by name, with the rate of the first pattern that means them.
fn trained(graph: &Graph, recipe: &Recipe) -> Result<Vec<Trained>> {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for id in graph.node_ids() {
        let Op::Param(op) = graph.op(id) else { continue };
        if !op.state {
            continue;
        }
        if op.ty.dtype != DType::F32 {
            problems.push(format!("weight `{}` is {}: only f32 is trained", op.name, op.ty));
        }
        let rate = recipe.rates.iter().find(|(pattern, _)| passes::glob::matches(pattern, &op.name));
        let rate = rate.map_or(1.0, |(_, rate)| *rate);
        all.push(Trained { name: op.name.clone(), ty: op.ty.clone(), init: op.init.clone(), rate });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if problems.is_empty() { Ok(all) } else { Err(Error::all(Kind::Unsupported, "train.recipe", problems)) }
}

/// Where the weights that are trained stand in the graph that they were found in.
fn states(graph: &Graph, trained: &[Trained]) -> Vec<Value> {
    let named = graph.node_ids().filter_map(|id| match graph.op(id) {
        Op::Param(op) => Some((op.name.as_str(), Value { node: id, slot: 0 })),
        _ => None,
    });
    let named: BTreeMap<&str, Value> = named.collect();
    trained.iter().map(|t| named[t.name.as_str()]).collect()
}

/// The weighted sum of all losses times the share of the scene; outputs are the losses alone.
fn objective(
    graph: &mut Graph,
    recipe: &Recipe,
    teacher: &BTreeMap<String, Value>,
    matching: Option<&Matched>,
) -> Built {
    let outputs: BTreeMap<String, Value> = graph.outputs().iter().cloned().collect();
    graph.retain_outputs(|_| false);
    let scalar = ValueType::new(DType::F32, [0usize; 0]);
    let mut known: BTreeMap<&str, Value> = BTreeMap::new();
    let mut target = |graph: &mut Graph, name: &'static str, like: Value| {
        let ty = graph.ty(like).clone();
        *known.entry(name).or_insert_with(|| graph.input(name, ty))
    };
    let mut terms = Vec::with_capacity(recipe.losses.len());
    for loss in &recipe.losses {
        let value = match loss {
            Loss::Router => {
                let routers = Routed::all(graph);
                losses::router::loss(&mut Builder::new(graph, "loss.router"), &routers)?
            }
            Loss::Camera => {
                let last = outputs["pose_enc"];
                let early = (0..).map_while(|round| outputs.get(&format!("pose_enc.{round}"))).copied();
                let rounds: Vec<Value> = early.chain([last]).collect();
                let truth = target(graph, "target.pose_enc", last);
                losses::camera::loss(&mut Builder::new(graph, "loss.camera"), &rounds, truth)?
            }
            Loss::Depth | Loss::Points => {
                let names = reads(*loss);
                let (predicted, confidence) = (outputs[names[0]], outputs[names[1]]);
                let truth = match loss {
                    Loss::Depth => target(graph, "target.depth", predicted),
                    _ => target(graph, "target.points", predicted),
                };
                let mask = target(graph, "target.mask", confidence);
                losses::dense::loss(&mut Builder::new(graph, loss.output()), predicted, confidence, truth, mask)?
            }
            Loss::Rays => {
                let (predicted, confidence) = (outputs["ray"], outputs["ray_conf"]);
                let truth = target(graph, "target.ray", predicted);
                losses::rays::loss(&mut Builder::new(graph, "loss.rays"), predicted, confidence, truth)?
            }
            Loss::Pose => {
                let truth = target(graph, "target.pose", outputs["pose"]);
                losses::pose::loss(&mut Builder::new(graph, "loss.pose"), outputs["pose"], truth)?
            }
            Loss::Attention => {
                let taps = outputs.iter().filter(|(name, _)| name.starts_with(TAP));
                let pairs: Vec<(Value, Value)> = taps.map(|(name, student)| (teacher[name], *student)).collect();
                losses::attention::loss(&mut Builder::new(graph, "loss.attention"), &pairs)?
            }
            Loss::Matching => {
                let Some(matching) = matching else { continue };
                matching.loss(graph, &outputs)?
            }
        };
        let weight = graph.input(loss.weight(), scalar.clone());
        graph.output(loss.output(), value);
        terms.push(Builder::new(graph, loss.output()).mul(value, weight)?);
    }
    let mut b = Builder::new(graph, TOTAL);
    let sum = losses::sum(&mut b, &terms)?;
    graph.output(TOTAL, sum);
    let share = graph.input(SHARE, scalar);
    Builder::new(graph, TOTAL).mul(sum, share)
}

/// Adds gradients to their states, or puts them there.
fn gather(graph: &mut Graph, trained: &[Trained], gradients: &[Option<Value>]) -> Built<()> {
    let add = graph.input(ADD, ValueType::new(DType::F32, [0usize; 0]));
    let mut b = Builder::new(graph, "gradients");
    let half = b.number(add, 0.5);
    let adds = b.op(Less {}, &[half, add])?;
    for (weight, gradient) in trained.iter().zip(gradients) {
        let Some(gradient) = *gradient else { continue };
        let name = gradient_name(&weight.name);
        b.set_origin(name.as_str());
        let before = state(&mut b, name.clone(), &weight.ty)?;
        let sum = b.op(Add {}, &[before, gradient])?;
        let new = b.op(Where {}, &[adds, sum, gradient])?;
        b.graph.update(&name, new);
    }
    Ok(())
}

fn wrong(code: &'static str, error: PassError) -> Error {
    match error {
        PassError::Refused(problems) => Error::all(Kind::Unsupported, code, problems),
        PassError::Option(problem) => Error::usage(code, problem),
        other => Error::unsupported(code, other.to_string()),
    }
}
