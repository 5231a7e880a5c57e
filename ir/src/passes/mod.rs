//! Passes: one a file, all in one table, run by name in a named order.
//!
//! A pass changes the graph through [`crate::patch::Patch`] only, reports what it did and what it nearly did, and is
//! never quadratic in nodes. In debug builds the graph is verified after every pass.

pub mod attention_kinds;
pub mod canonicalize;
pub mod channels_last;
pub mod chosen_attentions;
pub mod cse;
pub mod dce;
pub mod fold;
pub mod fold_layer_norm;
pub mod fold_layer_scale;
pub mod fp8;
pub mod fp8_attention;
pub mod fp8_convolution;
pub mod fp8w;
pub mod frame_tiles;
pub mod fuse;
pub mod fuse_heads;
pub mod fuse_merge;
pub mod fuse_pointwise;
pub mod fuse_qkv;
pub mod fuse_quantize;
pub mod fuse_rectified;
pub mod fuse_self_attention;
pub mod glob;
pub mod grad;
pub mod join_slices;
pub mod late_slices;
pub mod layout;
pub mod lora;
pub mod named;
pub mod narrow;
pub mod narrow_residual;
pub mod pad_products;
pub mod pipeline;
pub mod prune_outputs;
pub mod recognize;
pub mod recompute;
pub mod reference_view;
pub mod resize_after_conv1x1;
pub mod sla;
pub mod specialize;
pub mod states;
pub mod token_layout;
mod uses;

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    attr::{Attr, AttrField, AttrMap},
    graph::{Graph, OpError},
    patch::PatchError,
};

/// Every pass, by file: what command lines and tests choose from.
pub const ALL: &[&Pass] = &[
    &attention_kinds::ATTENTION_KINDS,
    &narrow::BF16,
    &narrow::F16,
    &narrow_residual::BF16_RESIDUAL,
    &narrow_residual::F16_RESIDUAL,
    &canonicalize::CANONICALIZE,
    &channels_last::CHANNELS_LAST,
    &cse::CSE,
    &dce::DCE,
    &fold::FOLD,
    &fold_layer_norm::FOLD_LAYER_NORM,
    &fold_layer_scale::FOLD_LAYER_SCALE,
    &fp8::FP8,
    &fp8_attention::FP8_ATTENTION,
    &fp8_convolution::FP8_CONVOLUTION,
    &fp8w::FP8W,
    &frame_tiles::FRAME_TILES,
    &fuse::FUSE,
    &fuse_heads::FUSE_HEADS,
    &fuse_merge::FUSE_MERGE,
    &fuse_pointwise::FUSE_POINTWISE,
    &fuse_qkv::FUSE_QKV,
    &fuse_quantize::FUSE_QUANTIZE,
    &fuse_rectified::FUSE_RECTIFIED,
    &fuse_self_attention::FUSE_SELF_ATTENTION,
    &grad::GRAD,
    &join_slices::JOIN_SLICES,
    &late_slices::LATE_SLICES,
    &layout::LAYOUT,
    &lora::LORA,
    &pad_products::PAD_PRODUCTS,
    &prune_outputs::PRUNE_OUTPUTS,
    &recognize::attention::RECOGNIZE_ATTENTION,
    &recognize::conv1x1::CONV1X1,
    &recognize::dpt_resize::DPT_RESIZE,
    &recognize::gelu::RECOGNIZE_GELU,
    &recognize::layer_norm::RECOGNIZE_LAYER_NORM,
    &recognize::layer_scale::LAYER_SCALE,
    &recognize::linear::RECOGNIZE_LINEAR,
    &recognize::merge_heads::RECOGNIZE_MERGE_HEADS,
    &recognize::patch_conv::PATCH_CONV,
    &recognize::residual::RESIDUAL,
    &recognize::rope::RECOGNIZE_ROPE,
    &recognize::silu::RECOGNIZE_SILU,
    &recognize::split_heads::RECOGNIZE_SPLIT_HEADS,
    &recognize::transposed_conv::TRANSPOSED_CONV,
    &recompute::RECOMPUTE,
    &reference_view::REFERENCE_VIEW,
    &resize_after_conv1x1::RESIZE_AFTER_CONV1X1,
    &sla::SLA,
    &specialize::SPECIALIZE,
    &states::STATES,
    &token_layout::TOKEN_LAYOUT,
];

