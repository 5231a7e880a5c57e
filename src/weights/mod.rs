//! Weights by name, read where they lie: memory-mapped files, or owned tensors.
//!
//! Importers fill a [`Weights`]; the plan maker reads it. Nothing is copied before a kernel or a plan needs the bytes.

mod mapped;
mod random;
pub mod safetensors;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

use lite3r_ir::{DType, Graph, Op, Tensor, ValueType};

pub use mapped::MappedFile;

/// The weights of one model, by the name that [`lite3r_ir::ops::Param`] nodes use.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    by_name: BTreeMap<String, Weight>,
}

/// One weight: its type, and where its bytes lie.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Element type and static shape.
    pub ty: ValueType,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Mapped {
        file: Arc<MappedFile>,
        range: Range<usize>,
    },
    Owned(Tensor),
    /// Computed at every read; kept only where somebody borrows the bytes.
    Random {
        recipe: random::Recipe,
        kept: Arc<OnceLock<Tensor>>,
    },
}

impl Weight {
    /// A range of a mapped file, little-endian and row-major; `None` if the range lies outside the file or its length
    /// does not fit the type.
    pub fn mapped(ty: ValueType, file: Arc<MappedFile>, range: Range<usize>) -> Option<Self> {
        let fits = range.end <= file.bytes().len() && ty.bytes() == Some(range.end.checked_sub(range.start)?);
        fits.then_some(Self { ty, source: Source::Mapped { file, range } })
    }

    /// A tensor in memory.
    pub fn owned(tensor: Tensor) -> Self {
        Self { ty: tensor.value_type(), source: Source::Owned(tensor) }
    }

    /// The bytes, little-endian and row-major. Mapped bytes need not be aligned. Random weights are kept from here on;
    /// prefer [`Weight::tensor`].
    pub fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Mapped { file, range } => &file.bytes()[range.clone()],
            Source::Owned(tensor) => tensor.bytes(),
            // Computed before the cell is entered: it runs on all threads, and one that waits there may take up another
            // reader of the same weight.
            Source::Random { recipe, kept } => match kept.get() {
                Some(tensor) => tensor.bytes(),
                None => {
                    let tensor = recipe.tensor(&self.ty);
                    kept.get_or_init(|| tensor).bytes()
                }
            },
        }
    }

    /// The weight as a tensor; copies mapped bytes.
    pub fn tensor(&self) -> Tensor {
        match &self.source {
            Source::Mapped { .. } => {
                let dims = self.ty.dims().expect("weights have static shapes");
                Tensor::from_bytes(self.ty.dtype, &dims, self.bytes()).expect("the length was checked")
            }
            Source::Owned(tensor) => tensor.clone(),
            Source::Random { recipe, kept } => kept.get().cloned().unwrap_or_else(|| recipe.tensor(&self.ty)),
        }
    }

    /// The file and the range that hold the bytes, where they are mapped.
    pub fn location(&self) -> Option<(&Arc<MappedFile>, Range<usize>)> {
        match &self.source {
            Source::Mapped { file, range } => Some((file, range.clone())),
            Source::Owned(_) | Source::Random { .. } => None,
        }
    }

    /// The elements as f32, borrowed where they are f32 and aligned already.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        let borrowed = match (self.ty.dtype, &self.source) {
            (DType::F32, Source::Mapped { .. } | Source::Owned(_)) => bytemuck::try_cast_slice(self.bytes()).ok(),
            _ => None,
        };
        borrowed.map_or_else(|| Cow::Owned(self.tensor().to_f32()), Cow::Borrowed)
    }
}

impl Weights {
    /// Adds a weight under a name; returns the one that was there.
    pub fn insert(&mut self, name: impl Into<String>, weight: Weight) -> Option<Weight> {
        self.by_name.insert(name.into(), weight)
    }

    /// Adds all weights of another model; a name that both have keeps the later one.
    pub fn extend(&mut self, other: Self) {
        self.by_name.extend(other.by_name);
    }

    /// The weight of that name.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.by_name.get(name)
    }

    /// All weights, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Weight)> {
        self.by_name.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.by_name.values().filter_map(|w| w.ty.bytes()).map(|n| n as u64).sum()
    }

    /// Random values for the params of a graph that have no weight yet; how many there were. See [`random`].
    pub fn complete(&mut self, graph: &Graph, seed: u64) -> usize {
        let before = self.len();
        for id in graph.node_ids() {
            let Op::Param(param) = graph.op(id) else { continue };
            if param.ty.bytes().is_some() && self.get(&param.name).is_none() {
                let recipe = random::recipe(graph, id, param, seed);
                let source = Source::Random { recipe, kept: Arc::default() };
                self.insert(param.name.clone(), Weight { ty: param.ty.clone(), source });
            }
        }
        self.len() - before
    }
}

/// Random weights for all params of a graph, by name: the same for the same seed on every machine. Matrices and
/// kernels have deviation 1/√inputs, normalisations are near one, biases small; integers are zero. Nothing is computed
/// before it is read.
pub fn random(graph: &Graph, seed: u64) -> Weights {
    let mut weights = Weights::default();
    weights.complete(graph, seed);
    weights
}
