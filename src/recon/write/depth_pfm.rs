//! Portable float maps (Debevec): `Pf`, width and height, a scale whose sign is the byte order, then rows bottom-up.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::{Reconstruction, each_view};
use crate::{Error, Result, atomic};

/// What follows the label of a view.
pub(super) const ENDING: &str = ".pfm";

pub(super) fn write(reconstruction: &Reconstruction, folder: &Path) -> Result<Vec<PathBuf>> {
    each_view(reconstruction, folder, ENDING, |i, path| {
        let view = &reconstruction.views[i];
        write_pfm(path, view.size(), &view.depth)
    })
}

/// Writes one channel, given row by row from the top, as little-endian PFM.
///
/// # Errors
/// As [`atomic::write`].
pub fn write_pfm(path: &Path, [width, height]: [u32; 2], values: &[f32]) -> Result<()> {
    atomic::write(path, |out| {
        write!(out, "Pf\n{width} {height}\n-1.0\n")?;
        let rows = values.chunks_exact(width as usize).rev();
        rows.flatten().try_for_each(|v| out.write_all(&v.to_le_bytes()))
    })
}

/// Reads the bytes of a one-channel PFM of either byte order: width and height, and the values row by row from the top.
///
/// # Errors
/// `recon.pfm` if the header is none or the length does not fit.
pub fn read_pfm(bytes: &[u8]) -> Result<([u32; 2], Vec<f32>)> {
    let Header { size, little, start } = Header::read(bytes, bytes.len() as u64)?;
    let value = |b: &[u8]| {
        let b = [b[0], b[1], b[2], b[3]];
        if little { f32::from_le_bytes(b) } else { f32::from_be_bytes(b) }
    };
    let rows = bytes[start..].chunks_exact(4 * size[0] as usize).rev();
    Ok((size, rows.flat_map(|r| r.chunks_exact(4).map(value)).collect()))
}

/// Width and height of a one-channel PFM of `length` bytes, from its first 128.
///
/// # Errors
/// As [`read_pfm`].
pub fn pfm_size(bytes: &[u8], length: u64) -> Result<[u32; 2]> {
    Ok(Header::read(bytes, length)?.size)
}

struct Header {
    size: [u32; 2],
    little: bool,
    /// Where the values start.
    start: usize,
}

impl Header {
    fn read(bytes: &[u8], length: u64) -> Result<Self> {
        let fail = |problem: &str| Error::bad_file("recon.pfm", format!("not a one-channel PFM file: {problem}"));
        // Four words, each followed by one white space; then the data.
        let mut words = Vec::new();
        let mut start = 0;
        for (i, b) in bytes.iter().enumerate().take(128) {
            if b.is_ascii_whitespace() && words.len() < 4 {
                words.push(std::str::from_utf8(&bytes[start..i]).map_err(|_| fail("the header is not text"))?);
                start = i + 1;
            }
        }
        let ["Pf", width, height, scale] = words[..] else { return Err(fail("the header is not `Pf W H SCALE`")) };
        let side = |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0);
        let (Some(width), Some(height)) = (side(width), side(height)) else { return Err(fail("the size is no size")) };
        let scale: f32 = scale.parse().map_err(|_| fail("the scale is no number"))?;
        if length - start as u64 != 4 * u64::from(width) * u64::from(height) {
            return Err(fail("the length does not fit the size"));
        }
        Ok(Self { size: [width, height], little: scale < 0.0, start })
    }
}
