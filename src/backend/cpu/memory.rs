//! Host memory that is aligned as plans and kernels want it.

use bytemuck::{Pod, Zeroable};

use crate::{Error, Kind, Result};

/// What kernels may rely on, in bytes.
pub const KERNEL_ALIGN: usize = 64;

/// Unit of allocation: the alignment of places in a plan.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(256))]
struct Line([u8; 256]);

/// Bytes at an address that is a multiple of 256.
pub struct AlignedBytes {
    lines: Vec<Line>,
    length: usize,
}

impl AlignedBytes {
    /// Zeros; pages are not touched before they are used. Errors: `device.memory`.
    pub fn zeroed(length: usize) -> Result<Self> {
        let lines = length.div_ceil(size_of::<Line>());
        let lines = bytemuck::allocation::try_zeroed_vec(lines).map_err(|()| {
            Error::new(Kind::Memory, "device.memory", format!("{length} bytes of memory are not to be had"))
        })?;
        Ok(Self { lines, length })
    }

    /// The same bytes at an aligned address. Errors: `device.memory`.
    pub fn copy(bytes: &[u8]) -> Result<Self> {
        let mut copy = Self::zeroed(bytes.len())?;
        copy.as_mut_slice().copy_from_slice(bytes);
        Ok(copy)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// Whether kernels may read bytes where they lie.
pub fn is_aligned(bytes: &[u8]) -> bool {
    bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(KERNEL_ALIGN)
}
