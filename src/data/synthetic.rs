//! Scenes from the generator, and a writer that puts them into BlendedMVS's layout.

use std::{fs, io, ops::Range, path::Path, sync::Arc};

use image::{DynamicImage, ImageFormat, RgbImage, codecs::jpeg::JpegEncoder};
use rayon::prelude::*;

use super::{
    cam::Cam,
    overlap::{ACROSS, Coarse, neighbours},
    pairs::{self, Pairs},
    scene::{Scene, View},
    source::LISTS,
    splits::Split,
};
use crate::{
    Error, Result, atomic,
    recon::write_pfm,
    scenes::{self, Draw, Recipe},
};

/// Of the JPEGs that are written.
const QUALITY: u8 = 95;
/// How many steps the range of depth has in files.
const STEPS: f64 = 128.0;

/// Scenes of the generator. The split is a part of the seed: no scene of one split has a random number in common with
/// a scene of another, whatever their seeds and numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// What they are like.
    pub recipe: Recipe,
    /// What they are for.
    pub split: Split,
    /// Of all random choices.
    pub seed: u64,
    /// How many there are.
    pub scenes: u64,
    /// Views of each.
    pub views: u64,
    /// Width and height in pixels.
    pub size: [u32; 2],
}

impl Default for Synthetic {
    /// 64 varied test scenes of seed 1 with 8 views of 224 x 224 pixels.
    fn default() -> Self {
        Self { recipe: Recipe::Varied, split: Split::Test, seed: 1, scenes: 64, views: 8, size: [224, 224] }
    }
}

impl Synthetic {
    /// The name of scene `index`: split, seed and number.
    pub fn name(&self, index: u64) -> String {
        format!("{}-{}-{index:06}", self.split, self.seed)
    }

    /// Scene `index` of the generator, seen from these viewpoints.
    pub fn draw(&self, index: u64, views: Range<u64>) -> scenes::Scene {
        let group = match self.split {
            Split::Train => 0,
            Split::Val => 1,
            Split::Test => 2,
        };
        Draw { recipe: self.recipe, seed: self.seed, group }.scene(index, views)
    }

    /// Scene `index` with all its views, paired by what they see of each other.
    ///
    /// # Errors
    /// `data.usage` without views or pixels.
    pub fn scene(&self, index: u64) -> Result<Scene> {
        if self.views == 0 || self.size.contains(&0) {
            let [w, h] = self.size;
            let problem = format!("{} views of {w}x{h} pixels show nothing", self.views);
            return Err(Error::usage("data.usage", problem));
        }
        let scene = Arc::new(self.draw(index, 0..self.views));
        let mut views: Vec<View> = (0..scene.views.len()).map(|v| View::of_scene(&scene, v, self.size)).collect();
        let across = (ACROSS as u32).min(self.size[0]);
        let small = [across, (self.size[1] * across / self.size[0]).max(1)];
        let coarse = |v: usize| {
            let view = scene.render(v, small[0] as usize, small[1] as usize);
            Coarse::new(view.camera, small, &view.depth)
        };
        let pairs = neighbours(&(0..views.len()).map(coarse).collect::<Vec<_>>());
        views.iter_mut().zip(pairs).for_each(|(view, pairs)| view.neighbours = pairs);
        Ok(Scene { name: self.name(index), views, left_out: Vec::new() })
    }

    /// Writes every scene below `out` in BlendedMVS's layout, and adds them to the list of their split there. `images`
    /// is JPEG, as in the published set, or PNG; `written` is called after each scene.
    ///
    /// Every scene has `blended_images` (also `_masked`, black where there is no depth), `cams` with four numbers of
    /// depth, `pair.txt` by overlap, and `rendered_depth_maps`.
    ///
    /// # Errors
    /// `file.io`; `data.usage` for settings that show nothing and other formats.
    pub fn write(&self, out: &Path, images: ImageFormat, written: impl Fn(u64) + Sync) -> Result<()> {
        let ending = match images {
            ImageFormat::Jpeg => "jpg",
            ImageFormat::Png => "png",
            other => {
                return Err(Error::usage("data.usage", format!("images are written as jpg or png, not {other:?}")));
            }
        };
        (0..self.scenes).into_par_iter().try_for_each(|index| {
            let scene = self.scene(index)?;
            write_scene(&scene, &out.join(&scene.name), ending)?;
            written(index);
            Ok(())
        })?;
        // The list comes last: what it names is there.
        let (_, file) = LISTS.into_iter().find(|(split, _)| *split == self.split).unwrap_or(LISTS[0]);
        let path = out.join(file);
        let before = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "cannot be read", &e)),
        };
        let mut names: Vec<String> = before.split_whitespace().map(String::from).collect();
        names.extend((0..self.scenes).map(|i| self.name(i)));
        names.sort_unstable();
        names.dedup();
        atomic::write_bytes(&path, (names.join("\n") + "\n").as_bytes())
    }
}

fn write_scene(scene: &Scene, folder: &Path, ending: &str) -> Result<()> {
    let mut listed = Pairs::new();
    for view in &scene.views {
        let frame = view.load()?;
        let id = view.id;
        let depth = frame.depth.unwrap_or_default();
        let images = folder.join("blended_images");
        write_image(&images.join(format!("{id:08}.{ending}")), &frame.picture.rgb)?;
        let mut masked = frame.picture.rgb;
        masked.pixels_mut().zip(&depth).filter(|(_, d)| **d == 0.0).for_each(|(p, _)| p.0 = [0; 3]);
        write_image(&images.join(format!("{id:08}_masked.{ending}")), &masked)?;
        write_pfm(&folder.join(format!("rendered_depth_maps/{id:08}.pfm")), view.size, &depth)?;
        let seen = depth.iter().filter(|d| **d > 0.0).map(|d| f64::from(*d));
        let [near, far] = seen.fold([f64::MAX, 0.0], |[near, far], d| [near.min(d), far.max(d)]);
        // A view of the sky alone has no range, which files say with zeros.
        let [near, far] = if far > 0.0 { [near, far] } else { [0.0; 2] };
        let interval = (far - near) / (STEPS - 1.0);
        let cam = Cam { camera: view.camera, near, interval, count: Some(STEPS), far };
        atomic::write_bytes(&folder.join(format!("cams/{id:08}_cam.txt")), cam.text().as_bytes())?;
        let others = view.neighbours.iter().map(|(other, score)| (scene.views[*other].id, *score));
        listed.insert(id, others.collect());
    }
    atomic::write_bytes(&folder.join("cams/pair.txt"), pairs::text(&listed).as_bytes())
}

fn write_image(path: &Path, image: &RgbImage) -> Result<()> {
    let jpeg = path.extension().is_some_and(|e| e == "jpg");
    atomic::write(path, |out| {
        let written = match jpeg {
            true => JpegEncoder::new_with_quality(out, QUALITY).encode_image(image),
            false => DynamicImage::ImageRgb8(image.clone()).write_to(out, ImageFormat::Png),
        };
        written.map_err(io::Error::other)
    })
}
