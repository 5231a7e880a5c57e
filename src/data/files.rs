//! What readers of data sets share: pixels with a known size, and scenes put together from what lies in folders.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    cam::Cam,
    pairs::Pairs,
    scene::{Broken, Pixels, Scene, View},
};
use crate::{
    Error, Kind, Result,
    recon::{Picture, image_size, load_images, pfm_size, read_pfm},
};

/// A picture of that size.
pub(super) fn picture(path: &Path, size: [u32; 2]) -> Result<Picture, String> {
    let picture = load_images(&[path]).map_err(|e| e.problems.join("; "))?.remove(0);
    let found = [picture.width(), picture.height()];
    if found == size { Ok(picture) } else { Err(other_size(path, found, size)) }
}

/// A depth map of that size, by rows from the top.
pub(super) fn depth(path: &Path, size: [u32; 2]) -> Result<Vec<f32>, String> {
    let bytes = fs::read(path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    let (found, values) = read_pfm(&bytes).map_err(|e| format!("{}: {}", path.display(), e.problems.join("; ")))?;
    if found != size {
        return Err(other_size(path, found, size));
    }
    let count = |wrong: fn(&f32) -> bool| values.iter().filter(|d| wrong(d)).count();
    let problem = match (count(|d| !d.is_finite()), count(|d| *d < 0.0), count(|d| *d > 0.0)) {
        (0, 0, 0) => "the depth is zero everywhere".into(),
        (0, 0, _) => return Ok(values),
        (0, behind, _) => format!("{behind} pixels have a depth behind the camera"),
        (wrong, ..) => format!("{wrong} pixels have a depth that is not finite"),
    };
    Err(format!("{}: {problem}", path.display()))
}

fn other_size(path: &Path, found: [u32; 2], size: [u32; 2]) -> String {
    let ([w, h], [x, y]) = (found, size);
    format!("{}: has {w}x{h} pixels, its view has {x}x{y}", path.display())
}

/// The text of a file.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    String::from_utf8(bytes).map_err(|_| format!("{}: is not text", path.display()))
}

/// What `parse` makes of the text of a file; its problems with the name of the file before each.
pub(super) fn parsed<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, Vec<String>>) -> Result<T, Vec<String>> {
    let named = |problems: Vec<String>| problems.iter().map(|p| format!("{}: {p}", path.display())).collect();
    parse(&text(path).map_err(|p| vec![p])?).map_err(named)
}

/// The numbers of the files in `folder` that `number` knows, with their paths.
pub(super) fn numbered(folder: &Path, number: fn(&str) -> Option<u32>) -> Result<BTreeMap<u32, PathBuf>, String> {
    let entries = fs::read_dir(folder).and_then(|e| e.collect::<Result<Vec<_>, _>>());
    let entries = entries.map_err(|e| format!("{}: cannot list the folder: {e}", folder.display()))?;
    let found = entries.iter().filter_map(|e| Some((number(e.file_name().to_str()?)?, e.path())));
    Ok(found.collect())
}

/// What lies in the folders of a scene, by the numbers of views.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) images: BTreeMap<u32, PathBuf>,
    pub(super) cams: BTreeMap<u32, PathBuf>,
    /// `None` for data without depth.
    pub(super) depths: Option<BTreeMap<u32, PathBuf>>,
    pub(super) masks: BTreeMap<u32, PathBuf>,
    pub(super) pairs: Pairs,
    /// Of the scene as a whole.
    pub(super) problems: Vec<String>,
}

impl Found {
    /// Numbers with an image, camera or depth.
    pub(super) fn ids(&self) -> BTreeSet<u32> {
        let depths = self.depths.iter().flat_map(BTreeMap::keys);
        self.images.keys().chain(self.cams.keys()).chain(depths).copied().collect()
    }

