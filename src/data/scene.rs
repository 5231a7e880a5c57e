//! A scene of a data set: views with their cameras, and what a view holds once it is loaded.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;

use super::files;
use crate::{
    Error, Kind, Result,
    geometry::Camera,
    recon::Picture,
    scenes::{self, Rendered},
};

/// What happens to a scene of which some views are broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Broken {
    /// The scene is an error, with everything that is wrong.
    #[default]
    Refuse,
    /// Broken views are left out and said in [`Scene::left_out`]; every file is decoded to find them.
    LeaveOut,
}

/// Views of one thing.
#[derive(Clone, Debug)]
pub struct Scene {
    /// As the data set calls it.
    pub name: String,
    /// In the order of their numbers.
    pub views: Vec<View>,
    /// What is wrong with views that were left out; empty unless that was asked for.
    pub left_out: Vec<String>,
}

/// One view: its camera, and where its pixels are.
#[derive(Clone, Debug)]
pub struct View {
    /// Its number in the data set.
    pub id: u32,
    /// Width and height in pixels.
    pub size: [u32; 2],
    /// World to camera, and pixels of an image of that size.
    pub camera: Camera,
    /// The least and the largest depth that the data set gives, unless its numbers are no range.
    pub range: Option<[f64; 2]>,
    /// Where image and depth come from.
    pub pixels: Pixels,
    /// Other views of the scene (their places in [`Scene::views`]) that see the same, with scores, best first.
    pub neighbours: Vec<(usize, f64)>,
}

/// Where the pixels of a view come from.
#[derive(Clone, Debug)]
pub enum Pixels {
    /// From files.
    Files {
        /// The image.
        image: PathBuf,
        /// A PFM of depth along the z axis of the camera; 0 is no depth.
        depth: Option<PathBuf>,
        /// An image that is black where depth must not be used.
        mask: Option<PathBuf>,
    },
    /// Rendered when they are asked for.
    Rendered {
        /// The scene.
        scene: Arc<scenes::Scene>,
        /// Which of its viewpoints.
        view: usize,
    },
}

/// A view with its pixels.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The image.
    pub picture: Picture,
    /// The camera of the image.
    pub camera: Camera,
    /// Depth along the z axis of the camera, by rows; 0 where there is none. `None` for views without depth.
    pub depth: Option<Vec<f32>>,
    /// Whether a pixel has a depth that may be used; as long as the depth, empty without.
    pub valid: Vec<bool>,
}

impl Frame {
    /// A rendered view.
    pub fn rendered(name: &str, view: Rendered) -> Self {
        let Rendered { width, height, rgb, depth, valid, camera, .. } = view;
        let image = image::RgbImage::from_raw(width as u32, height as u32, rgb);
        // A rendered view has three bytes a pixel.
        let picture = Picture::new(name, image.unwrap_or_default());
        Self { picture, camera, depth: Some(depth), valid }
    }
}

impl View {
    /// The view with that camera of a scene that is rendered.
    pub fn of_scene(scene: &Arc<scenes::Scene>, view: usize, size: [u32; 2]) -> Self {
        let camera = scene.views[view].camera(size[0] as usize, size[1] as usize);
        let pixels = Pixels::Rendered { scene: scene.clone(), view };
        Self { id: view as u32, size, camera, range: None, pixels, neighbours: Vec::new() }
    }

    /// Whether its depth is known.
    pub fn has_depth(&self) -> bool {
        !matches!(self.pixels, Pixels::Files { depth: None, .. })
    }

    /// Decodes or renders the pixels.
    ///
    /// # Errors
    /// `data.view` with everything wrong with the files: missing, damaged, of another size than announced, depth that
    /// is not finite, behind the camera, or zero everywhere.
    pub fn load(&self) -> Result<Frame> {
        match &self.pixels {
            Pixels::Rendered { scene, view } => {
                let rendered = scene.render(*view, self.size[0] as usize, self.size[1] as usize);
                Ok(Frame::rendered(&format!("{:08}.png", self.id), rendered))
            }
            Pixels::Files { image, depth, mask } => self.decode(image, depth.as_deref(), mask.as_deref()),
        }
    }

    fn decode(&self, image: &Path, depth: Option<&Path>, mask: Option<&Path>) -> Result<Frame> {
        let mut problems = Vec::new();
        let mut keep = |problem: String| problems.push(problem);
        let picture = files::picture(image, self.size).map_err(&mut keep).ok();
        let values = depth.map(|path| files::depth(path, self.size).map_err(&mut keep).ok());
        let mask = mask.map(|path| files::picture(path, self.size).map_err(&mut keep).ok());
        let (Some(picture), true) = (picture, problems.is_empty()) else {
            return Err(Error::all(Kind::BadFile, "data.view", problems));
        };
        let depth = values.flatten();
        let mut valid: Vec<bool> = depth.iter().flatten().map(|d| *d > 0.0).collect();
        if let Some(mask) = mask.flatten() {
            valid.iter_mut().zip(mask.rgb.pixels()).for_each(|(v, p)| *v &= p.0.iter().any(|c| *c > 0));
            if depth.is_some() && !valid.contains(&true) {
                let problem = format!("{}: the mask leaves no pixel that has a depth", image.display());
                return Err(Error::bad_file("data.view", problem));
            }
        }
        Ok(Frame { picture, camera: self.camera, depth, valid })
    }
}

impl Scene {
    /// Loads these views, in parallel.
    ///
    /// # Errors
    /// `data.view` with the problems of all of them.
    pub fn load(&self, views: &[usize]) -> Result<Vec<Frame>> {
        let loaded: Vec<Result<Frame>> = views.par_iter().map(|v| self.views[*v].load()).collect();
        let (mut frames, mut problems) = (Vec::new(), Vec::new());
        for frame in loaded {
            match frame {
                Ok(frame) => frames.push(frame),
                Err(error) => problems.extend(error.problems),
            }
        }
        if problems.is_empty() { Ok(frames) } else { Err(Error::all(Kind::BadFile, "data.view", problems)) }
    }
}
