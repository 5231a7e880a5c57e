//! Sizes of the known models.

use lite3r_ir::{DType, ValueType};
use serde::Deserialize;

use crate::{Error, Kind, Result};

/// Sizes of a VGGT model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vggt {
    /// Channels of a token.
    pub dim: usize,
    /// Attention heads of encoder and aggregator.
    pub heads: usize,
    /// Blocks of the image encoder. None: patches with positions enter the aggregator directly.
    pub dino_depth: usize,
    /// Pairs of a frame and a global block.
    pub depth: usize,
    /// Side of the learned position grid, in patches.
    pub grid: usize,
    /// Register tokens a view.
    pub registers: usize,
    /// Hidden over outer channels of an MLP.
    pub mlp_ratio: f64,
    /// The four pairs that the dense heads read.
    pub taps: [usize; 4],
    /// Blocks of the camera head.
    pub camera_depth: usize,
    /// Attention heads of the camera head.
    pub camera_heads: usize,
    /// Hidden over outer channels of an MLP of the camera head.
    pub camera_mlp_ratio: f64,
    /// ε of the LayerNorm that the camera head modulates.
    #[serde(default = "camera_norm_eps")]
    pub camera_norm_eps: f64,
    /// Channels of the fusion stages of a dense head.
    pub features: usize,
    /// Channels of the four levels of a dense head.
    pub channels: [usize; 4],
    /// Whether there is a head for world points.
    pub points: bool,
}

fn camera_norm_eps() -> f64 {
    1e-6
}

/// Sizes of a Depth Anything 3 model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Da3 {
    /// Channels of a token.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks.
    pub depth: usize,
    /// Side of the learned position grid, in patches.
    pub grid: usize,
    /// The first block with q/k norm and RoPE; from it on every odd block looks at all views.
    pub alt_start: usize,
    /// Hidden over outer channels of an MLP.
    pub mlp_ratio: f64,
    /// The four blocks that the dense head reads.
    pub taps: [usize; 4],
    /// Channels of the fusion stages of the dense head.
    pub features: usize,
    /// Channels of the four levels of the dense head.
    pub channels: [usize; 4],
    /// Whether the checkpoint holds an encoder for given poses, which is not in the graph.
    pub pose_encoder: bool,
}

/// Sizes of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// A VGGT.
    Vggt(Vggt),
    /// A Depth Anything 3.
    Da3(Da3),
}

