//! The demonstration: a rendered scene with exact depth and cameras, a small trained backbone, dense and as its lite
//! student, and a report of both against the truth.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use lite3r_ir::Tensor;

use crate::{
    Error, Result, atomic,
    backend::Target,
    compile::{
        self, Model,
        options::{AttentionRule, Options, Precision},
    },
    eval::{
        depth::{self, DepthMetrics},
        pose::{self, PoseMetrics},
    },
    geometry::{Mat4, rigid},
    plan::Plan,
    recon::{Family, FrameMap, Intrinsics, Picture, Pose, Prepared, Reconstruction, View},
    scenes::{Normalised, Rendered, Scene, normalise},
    session::{self, Session},
};

/// The trained backbone, an ONNX file; what it is and what it knows stands in `README.md` beside it.
pub const BACKBONE: &[u8] = include_bytes!("small_backbone.onnx");

/// What its student adds to it, safetensors: the routers of [`LITE`], trained as `README.md` says.
pub const ROUTERS: &[u8] = include_bytes!("router.safetensors");

/// Height and width of its images.
pub const SIZE: usize = 224;

/// How depth is measured here: as the backbone was trained, without alignment.
pub const DEPTH_PROTOCOL: &str = "depth/none";

/// The same after all views of a scene are scaled by the ratio of medians: what is left when the scale is forgiven.
pub const ALIGNED_PROTOCOL: &str = "depth/median-scene";

/// How poses are measured here.
pub const POSE_PROTOCOL: &str = "pose/pairs";

/// A way to compile the backbone.
#[derive(Clone, Debug)]
pub struct Variant {
    /// As reports call it.
    pub name: &'static str,
    /// How global attention is computed, as `--attention` takes it, each rule for a layer or for all of them.
    pub attention: &'static [&'static str],
    /// What linear layers compute in, as `--precision` takes it.
    pub precision: &'static str,
    /// Whether attention reads [`ROUTERS`].
    pub student: bool,
}

/// As trained.
pub const DENSE: Variant = Variant { name: "dense f32", attention: &[], precision: "f32", student: false };

/// A layer of [`LITE`].
macro_rules! lite {
    ($layer:literal, $keep:literal) => {
        concat!(
            "global.",
            $layer,
            "=sla{keep=",
            $keep,
            ",block_q=16,block_k=16,router=sub16,form=centroid,always=[own],router_weights=true}"
        )
    };
}

/// Sparse attention by trained routers, three tenths on average and most of it in early layers, which find matches, with
/// centroids for what is skipped, and FP8 linear layers.
pub const LITE: Variant = Variant {
    name: "SLA + FP8",
    attention: &[lite!(0, 0.5), lite!(1, 0.5), lite!(2, 0.25), lite!(3, 0.25), lite!(4, 0.15), lite!(5, 0.15)],
    precision: "fp8",
    student: true,
};

/// The same where only weights can be FP8.
const LITE_WEIGHTS: Variant = Variant { name: "SLA + FP8 weights", precision: "fp8w", ..LITE };

/// The lite one that a target computes.
pub fn lite(target: &dyn Target) -> &'static Variant {
    if target.multiplies_codes() { &LITE } else { &LITE_WEIGHTS }
}

impl Variant {
    /// Compiles the backbone for `views` views.
    pub fn plan(&self, models: &Models, views: usize, target: &dyn Target) -> Result<Plan> {
        let wrong = |problem: String| Error::usage("demo.variant", problem);
        let rules = self.attention.iter().map(|rule| rule.parse::<AttentionRule>());
        let attention = rules.collect::<std::result::Result<_, _>>().map_err(wrong)?;
        let options = Options {
            bind: vec![compile::options::Bind { symbol: "S".into(), values: vec![views] }],
            attention,
            precision: self.precision.parse::<Precision>().map_err(wrong)?.for_target(target),
            heads: target.dense_heads(),
            joint_heads: target.joint_heads(),
            coded_attention: target.coded_attention(),
            trained: if self.student { vec![models.routers.clone()] } else { Vec::new() },
            ..Options::default()
        };
        let model = Model::Onnx { path: models.backbone.clone(), random_weights: None };
        let compiled = compile::compile(&model, &options, &mut |_, _, _| true)?;
        compile::plan(&compiled, target)
    }
}

/// A scene with its truth in the coordinates that the backbone was trained in.
pub struct Shot {
    /// The views as images.
    pub views: Vec<Rendered>,
    /// Cameras and depth, the first camera being the world and the mean distance of points one.
    pub truth: Normalised,
}

impl Shot {
    /// Renders scene `index` of a seed.
    pub fn render(seed: u64, index: u64, views: usize) -> Result<Self> {
        let scene = Scene::sample(seed, index, views);
        let views: Vec<Rendered> = (0..views).map(|v| scene.render(v, SIZE, SIZE)).collect();
        let truth = normalise(&views, 4)?;
        Ok(Self { views, truth })
    }