/// What a pass promises about results; decides which test applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The same bits.
    Exact,
    /// The same mathematics in another order: equal within a few units in the last place.
    Reassociates,
    /// Other mathematics on purpose: has a reference of its own.
    Approximates,
}

/// A graph transformation.
pub struct Pass {
    /// Lower case; also the flag and the test folder, and the file name but where passes share one.
    pub name: &'static str,
    /// What is rewritten to what, in one line.
    pub law: &'static str,
    /// What it promises about results.
    pub effect: Effect,
    /// Does it.
    pub run: fn(&mut Graph, &Options) -> Result<Report, PassError>,
}

/// Options of one run of a pass: `sla{keep=0.1}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options(pub AttrMap);

impl Options {
    /// The option of that name; an ill-typed one is an error that says what was expected.
    pub fn get<T: AttrField>(&self, name: &str) -> Result<Option<T>, PassError> {
        let Some((_, attr)) = self.0.iter().find(|(n, _)| n == name) else { return Ok(None) };
        match T::take(attr) {
            Some(value) => Ok(Some(value)),
            None => Err(PassError::Option(format!("`{name}` must be {}, not `{attr}`", T::EXPECTS))),
        }
    }

    /// The option of that name, or what it is by default.
    pub fn get_or<T: AttrField>(&self, name: &str, default: T) -> Result<T, PassError> {
        Ok(self.get(name)?.unwrap_or(default))
    }

    /// With one more option.
    pub fn with(mut self, name: &str, value: impl AttrField) -> Self {
        self.0.push((name.into(), value.put()));
        self
    }

    /// All option names that are not in `known`, as one error.
    pub fn only(&self, known: &[&str]) -> Result<(), PassError> {
        let unknown: Vec<&str> = self.0.iter().map(|(n, _)| n.as_str()).filter(|n| !known.contains(n)).collect();
        match unknown.is_empty() {
            true => Ok(()),
            false => {
                Err(PassError::Option(format!("no such option: {}; known: {}", unknown.join(", "), known.join(", "))))
            }
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(name, attr): &(String, Attr)| format!("{name}={attr}")).collect();
        if parts.is_empty() { Ok(()) } else { write!(f, "{{{}}}", parts.join(",")) }
    }
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// How many of what were rewritten or recognised: `("attention", 48)`.
    pub counts: Vec<(String, usize)>,
    /// What nearly matched and why not, and other things that a user wants to know.
    pub notes: Vec<String>,
}

impl Report {
    /// A report with one count.
    pub fn count(what: impl Into<String>, n: usize) -> Self {
        Self { counts: vec![(what.into(), n)], notes: Vec::new() }
    }

    /// The sum of all counts.
    pub fn total(&self) -> usize {
        self.counts.iter().map(|(_, n)| n).sum()
    }
}

/// Why a pass stopped.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PassError {
    /// An option is unknown or ill-typed.
    #[error("{0}")]
    Option(String),
    /// A patch does not fit: a defect of the pass.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// An operation does not fit: a defect of the pass, or operands that the model got wrong.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The model or the request cannot be served; every reason.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// A fixed point was not reached; names the patches that alternate.
    #[error("no fixed point after {rounds} rounds; last patches: {patches}")]
    NoFixedPoint {
        /// How many rounds were tried.
        rounds: usize,
        /// The patches of the last rounds.
        patches: String,
    },
}

/// One executed pass.
#[derive(Clone, Debug)]
pub struct Step {
    /// The pass.
    pub pass: &'static str,
    /// With which options.
    pub options: Options,
    /// What it did.
    pub report: Report,
    /// Wall time.
    pub time: Duration,
    /// Nodes afterwards.
    pub nodes: usize,
}

/// Runs one pass and times it.
pub fn run(pass: &'static Pass, graph: &mut Graph, options: &Options) -> Result<Step, PassError> {
    let start = Instant::now();
    let report = (pass.run)(graph, options)?;
    Ok(Step { pass: pass.name, options: options.clone(), report, time: start.elapsed(), nodes: graph.len() })
}
