//! Samples in an endless stream, made ahead by threads.
//!
//! Sample number `step` is a function of the settings and `step` alone: not of the number of threads, and not of the
//! samples before it. A run that stops at a step goes on from there with the same samples.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
};

use rayon::prelude::*;

use super::{
    sample::Sample,
    scene::{Broken, Scene, View},
    source::{Set, Source},
    splits::Split,
    synthetic::Synthetic,
};
use crate::{Error, Kind, Result, rng::Stream};

/// What random streams are for.
const EPOCH: u64 = 101;
const BATCH: u64 = 102;
const VIEWS: u64 = 103;

/// How samples are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Numbers of views, of which one is drawn a batch.
    pub views: Vec<usize>,
    /// Widths and heights, of which one is drawn a batch.
    pub sizes: Vec<[u32; 2]>,
    /// So many samples in a row have as many views and the same size.
    pub batch: usize,
    /// Of the order of scenes, the number of views, and which.
    pub seed: u64,
    /// How many threads make samples.
    pub threads: usize,
    /// How many samples a thread makes ahead of the reader, besides the one that it is making.
    pub ahead: usize,
    /// What happens to scenes with broken views. To leave them out, every file of the set is decoded once before the
    /// first sample.
    pub broken: Broken,
}

impl Default for Options {
    /// Two to eight views of 224 x 224 pixels, one sample a batch, two threads, two samples ahead.
    fn default() -> Self {
        let (views, sizes) = ((2..=8).collect(), vec![[224, 224]]);
        Self { views, sizes, batch: 1, seed: 0, threads: 2, ahead: 2, broken: Broken::Refuse }
    }
}

/// Draws samples by their number.
#[derive(Debug)]
pub struct Sampler {
    scenes: Scenes,
    options: Options,
}

#[derive(Debug)]
enum Scenes {
    /// Read before the first sample, so that what is broken is known at once.
    Read(Vec<Scene>),
    Drawn(Synthetic),
}

impl Sampler {
    /// Opens the scenes of a split.
    ///
    /// # Errors
    /// As [`Set::open`]; `data.usage` for settings that make no sample; `data.scene` with the problems of every scene:
    /// what its reader says, views without depth, too few views that see the same.
    pub fn new(source: Source, split: Split, options: Options) -> Result<Self> {
        check(&options)?;
        let set = Set::open(source, Some(split))?;
        if let Source::Synthetic(synthetic) = set.source {
            return Ok(Self { scenes: Scenes::Drawn(synthetic), options });
        }
        let read: Vec<Result<Scene>> =
            (0..set.scenes.len()).into_par_iter().map(|i| set.scene(i, options.broken)).collect();
        let (mut scenes, mut problems) = (Vec::new(), Vec::new());
        for scene in read {
            match scene {
                Ok(scene) => {
                    problems.extend(unfit(&scene, most(&options)));
                    scenes.push(scene);
                }
                Err(error) => problems.extend(error.problems),
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(Kind::BadFile, "data.scene", problems));
        }
        Ok(Self { scenes: Scenes::Read(scenes), options })
    }

    /// How many scenes an epoch has.
    pub fn scenes(&self) -> usize {
        match &self.scenes {
            Scenes::Read(scenes) => scenes.len(),
            Scenes::Drawn(synthetic) => synthetic.scenes as usize,
        }
    }

    /// What was wrong with views that are left out.
    pub fn left_out(&self) -> Vec<&str> {
        match &self.scenes {
            Scenes::Read(scenes) => scenes.iter().flat_map(|s| &s.left_out).map(String::as_str).collect(),
            Scenes::Drawn(_) => Vec::new(),
        }
    }

    /// How many views the samples of a batch have, and their size: what graphs can be made ready for.
    pub fn shape(&self, batch: u64) -> (usize, [u32; 2]) {
        let Options { views, sizes, seed, .. } = &self.options;
        let mut stream = Stream::new(&[*seed, BATCH, batch]);
        (views[stream.below(views.len())], sizes[stream.below(sizes.len())])
    }

    /// Sample number `step`. Every epoch shows every scene once, in an order of its own, by other views.
    ///
    /// # Errors
    /// `data.view`, `data.sample` for pixels and cameras that are broken.
    pub fn sample(&self, step: u64) -> Result<Sample> {
        let (views, size) = self.shape(step / self.options.batch as u64);
        let scenes = self.scenes() as u64;
        let (epoch, place) = (step / scenes, step % scenes);
        match &self.scenes {
            Scenes::Drawn(synthetic) => {
                let first = epoch * most(&self.options) as u64;
                let ids = first..first + views as u64;
                let scene = Arc::new(synthetic.draw(place, ids.clone()));
                let frames = (0..views).map(|v| View::of_scene(&scene, v, size).load()).collect::<Result<Vec<_>>>()?;
                let ids: Vec<u32> = ids.map(|v| v as u32).collect();
                Sample::new(&synthetic.name(place), &ids, frames, size)
            }
            Scenes::Read(all) => {
                let mut order: Vec<usize> = (0..all.len()).collect();
                Stream::new(&[self.options.seed, EPOCH, epoch]).shuffle(&mut order);
                let scene = &all[order[place as usize]];
                let mut stream = Stream::new(&[self.options.seed, VIEWS, step]);
                let chosen = choose(scene, views, &mut stream);
                let ids: Vec<u32> = chosen.iter().map(|v| scene.views[*v].id).collect();
                Sample::new(&scene.name, &ids, scene.load(&chosen)?, size)
            }
        }
    }
}

