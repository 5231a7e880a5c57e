//! Where a graph comes from: an ONNX file, or the description of a known backbone.

use std::path::PathBuf;

use lite3r_ir::{Bindings, Graph};

use super::options::{Options, ReferenceView};
use crate::{
    Error, Result,
    backbones::{self, BuildOptions, Config},
    onnx::{self, ImportOptions},
    weights::{self, Weights},
};

/// What is compiled.
#[derive(Clone, Debug)]
pub enum Model {
    /// An exported model.
    Onnx {
        /// The file; its external data lies beside it.
        path: PathBuf,
        /// Random weights of this seed in place of data that is not there.
        random_weights: Option<u64>,
    },
    /// A backbone by name.
    Arch {
        /// `vggt-1b`, `da3-large`, …
        name: String,
        /// Scenes at once.
        scenes: usize,
        /// Height and width of the images.
        size: (usize, usize),
        /// Where its weights come from.
        weights: ArchWeights,
    },
}

/// Where the weights of a known backbone come from.
#[derive(Clone, Debug)]
pub enum ArchWeights {
    /// A safetensors file with the published names.
    File(PathBuf),
    /// Seeded random numbers, for measuring.
    Random(u64),
}

/// Graphs with the bindings that each of them serves, and their weights.
pub struct Source {
    /// One graph with symbols for all bindings, or one graph a binding.
    pub graphs: Vec<(Graph, Vec<Bindings>)>,
    /// By name.
    pub weights: Weights,
    /// Who wrote the file.
    pub producer: Option<String>,
    /// Whether symbols had to be bound before the import, because the model computes with them what no polynomial says.
    pub bound_early: bool,
}

/// Opens a model for every set of bindings. Errors: those of [`crate::onnx`], [`crate::backbones`], [`crate::weights`].
pub fn open(model: &Model, options: &Options, bindings: &[Bindings]) -> Result<Source> {
    match model {
        Model::Onnx { path, random_weights } => {
            let import = ImportOptions {
                outputs: options.outputs.clone(),
                allow_missing_data: random_weights.is_some(),
                ..ImportOptions::default()
            };
            let mut source = imported(path, &import, bindings)?;
            if let Some(seed) = random_weights {
                for (graph, _) in &source.graphs {
                    source.weights.complete(graph, *seed);
                }
            }
            Ok(source)
        }
        Model::Arch { name, scenes, size: (height, width), weights } => {
            let config = Config::named(name)?;
            let mut graphs = Vec::with_capacity(bindings.len());
            for bound in bindings {
                let views = views_of(name, bound)?;
                let reference_view = match options.reference_view {
                    ReferenceView::Auto => backbones::ReferenceView::Auto,
                    ReferenceView::View(view) => backbones::ReferenceView::View(view),
                };
                let build = BuildOptions {
                    scenes: *scenes,
                    views: views.into(),
                    height: *height,
                    width: *width,
                    outputs: options.outputs.clone(),
                    reference_view,
                };
                graphs.push((backbones::build(&config, &build)?, vec![bound.clone()]));
            }
            let weights = match weights {
                // What rewrites add later may be in the file as well.
                ArchWeights::File(path) => {
                    let stored = weights::safetensors::open(path)?;
                    let own = graphs.iter().map(|(graph, _)| backbones::adopt(graph, &stored));
                    let own = own.collect::<Result<Vec<_>>>()?;
                    own.into_iter().fold(stored, |mut all, own| {
                        all.extend(own);
                        all
                    })
                }
                ArchWeights::Random(seed) => {
                    let mut weights = Weights::default();
                    for (graph, _) in &graphs {
                        weights.complete(graph, *seed);
                    }
                    weights
                }
            };
            Ok(Source { graphs, weights, producer: None, bound_early: false })
        }
    }
}

/// One graph with symbols where the model can be read that way; otherwise one a binding.
fn imported(path: &std::path::Path, import: &ImportOptions, bindings: &[Bindings]) -> Result<Source> {
    let error = match onnx::import_with(path, import) {
        Ok(model) => {
            let graphs = vec![(model.graph, bindings.to_vec())];
            return Ok(Source { graphs, weights: model.weights, producer: Some(model.producer), bound_early: false });
        }
        Err(error) if error.code == "onnx.unsupported" && bindings.iter().any(|b| !b.is_empty()) => error,
        Err(error) => return Err(error),
    };
    tracing::info!(%error, "the symbols are bound before the import");
    let mut source = Source { graphs: Vec::new(), weights: Weights::default(), producer: None, bound_early: true };
    for bound in bindings {
        let model = onnx::import_with(path, &ImportOptions { bindings: bound.clone(), ..import.clone() })?;
        source.graphs.push((model.graph, vec![bound.clone()]));
        source.weights.extend(model.weights);
        source.producer = Some(model.producer);
    }
    Ok(source)
}

fn views_of(name: &str, bindings: &Bindings) -> Result<usize> {
    let unknown: Vec<&str> = bindings.keys().map(String::as_str).filter(|s| *s != "S").collect();
    match (bindings.get("S"), unknown.is_empty()) {
        (Some(views), true) => Ok(*views),
        (None, _) => Err(Error::usage("compile.bind", format!("{name} needs its number of views: `--bind S=N`"))),
        (_, false) => {
            let problem = format!("{name} has one symbol, S, the number of views; not {}", unknown.join(", "));
            Err(Error::usage("compile.bind", problem))
        }
    }
}
