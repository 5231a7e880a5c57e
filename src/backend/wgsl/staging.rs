//! Memory of the host through which the inputs of a run go in and its outputs come out. It is made once for an entry.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use super::adapter::{Gpu, padded};
use crate::Result;

/// A buffer that is mapped between runs, and where parts lie in it.
pub struct Staging {
    buffer: wgpu::Buffer,
    mode: wgpu::MapMode,
    starts: Vec<u64>,
}

impl Staging {
    /// For parts of so many bytes that go to the device. Errors: `wgsl.memory`.
    pub fn up(gpu: &Gpu, sizes: &[u64]) -> Result<Self> {
        Self::new(gpu, sizes, wgpu::MapMode::Write)
    }

    /// For parts of so many bytes that come from the device. Errors: `wgsl.memory`.
    pub fn down(gpu: &Gpu, sizes: &[u64]) -> Result<Self> {
        Self::new(gpu, sizes, wgpu::MapMode::Read)
    }

    fn new(gpu: &Gpu, sizes: &[u64], mode: wgpu::MapMode) -> Result<Self> {
        let mut starts = Vec::with_capacity(sizes.len());
        let total = sizes.iter().fold(0, |at, bytes| {
            starts.push(at);
            at + padded(*bytes)
        });
        let up = mode == wgpu::MapMode::Write;
        let usage = match up {
            true => wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            false => wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        };
        let what = if up { "the inputs of a run on their way" } else { "the outputs of a run on their way" };
        Ok(Self { buffer: gpu.host_buffer(total.max(256), what, usage, up)?, mode, starts })
    }

    /// The buffer, and where a part begins in it.
    pub fn part(&self, index: usize) -> (&wgpu::Buffer, u64) {
        (&self.buffer, self.starts[index])
    }

    /// Writes parts, mapped as it is, and hands it to the device.
    pub fn fill(&self, gpu: &Gpu, parts: &[&[u8]]) -> Result<()> {
        for (bytes, start) in parts.iter().zip(&self.starts).filter(|(bytes, _)| !bytes.is_empty()) {
            let words = padded(bytes.len() as u64);
            let range = *start..start + words;
            let mut view = self.buffer.get_mapped_range_mut(range).map_err(|e| gpu.failed(&format!("inputs: {e}")))?;
            // A view is of whole words.
            let mut whole = Vec::new();
            if bytes.len() as u64 != words {
                whole = bytes.to_vec();
                whole.resize(words as usize, 0);
            }
            view.copy_from_slice(if whole.is_empty() { bytes } else { &whole });
        }
        self.buffer.unmap();
        Ok(())
    }

    /// Parts of so many bytes, once it is mapped; then hands it to the device.
    pub fn take(&self, gpu: &Gpu, sizes: &[u64]) -> Result<Vec<Vec<u8>>> {
        let part = |(bytes, start): (&u64, &u64)| {
            if *bytes == 0 {
                return Ok(Vec::new());
            }
            let view = self.buffer.get_mapped_range(*start..start + padded(*bytes));
            Ok(view.map_err(|e| gpu.failed(&format!("outputs: {e}")))?[..*bytes as usize].to_vec())
        };
        let parts = sizes.iter().zip(&self.starts).map(part).collect();
        self.buffer.unmap();
        parts
    }

    /// Asks for it to be mapped when what has been submitted is done.
    pub fn map(&self) -> Mapping {
        let mapping = Mapping::default();
        let told = mapping.0.clone();
        self.buffer.map_async(self.mode, .., move |done| {
            let mut state = told.lock().unwrap_or_else(PoisonError::into_inner);
            state.done = Some(done.map_err(|e| e.to_string()));
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        mapping
    }
}

/// That a buffer is mapped, in a while.
#[derive(Default)]
pub struct Mapping(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    done: Option<std::result::Result<(), String>>,
    waker: Option<Waker>,
}

impl Future for Mapping {
    type Output = std::result::Result<(), String>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.done.take() {
            Some(done) => Poll::Ready(done),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
