//! Where a run's scenes come from: a data set, its training scenes to learn from and its validation scenes to measure.

use super::{config::Config, run::Scenes, sample::Sample};
use crate::{
    Result,
    data::{Loader, Options, Sampler, Split},
};

/// Scenes for a run, made ahead by threads.
pub struct Source {
    learning: std::sync::Arc<Sampler>,
    /// From where the run stands on.
    loader: Option<Loader>,
    validation: Sampler,
    count: u64,
    next: u64,
}

impl Source {
    /// As a configuration says, in images of `size` rows and columns. Errors: those of [`Sampler::new`].
    pub fn new(config: &Config, (height, width): (usize, usize)) -> Result<Self> {
        let (data, run) = (&config.data, &config.run);
        let open = |split, batch| {
            let mut source: crate::data::Source = data.source.parse()?;
            if let crate::data::Source::Synthetic(synthetic) = &mut source {
                synthetic.seed = data.seed;
                synthetic.scenes = data.scenes;
            }
            let options = Options {
                views: data.views.clone(),
                sizes: vec![[width as u32, height as u32]],
                batch,
                seed: data.seed,
                threads: data.threads,
                ..Options::default()
            };
            Sampler::new(source, split, options)
        };
        Ok(Self {
            learning: open(Split::Train, run.scenes)?.into(),
            loader: None,
            validation: open(Split::Val, 1)?,
            count: data.validation as u64,
            next: 0,
        })
    }
}

impl Scenes for Source {
    fn next(&mut self) -> Result<Sample> {
        let loader = match self.loader.take() {
            Some(loader) => loader,
            None => Loader::of(self.learning.clone(), self.next)?,
        };
        let sample = self.loader.insert(loader).next().expect("samples do not end")?;
        self.next += 1;
        Sample::try_from(&sample)
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        (self.loader, self.next) = (None, position);
        Ok(())
    }

    fn validation(&mut self) -> Result<Vec<Sample>> {
        (0..self.count).map(|i| Sample::try_from(&self.validation.sample(i)?)).collect()
    }
}
