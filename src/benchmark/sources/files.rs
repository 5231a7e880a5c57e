//! BlendedMVS and DTU from their folders, read by [`crate::data`].

use std::path::{Path, PathBuf};

use super::{Choice, Request, SceneInfo, Source};
use crate::{
    Error, Kind, Result,
    benchmark::Sample,
    data::{self, Split, blendedmvs, dtu, splits},
    eval::dtu::Reference,
    rng::Stream,
};

/// The view that Depth Anything 3 puts first where it takes all 64 of DTU-64.
const FIRST_OF_DTU64: u32 = 33;

/// Scenes that were read from files.
pub struct Files {
    name: String,
    about: Vec<String>,
    infos: Vec<SceneInfo>,
    scenes: Vec<data::Scene>,
    set: Set,
}

/// What is known beside cameras.
enum Set {
    /// Depth, and numbers at the ends of camera files, below this folder.
    BlendedMvs(PathBuf),
    /// Nothing: poses only.
    Dtu64,
    /// Depth where the folder has it, and the scans of these numbers.
    Dtu(PathBuf, Vec<u32>),
}

impl Files {
    /// The official validation scenes of BlendedMVS, or those of another split. A folder in which no scene has an official
    /// name gives all its scenes, and says so.
    ///
    /// Errors: `eval.data` where scenes of the split are missing; `data.scene` with everything wrong with the others.
    pub fn blendedmvs(root: &Path, request: &Request) -> Result<Self> {
        let entries = std::fs::read_dir(root).and_then(|e| e.collect::<Result<Vec<_>, _>>());
        let entries = entries.map_err(|e| Error::io(root, "cannot be listed", &e))?;
        let folders = entries.iter().filter(|e| blendedmvs::is_scene(&e.path()));
        let mut found: Vec<String> = folders.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        found.sort_unstable();
        let official = found.iter().any(|name| splits::blendedmvs_split(name).is_some());
        let (mut names, which) = match (request.split, official) {
            (Some(Some(split)), _) => (owned(&splits::blendedmvs(split)), format!("official {split} scenes")),
            (None, true) => (owned(&splits::blendedmvs(Split::Val)), "official val scenes".into()),
            (Some(None), true) => (found.clone(), "all scenes, those of training included".into()),
            (_, false) => (found.clone(), "all scenes; none has an official name".into()),
        };
        names.truncate(request.scenes.unwrap_or(usize::MAX));
        let missing: Vec<&String> = names.iter().filter(|name| !found.contains(name)).collect();
        if !missing.is_empty() || names.is_empty() {
            let problems = missing.iter().map(|name| format!("{}: has no scene {name}", root.display()));
            return Err(nothing_or(problems.collect(), root, &which));
        }
        let scenes = read(&names, |name| blendedmvs::scene(&root.join(name), request.broken))?;
        let group = |name: &String| {
            splits::blendedmvs_split(name).filter(|_| request.split == Some(None)).map(|s| format!("BlendedMVS {s}"))
        };
        let infos = names.iter().map(|name| SceneInfo { name: name.clone(), group: group(name) }).collect();
        let about = vec![
            "lengths are in units of the mean distance of the true points from the first camera; those of the data are \
             not metric"
                .into(),
        ];
        let name = format!("blendedmvs, {} {which}", names.len());
        Ok(Self::new(name, about, infos, scenes, Set::BlendedMvs(root.to_path_buf())))
    }

    /// The 13 scans of DTU-64 with cameras alone, in groups by what MVSNet uses them for.
    ///
    /// Errors: `data.set`, `data.scene` with everything that is missing or wrong.
    pub fn dtu64(root: &Path, request: &Request) -> Result<Self> {
        let scans = &splits::DTU64[..request.scenes.unwrap_or(usize::MAX).min(splits::DTU64.len())];
        let scenes = read(scans, |scan| dtu::scene(root, *scan, dtu::LIGHT, request.broken))?;
        let word = |scan: u32| splits::dtu_split(scan).map_or("in no list", Split::word);
        let info = |scan: &u32| SceneInfo {
            name: format!("scan{scan}"),
            group: Some(format!("{} scans of MVSNet's lists", word(*scan))),
        };
        let of = |split: Split| -> Vec<String> {
            scans.iter().filter(|scan| splits::dtu_split(**scan) == Some(split)).map(u32::to_string).collect()
        };
        let (train, val) = (of(Split::Train), of(Split::Val));
        let about = vec![
            format!(
                "{} of the {} scans are training scans of MVSNet's lists ({}) and {} are validation scans ({}): what was \
                 fitted to those has seen them",
                train.len(),
                scans.len(),
                train.join(" "),
                val.len(),
                val.join(" ")
            ),
            "poses only, in mm; where all 64 views are taken, view 33 comes first".into(),
        ];
        let infos = scans.iter().map(info).collect();
        Ok(Self::new(format!("dtu64, {} scans", scans.len()), about, infos, scenes, Set::Dtu64))
    }

