//! Where a run's scenes come from: a data set, its training scenes to learn from and its validation scenes to measure.

use std::sync::Arc;

use super::{config::Config, run::Scenes, sample::Sample};
use crate::{
    Result,
    data::{Loader, Options, Sampler, Split},
};

/// Scenes for a run, made ahead by threads.
pub struct Source {
    learning: Arc<Sampler>,
    /// From where the run stands on.
    loader: Option<Loader<Sample>>,
    validation: Sampler,
    /// Validation scenes.
    count: u64,
    /// Scenes of a sample.
    together: u64,
    threads: usize,
    /// The number of the next sample.
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
            validation: open(Split::Val, run.together)?,
            count: data.validation as u64,
            together: run.together as u64,
            threads: data.threads,
            next: 0,
        })
    }
}

impl Scenes for Source {
    fn next(&mut self) -> Result<Sample> {
        let loader = match self.loader.take() {
            Some(loader) => loader,
            None => {
                let (sampler, together) = (self.learning.clone(), self.together);
                Loader::of(
                    move |number| joined(&sampler, number, together),
                    (self.threads, Options::default().ahead),
                    self.next,
                )?
            }
        };
        let sample = self.loader.insert(loader).next().expect("samples do not end")?;
        self.next += 1;
        Ok(sample)
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        (self.loader, self.next) = (None, position);
        Ok(())
    }

    fn validation(&mut self) -> Result<Vec<Sample>> {
        (0..self.count / self.together).map(|number| joined(&self.validation, number, self.together)).collect()
    }
}

/// Sample `number` of `together` scenes each.
fn joined(sampler: &Sampler, number: u64, together: u64) -> Result<Sample> {
    let scenes = (number * together..(number + 1) * together).map(|step| Sample::try_from(&sampler.sample(step)?));
    Sample::join(scenes.collect::<Result<_>>()?)
}
