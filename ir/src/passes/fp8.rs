//! `fp8{activation=token, weight=row}`: linear layers over e4m3 codes of weights and of activations (W8A8).
//!
//! ```text
//! linear(x, w, …)   →   scaled_linear(quantize(x), quantize(w), …)                        mode=real
//!                   →   linear(fake_quantize(x), fake_quantize(w), …)                     mode=fake, for training
//! ```
//!
//! Options. `activation`: what shares a scale in x: `token`, `tensor`, `columns128` (or another number), or `auto`:
//! `columns256` behind a product with an activation, whose kernels own tiles and not rows, and `token` elsewhere.
//! `weight`: `row` or `tensor`. `exclude=["…"]` leaves what has one of these parts in its name, `include=["…"]`
//! overrules the pass's own list.
//!
//! Wide by default: the patch embedding, camera heads, DPT heads, layers whose K is not a
//! multiple of 16 (a tensor core reads 16 bytes of a row at once). Norms, softmax, RoPE and the projection of sparse
//! attention are not linear layers and stay as they are. Bias, activation and residual go along, so `fuse` may run
//! before. LayerScale must have been folded into the weights before, or scales are taken of the wrong rows. A run of
//! `fuse_quantize` afterwards joins norms and their quantisation.

use std::collections::{BTreeMap, HashMap};

use super::{
    Effect, Options, Pass, PassError, Report,
    named::{Names, Weights, holds_patches},
};
use crate::{
    attr::{Attr, AttrField},
    graph::{Graph, NodeId, Value},
    ops::{FakeQuantize, Linear, Op, Quantize, ScaledLinear, activation::Activation, quantize::Granularity},
    patch::{Patch, PatchError},
};

/// The pass.
pub const FP8: Pass = Pass {
    name: "fp8",
    law: "linear layers multiply e4m3 codes of weights and activations",
    effect: Effect::Approximates,
    run,
};

/// Parts of the names of what is wide by default.
pub const WIDE: [&str; 7] =
    ["patch_embed.proj", "camera_head", "cam_dec", "cam_enc", "projects.", "resize_layers.", "scratch."];

crate::word_enum! {
    /// Whether numbers are stored in 8 bits or only rounded to them.
    pub enum Mode {
        /// Stored.
        Real = "real",
        /// Rounded, with a straight-through gradient.
        Fake = "fake",
    }
}

/// What shares a scale in activations.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Activations {
    Of(Granularity),
    Auto,
}

impl AttrField for Activations {
    const EXPECTS: &'static str = "one of token, tensor, columns128 (or another number), auto";
    fn put(&self) -> Attr {
        match self {
            Self::Of(Granularity::Row) => Attr::Word("token".into()),
            Self::Of(other) => other.put(),
            Self::Auto => Attr::Word("auto".into()),
        }
    }
    fn take(attr: &Attr) -> Option<Self> {
        match attr {
            Attr::Word(w) if w == "token" => Some(Self::Of(Granularity::Row)),
            Attr::Word(w) if w == "auto" => Some(Self::Auto),
            other => Granularity::take(other).filter(|g| *g != Granularity::Row).map(Self::Of),
        }
    }
}

impl Activations {
    fn of(self, graph: &Graph, x: Value) -> Granularity {
        match self {
            Self::Of(granularity) => granularity,
            Self::Auto => match graph.op(x.node) {
                Op::Gelu(_) | Op::Silu(_) | Op::Relu(_) => Granularity::Columns(256),
                Op::Linear(Linear { activation, .. }) | Op::ScaledLinear(ScaledLinear { activation, .. })
                    if *activation != Activation::None =>
                {
                    Granularity::Columns(256)
                }
                _ => Granularity::Row,
            },
        }
    }
}

