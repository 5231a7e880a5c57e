//! VGGT and Depth Anything 3 built as graphs from a configuration: any number of views, any size, published weights.
//!
//! The graphs are in recognised form already (LayerNorm, linear, attention with its kind, RoPE, convolutions and
//! resizes are single operations), and their params bear the names of the published checkpoints. Images are [1, S, 3,
//! H, W]; H and W are multiples of the patch size 14; the number of views S is a constant or a symbol. A VGGT also takes
//! several scenes at once, for training: then every leading 1 below is their number.
//!
//! | model | input | outputs |
//! | --- | --- | --- |
//! | VGGT | `images`, RGB in 0..=1 | `pose_enc` [1,S,9] (if named also `pose_enc.0`, … of early rounds), `depth` [1,S,H,W,1], `depth_conf` [1,S,H,W], `world_points` [1,S,H,W,3], `world_points_conf` |
//! | DA3 | `image`, RGB after ImageNet normalisation | `depth`, `depth_conf` [1,S,H,W], `ray` [1,S,H·4/7,W·4/7,6], `ray_conf`, `extrinsics` [1,S,3,4] (world to camera), `intrinsics` [1,S,3,3]; if named also `pose` [1,S,9], the encodings of both (camera to world) |
//!
//! Laws: Wang et al., "VGGT: Visual Geometry Grounded Transformer", 2025; Lin et al., "Depth Anything 3", 2025; Oquab
//! et al., "DINOv2", 2023; Ranftl et al., "Vision Transformers for Dense Prediction", 2021. Not built: the track head
//! of VGGT, the pose encoder of DA3 (poses given), its Gaussian and metric variants.

mod camera;
mod config;
mod da3;
mod dpt;
mod posembed;
mod reference;
mod rope;
mod scope;
mod vggt;
mod vit;
mod weights;

use lite3r_ir::{
    Dim, Graph,
    passes::{self, Options, PassError, dce::DCE},
};

pub use config::{Config, Da3, Vggt};
pub use weights::adopt;

use crate::{Error, Result};

/// Pixels a side of a patch.
pub const PATCH: usize = 14;

/// What a graph is built for.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildOptions {
    /// Scenes at once; more than one for VGGT alone.
    pub scenes: usize,
    /// Views of a scene: a constant, or a symbol that is bound later.
    pub views: Dim,
    /// Rows of an image; a multiple of [`PATCH`].
    pub height: usize,
    /// Columns of an image; a multiple of [`PATCH`].
    pub width: usize,
    /// The outputs that are wanted; all where there is none. What only the others need is not in the graph.
    pub outputs: Vec<String>,
    /// Which view DA3 puts first.
    pub reference_view: ReferenceView,
}

/// Which view becomes the world frame of DA3. VGGT always takes the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceView {
    /// The most balanced one, chosen inside the graph from its class tokens; the first where there are fewer than
    /// three.
    Auto,
    /// The first.
    First,
    /// The one with this number, from 0.
    View(usize),
}

impl std::str::FromStr for ReferenceView {
    type Err = Error;

    /// `auto`, `first`, or a number. Errors: `backbones.reference_view`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "first" => Ok(Self::First),
            number => number.parse().map(Self::View).map_err(|_| {
                let problem = format!("the reference view is auto, first or a number from 0, not `{text}`");
                Error::usage("backbones.reference_view", problem)
            }),
        }
    }
}

impl BuildOptions {
    /// All outputs of one scene of `views` views of that size; DA3 chooses its reference view.
    pub fn new(views: impl Into<Dim>, height: usize, width: usize) -> Self {
        let (views, outputs) = (views.into(), Vec::new());
        Self { scenes: 1, views, height, width, outputs, reference_view: ReferenceView::Auto }
    }

    /// Rows and columns of patches.
    fn grid(&self) -> (usize, usize) {
        (self.height / PATCH, self.width / PATCH)
    }

    /// The views of all scenes.
    fn frames(&self) -> Dim {
        Dim::from(self.scenes) * self.views.clone()
    }
}

/// Builds the graph of a model.
///
/// Errors: `backbones.options` with everything that is wrong with sizes, views, outputs or the reference view;
/// `backbones.config` with everything that is wrong with the configuration.
pub fn build(config: &Config, options: &BuildOptions) -> Result<Graph> {
    config.check()?;
    check(config, options)?;
    let mut graph = match config {
        Config::Vggt(vggt) => vggt::build(vggt, options),
        Config::Da3(da3) => da3::build(da3, options),
    }
    .map_err(|e| Error::unsupported("backbones.build", e.to_string()))?;
    let usual = config.outputs();
    graph.retain_outputs(|name| match options.outputs.is_empty() {
        true => usual.contains(&name),
        false => options.outputs.iter().any(|wanted| wanted == name),
    });
    passes::run(&DCE, &mut graph, &Options::default())
        .map_err(|e: PassError| Error::unsupported("backbones.build", e.to_string()))?;
    Ok(graph)
}

fn check(config: &Config, options: &BuildOptions) -> Result<()> {
    let mut problems = Vec::new();
    for (what, pixels) in [("height", options.height), ("width", options.width)] {
        if pixels == 0 || pixels % PATCH != 0 {
            problems.push(format!("the {what} must be a positive multiple of {PATCH}, not {pixels}"));
        }
    }
    let views = &options.views;
    let count = views.size();
    if views.constant().is_some_and(|n| n < 1) {
        problems.push(format!("there must be at least one view, not {views}"));
    }
    match config {
        _ if options.scenes == 0 => problems.push("there must be at least one scene".into()),
        Config::Da3(_) if options.scenes > 1 => {
            problems
                .push(format!("DA3 is built for one scene at once, not {}: it chooses a view of it", options.scenes));
        }
        _ => {}
    }
    let (known, hidden) = (config.outputs(), config.hidden());
    for name in options.outputs.iter().filter(|name| !known.contains(&name.as_str()) && !hidden.contains(name)) {
        problems.push(format!("there is no output `{name}`; known: {}", known.join(", ")));
    }
    match (config, options.reference_view) {
        (Config::Vggt(_), ReferenceView::View(n)) if n > 0 => {
            problems.push("the reference view of VGGT is the first; reorder the images instead".into());
        }
        (Config::Da3(_), ReferenceView::View(n)) if count.is_some_and(|views| n >= views) => {
            problems.push(format!("there is no view {n} among {views}"));
        }
        (Config::Da3(_), ReferenceView::Auto) if count.is_none() => problems.push(format!(
            "whether a reference view is chosen depends on the number of views: bind {views}, or say which view comes first"
        )),
        _ => {}
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::all(crate::Kind::Usage, "backbones.options", problems)),
    }
}
