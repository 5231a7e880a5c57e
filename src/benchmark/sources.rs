//! Where samples come from: `NAME` or `NAME:PLACE`, as the command line writes it.

mod sets;
mod synthetic;

use super::{Pick, Sample};
use crate::{
    Error, Result,
    data::{Broken, Split},
    rng::Stream,
};

/// Data with a truth.
pub trait Source {
    /// As the command line names it.
    fn name(&self) -> String;

    /// Sentences that must stand beside every number: units, splits, what is known of the scenes.
    fn about(&self) -> Vec<String>;

    /// Its scenes, in a fixed order.
    fn scenes(&self) -> &[SceneInfo];

    /// How views are drawn where nobody says.
    fn choice(&self) -> Choice;

    /// Draws `views` views of a scene by a stream. Errors: `eval.views` where it has fewer.
    fn draw(&self, scene: usize, views: usize, choice: Choice, stream: &mut Stream) -> Result<Vec<u32>>;

    /// Reads a sample. Errors: those of the files, each named.
    fn load(&self, scene: usize, views: &[u32]) -> Result<Sample>;
}

/// A scene by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SceneInfo {
    /// Unique in its source.
    pub name: String,
    /// What must be known about it; scenes of one group also have a table of their own.
    pub group: Option<String>,
}

lite3r_ir::word_enum! {
    /// How the views of a sample are drawn.
    pub enum Choice {
        /// One at random, then always the one that shares most with those already drawn, as the data ranks pairs.
        Overlap = "overlap",
        /// All at random, whatever they share.
        Random = "random",
        /// The first ones.
        First = "first",
    }
}

/// How a source is opened.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// At most so many scenes; all by default.
    pub scenes: Option<usize>,
    /// Whose scenes: those of a split, or all (`Some(None)`); by default the data set's own for reporting results.
    pub split: Option<Option<Split>>,
    /// What happens to scenes of which some views are broken.
    pub broken: Broken,
    /// Makes scenes that are made.
    pub seed: u64,
    /// Height and width of the model's frames, for scenes that are rendered.
    pub size: (usize, usize),
    /// How many views scenes have that are rendered.
    pub views: usize,
}

/// What [`open`] knows.
pub const KNOWN: &str = "synthetic, synthetic:arc, synthetic:varied, synthetic:SPLIT, blendedmvs:FOLDER, \
                         dtu64:FOLDER, dtu:FOLDER";

/// Opens data by its name. `synthetic` alone are the scenes of the demonstration and of `benches/`, with a recipe or a
/// split those of [`crate::data`]. Errors: `eval.data` for an unknown name, those of the data.
pub fn open(data: &str, request: &Request) -> Result<Box<dyn Source>> {
    if data == "synthetic" && request.split.is_none() {
        return Ok(Box::new(synthetic::Synthetic::new(request)));
    }
    let (mut name, mut request) = (data, *request);
    if let Some(split) = data.strip_prefix("synthetic:").and_then(|word| word.parse().ok()) {
        (name, request.split) = ("synthetic", Some(Some(split)));
    }
    let unknown = |_| Error::usage("eval.data", format!("there is no data `{data}`; known: {KNOWN}"));
    let mut source = name.parse::<crate::data::Source>().map_err(unknown)?;
    if let crate::data::Source::Synthetic(made) = &mut source {
        let (height, width) = request.size;
        (made.seed, made.views, made.size) = (request.seed, request.views as u64, [width as u32, height as u32]);
        made.scenes = request.scenes.map_or(made.scenes, |n| n as u64);
    }
    Ok(Box::new(sets::Sets::open(source, &request)?))
}

/// What [`Request::split`] is, from a word. Errors: `data.split`.
pub fn split(word: Option<&str>) -> Result<Option<Option<Split>>> {
    match word {
        None => Ok(None),
        Some("all") => Ok(Some(None)),
        Some(word) => Ok(Some(Some(word.parse()?))),
    }
}

/// Draws samples of every scene: `each` of them a scene. Each scene has a stream of its own, so the samples of a scene do
/// not depend on how many scenes there are.
///
/// Errors: `eval.views` with every scene that has too few views.
pub fn draw(source: &dyn Source, views: usize, each: usize, choice: Choice, seed: u64) -> Result<Vec<Pick>> {
    let (mut picks, mut problems) = (Vec::new(), Vec::new());
    for (scene, info) in source.scenes().iter().enumerate() {
        for sample in 0..each {
            let mut stream = Stream::new(&[seed, scene as u64, sample as u64]);
            match source.draw(scene, views, choice, &mut stream) {
                Ok(views) => picks.push(Pick { scene: info.name.clone(), views }),
                Err(error) => problems.extend(error.problems),
            }
        }
    }
    problems.dedup();
    if problems.is_empty() && picks.is_empty() {
        problems.push(format!("{} has no scenes", source.name()));
    }
    match problems.is_empty() {
        true => Ok(picks),
        false => Err(Error::all(crate::Kind::BadFile, "eval.views", problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_words() {
        assert_eq!(split(None).unwrap(), None);
        assert_eq!(split(Some("all")).unwrap(), Some(None));
        assert_eq!(split(Some("train")).unwrap(), Some(Some(Split::Train)));
        assert!(split(Some("most")).is_err());
    }
}
