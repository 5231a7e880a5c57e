//! Where scenes come from: a folder in one of the known layouts, or the generator.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    blendedmvs, dtu, files,
    scene::{Broken, Scene},
    splits::{self, Split},
    synthetic::Synthetic,
};
use crate::{Error, Kind, Result};

/// Files at the root of a data set in BlendedMVS's layout that say what its scenes are for, one name a line: where
/// MVSNet looks for them.
pub const LISTS: [(Split, &str); 3] =
    [(Split::Train, "training_list.txt"), (Split::Val, "validation_list.txt"), (Split::Test, "test_list.txt")];

/// Where scenes come from. As text: `blendedmvs:DIR`, `dtu:DIR`, `dtu64:DIR`, `synthetic`, `synthetic:RECIPE`.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A folder of scenes in BlendedMVS's layout.
    BlendedMvs(PathBuf),
    /// DTU, under [`dtu::LIGHT`].
    Dtu(PathBuf),
    /// The 13 scans of DTU-64, all of them a test; [`splits::dtu_split`] tells which of them others train with.
    Dtu64(PathBuf),
    /// Rendered when they are asked for.
    Synthetic(Synthetic),
}

impl FromStr for Source {
    type Err = Error;

    /// Errors: `data.usage` for words that are none.
    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let wrong = || {
            let forms = "blendedmvs:DIR, dtu:DIR, dtu64:DIR, synthetic and synthetic:RECIPE";
            Error::usage("data.usage", format!("`{text}` is no source of data; there are {forms}"))
        };
        let folder = || rest.filter(|r| !r.is_empty()).map(PathBuf::from).ok_or_else(wrong);
        match kind {
            "blendedmvs" => folder().map(Self::BlendedMvs),
            "dtu" => folder().map(Self::Dtu),
            "dtu64" => folder().map(Self::Dtu64),
            "synthetic" => {
                let mut synthetic = Synthetic::default();
                if let Some(recipe) = rest {
                    synthetic.recipe = recipe.parse()?;
                }
                Ok(Self::Synthetic(synthetic))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlendedMvs(root) => write!(f, "blendedmvs:{}", root.display()),
            Self::Dtu(root) => write!(f, "dtu:{}", root.display()),
            Self::Dtu64(root) => write!(f, "dtu64:{}", root.display()),
            Self::Synthetic(s) => write!(f, "synthetic:{}", s.recipe),
        }
    }
}

/// The scenes of a source that are for one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Where they come from.
    pub source: Source,
    /// What they are for; `None` for all that there are.
    pub split: Option<Split>,
    /// The names of those that are there, in order.
    pub scenes: Vec<String>,
    /// The names of those that the split has and the folder lacks.
    pub missing: Vec<String>,
}

impl Set {
    /// Lists the scenes of a split. For the generator `split` replaces its own.
    ///
    /// # Errors
    /// `data.set` for folders that cannot be listed or have no scene of that split, `data.split` for lists that
    /// contradict each other or the official ones.
    pub fn open(source: Source, split: Option<Split>) -> Result<Self> {
        let (source, scenes, wanted) = match source {
            Source::Synthetic(mut s) => {
                s.split = split.unwrap_or(s.split);
                let names: Vec<String> = (0..s.scenes).map(|i| s.name(i)).collect();
                (Source::Synthetic(s), names, Vec::new())
            }
            Source::BlendedMvs(root) => {
                let present = folders(&root)?;
                let purposes = purposes(&root, &present)?;
                let wanted = match split {
                    None => Vec::new(),
                    Some(split) => purposes.iter().filter(|(_, s)| **s == split).map(|(n, _)| n.clone()).collect(),
                };
                let scenes =
                    present.into_iter().filter(|n| split.is_none_or(|s| purposes.get(n) == Some(&s))).collect();
                (Source::BlendedMvs(root), scenes, wanted)
            }
            Source::Dtu(root) => {
                let present = dtu::scans(&root)?;
                let wanted = split.map_or(&[] as &[u32], splits::dtu);
                let scans = present.into_iter().filter(|n| split.is_none_or(|_| wanted.contains(n)));
                let scans = scans.map(|n| format!("scan{n}")).collect();
                (Source::Dtu(root), scans, wanted.iter().map(|n| format!("scan{n}")).collect())
            }
            Source::Dtu64(root) => {
                if split.is_some_and(|s| s != Split::Test) {
                    let problem = "DTU-64 is a test alone; its scans are training and validation scans of DTU as well";
                    return Err(Error::usage("data.split", problem));
                }
                let scans = dtu::scans(&root)?.into_iter().filter(|n| splits::DTU64.contains(n));
                let scans = scans.map(|n| format!("scan{n}")).collect();
                (Source::Dtu64(root), scans, splits::DTU64.iter().map(|n| format!("scan{n}")).collect())
            }
        };
        let missing = wanted.into_iter().filter(|name| !scenes.contains(name)).collect();
        let set = Self { source, split, scenes, missing };
        if set.scenes.is_empty() {
            let split = split.map_or("at all".into(), |s| format!("for {s}"));
            return Err(Error::bad_file("data.set", format!("{}: there is no scene {split}", set.source)));
        }
        Ok(set)
    }

