//! The rendered scenes of the demonstration, whose depth and cameras are exact.

use super::{Choice, Request, SceneInfo, Source};
use crate::{
    Error, Result,
    benchmark::Sample,
    recon::Picture,
    rng::Stream,
    scenes::{Rendered, Scene},
};

/// Scenes where the command line does not say how many.
const SCENES: usize = 64;

/// Scenes of a seed, rendered at the size of the model's frames.
pub struct Synthetic {
    seed: u64,
    size: (usize, usize),
    scenes: Vec<SceneInfo>,
}

impl Synthetic {
    /// Their seed and number are those of the request.
    pub fn new(request: &Request) -> Self {
        let scene = |i: usize| SceneInfo { name: format!("{i:05}"), group: None };
        let scenes = (0..request.scenes.unwrap_or(SCENES)).map(scene).collect();
        Self { seed: request.seed, size: request.size, scenes }
    }
}

impl Source for Synthetic {
    fn name(&self) -> String {
        format!("synthetic, {} rendered scenes of seed {}", self.scenes.len(), self.seed)
    }

    fn about(&self) -> Vec<String> {
        vec!["lengths are in units of the mean distance of the true points from the first camera".into()]
    }

    fn scenes(&self) -> &[SceneInfo] {
        &self.scenes
    }

    fn choice(&self) -> Choice {
        Choice::First
    }

    fn draw(&self, _: usize, views: usize, _: Choice, _: &mut Stream) -> Result<Vec<u32>> {
        // Every camera of a scene is drawn by its own stream already.
        Ok((0..views as u32).collect())
    }

    fn load(&self, scene: usize, views: &[u32]) -> Result<Sample> {
        let most = views.iter().copied().max().map_or(0, |v| v as usize + 1);
        let world = Scene::sample(self.seed, scene as u64, most);
        let (height, width) = self.size;
        let rendered: Vec<Rendered> = views.iter().map(|v| world.render(*v as usize, width, height)).collect();
        let cameras = rendered.iter().map(|v| v.camera).collect();
        let depths = rendered.iter().map(|v| v.depth.clone()).collect();
        let picture = |(v, view): (&u32, Rendered)| {
            let image = image::RgbImage::from_raw(width as u32, height as u32, view.rgb);
            let image = image.ok_or_else(|| Error::usage("eval.data", "a rendered image has the wrong size"))?;
            Ok(Picture::new(format!("{v:08}.png"), image))
        };
        Ok(Sample {
            pictures: views.iter().zip(rendered).map(picture).collect::<Result<_>>()?,
            cameras,
            depths,
            ranges: Vec::new(),
            scan: None,
            normalise: true,
        })
    }
}
