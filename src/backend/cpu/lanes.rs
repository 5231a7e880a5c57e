//! How kernels use all cores: independent tasks over rayon's threads, each with a lane of the planned scratch memory.
//!
//! A task computes the same bits whichever thread runs it, so results do not depend on the number of threads.

#![allow(unsafe_code)] // tasks write their own parts of one result

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

/// Elements that a task of a memory-bound kernel handles: large enough to hide scheduling, small enough for the L1
/// cache.
pub const CHUNK: usize = 8192;

/// Scratch for a kernel whose every running task needs `lane` bytes: a lane for each thread of this machine. With
/// fewer lanes than threads, fewer tasks run at once.
pub fn scratch(lane: usize) -> usize {
    aligned(lane) * rayon::current_num_threads()
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

/// Runs `tasks` tasks, each with `lane` bytes of scratch to itself. As many run at once as there are threads and lanes.
pub fn run(
    tasks: usize,
    lane: usize,
    scratch: &mut [u8],
    task: impl Fn(usize, &mut [u8]) -> Result<(), String> + Sync,
) -> Result<(), String> {
    if lane == 0 {
        return (0..tasks).into_par_iter().try_for_each(|i| task(i, &mut []));
    }
    if scratch.len() < aligned(lane) && tasks > 0 {
        return Err(format!("needs {lane} bytes of scratch, not {}", scratch.len()));
    }
    let next = AtomicUsize::new(0);
    // Dynamic: tasks at the ragged ends are smaller than the others.
    let work = |memory: &mut [u8]| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                return Ok(());
            }
            task(i, &mut memory[..lane])?;
        }
    };
    let lanes = rayon::current_num_threads().min(tasks).max(1);
    scratch.par_chunks_exact_mut(aligned(lane)).take(lanes).with_max_len(1).try_for_each(work)
}

/// `size` cut into equal parts of at most about `most`, a multiple of `step`: the length of a part.
pub fn part(size: usize, most: usize, step: usize) -> usize {
    let parts = size.div_ceil(most).max(1);
    size.div_ceil(parts).next_multiple_of(step).max(step)
}

/// A result that several tasks write at once, each its own elements.
pub struct Shared<'a, T> {
    first: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through the unsafe methods, whose callers keep the elements of different tasks apart.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above; the pointer comes from an exclusive borrow that outlives this value.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Over a slice.
    pub fn new(data: &'a mut [T]) -> Self {
        Self { first: data.as_mut_ptr(), len: data.len(), life: PhantomData }
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// No two tasks may hold overlapping ranges at the same time.
    #[allow(clippy::mut_from_ref)] // what the type is for
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "a range outside the result");
        // SAFETY: in bounds by the assertion; exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }

    /// A pointer to element `start`, and how many elements lie behind it.
    pub fn tail(&self, start: usize) -> (*mut T, usize) {
        assert!(start <= self.len, "a position outside the result");
        // SAFETY: at most one past the end by the assertion.
        (unsafe { self.first.add(start) }, self.len - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_its_own_lane() {
        for (tasks, lane) in [(0, 0), (1, 64), (7, 0), (100, 12)] {
            let mut scratch = vec![0; scratch(lane)];
            let mut counts = vec![0u8; tasks];
            let shared = Shared::new(&mut counts);
            run(tasks, lane, &mut scratch, |i, memory| {
                assert_eq!(memory.len(), lane);
                // SAFETY: each task its own element.
                unsafe { shared.slice(i, 1)[0] += 1 }
                Ok(())
            })
            .unwrap();
            assert_eq!(counts, vec![1; tasks]);
        }
    }

    #[test]
    fn parts_are_even() {
        assert_eq!((part(2919, 512, 8), part(1, 512, 8), part(0, 512, 8)), (488, 8, 8));
    }
}