/// The granularity of weights.
pub(super) fn weight_scale(options: &Options) -> Result<Granularity, PassError> {
    match options.get_or("weight", Granularity::Row)? {
        Granularity::Columns(_) => Err(PassError::Option("`weight` must be row or tensor".into())),
        granularity => Ok(granularity),
    }
}

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["mode", "activation", "weight", "exclude", "include"])?;
    let mode = options.get_or("mode", Mode::Real)?;
    let activations = options.get_or("activation", Activations::Of(Granularity::Row))?;
    let w_scale = weight_scale(options)?;
    let (chosen, mut report) = linears(graph, options)?;
    let mut done: HashMap<(Value, String), Vec<Value>> = HashMap::new();
    for id in chosen {
        let Op::Linear(op) = graph.op(id).clone() else { continue };
        let operands = graph.operands(id);
        let x_scale = activations.of(graph, operands[0]);
        let old = Value { node: id, slot: 0 };
        let out = graph.ty(old).dtype;
        let mut patch = Patch::new(graph, "fp8", old);
        let x = quantized(&mut patch, mode, operands[0], x_scale, &mut done)?;
        let w = quantized(&mut patch, mode, operands[1], w_scale, &mut done)?;
        let inputs = [&x, &w, &operands[2..]].concat();
        let new = match mode {
            Mode::Fake => patch.wire(op, &inputs)?,
            Mode::Real => {
                let Linear { activation, bias, residual, .. } = op;
                let quantize = None;
                patch.wire(ScaledLinear { activation, bias, residual, x_scale, w_scale, out, quantize }, &inputs)?
            }
        };
        patch.shunt(old, new)?;
        patch.apply();
        report.counts[0].1 += 1;
    }
    Ok(report)
}

/// Codes and scales of a value, or the value as e4m3 sees it; made once.
pub(super) fn quantized(
    patch: &mut Patch<'_>,
    mode: Mode,
    value: Value,
    scale: Granularity,
    done: &mut HashMap<(Value, String), Vec<Value>>,
) -> Result<Vec<Value>, PatchError> {
    let key = (value, scale.put().to_string());
    if let Some(known) = done.get(&key) {
        return Ok(known.clone());
    }
    let made = match mode {
        Mode::Real => patch.wire_all(Quantize { scale }, &[value])?,
        Mode::Fake => patch.wire_all(FakeQuantize { scale }, &[value])?,
    };
    done.insert(key, made.clone());
    Ok(made)
}

/// The linear layers that take 8-bit weights, in execution order, and a report that counts the others by reason.
pub(super) fn linears(graph: &Graph, options: &Options) -> Result<(Vec<NodeId>, Report), PassError> {
    let names = Names::read(options, &WIDE)?;
    let mut weights = Weights::of(graph);
    let mut chosen = Vec::new();
    let mut wide: BTreeMap<String, usize> = BTreeMap::new();
    for id in graph.topological().into_iter().filter(|id| matches!(graph.op(*id), Op::Linear(_))) {
        let operands = graph.operands(id);
        if weights.is_known(operands[0]) {
            continue; // Computed when the plan is made.
        }
        let k = graph.ty(operands[1]).shape[1].clone();
        let reason = if !weights.is_known(operands[1]) {
            Some("both operands are computed".to_string())
        } else if k.size().is_none_or(|k| k % 16 != 0) {
            Some(format!("K = {k} is not a multiple of 16"))
        } else if graph.ty(operands[0]).dtype.size() == 1 || graph.ty(Value { node: id, slot: 0 }).dtype.size() == 1 {
            Some("in 8 bits already".to_string())
        } else {
            let own = weights.names(graph, id);
            match names.excluded(&own) {
                Some(part) => Some(format!("named `{part}`")),
                None if holds_patches(graph, operands[0]) => Some("a patch embedding".into()),
                None => None,
            }
        };
        match reason {
            Some(reason) => *wide.entry(reason).or_default() += 1,
            None => chosen.push(id),
        }
    }
    let notes = wide.iter().map(|(reason, n)| format!("{n} wide: {reason}")).collect();
    let counts = vec![("linears".to_string(), 0), ("wide".to_string(), wide.values().sum())];
    Ok((chosen, Report { counts, notes }))
}
