//! The data sets of [`crate::data`]: BlendedMVS and DTU from their folders, and the generator's splits.

use std::path::{Path, PathBuf};

use super::{Choice, Request, SceneInfo, Source};
use crate::{
    Error, Kind, Result,
    benchmark::Sample,
    data::{self, Set, Split, dtu},
    eval::dtu::Reference,
    rng::Stream,
};

/// The view that Depth Anything 3 puts first where it takes all 64 of DTU-64.
const FIRST_OF_DTU64: u32 = 33;

/// Scenes of a data set, their text files read.
pub struct Sets {
    set: Set,
    about: Vec<String>,
    infos: Vec<SceneInfo>,
    scenes: Vec<data::Scene>,
}

impl Sets {
    /// Reads the scenes that results are reported on: of BlendedMVS and what is laid out like it those of the test, else
    /// of the validation (officially seven), else all if none has a purpose; of DTU and the generator the test; of
    /// DTU-64 all 13.
    ///
    /// Errors: `data.set` where there are none, or where some are missing and no number of scenes was asked for;
    /// `data.scene` with everything wrong with all of them.
    pub fn open(source: data::Source, request: &Request) -> Result<Self> {
        let set = choose(source, request.split)?;
        let (set, mut about) = match request.scenes {
            None => (set.complete()?, Vec::new()),
            Some(most) => {
                let missing = (!set.missing.is_empty()).then(|| format!("missing: {}", set.missing.join(" ")));
                let scenes = set.scenes.iter().take(most).cloned().collect();
                (Set { scenes, ..set }, missing.into_iter().collect())
            }
        };
        let (mut scenes, mut problems) = (Vec::new(), Vec::new());
        for index in 0..set.scenes.len() {
            match with_truth(&set, index).and_then(|()| set.scene(index, request.broken)) {
                Ok(scene) => scenes.push(scene),
                Err(error) => problems.extend(error.problems),
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(Kind::BadFile, "data.scene", problems));
        }
        about.extend(units(&set));
        about.extend(scenes.iter().flat_map(|s| &s.left_out).map(|problem| format!("left out: {problem}")));
        let infos = (0..set.scenes.len()).map(|i| SceneInfo { name: set.scenes[i].clone(), group: group(&set, i) });
        Ok(Self { about, infos: infos.collect(), scenes, set })
    }

    fn place(&self, scene: usize, id: u32) -> Result<usize> {
        let found = self.scenes[scene].views.iter().position(|v| v.id == id);
        found.ok_or_else(|| wrong_views(format!("{} has no view {id}", self.infos[scene].name)))
    }

    /// The numbers behind the intrinsics of camera files.
    fn tails(&self, root: &Path, scene: usize, views: &[u32]) -> Result<Vec<Vec<f64>>> {
        let below: PathBuf = root.join(&self.set.scenes[scene]);
        // A root may be a scene itself.
        let folder = if below.is_dir() { below } else { root.into() };
        views.iter().map(|id| tail(&folder.join(format!("cams/{id:08}_cam.txt")))).collect()
    }
}

impl Source for Sets {
    fn name(&self) -> String {
        let split = self.set.split.map_or(String::new(), |split| format!(" {split}"));
        format!("{}, {}{split} scenes", self.set.source, self.set.scenes.len())
    }

    fn about(&self) -> Vec<String> {
        self.about.clone()
    }

    fn scenes(&self) -> &[SceneInfo] {
        &self.infos
    }

    fn choice(&self) -> Choice {
        match self.set.source {
            data::Source::BlendedMvs(_) => Choice::Overlap,
            // All cameras look at the same table.
            data::Source::Dtu(_) | data::Source::Dtu64(_) => Choice::Random,
            data::Source::Synthetic(_) => Choice::First,
        }
    }

