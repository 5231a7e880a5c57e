//! What a run trains, bound to every number of views that it announces, before anything is rewritten.

use std::collections::BTreeMap;

use lite3r_ir::{Graph, Op, ValueType};

use super::{
    config::Config,
    init,
    step::{self, Loss, reads},
};
use crate::{
    Error, Result,
    backbones::{self, BuildOptions},
    compile::{
        self, Model, Options,
        options::{Bind, ReferenceView},
        source::ArchWeights,
    },
    weights::{self, Weights},
};

/// A model at several numbers of views.
pub struct Models {
    /// By the number of views.
    pub by_views: BTreeMap<usize, Graph>,
    /// What it begins with.
    pub weights: Weights,
}

impl Models {
    /// As a configuration says: imported, or built with what its losses read. The first view is the world of a scene: what
    /// is built takes it as its reference view, and so does what is imported where a loss compares positions in the world.
    /// Errors: those of [`compile::bound`], of the pass `reference_view` and of reading weights.
    pub fn of(config: &Config) -> Result<Self> {
        let (model, mut views) = (&config.model, config.data.views.clone());
        views.sort_unstable();
        views.dedup();
        if let Some(path) = &model.onnx {
            let source = Model::Onnx { path: path.clone(), random_weights: None };
            let mut models = Self::bound(&source, &views, Options::default())?;
            if config.loss.used().iter().any(|loss| matches!(loss, Loss::Rays | Loss::Pose)) {
                models.by_views.values_mut().try_for_each(take_first_view)?;
            }
            if let Some(path) = &model.weights {
                models.weights.extend(weights::safetensors::open(path)?);
            }
            return Ok(models);
        }
        let arch = backbones::Config::named(&model.arch)?;
        let losses = config.loss.used();
        let rounds = if losses.contains(&Loss::Camera) { arch.rounds() } else { Vec::new() };
        // What the architecture lacks is told with the loss that needs it, when the model is differentiated.
        let (usual, hidden) = (arch.outputs(), arch.hidden());
        let known = |name: &&str| usual.contains(name) || hidden.iter().any(|h| h == name);
        let read = losses.into_iter().flat_map(reads).copied().filter(known).map(String::from);
        let outputs: Vec<String> = rounds.into_iter().chain(read).collect();
        let ([height, width], scenes) = (model.size, config.run.together);
        let given = match &model.weights {
            Some(path) => ArchWeights::File(path.clone()),
            None => ArchWeights::Random(model.seed),
        };
        let source = Model::Arch { name: model.arch.clone(), scenes, size: (height, width), weights: given };
        let options =
            Options { outputs: outputs.clone(), reference_view: ReferenceView::View(0), ..Options::default() };
        let mut models = Self::bound(&source, &views, options)?;
        if model.weights.is_none() {
            let options = BuildOptions { outputs, scenes, ..BuildOptions::new(views[0], height, width) };
            models.weights = init::weights(&backbones::build(&arch, &options)?, model.seed, model.layer_scale);
        }
        Ok(models)
    }

    fn bound(model: &Model, views: &[usize], options: Options) -> Result<Self> {
        let bind = vec![Bind { symbol: "S".into(), values: views.to_vec() }];
        let options = Options { bind, ..options };
        let compiled = compile::bound(model, &options, &mut |_, _, _| true)?;
        let by_views = compiled.entries.into_iter().map(|e| (e.bindings["S"], e.graph)).collect();
        Ok(Self { by_views, weights: compiled.weights })
    }
}

/// Makes the first view the reference of a model that chooses one.
fn take_first_view(model: &mut Graph) -> Result<()> {
    if model.node_ids().any(|id| matches!(model.op(id), Op::ArgMin(_))) {
        step::run(model, &step::selected("reference_view{view=0},fold,dce")?)?;
    }
    Ok(())
}

/// Inputs that take pictures.
pub const IMAGES: [&str; 2] = ["images", "image"];

/// Rows and columns of the images of a model. Errors: `train.model` where it takes no `images` or `image` [B, S, 3, H, W].
pub fn image_size(model: &Graph) -> Result<(usize, usize)> {
    rows_and_columns(images(model))
}

/// The type of the input that takes pictures.
pub(super) fn images(model: &Graph) -> Option<ValueType> {
    model.inputs().iter().find_map(|id| match model.op(*id) {
        Op::Input(op) if IMAGES.contains(&op.name.as_str()) => Some(op.ty.clone()),
        _ => None,
    })
}

/// Of the type of such an input. Errors: as [`image_size`].
pub fn rows_and_columns(images: Option<ValueType>) -> Result<(usize, usize)> {
    match images.as_ref().and_then(ValueType::dims).as_deref() {
        Some(&[_, _, 3, height, width]) => Ok((height, width)),
        _ => Err(Error::unsupported("train.model", "the model takes no `images` [B,S,3,H,W]")),
    }
}