/// The most views of a sample.
fn most(options: &Options) -> usize {
    options.views.iter().copied().max().unwrap_or(0)
}

fn check(options: &Options) -> Result<()> {
    let Options { views, sizes, batch, threads, .. } = options;
    let rules = [
        (!views.is_empty() && !views.contains(&0), format!("samples of {views:?} views")),
        (!sizes.is_empty() && !sizes.iter().flatten().any(|side| *side == 0), format!("frames of {sizes:?} pixels")),
        (*batch > 0, "batches of no sample".into()),
        (*threads > 0, "no thread".into()),
    ];
    let problems: Vec<String> = rules.into_iter().filter(|(fine, _)| !fine).map(|(_, problem)| problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Usage, "data.usage", problems)) }
}

/// Why a scene cannot give samples of so many views.
fn unfit(scene: &Scene, views: usize) -> Option<String> {
    if !scene.views.iter().all(View::has_depth) {
        return Some(format!("{}: has no depth to learn from", scene.name));
    }
    let most = (0..scene.views.len()).map(|v| reach(scene, v).len()).max().unwrap_or(0);
    (most < views).then(|| {
        format!("{}: at most {most} views see the same, by its pairs, and samples have up to {views}", scene.name)
    })
}

/// The views that pairs lead to from a view, with itself.
fn reach(scene: &Scene, from: usize) -> BTreeSet<usize> {
    let (mut reached, mut open) = (BTreeSet::from([from]), vec![from]);
    while let Some(view) = open.pop() {
        open.extend(scene.views[view].neighbours.iter().map(|(v, _)| *v).filter(|v| reached.insert(*v)));
    }
    reached
}

/// So many views, each after the first paired with one before it, better pairs more often.
fn choose(scene: &Scene, views: usize, stream: &mut Stream) -> Vec<usize> {
    let starts: Vec<usize> = (0..scene.views.len()).filter(|v| reach(scene, *v).len() >= views).collect();
    let mut chosen = vec![starts[stream.below(starts.len())]];
    while chosen.len() < views {
        let all = chosen.iter().flat_map(|v| &scene.views[*v].neighbours);
        // Pairs of no score are drawn too, when they lead on.
        let open: Vec<(usize, f64)> =
            all.filter(|(v, _)| !chosen.contains(v)).map(|(v, s)| (*v, s.max(1e-3))).collect();
        let mut at = stream.unit() * open.iter().map(|(_, s)| s).sum::<f64>();
        let found = open.iter().find(|(_, score)| {
            at -= score;
            at < 0.0
        });
        // The start reaches as many views as are wanted, so some pair leads on.
        chosen.extend(found.or(open.last()).map(|(v, _)| *v));
    }
    chosen
}

/// An endless stream of samples, or of what is made of them, in order. Dropping it ends its threads.
#[derive(Debug)]
pub struct Loader<T = Sample> {
    next: u64,
    /// One a thread; thread t makes every item whose number leaves the rest t.
    channels: Vec<Receiver<Result<T>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts threads that make samples from number `first` on.
    ///
    /// # Errors
    /// As [`Sampler::new`]; `data.threads` if no thread can be started.
    pub fn new(source: Source, split: Split, options: Options, first: u64) -> Result<Self> {
        let (threads, ahead) = (options.threads, options.ahead);
        let sampler = Sampler::new(source, split, options)?;
        Self::of(move |step| sampler.sample(step), (threads, ahead), first)
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts `threads` threads that make items from number `first` on, each keeping `ahead` of them.
    ///
    /// # Errors
    /// `data.threads` if no thread can be started.
    pub fn of(
        make: impl Fn(u64) -> Result<T> + Send + Sync + 'static,
        (threads, ahead): (usize, usize),
        first: u64,
    ) -> Result<Self> {
        let (count, make) = (threads as u64, Arc::new(make));
        let mut loader = Self { next: first, channels: Vec::new(), threads: Vec::new() };
        for thread in 0..count {
            let (sender, receiver) = sync_channel(ahead);
            let make = make.clone();
            let mut step = first + (thread + count - first % count) % count;
            let work = move || {
                // What it does in parallel it does by itself: threads enough are busy with other items, and the reader's own
                // parallel work must not stand behind them.
                let _alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
                // A reader that has gone wants no more.
                while sender.send(make(step)).is_ok() {
                    step += count;
                }
            };
            let started = std::thread::Builder::new().name(format!("data {thread}")).spawn(work);
            let problem = |e| Error::device("data.threads", format!("cannot start a thread that loads data: {e}"));
            loader.threads.push(started.map_err(problem)?);
            loader.channels.push(receiver);
        }
        Ok(loader)
    }
}

impl<T> Loader<T> {
    /// The number of the next item.
    pub fn step(&self) -> u64 {
        self.next
    }
}

impl<T> Iterator for Loader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        let channel = &self.channels[(self.next % self.channels.len() as u64) as usize];
        let gone = |_| Err(Error::device("data.threads", format!("the thread of sample {} has ended", self.next)));
        let item = channel.recv().unwrap_or_else(gone);
        self.next += 1;
        Some(item)
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        // Without receivers the threads stop at their next sample.
        self.channels.clear();
        for thread in self.threads.drain(..) {
            // What a thread died of was told when its sample was asked for.
            let _ = thread.join();
        }
    }
}