    fn draw(&self, scene: usize, views: usize, choice: Choice, stream: &mut Stream) -> Result<Vec<u32>> {
        let all = &self.scenes[scene].views;
        if all.len() < views {
            return Err(wrong_views(format!("{} has {} views, not {views}", self.infos[scene].name, all.len())));
        }
        if matches!(self.set.source, data::Source::Dtu64(_)) && views == all.len() {
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
        let (mut ranges, mut scan_truth) = (Vec::new(), None);
        match &self.set.source {
            data::Source::BlendedMvs(root) => ranges = self.tails(root, scene, views)?,
            data::Source::Dtu64(_) => depths.clear(),
            data::Source::Dtu(root) => {
                let files = dtu::truth(root, scan(&self.set.scenes[scene]))?;
                scan_truth = Some(Reference::read(&files.points, &files.mask, &files.plane)?);
            }
            data::Source::Synthetic(_) => {}
        }
        let normalise = matches!(self.set.source, data::Source::BlendedMvs(_) | data::Source::Synthetic(_));
        Ok(Sample { pictures, cameras, depths, ranges, scan: scan_truth, normalise })
    }
}

/// The set of a split, or of what results are reported on.
fn choose(source: data::Source, split: Option<Option<Split>>) -> Result<Set> {
    if let Some(split) = split {
        return Set::open(source, split);
    }
    match source {
        data::Source::BlendedMvs(_) => {
            let named = [Split::Test, Split::Val].into_iter().find_map(|s| Set::open(source.clone(), Some(s)).ok());
            if let Some(set) = named {
                return Ok(set);
            }
            let all = Set::open(source, None)?;
            match (0..all.scenes.len()).find_map(|i| all.purpose(i)) {
                None => Ok(all),
                Some(purpose) => {
                    let problem = format!("{}: there are {purpose} scenes only; name them with --split", all.source);
                    Err(Error::bad_file("data.set", problem))
                }
            }
        }
        _ => Set::open(source, Some(Split::Test)),
    }
}

/// Nothing, if a scan of DTU has the files that points are measured against.
fn with_truth(set: &Set, index: usize) -> Result<()> {
    match &set.source {
        data::Source::Dtu(root) => dtu::truth(root, scan(&set.scenes[index])).map(drop),
        _ => Ok(()),
    }
}

/// The number of a scan; the names of a set are made from numbers.
fn scan(name: &str) -> u32 {
    name.trim_start_matches("scan").parse().unwrap_or(0)
}

/// What scenes of one table have in common, where a table of all says too little.
fn group(set: &Set, index: usize) -> Option<String> {
    let purpose = set.purpose(index);
    match set.source {
        data::Source::Dtu64(_) => {
            Some(format!("{} scans of MVSNet's lists", purpose.map_or("none of the", Split::word)))
        }
        data::Source::BlendedMvs(_) if set.split.is_none() => purpose.map(|split| split.to_string()),
        _ => None,
    }
}

/// Units, and who has seen the scenes.
fn units(set: &Set) -> Vec<String> {
    let of = |split: Split| -> Vec<String> {
        let seen = (0..set.scenes.len()).filter(|i| set.purpose(*i) == Some(split));
        seen.map(|i| set.scenes[i].trim_start_matches("scan").to_string()).collect()
    };
    let normalised = "lengths are in units of the mean distance of the true points from the first camera";
    match set.source {
        data::Source::BlendedMvs(_) => {
            let purpose = match (set.split, of(Split::Train).len()) {
                (None, 0) => vec!["all scenes; no list says what they are for".into()],
                (None, train) => vec![format!("all scenes; {train} are for training")],
                _ => Vec::new(),
            };
            purpose.into_iter().chain([format!("{normalised}; those of the data are not metric")]).collect()
        }
        data::Source::Synthetic(_) => vec![normalised.into()],
        data::Source::Dtu(_) => vec!["lengths are in mm".into()],
        data::Source::Dtu64(_) => {
            let (train, val) = (of(Split::Train), of(Split::Val));
            vec![
                format!(
                    "{} of the {} scans are training scans of MVSNet's lists ({}) and {} are validation scans ({}): what \
                     was fitted to those has seen them",
                    train.len(),
                    set.scenes.len(),
                    train.join(" "),
                    val.len(),
                    val.join(" ")
                ),
                "poses only, in mm; where all views of a scan are taken, view 33 comes first".into(),
            ]
        }
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
