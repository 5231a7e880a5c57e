//! Plans: everything that a device needs to run a model, decided beforehand.
//!
//! A [`Plan`] holds one [`Entry`] per bound shape: steps in order, a kernel each, every value at a fixed place of one
//! arena, and the weights that all entries share. [`build()`] makes it from graphs and weights, [`Plan::save`] and
//! [`Plan::open`] move it through a `.l3r` file, and [`check()`] proves it without trusting the planner. No plan exists
//! that has not passed the check: devices rely on that.
//!
//! What depends on weights and constants alone is computed once, when the plan is saved or loaded, and is shared by
//! entries that compute the same expression. Nothing holds all weights at a time.

pub mod alias;
pub mod build;
pub mod check;
pub mod fit;
pub mod format;
pub(crate) mod init;
pub mod inspect;
pub mod memory;
pub mod schedule;
mod text;
pub(crate) mod weights;

use std::collections::BTreeMap;

use lite3r_ir::{Bindings, Op, ValueType};
use serde::{Deserialize, Serialize};

pub use build::{EntrySource, build};
pub use check::check;
pub use format::{OpenOptions, Storage};

/// Alignment of every place in an arena and of every blob in a file, in bytes. No backend asks for more.
pub const ALIGN: u64 = 256;

/// What stands for a kernel where a step moves nothing: its results are views of its operand.
pub const ALIAS: &str = "alias";

/// A checked plan.
pub struct Plan {
    pub(crate) header: Header,
    pub(crate) weights: weights::PlanWeights,
}

impl Plan {
    /// Takes parts that [`check()`] accepts. Errors: `plan.check`.
    pub(crate) fn new(header: Header, weights: weights::PlanWeights) -> crate::Result<Self> {
        check::check_header(&header)?;
        Ok(Self { header, weights })
    }

    /// All of it but the bytes of the weights.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// One entry per bound shape.
    pub fn entries(&self) -> &[Entry] {
        &self.header.entries
    }

    /// What is known about the model.
    pub fn meta(&self) -> &Meta {
        &self.header.meta
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> u64 {
        self.header.weights.iter().filter_map(|w| w.ty.bytes()).map(|b| b as u64).sum()
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Header { target, entries, weights, .. } = &self.header;
        write!(f, "Plan({target}, {} entries, {} weights)", entries.len(), weights.len())
    }
}

/// The part of a plan that is data about data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Which lite3r made it: `lite3r 0.1.0`.
    pub producer: String,
    /// What it runs on: `cpu`, `cuda:sm_90a`, `wgsl`.
    pub target: String,
    /// What the target must offer, by the target's own names.
    pub limits: BTreeMap<String, u64>,
    /// What is known about the model.
    pub meta: Meta,
    /// One per bound shape.
    pub entries: Vec<Entry>,
    /// The weights of all entries.
    pub weights: Vec<WeightInfo>,
    /// Machine code that steps launch, by the target's own names; each an index into `weights` of its bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modules: BTreeMap<String, u32>,
}

/// Which network this is, as far as reconstruction needs to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Visual Geometry Grounded Transformer.
    Vggt,
    /// Depth Anything 3.
    Da3,
    /// Anything else: outputs keep their names, nothing is decoded.
    #[default]
    Other,
}

/// What is known about the model beyond its graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Which network this is.
    pub family: Family,
    /// The input that takes images, where there is one.
    pub images: Option<ImageInput>,
    /// Licences of code and weights, as notes for people.
    pub licences: Vec<String>,
    /// Where model and weights come from, how they were changed, by key.
    pub provenance: BTreeMap<String, String>,
}

/// The input that takes images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInput {
    /// The name of the input.
    pub name: String,
    /// Height and width in pixels.
    pub size: (usize, usize),
    /// Whether the graph itself subtracts mean and divides by deviation; otherwise who fills the input does.
    pub normalised_in_graph: bool,
    /// The name of the mode that turns pictures into this input: `crop`, `pad`, `upper_bound_resize`.
    pub preprocess: String,
}

/// A weight of the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightInfo {
    /// The checkpoint's name, or the expression that it is computed by; for reading.
    pub name: String,
    /// Element type and shape.
    #[serde(with = "text::display")]
    pub ty: ValueType,
    /// Whether runs change it: see [`Update`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub state: bool,
}

/// The model at one bound shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What the symbols of the model are here.
    pub bindings: Bindings,
    /// What the caller gives, in declared order.
    pub inputs: Vec<Port>,
    /// What the caller gets, in declared order.
    pub outputs: Vec<Port>,
    /// What states become when all steps have run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<Update>,
    /// Every value: its type and where it lies.
    pub buffers: Vec<Buffer>,
    /// In the order of execution.
    pub steps: Vec<Step>,
    /// The size of the one arena, in bytes.
    pub arena_bytes: u64,
    /// The graph that was planned, for reading: large constants are left out.
    pub ir: String,
}

impl Entry {
    /// What one run allocates: the arena, and the tensors that are handed back. On the CPU at most 1 MiB a thread comes
    /// on top, for panels that the `gemm` crate packs.
    pub fn peak_bytes(&self) -> u64 {
        self.arena_bytes + self.outputs.iter().map(|p| self.buffers[p.buffer as usize].bytes()).sum::<u64>()
    }
}

/// A state gets a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The value, computed by a step; an index into [`Entry::buffers`].
    pub buffer: u32,
    /// The state; an index into [`Header::weights`].
    pub state: u32,
}

/// A named value at the border of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// As the model names it.
    pub name: String,
    /// Index into [`Entry::buffers`].
    pub buffer: u32,
}

/// A value of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// Element type and static shape.
    #[serde(with = "text::display")]
    pub ty: ValueType,
    /// Where it lies.
    pub place: Place,
}

impl Buffer {
    /// Its size. A checked plan has no type whose size does not fit.
    pub fn bytes(&self) -> u64 {
        self.ty.bytes().map_or(0, |b| b as u64)
    }
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// At an offset of the arena, in bytes.
    Arena(u64),
    /// It is a weight; an index into [`Header::weights`]. Shapes may differ, sizes and element types do not.
    Weight(u32),
}

/// One call of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The row of the target's kernel table, or [`ALIAS`].
    pub kernel: String,
    /// What is computed: `softmax {axis=1}`.
    #[serde(with = "text::op")]
    pub op: Op,
    /// Indices into [`Entry::buffers`].
    pub operands: Vec<u32>,
    /// Indices into [`Entry::buffers`].
    pub results: Vec<u32>,
    /// Memory of the arena that the kernel may scribble on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Region>,
    /// The ONNX node or the module that it comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
}

/// A range of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// From the start of the arena.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

#[cfg(test)]
mod tests;
