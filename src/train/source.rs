//! Where a run's scenes come from, by the name that a configuration gives.

use std::sync::Arc;

use super::{
    config::{Config, Data},
    feed::{Feed, Make},
    run::Scenes,
    sample::Sample,
};
use crate::{
    Error, Result,
    rng::Stream,
    scenes::{Rendered, Scene, normalise},
};

/// Words that keep what is drawn for learning and for validation apart.
const TRAINING: u64 = 0x7472_6169_6e;
const VALIDATION: u64 = 0x7661_6c;

/// Scenes for a run.
pub struct Source {
    feed: Feed,
    validation: Arc<Make>,
    count: usize,
}

impl Source {
    /// As a configuration says, in images of `size` rows and columns. Errors: `train.data` for a source of another name.
    pub fn new(config: &Config, size: (usize, usize)) -> Result<Self> {
        let data = &config.data;
        if data.source != "synthetic" {
            let problem = format!("there is no source `{}`; known: synthetic", data.source);
            return Err(Error::usage("train.data", problem));
        }
        let feed = Feed::new(rendered(data, size, TRAINING), data.threads);
        Ok(Self { feed, validation: rendered(data, size, VALIDATION), count: data.validation })
    }
}

impl Scenes for Source {
    fn next(&mut self) -> Result<Sample> {
        self.feed.next()
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        self.feed.seek(position);
        Ok(())
    }

    fn validation(&mut self) -> Result<Vec<Sample>> {
        (0..self.count as u64).map(|i| (self.validation)(i)).collect()
    }
}

/// Rendered scenes, one a position.
fn rendered(data: &Data, (height, width): (usize, usize), part: u64) -> Arc<Make> {
    let (seed, views) = (Stream::new(&[data.seed, part]).bits(), data.views.clone());
    Arc::new(move |position| {
        let count = views[Stream::new(&[seed, position]).below(views.len())];
        let scene = Scene::sample(seed, position, count);
        let rendered: Vec<Rendered> = (0..count).map(|v| scene.render(v, width, height)).collect();
        let truth = normalise(&rendered, 4)?;
        let depths: Vec<&[f32]> = truth.depths.iter().map(Vec::as_slice).collect();
        let images = rendered.iter().flat_map(Rendered::planes).collect();
        Ok(Sample::new(images, &truth.cameras, &depths, (height, width)))
    })
}