    /// The test scans of DTU, or those of another split, with the files that points are measured against.
    ///
    /// Errors: as [`Files::dtu64`].
    pub fn dtu(root: &Path, request: &Request) -> Result<Self> {
        let (all, which) = match request.split {
            None => (splits::dtu(Split::Test).to_vec(), "test".into()),
            Some(Some(split)) => (splits::dtu(split).to_vec(), split.to_string()),
            Some(None) => (dtu::scans(root)?, "all".into()),
        };
        let scans: Vec<u32> = all.into_iter().take(request.scenes.unwrap_or(usize::MAX)).collect();
        if scans.is_empty() {
            return Err(nothing_or(Vec::new(), root, &which));
        }
        let scenes = read(&scans, |scan| {
            dtu::truth(root, *scan)?;
            dtu::scene(root, *scan, dtu::LIGHT, request.broken)
        })?;
        let infos = scans.iter().map(|scan| SceneInfo { name: format!("scan{scan}"), group: None }).collect();
        let name = format!("dtu, {} {which} scans", scans.len());
        Ok(Self::new(name, vec!["lengths are in mm".into()], infos, scenes, Set::Dtu(root.to_path_buf(), scans)))
    }

    fn new(name: String, mut about: Vec<String>, infos: Vec<SceneInfo>, scenes: Vec<data::Scene>, set: Set) -> Self {
        about.extend(scenes.iter().flat_map(|s| &s.left_out).map(|problem| format!("left out: {problem}")));
        Self { name, about, infos, scenes, set }
    }

    fn place(&self, scene: usize, id: u32) -> Result<usize> {
        let found = self.scenes[scene].views.iter().position(|v| v.id == id);
        found.ok_or_else(|| wrong_views(format!("{} has no view {id}", self.infos[scene].name)))
    }
}

impl Source for Files {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn about(&self) -> Vec<String> {
        self.about.clone()
    }

    fn scenes(&self) -> &[SceneInfo] {
        &self.infos
    }

    fn choice(&self) -> Choice {
        match self.set {
            Set::BlendedMvs(_) => Choice::Overlap,
            // All cameras look at the same table.
            Set::Dtu64 | Set::Dtu(..) => Choice::Random,
        }
    }

    fn draw(&self, scene: usize, views: usize, choice: Choice, stream: &mut Stream) -> Result<Vec<u32>> {
        let all = &self.scenes[scene].views;
        if all.len() < views {
            return Err(wrong_views(format!("{} has {} views, not {views}", self.infos[scene].name, all.len())));
        }
        if matches!(self.set, Set::Dtu64) && views == all.len() {
            let mut ids: Vec<u32> = all.iter().map(|v| v.id).collect();
            ids.sort_by_key(|id| (*id != FIRST_OF_DTU64, *id));
            return Ok(ids);
        }
        let mut order: Vec<usize> = (0..all.len()).collect();
        if choice != Choice::First {
            stream.shuffle(&mut order);
        }
        let places = match choice {
            Choice::Overlap => order.iter().find_map(|anchor| overlapping(all, *anchor, views)).ok_or_else(|| {
                let name = &self.infos[scene].name;
                wrong_views(format!("{name}: no {views} views overlap one after the other; try `--choice random`"))
            })?,
            Choice::Random | Choice::First => order[..views].to_vec(),
        };
        Ok(places.into_iter().map(|place| all[place].id).collect())
    }