    /// The input of the backbone: f32 [1, views, 3, 224, 224] in 0..=1.
    pub fn images(&self) -> Tensor {
        let values: Vec<f32> = self.views.iter().flat_map(Rendered::planes).collect();
        Tensor::from_f32(&[1, self.views.len(), 3, SIZE, SIZE], values)
    }

    /// The views as pictures.
    pub fn pictures(&self) -> Result<Vec<Picture>> {
        let picture = |(i, view): (usize, &Rendered)| {
            let image = image::RgbImage::from_raw(SIZE as u32, SIZE as u32, view.rgb.clone());
            image.map(|image| Picture::new(format!("view_{i}.png"), image))
        };
        let pictures: Option<Vec<Picture>> = self.views.iter().enumerate().map(picture).collect();
        pictures.ok_or_else(|| Error::usage("demo.render", "a rendered image has the wrong size"))
    }

    /// The truth as a reconstruction, for reports.
    pub fn reconstruction(&self) -> Result<Reconstruction> {
        let views = self.pictures()?.into_iter().zip(self.truth.cameras.iter().zip(&self.truth.depths));
        let views = views.map(|(picture, (camera, depth))| View {
            name: picture.name,
            label: picture.label,
            image: picture.rgb,
            depth: depth.clone(),
            confidence: vec![1.0; depth.len()],
            intrinsics: sampled(&camera.intrinsic),
            pose: pose_of(&camera.extrinsic),
            mask: None,
        });
        Ok(Reconstruction { views: views.collect(), dropped: 0 })
    }
}

/// The renderer puts pixel centres at halves, reconstructions at whole numbers.
fn sampled(k: &[[f64; 3]; 3]) -> Intrinsics {
    Intrinsics { fx: k[0][0], fy: k[1][1], cx: k[0][2] - 0.5, cy: k[1][2] - 0.5 }
}

fn pose_of(extrinsic: &Mat4) -> Pose {
    let row = |i: usize| [extrinsic[i][0], extrinsic[i][1], extrinsic[i][2]];
    Pose { rotation: [row(0), row(1), row(2)], translation: [0, 1, 2].map(|i| extrinsic[i][3]) }
}

/// What a plan made of a scene.
pub struct Outcome {
    /// In the model's own coordinates.
    pub reconstruction: Reconstruction,
    /// By [`DEPTH_PROTOCOL`].
    pub depth: DepthMetrics,
    /// By [`ALIGNED_PROTOCOL`].
    pub aligned: DepthMetrics,
    /// By [`POSE_PROTOCOL`].
    pub pose: PoseMetrics,
    /// Wall time of the run.
    pub seconds: f64,
}

/// Runs a session on a scene and measures the result.
pub fn measure(session: &mut Session, shot: &Shot) -> Result<Outcome> {
    let images = shot.images();
    let inputs = BTreeMap::from([("images".to_string(), images.clone())]);
    let entry = session.entry_for(&inputs)?;
    let start = Instant::now();
    let outputs = session.run(entry, &inputs)?;
    let seconds = start.elapsed().as_secs_f64();
    let frames = vec![FrameMap::identity(SIZE as u32, SIZE as u32); shot.views.len()];
    let prepared = Prepared { tensor: images, frames };
    let reconstruction = Reconstruction::from_outputs(&outputs, &prepared, &shot.pictures()?, Family::Vggt)?;
    let predicted: Vec<&[f32]> = reconstruction.views.iter().map(|v| v.depth.as_slice()).collect();
    let truth: Vec<&[f32]> = shot.truth.depths.iter().map(Vec::as_slice).collect();
    let depth = depth::Protocol::named(DEPTH_PROTOCOL)?.measure(&predicted, &truth)?;
    let aligned = depth::Protocol::named(ALIGNED_PROTOCOL)?.measure(&predicted, &truth)?;
    let poses: Vec<Mat4> = reconstruction.views.iter().map(|v| rigid(&v.pose.rotation, v.pose.translation)).collect();
    let true_poses: Vec<Mat4> = shot.truth.cameras.iter().map(|c| c.extrinsic).collect();
    let pose = pose::Protocol::named(POSE_PROTOCOL)?.measure(&poses, &true_poses)?;
    Ok(Outcome { reconstruction, depth, aligned, pose, seconds })
}

/// Where the models of this file were written.
#[derive(Clone, Debug)]
pub struct Models {
    /// [`BACKBONE`].
    pub backbone: PathBuf,
    /// [`ROUTERS`].
    pub routers: PathBuf,
}

impl Models {
    /// Writes them into a folder, so that they can be compiled by hand too. Errors: `file.io`.
    pub fn write(folder: &Path) -> Result<Self> {
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            atomic::write_bytes(&path, bytes).map(|()| path)
        };
        Ok(Self { backbone: put("small_backbone.onnx", BACKBONE)?, routers: put("router.safetensors", ROUTERS)? })
    }
}

/// A session on a plan of a variant.
pub fn session(
    variant: &Variant,
    models: &Models,
    views: usize,
    target: &dyn Target,
    options: &session::Options,
) -> Result<Session> {
    Session::new(variant.plan(models, views, target)?, options)
}
