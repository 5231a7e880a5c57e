//! DTU's multi-view stereo set, in millimetres.
//!
//! ```text
//! ROOT/Rectified/scan1/rect_001_3_r5000.png    views from 1, one file a light (0 to 6)
//! ROOT/scan1/image/000000.png                  or so, as DTU-64 is handed round: views from 0, one light
//! ROOT/Cameras/00000000_cam.txt, pair.txt      views from 0, the same for all scans
//! ROOT/Depths/scan1/depth_map_0000.pfm, depth_visual_0000.png      where they are given
//! ROOT/Points/stl/stl001_total.ply
//! ROOT/SampleSet/MVS Data/ObsMask/ObsMask1_10.mat, Plane1.mat      (or ROOT/ObsMask)
//! ```
//!
//! Law: Jensen et al., "Large Scale Multi-view Stereopsis Evaluation", 2014; the cameras and the depth maps are those of
//! MVSNet. Depth maps must have the size of the images. Scans have 49 or 64 views.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    blendedmvs::digits,
    files::{Found, numbered, parsed},
    pairs,
    scene::{Broken, Scene},
};
use crate::{Error, Kind, Result};

/// The light that MVSNet and those after it test with.
pub const LIGHT: u32 = 3;

/// Reads scan `scan` under light `light`.
///
/// # Errors
/// `data.scene` with everything that is missing, damaged or does not fit together, each with its file;
/// `data.usage` for lights that DTU does not have.
pub fn scene(root: &Path, scan: u32, light: u32, broken: Broken) -> Result<Scene> {
    if light > 6 {
        return Err(Error::usage("data.usage", format!("there is no light {light}; DTU has lights 0 to 6")));
    }
    let name = format!("scan{scan}");
    let mut problems = Vec::new();
    let images = images(root, &name, light).unwrap_or_else(|problem| {
        problems.push(problem);
        BTreeMap::new()
    });
    let mut list = |folder: PathBuf, number| match numbered(&folder, number) {
        Ok(found) => found,
        Err(problem) => {
            problems.push(problem);
            BTreeMap::new()
        }
    };
    let mut cams = list(root.join("Cameras"), |name| digits(name.strip_suffix("_cam.txt")?));
    // Cameras are shared by scans of 49 and of 64 views; those of views that a scan lacks are nothing wrong.
    cams.retain(|id, _| images.contains_key(id));
    let folder = root.join("Depths").join(&name);
    let depths =
        folder.is_dir().then(|| list(folder.clone(), |n| digits(n.strip_prefix("depth_map_")?.strip_suffix(".pfm")?)));
    let masks = match depths.is_some() {
        true => list(folder, |n| digits(n.strip_prefix("depth_visual_")?.strip_suffix(".png")?)),
        false => BTreeMap::new(),
    };
    let path = root.join("Cameras/pair.txt");
    let pairs = match path.exists() {
        true => parsed(&path, pairs::parse).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Default::default()
        }),
        false => Default::default(),
    };
    // As the cameras, so the pairs.
    let seen = |id: &u32| images.contains_key(id);
    let pairs = pairs.into_iter().filter(|(id, _)| seen(id));
    let pairs = pairs.map(|(id, others)| (id, others.into_iter().filter(|(other, _)| seen(other)).collect())).collect();
    Found { name, images, cams, depths, masks, pairs, problems }.scene(broken)
}

/// The images of a scan under one light, by the numbers of views from 0.
fn images(root: &Path, name: &str, light: u32) -> Result<BTreeMap<u32, PathBuf>, String> {
    let alone = root.join(name).join("image");
    if alone.is_dir() {
        return match numbered(&alone, |name| digits(name.strip_suffix(".png")?)) {
            Ok(found) if found.is_empty() => Err(format!("{}: no image (000000.png and so on)", alone.display())),
            found => found,
        };
    }
    let folder = root.join("Rectified").join(name);
    let cropped = root.join("Rectified").join(format!("{name}_train"));
    if !folder.is_dir() && cropped.is_dir() {
        return Err(format!(
            "{}: is missing; {} holds the crops of 640x512 that MVSNet was trained with, whose cameras are others: give \
             the rectified images of 1600x1200",
            folder.display(),
            cropped.display()
        ));
    }
    let entries = fs::read_dir(&folder).and_then(|e| e.collect::<Result<Vec<_>, _>>());
    let entries = entries.map_err(|e| format!("{}: cannot list the folder: {e}", folder.display()))?;
    let ending = format!("_{light}_r5000.png");
    let number = |name: &str| digits(name.strip_prefix("rect_")?.strip_suffix(&ending)?)?.checked_sub(1);
    let found: BTreeMap<u32, PathBuf> =
        entries.iter().filter_map(|e| Some((number(e.file_name().to_str()?)?, e.path()))).collect();
    match found.is_empty() {
        true => Err(format!("{}: no image under light {light} (rect_001{ending} and so on)", folder.display())),
        false => Ok(found),
    }
}

/// The scans that have images, in the order of their numbers.
///
/// # Errors
/// `data.set` if there is no folder of images.
pub fn scans(root: &Path) -> Result<Vec<u32>> {
    let rectified = root.join("Rectified");
    let folder = if rectified.is_dir() { &rectified } else { root };
    let found = numbered(folder, |name| digits(name.strip_prefix("scan")?));
    Ok(found.map_err(|problem| Error::bad_file("data.set", problem))?.into_keys().collect())
}

/// The files that points of a scan are measured against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// The scanned surface, a PLY.
    pub points: PathBuf,
    /// Which voxels were observed, a MAT-file with ObsMask, BB and Res.
    pub mask: PathBuf,
    /// The plane of the table, a MAT-file with P.
    pub plane: PathBuf,
}

/// Where the truth of a scan lies.
///
/// # Errors
/// `data.scene` with every file that is missing.
pub fn truth(root: &Path, scan: u32) -> Result<Truth> {
    let folders = [root.join("SampleSet/MVS Data/ObsMask"), root.join("ObsMask")];
    let folder = folders.iter().find(|f| f.is_dir()).unwrap_or(&folders[0]);
    let truth = Truth {
        points: root.join(format!("Points/stl/stl{scan:03}_total.ply")),
        mask: folder.join(format!("ObsMask{scan}_10.mat")),
        plane: folder.join(format!("Plane{scan}.mat")),
    };
    let missing: Vec<String> = [&truth.points, &truth.mask, &truth.plane]
        .into_iter()
        .filter(|path| !path.is_file())
        .map(|path| format!("{}: is missing", path.display()))
        .collect();
    if missing.is_empty() { Ok(truth) } else { Err(Error::all(Kind::BadFile, "data.scene", missing)) }
}