    fn load(&self, scene: usize, views: &[u32]) -> Result<Sample> {
        let places: Vec<usize> = views.iter().map(|id| self.place(scene, *id)).collect::<Result<_>>()?;
        let frames = self.scenes[scene].load(&places)?;
        let (mut pictures, mut cameras, mut depths) = (Vec::new(), Vec::new(), Vec::new());
        for frame in frames {
            pictures.push(frame.picture);
            cameras.push(frame.camera);
            let hide = |(d, valid): (f32, &bool)| if *valid { d } else { 0.0 };
            depths.extend(frame.depth.map(|d| d.into_iter().zip(&frame.valid).map(hide).collect::<Vec<f32>>()));
        }
        let (mut ranges, mut scan) = (Vec::new(), None);
        match &self.set {
            Set::BlendedMvs(root) => {
                let folder = root.join(&self.infos[scene].name).join("cams");
                ranges =
                    views.iter().map(|id| tail(&folder.join(format!("{id:08}_cam.txt")))).collect::<Result<_>>()?;
            }
            Set::Dtu64 => depths.clear(),
            Set::Dtu(root, scans) => {
                let files = dtu::truth(root, scans[scene])?;
                scan = Some(Reference::read(&files.points, &files.mask, &files.plane)?);
            }
        }
        Ok(Sample { pictures, cameras, depths, ranges, scan, normalise: matches!(self.set, Set::BlendedMvs(_)) })
    }
}

/// The places of `count` views: `anchor`, then always the one with the largest sum of scores with those before; `None`
/// where they end.
fn overlapping(views: &[data::View], anchor: usize, count: usize) -> Option<Vec<usize>> {
    let mut chosen = vec![anchor];
    let mut scores = vec![0.0; views.len()];
    while chosen.len() < count {
        let last = chosen[chosen.len() - 1];
        views[last].neighbours.iter().for_each(|(place, score)| scores[*place] += score);
        let free = (0..views.len()).filter(|place| !chosen.contains(place) && scores[*place] > 0.0);
        chosen.push(free.max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a)))?);
    }
    Some(chosen)
}

/// The numbers behind the intrinsic of a camera file that has been read before.
fn tail(path: &Path) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot be read", &e))?;
    Ok(text.split_whitespace().skip(27).filter_map(|word| word.parse().ok()).collect())
}

/// Reads scenes; all problems of all of them at once.
fn read<T>(names: &[T], scene: impl Fn(&T) -> Result<data::Scene>) -> Result<Vec<data::Scene>> {
    let (mut scenes, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        match scene(name) {
            Ok(scene) => scenes.push(scene),
            Err(error) => problems.extend(error.problems),
        }
    }
    if problems.is_empty() { Ok(scenes) } else { Err(Error::all(Kind::BadFile, "data.scene", problems)) }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn nothing_or(mut problems: Vec<String>, root: &Path, which: &str) -> Error {
    if problems.is_empty() {
        problems.push(format!("{}: there are no scenes ({which})", root.display()));
    }
    Error::all(Kind::BadFile, "eval.data", problems)
}

fn wrong_views(problem: String) -> Error {
    Error::bad_file("eval.views", problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Camera, IDENTITY};

    fn view(neighbours: &[(usize, f64)]) -> data::View {
        data::View {
            id: 0,
            size: [1, 1],
            camera: Camera { extrinsic: IDENTITY, intrinsic: [[1.0; 3]; 3] },
            range: None,
            pixels: data::Pixels::Files { image: PathBuf::new(), depth: None, mask: None },
            neighbours: neighbours.to_vec(),
        }
    }

    #[test]
    fn views_follow_the_scores_of_all_that_are_chosen() {
        // From 0 the best is 2; then 1 has 3 + 4 and 3 has 5; view 4 is nobody's neighbour.
        let views = [
            view(&[(2, 9.0), (3, 5.0), (1, 3.0)]),
            view(&[(0, 3.0)]),
            view(&[(1, 4.0), (0, 9.0)]),
            view(&[]),
            view(&[(0, 1.0)]),
        ];
        assert_eq!(overlapping(&views, 0, 4), Some(vec![0, 2, 1, 3]));
        assert_eq!(overlapping(&views, 0, 5), None);
        assert_eq!(overlapping(&views, 3, 2), None);
        assert_eq!(overlapping(&views, 3, 1), Some(vec![3]));
        assert_eq!(overlapping(&views, 4, 3), Some(vec![4, 0, 2]));
    }
}