    /// The set, if the split has no scene that the folder lacks.
    ///
    /// # Errors
    /// `data.set` with every scene that is missing.
    pub fn complete(self) -> Result<Self> {
        if self.missing.is_empty() {
            return Ok(self);
        }
        let missing = self.missing.iter().map(|name| format!("{}: the scene {name} is missing", self.source)).collect();
        Err(Error::all(Kind::BadFile, "data.set", missing))
    }

    /// Reads scene `index` of [`Self::scenes`].
    ///
    /// # Errors
    /// As the reader of the layout.
    ///
    /// # Panics
    /// If there is no such scene.
    pub fn scene(&self, index: usize, broken: Broken) -> Result<Scene> {
        let name = &self.scenes[index];
        // The names were made from numbers.
        let scan = || name.trim_start_matches("scan").parse().unwrap_or(0);
        match &self.source {
            Source::BlendedMvs(root) => blendedmvs::scene(&place(root, name), broken),
            Source::Dtu(root) | Source::Dtu64(root) => dtu::scene(root, scan(), dtu::LIGHT, broken),
            Source::Synthetic(synthetic) => synthetic.scene(index as u64),
        }
    }

    /// What scene `index` is for; `None` where no list says.
    pub fn purpose(&self, index: usize) -> Option<Split> {
        let name = &self.scenes[index];
        match &self.source {
            Source::BlendedMvs(root) => {
                purposes(root, &[]).ok()?.get(name).copied().or_else(|| splits::blendedmvs_split(name))
            }
            Source::Dtu(_) | Source::Dtu64(_) => {
                name.strip_prefix("scan").and_then(|n| n.parse().ok()).and_then(splits::dtu_split)
            }
            Source::Synthetic(s) => Some(s.split),
        }
    }
}

/// The folder of a scene; a root that is a scene itself has no folder below.
fn place(root: &Path, name: &str) -> PathBuf {
    if blendedmvs::is_scene(root) { root.into() } else { root.join(name) }
}

/// The names of the scenes below a folder, or of the scene that it is.
fn folders(root: &Path) -> Result<Vec<String>> {
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    if blendedmvs::is_scene(root) {
        return Ok(name(root).into_iter().collect());
    }
    let entries = std::fs::read_dir(root).and_then(|e| e.collect::<Result<Vec<_>, _>>());
    let entries =
        entries.map_err(|e| Error::bad_file("data.set", format!("{}: cannot list the folder: {e}", root.display())))?;
    let found: BTreeSet<String> =
        entries.iter().map(|e| e.path()).filter(|p| blendedmvs::is_scene(p)).filter_map(|p| name(&p)).collect();
    Ok(found.into_iter().collect())
}

/// What scenes are for: as the lists at the root say, and officially. The official scenes count as wanted as soon as
/// one of them is there.
fn purposes(root: &Path, present: &[String]) -> Result<BTreeMap<String, Split>> {
    let mut purposes = BTreeMap::new();
    if present.iter().any(|name| splits::blendedmvs_split(name).is_some()) {
        for split in [Split::Train, Split::Val] {
            purposes.extend(splits::blendedmvs(split).into_iter().map(|name| (name.to_string(), split)));
        }
    }
    let mut problems = Vec::new();
    for (split, file) in LISTS {
        let path = root.join(file);
        if !path.exists() {
            continue;
        }
        let text = files::text(&path).map_err(|problem| Error::bad_file("data.split", problem))?;
        for name in text.split_whitespace() {
            let official = splits::blendedmvs_split(name);
            match purposes.insert(name.to_string(), split).or(official) {
                Some(other) if other != split => {
                    problems.push(format!("{}: the scene {name} is for {other} already", path.display()));
                }
                _ => {}
            }
        }
    }
    if problems.is_empty() { Ok(purposes) } else { Err(Error::all(Kind::BadFile, "data.split", problems)) }
}
