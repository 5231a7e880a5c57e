//! `lora{names=["qkv","*.mlp.fc1.weight"],rank=8,alpha=8}`: weights of linear layers get a sum of few outer products that
//! can be trained in their place (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022).
//!
//! ```text
//! linear(x, w, …)   →   linear(x, w + (alpha/rank)·B·A, …)        w [out, in], A [rank, in], B [out, rank]
//! ```
//!
//! Which weights, `names` say, as [`super::glob`] reads them: a layer is known by its weight and by where it comes from.
//! A starts as N(0, 1/rank) and B as zero, so that nothing changes without training; `alpha` is `rank` by default. They
//! are named after the weight: `<layer>.lora_a`, `<layer>.lora_b`. What is computed of several weights, and weights of
//! fewer than `rank` rows or columns, stay.
//!
//! The sum depends on weights alone: where none of them is a state, it is computed when the plan is made, and runs as
//! what it was before. This stands in front of whatever folds other weights into w.

use std::collections::HashSet;

use super::{Effect, Options, Pass, PassError, Report, dce::DCE, glob, named::Weights};
use crate::{
    graph::{Graph, Value},
    ops::{Add, Cast, MatMul, Mul, Op, Param},
    patch::Patch,
    tensor::Tensor,
    types::{DType, ValueType},
};

/// The pass.
pub const LORA: Pass = Pass {
    name: "lora",
    law: "weights of linear layers get a trainable sum of few outer products",
    effect: Effect::Approximates,
    run,
};

/// The options, read.
struct Settings {
    names: Vec<String>,
    rank: usize,
    /// What B·A counts.
    factor: f64,
}

impl Settings {
    fn read(options: &Options) -> Result<Self, PassError> {
        options.only(&["names", "rank", "alpha"])?;
        let bad = |problem: &str| Err(PassError::Option(problem.into()));
        let names: Vec<String> = options.get_or("names", Vec::new())?;
        if names.is_empty() {
            return bad("`names` is required: which linear layers, such as names=[\"qkv\"]");
        }
        let rank = options.get_or("rank", 8)?;
        let alpha = options.get_or("alpha", rank as f64)?;
        if rank == 0 || !alpha.is_finite() || alpha <= 0.0 {
            return bad("`rank` must be at least 1, and `alpha` above 0");
        }
        Ok(Self { names, rank, factor: alpha / rank as f64 })
    }
}

/// A weight that is adapted, and what its factors are named after.
struct Adapted {
    w: Value,
    layer: String,
}

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    let settings = Settings::read(options)?;
    (DCE.run)(graph, &Options::default())?;
    let (adapted, notes) = adapted(graph, &settings)?;
    let report = Report { notes, ..Report::count("weights", adapted.len()) };
    for Adapted { w, layer } in adapted {
        adapt(graph, w, &layer, &settings)?;
    }
    Ok(report)
}

/// The weights that the names mean, each once, and what stays. Errors: every name that means none, and every weight that
/// layers read in several ways.
fn adapted(graph: &Graph, settings: &Settings) -> Result<(Vec<Adapted>, Vec<String>), PassError> {
    let mut weights = Weights::of(graph);
    let mut used = vec![false; settings.names.len()];
    let (mut seen, mut layers) = (HashSet::new(), HashSet::new());
    let (mut adapted, mut notes, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for id in graph.topological() {
        let Op::Linear(_) = graph.op(id) else { continue };
        let operands = graph.operands(id);
        let w = operands[1];
        if weights.is_known(operands[0]) || !weights.is_known(w) {
            continue;
        }
        let own = weights.names(graph, id);
        let mut means = false;
        for (used, pattern) in used.iter_mut().zip(&settings.names) {
            let hit = own.iter().any(|name| glob::matches(pattern, name));
            (*used, means) = (*used || hit, means || hit);
        }
        if !means || !seen.insert(w) {
            continue;
        }
        let behind = weights.behind(graph, w.node);
        let sizes: Vec<usize> = graph.ty(w).shape.iter().filter_map(|d| d.size()).collect();
        match behind {
            [name] if sizes.iter().all(|n| *n >= settings.rank) => {
                let layer = [".weight", ".w"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                match layers.insert(layer.to_string()) {
                    true => adapted.push(Adapted { w, layer: layer.into() }),
                    false => problems.push(format!("layers read `{name}` in several ways")),
                }
            }
            [name] => notes.push(format!("`{name}` {} stays: smaller than rank {}", graph.ty(w), settings.rank)),
            several => notes.push(format!("{} stays: computed of {} weights", graph.node(id).origin, several.len())),
        }
    }
    let unused = settings.names.iter().zip(used).filter(|(_, used)| !used);
    problems.extend(unused.map(|(name, _)| format!("no linear layer is called `{name}`")));
    if problems.is_empty() { Ok((adapted, notes)) } else { Err(PassError::Refused(problems)) }
}

fn adapt(graph: &mut Graph, w: Value, layer: &str, settings: &Settings) -> Result<(), PassError> {
    let mut patch = Patch::new(graph, "lora", w);
    let ty = patch.graph().ty(w).clone();
    let [rows, columns] = [ty.shape[0].clone(), ty.shape[1].clone()];
    let rank = settings.rank;
    let mut factor = |name: &str, shape, init| {
        let ty = ValueType::new(DType::F32, shape);
        patch.wire(Param { name: format!("{layer}.{name}"), ty, init, state: false }, &[])
    };
    let a = factor("lora_a", [rank.into(), columns], format!("normal:{}", (rank as f64).sqrt().recip()))?;
    let b = factor("lora_b", [rows, rank.into()], "fill:0".into())?;
    let mut sum = patch.wire(MatMul { transpose_b: false }, &[b, a])?;
    if settings.factor != 1.0 {
        let factor = patch.constant(Tensor::scalar(DType::F32, settings.factor));
        sum = patch.wire(Mul {}, &[sum, factor])?;
    }
    if ty.dtype != DType::F32 {
        sum = patch.wire(Cast { to: ty.dtype }, &[sum])?;
    }
    let new = patch.wire(Add {}, &[w, sum])?;
    patch.shunt(w, new)?;
    patch.apply();
    Ok(())
}