impl Config {
    /// The names of the known models.
    pub const NAMES: [&'static str; 8] =
        ["vggt-tiny", "vggt-small", "vggt-small-points", "vggt-1b", "da3-tiny", "da3-small", "da3-base", "da3-large"];

    /// The model of that name. Errors: `backbones.unknown`, which lists all.
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "vggt-tiny" => Self::Vggt(vggt_tiny()),
            "vggt-small" => Self::Vggt(vggt_small()),
            // With a head that teaches the rest what it is about, and that nobody need keep.
            "vggt-small-points" => Self::Vggt(Vggt { points: true, ..vggt_small() }),
            "vggt-1b" => Self::Vggt(vggt_1b()),
            "da3-tiny" => Self::Da3(da3_tiny()),
            "da3-small" => Self::Da3(da3(384, 6, 64)),
            "da3-base" => Self::Da3(da3(768, 12, 128)),
            "da3-large" => Self::Da3(da3_large()),
            _ => {
                let problem = format!("there is no architecture `{name}`; known: {}", Self::NAMES.join(", "));
                return Err(Error::usage("backbones.unknown", problem));
            }
        })
    }

    /// The outputs of the graph, in order.
    pub fn outputs(&self) -> Vec<&'static str> {
        match self {
            Self::Vggt(vggt) => {
                let points: &[&str] = if vggt.points { &["world_points", "world_points_conf"] } else { &[] };
                [&["pose_enc", "depth", "depth_conf"], points].concat()
            }
            Self::Da3(_) => vec!["depth", "depth_conf", "ray", "ray_conf", "extrinsics", "intrinsics"],
        }
    }

    /// Outputs that a graph has only if they are named, for training: estimates of cameras before the last round of
    /// refinement, or before they become matrices.
    pub fn hidden(&self) -> Vec<String> {
        match self {
            Self::Vggt(_) => self.rounds(),
            Self::Da3(_) => vec!["pose".into()],
        }
    }

    /// Those among them that are early rounds of camera refinement, in order.
    pub fn rounds(&self) -> Vec<String> {
        match self {
            Self::Vggt(_) => (0..super::camera::REFINEMENTS - 1).map(|round| format!("pose_enc.{round}")).collect(),
            Self::Da3(_) => Vec::new(),
        }
    }

    /// What published checkpoints store and the graph does not read: name and type. A LayerNorm that several levels of
    /// DA3 share is stored under the name of each; it counts once, under the name that the graph reads.
    pub fn unread(&self) -> Vec<(String, ValueType)> {
        match self {
            Self::Vggt(vggt) if vggt.dino_depth == 0 => Vec::new(),
            Self::Vggt(vggt) => {
                vec![("aggregator.patch_embed.mask_token".into(), ValueType::new(DType::F32, [1, vggt.dim]))]
            }
            Self::Da3(da3) => da3.unread(),
        }
    }

    /// Errors: `backbones.config` with everything that does not fit.
    pub(super) fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut require = |fits: bool, what: &str| {
            if !fits {
                problems.push(what.to_string());
            }
        };
        let (dim, heads, depth, taps, features) = match self {
            Self::Vggt(c) => (c.dim, c.heads, c.depth, c.taps, c.features),
            Self::Da3(c) => (c.dim, c.heads, c.depth, c.taps, c.features),
        };
        require(heads > 0 && dim % heads.max(1) == 0 && dim > 0, "`dim` must be a positive multiple of `heads`");
        require(dim / heads.max(1) % 4 == 0, "RoPE over rows and columns needs heads of a multiple of 4 channels");
        require(taps.iter().all(|t| *t < depth), "every tap must be below `depth`");
        require(features > 0 && features % 8 == 0, "`features` must be a positive multiple of 8");
        match self {
            Self::Vggt(c) => {
                require(
                    c.camera_heads > 0 && 2 * c.dim % c.camera_heads.max(1) == 0,
                    "2 `dim` must be a multiple of `camera_heads`",
                );
                require(c.channels.iter().all(|n| *n > 0 && n % 4 == 0), "`channels` must be positive multiples of 4");
                require(c.grid > 0, "`grid` must be positive");
            }
            Self::Da3(c) => {
                require(c.alt_start >= 1 && c.alt_start < c.depth, "`alt_start` must be in 1..depth");
                require(c.channels.iter().all(|n| *n > 0 && n % 4 == 0), "`channels` must be positive multiples of 4");
                require(c.grid > 0, "`grid` must be positive");
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::all(Kind::Usage, "backbones.config", problems)),
        }
    }
}

