//! What is in a data set, and everything that is wrong with it.

use std::{collections::BTreeMap, path::Path};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    blendedmvs,
    overlap::{Coarse, turned_away},
    scene::{Broken, Scene},
    source::{Set, Source},
    splits::Split,
};
use crate::{Error, Result};

/// What was found in a data set.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// As [`Source`] prints itself.
    pub source: String,
    /// Scenes in the order of their names.
    pub scenes: Vec<SceneReport>,
    /// For each split, scenes that it has and the folder lacks.
    pub missing: BTreeMap<Split, Vec<String>>,
}

/// What was found in a scene.
#[derive(Clone, Debug, Serialize)]
pub struct SceneReport {
    /// Its name.
    pub name: String,
    /// What it is for; `None` where no list says, and then it is for nothing.
    pub split: Option<Split>,
    /// Views that are whole.
    pub views: usize,
    /// Those of them with depth.
    pub with_depth: usize,
    /// Those whose range of depth is none.
    pub without_range: usize,
    /// Those that are paired with no other.
    pub unpaired: usize,
    /// How many views have each width and height.
    pub sizes: BTreeMap<String, usize>,
    /// The share of pixels with depth; `None` where pixels were not read or there is none.
    pub covered: Option<f64>,
    /// Everything that is wrong.
    pub problems: Vec<String>,
}

impl Report {
    /// Everything that is wrong with any scene.
    pub fn problems(&self) -> Vec<String> {
        self.scenes.iter().flat_map(|s| s.problems.iter().cloned()).collect()
    }
}

/// The source that a folder is laid out as.
///
/// # Errors
/// `data.set` for folders that are neither.
pub fn recognise(root: &Path) -> Result<Source> {
    if root.join("Rectified").is_dir() {
        return Ok(Source::Dtu(root.into()));
    }
    let entries = std::fs::read_dir(root)
        .map_err(|e| Error::bad_file("data.set", format!("{}: cannot list the folder: {e}", root.display())))?;
    if blendedmvs::is_scene(root) || entries.flatten().any(|e| blendedmvs::is_scene(&e.path())) {
        return Ok(Source::BlendedMvs(root.into()));
    }
    let problem = format!(
        "{}: is laid out neither as BlendedMVS (NAME/blended_images, NAME/cams) nor as DTU (Rectified, Cameras)",
        root.display()
    );
    Err(Error::bad_file("data.set", problem))
}

/// Reads every scene of a source; with `pixels` also decodes every file and compares what views see. `done` is called
/// after each scene with how many there are.
///
/// # Errors
/// As [`Set::open`]: a set that cannot be listed. What is wrong with scenes stands in the report.
pub fn check(source: Source, pixels: bool, done: impl Fn(usize) + Sync) -> Result<Report> {
    let set = Set::open(source, None)?;
    let look = |i: usize| {
        let report = scene(&set, i, pixels);
        done(set.scenes.len());
        report
    };
    let scenes: Vec<SceneReport> = (0..set.scenes.len()).into_par_iter().map(look).collect();
    let mut missing = BTreeMap::new();
    for (_, split) in Split::WORDS {
        // A split without any scene has nothing to lack.
        if let Ok(part) = Set::open(set.source.clone(), Some(*split))
            && !part.missing.is_empty()
        {
            missing.insert(*split, part.missing);
        }
    }
    Ok(Report { source: set.source.to_string(), scenes, missing })
}

fn scene(set: &Set, index: usize, pixels: bool) -> SceneReport {
    let mut report = SceneReport {
        name: set.scenes[index].clone(),
        split: set.purpose(index),
        views: 0,
        with_depth: 0,
        without_range: 0,
        unpaired: 0,
        sizes: BTreeMap::new(),
        covered: None,
        problems: Vec::new(),
    };
    let scene = match set.scene(index, Broken::Refuse) {
        Ok(scene) => scene,
        Err(error) => match set.scene(index, Broken::LeaveOut) {
            // The rest is still looked at; what was left out is what the error says, and what pixels show besides.
            Ok(rest) => {
                report.problems.extend(rest.left_out.iter().cloned());
                rest
            }
            Err(_) => {
                report.problems = error.problems;
                return report;
            }
        },
    };
    report.views = scene.views.len();
    report.without_range = scene.views.iter().filter(|v| v.range.is_none()).count();
    report.unpaired = scene.views.iter().filter(|v| v.neighbours.is_empty()).count();
    for view in &scene.views {
        *report.sizes.entry(format!("{}x{}", view.size[0], view.size[1])).or_default() += 1;
    }
    report.with_depth = scene.views.iter().filter(|v| v.has_depth()).count();
    if pixels {
        look_at_pixels(&scene, &mut report);
    }
    report
}

fn look_at_pixels(scene: &Scene, report: &mut SceneReport) {
    let read = |i: usize| {
        let frame = scene.views[i].load()?;
        let valid = frame.valid.iter().filter(|v| **v).count();
        let coarse = Coarse::of(&frame.picture, frame.camera, frame.depth.as_deref());
        Ok((i, frame.valid.len(), valid, coarse))
    };
    let read: Vec<Result<_>> = (0..scene.views.len()).into_par_iter().map(read).collect();
    let (mut places, mut views, mut all, mut valid) = (BTreeMap::new(), Vec::new(), 0, 0);
    for view in read {
        match view {
            Ok((i, pixels, with_depth, coarse)) => {
                (all, valid) = (all + pixels, valid + with_depth);
                if let Some(coarse) = coarse {
                    places.insert(i, views.len());
                    views.push((i, coarse));
                }
            }
            Err(error) => {
                report.views -= 1;
                report.problems.extend(error.problems);
            }
        }
    }
    report.covered = (all > 0).then(|| valid as f64 / all as f64);
    let (ids, coarse): (Vec<usize>, Vec<Coarse>) = views.into_iter().unzip();
    let paired = |v: usize| {
        let neighbours = &scene.views[ids[v]].neighbours;
        neighbours.iter().filter_map(|(n, _)| places.get(n).copied()).collect()
    };
    for view in turned_away(&coarse, paired) {
        report.problems.push(format!(
            "{}: all that the views paired with view {} see lies behind its camera; extrinsics go from world to camera",
            scene.name, scene.views[ids[view]].id
        ));
    }
}
