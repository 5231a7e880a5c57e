//! Page-locked memory between the host and the device.

#![allow(unsafe_code)] // calls into a C library

use std::{ptr, sync::Arc};

use cudarc::driver::sys;
use rayon::prelude::*;

use super::driver::{Context, Event, Memory, check};
use crate::Result;

/// Page-locked memory through which bytes go to the device and back while the next ones are copied into it.
pub struct Staging {
    context: Arc<Context>,
    slots: Vec<Slot>,
    next: usize,
}

/// A part of [`Staging`], and when the device has read it.
struct Slot {
    bytes: *mut u8,
    free: Event,
}

// SAFETY: the memory belongs to the slot; `Event` may be used from any thread.
unsafe impl Send for Slot {}

impl Staging {
    const SLOTS: usize = 4;
    const BYTES: usize = 16 << 20;

    /// With memory of its own. Errors: `cuda.pinned`.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let mut staging = Self { context: context.clone(), slots: Vec::new(), next: 0 };
        for _ in 0..Self::SLOTS {
            let (free, mut bytes) = (Event::new(context)?, ptr::null_mut());
            // SAFETY: the address lives through the call.
            let made = unsafe { sys::cuMemHostAlloc(&mut bytes, Self::BYTES, 0) };
            check(made, "cuda.pinned", || format!("{} bytes of page-locked memory", Self::BYTES))?;
            free.record()?;
            staging.slots.push(Slot { bytes: bytes.cast(), free });
        }
        Ok(staging)
    }

    /// Copies parts that follow one another in `memory`, each with its offset, with as few transfers as they fill slots.
    /// What lies between two parts is overwritten.
    ///
    /// # Panics
    /// If a part begins before the end of the one in front, or outside the memory: a defect of the caller.
    pub fn upload<'b>(&mut self, memory: &Memory, parts: impl IntoIterator<Item = (u64, &'b [u8])>) -> Result<()> {
        // Where the open slot goes, and how much of it is filled.
        let (mut start, mut filled) = (0u64, 0usize);
        for (mut offset, mut bytes) in parts {
            while !bytes.is_empty() {
                let gap = offset.checked_sub(start + filled as u64).expect("parts follow one another");
                if filled > 0 && filled as u64 + gap >= Self::BYTES as u64 {
                    self.send(memory, start, filled)?;
                    filled = 0;
                }
                if filled == 0 {
                    start = offset;
                    self.slots[self.next].free.wait()?;
                }
                let at = (offset - start) as usize;
                let (now, later) = bytes.split_at(bytes.len().min(Self::BYTES - at));
                // SAFETY: the slot has that many bytes, and the device has read what was there.
                let slot = unsafe { std::slice::from_raw_parts_mut(self.slots[self.next].bytes.add(at), now.len()) };
                slot.par_chunks_mut(1 << 20)
                    .zip(now.par_chunks(1 << 20))
                    .for_each(|(to, from)| to.copy_from_slice(from));
                filled = at + now.len();
                (offset, bytes) = (offset + now.len() as u64, later);
            }
        }
        if filled > 0 { self.send(memory, start, filled) } else { Ok(()) }
    }

    /// Puts the copy of the open slot on the stream and opens the next one.
    fn send(&mut self, memory: &Memory, offset: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        let (to, slot) = (memory.inside(offset, bytes), &self.slots[self.next]);
        // SAFETY: the destination is inside the memory; the slot keeps its content until `free` has passed.
        let done = unsafe { sys::cuMemcpyHtoDAsync_v2(to, slot.bytes.cast(), bytes, self.context.stream) };
        check(done, "cuda.copy", || format!("{bytes} bytes to the device"))?;
        slot.free.record()?;
        self.next = (self.next + 1) % self.slots.len();
        Ok(())
    }

    /// Copies from the device, after all that is on the stream.
    ///
    /// # Panics
    /// If the range is outside: a defect of the caller.
    pub fn download(&mut self, memory: &Memory, offset: u64, target: &mut [u8]) -> Result<()> {
        let (count, end) = (self.slots.len(), target.len());
        let start = |chunk: usize| (chunk * Self::BYTES).min(end);
        let chunks = end.div_ceil(Self::BYTES);
        // As many chunks are on their way as there are slots.
        for turn in 0..chunks + count {
            if let Some(chunk) = turn.checked_sub(count).filter(|chunk| *chunk < chunks) {
                let slot = &self.slots[chunk % count];
                slot.free.wait()?;
                let length = start(chunk + 1) - start(chunk);
                // SAFETY: the slot has that many bytes, and the device has written them.
                let from = unsafe { std::slice::from_raw_parts(slot.bytes, length) };
                let to = start(chunk);
                target[to..to + length].copy_from_slice(from);
            }
            if turn < chunks {
                let (slot, length) = (&self.slots[turn % count], start(turn + 1) - start(turn));
                slot.free.wait()?;
                let from = memory.inside(offset + start(turn) as u64, length);
                // SAFETY: the source is inside the memory, the slot large enough and not in use.
                let done = unsafe { sys::cuMemcpyDtoHAsync_v2(slot.bytes.cast(), from, length, self.context.stream) };
                check(done, "cuda.copy", || format!("{length} bytes from the device"))?;
                slot.free.record()?;
            }
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            let _ = self.context.wait();
            for slot in &self.slots {
                // SAFETY: allocated by `new`, not used afterwards. A failure would leak it, nothing more.
                let _ = unsafe { sys::cuMemFreeHost(slot.bytes.cast()) };
            }
        }
    }
}