    /// The scene. Headers are read to know sizes, pixels only where broken views are to be left out.
    ///
    /// Errors: `data.scene` with every problem of the scene and, unless they are left out, of its views.
    pub(super) fn scene(mut self, broken: Broken) -> Result<Scene> {
        let ids = self.ids();
        let read: Vec<Result<View, Vec<String>>> = ids.par_iter().map(|id| self.view(*id, broken)).collect();
        let (mut views, mut wrong) = (Vec::new(), Vec::new());
        for view in read {
            match view {
                Ok(view) => views.push(view),
                Err(problems) => wrong.extend(problems),
            }
        }
        let unknown = |id: &&u32| !ids.contains(id);
        let paired: BTreeSet<u32> = self.pairs.values().flatten().map(|(id, _)| *id).collect();
        let mentioned: BTreeSet<u32> = self.pairs.keys().chain(&paired).filter(unknown).copied().collect();
        if !mentioned.is_empty() {
            let list: Vec<String> = mentioned.iter().map(u32::to_string).collect();
            wrong.push(format!("{}: pair.txt names views that the scene lacks: {}", self.name, list.join(", ")));
        }
        if ids.is_empty() && self.problems.is_empty() {
            self.problems.push(format!("{}: there are no views", self.name));
        }
        if broken == Broken::Refuse {
            self.problems.append(&mut wrong);
        } else if views.is_empty() && self.problems.is_empty() {
            self.problems.push(format!("{}: every view is broken", self.name));
            self.problems.append(&mut wrong);
        }
        if !self.problems.is_empty() {
            return Err(Error::all(Kind::BadFile, "data.scene", self.problems));
        }
        let place: BTreeMap<u32, usize> = views.iter().enumerate().map(|(i, v)| (v.id, i)).collect();
        for view in &mut views {
            let others = self.pairs.get(&view.id).into_iter().flatten();
            view.neighbours = others.filter_map(|(id, score)| Some((*place.get(id)?, *score))).collect();
        }
        Ok(Scene { name: self.name, views, left_out: wrong })
    }

    fn view(&self, id: u32, broken: Broken) -> Result<View, Vec<String>> {
        let mut problems = Vec::new();
        let lacking = |what: &str| format!("{}: view {id} has no {what}", self.name);
        let cam = match self.cams.get(&id) {
            Some(path) => parsed(path, Cam::parse).map_err(|p| problems.extend(p)).ok(),
            None => {
                problems.push(lacking("camera"));
                None
            }
        };
        let size = match self.images.get(&id) {
            Some(path) => image_size(path).map_err(|p| problems.push(format!("{}: {p}", path.display()))).ok(),
            None => {
                problems.push(lacking("image"));
                None
            }
        };
        let depth = self.depths.as_ref().map(|depths| depths.get(&id));
        match depth {
            Some(None) => problems.push(lacking("depth map")),
            Some(Some(path)) => match pfm_header(path) {
                Err(problem) => problems.push(problem),
                Ok(found) if size.is_some_and(|size| size != found) => {
                    problems.push(other_size(path, found, size.unwrap_or_default()));
                }
                Ok(_) => {}
            },
            None => {}
        }
        let (Some(cam), Some(size), Some(image), true) = (cam, size, self.images.get(&id), problems.is_empty()) else {
            return Err(problems);
        };
        let pixels =
            Pixels::Files { image: image.clone(), depth: depth.flatten().cloned(), mask: self.masks.get(&id).cloned() };
        let view = View { id, size, camera: cam.camera, range: cam.range(), pixels, neighbours: Vec::new() };
        if broken == Broken::LeaveOut {
            view.load().map_err(|e| e.problems)?;
        }
        Ok(view)
    }
}

/// Width and height of a PFM whose length fits them.
fn pfm_header(path: &Path) -> Result<[u32; 2], String> {
    let open = File::open(path).and_then(|f| Ok((f.metadata()?.len(), f)));
    let (length, file) = open.map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    let mut start = Vec::new();
    file.take(128).read_to_end(&mut start).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    if start.is_empty() {
        return Err(format!("{}: the file is empty", path.display()));
    }
    pfm_size(&start, length).map_err(|e| format!("{}: {}", path.display(), e.problems.join("; ")))
}
