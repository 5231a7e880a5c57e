//! Samples made ahead by threads, handed out in the order of their positions whatever the number of threads.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use super::sample::Sample;
use crate::{Error, Result};

/// Makes the sample at a position. Must give the same one every time.
pub type Make = dyn Fn(u64) -> Result<Sample> + Send + Sync;

/// Samples that each thread may be ahead.
const AHEAD: usize = 2;

/// Samples in order.
pub struct Feed {
    make: Arc<Make>,
    threads: usize,
    next: u64,
    /// By position modulo the number of threads; empty until the first sample is asked for.
    lanes: Vec<Receiver<Result<Sample>>>,
    /// The position of the first sample of the lanes.
    start: u64,
}

impl Feed {
    /// From position 0, by so many threads.
    pub fn new(make: Arc<Make>, threads: usize) -> Self {
        Self { make, threads: threads.max(1), next: 0, lanes: Vec::new(), start: 0 }
    }

    /// Goes on at a position.
    pub fn seek(&mut self, position: u64) {
        // Threads end when nobody takes what they make.
        self.lanes.clear();
        self.next = position;
    }

    /// The sample at the position, which moves on. Errors: those of making it; `train.feed` where its thread has died.
    pub fn next(&mut self) -> Result<Sample> {
        if self.lanes.is_empty() {
            self.start = self.next;
            self.lanes = (0..self.threads as u64).map(|lane| self.lane(self.next + lane)).collect();
        }
        let lane = ((self.next - self.start) % self.threads as u64) as usize;
        let dead = |_| Error::device("train.feed", format!("the thread that makes scene {} has died", self.next));
        let sample = self.lanes[lane].recv().map_err(dead)?;
        self.next += 1;
        sample
    }

    /// A thread that makes the sample at `first` and every one so many threads behind it.
    fn lane(&self, first: u64) -> Receiver<Result<Sample>> {
        let (sender, receiver) = sync_channel(AHEAD);
        let (make, step) = (self.make.clone(), self.threads);
        thread::spawn(move || {
            for position in (first..).step_by(step) {
                if sender.send(make(position)).is_err() {
                    break;
                }
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn order_does_not_depend_on_threads_and_errors_come_in_their_place() {
        let make: Arc<Make> = Arc::new(|position| match position {
            5 => Err(Error::usage("test.broken", "the sixth")),
            _ => Ok(Sample { views: position as usize, tensors: BTreeMap::new() }),
        });
        for threads in [1, 2, 3, 7] {
            let mut feed = Feed::new(make.clone(), threads);
            for round in 0..2 {
                for position in 0..8u64 {
                    match feed.next() {
                        Ok(sample) => assert_eq!(sample.views as u64, position, "{threads} threads, round {round}"),
                        Err(error) => assert!(error.code == "test.broken" && position == 5),
                    }
                }
                feed.seek(0);
            }
            feed.seek(6);
            assert_eq!(feed.next().unwrap().views, 6);
        }
    }
}