impl Da3 {
    fn unread(&self) -> Vec<(String, ValueType)> {
        let mut list = Vec::new();
        let mut put = |name: String, shape: &[usize]| {
            list.push((name, ValueType::new(DType::F32, shape.iter().copied())));
        };
        let (wide, narrow) = (self.features, self.features / 2);
        for level in 0..3 {
            for conv in 0..5 {
                let (input, output) = if conv % 2 == 0 { (wide, narrow) } else { (narrow, wide) };
                let name = format!("head.scratch.output_conv1_aux.{level}.{conv}");
                put(format!("{name}.weight"), &[output, input, 3, 3]);
                put(format!("{name}.bias"), &[output]);
            }
            let name = format!("head.scratch.output_conv2_aux.{level}");
            put(format!("{name}.0.weight"), &[32, narrow, 3, 3]);
            put(format!("{name}.0.bias"), &[32]);
            put(format!("{name}.5.weight"), &[7, 32, 1, 1]);
            put(format!("{name}.5.bias"), &[7]);
        }
        if self.pose_encoder {
            let c = self.dim;
            let mut layer = |name: &str, output: usize, input: usize| {
                put(format!("cam_enc.{name}.weight"), &[output, input][..1 + usize::from(input > 0)]);
                put(format!("cam_enc.{name}.bias"), &[output]);
            };
            layer("pose_branch.fc1", c / 2, 9);
            layer("pose_branch.fc2", c, c / 2);
            layer("token_norm", c, 0);
            layer("trunk_norm", c, 0);
            for block in 0..4 {
                layer(&format!("trunk.{block}.norm1"), c, 0);
                layer(&format!("trunk.{block}.attn.qkv"), 3 * c, c);
                layer(&format!("trunk.{block}.attn.proj"), c, c);
                layer(&format!("trunk.{block}.norm2"), c, 0);
                layer(&format!("trunk.{block}.mlp.fc1"), 4 * c, c);
                layer(&format!("trunk.{block}.mlp.fc2"), c, 4 * c);
            }
            for block in 0..4 {
                put(format!("cam_enc.trunk.{block}.ls1.gamma"), &[c]);
                put(format!("cam_enc.trunk.{block}.ls2.gamma"), &[c]);
            }
        }
        list
    }
}

fn vggt_1b() -> Vggt {
    Vggt {
        dim: 1024,
        heads: 16,
        dino_depth: 24,
        depth: 24,
        grid: 37,
        registers: 4,
        mlp_ratio: 4.0,
        taps: [4, 11, 17, 23],
        camera_depth: 4,
        camera_heads: 16,
        camera_mlp_ratio: 4.0,
        camera_norm_eps: camera_norm_eps(),
        features: 256,
        channels: [256, 512, 1024, 1024],
        points: true,
    }
}

/// The sizes of the small trained backbone of this repository.
fn vggt_small() -> Vggt {
    Vggt {
        dim: 192,
        heads: 3,
        dino_depth: 0,
        depth: 6,
        grid: 16,
        taps: [1, 2, 4, 5],
        camera_depth: 1,
        camera_heads: 6,
        camera_mlp_ratio: 2.0,
        features: 64,
        channels: [48, 96, 112, 112],
        points: false,
        ..vggt_1b()
    }
}

fn vggt_tiny() -> Vggt {
    Vggt {
        dim: 32,
        heads: 1,
        dino_depth: 1,
        depth: 2,
        grid: 3,
        mlp_ratio: 2.0,
        taps: [0, 0, 1, 1],
        camera_depth: 1,
        camera_heads: 2,
        camera_mlp_ratio: 1.0,
        features: 8,
        channels: [8, 8, 16, 16],
        ..vggt_1b()
    }
}

fn da3_large() -> Da3 {
    Da3 {
        dim: 1024,
        heads: 16,
        depth: 24,
        grid: 37,
        alt_start: 8,
        mlp_ratio: 4.0,
        taps: [11, 15, 19, 23],
        features: 256,
        channels: [256, 512, 1024, 1024],
        pose_encoder: true,
    }
}

fn da3(dim: usize, heads: usize, features: usize) -> Da3 {
    let channels = [dim / 8, dim / 4, dim / 2, dim];
    Da3 { dim, heads, depth: 12, alt_start: 4, taps: [5, 7, 9, 11], features, channels, ..da3_large() }
}

fn da3_tiny() -> Da3 {
    Da3 {
        dim: 64,
        heads: 2,
        depth: 4,
        grid: 5,
        alt_start: 2,
        mlp_ratio: 0.5,
        taps: [2, 2, 3, 3],
        features: 8,
        channels: [8, 8, 16, 16],
        pose_encoder: false,
    }
}
