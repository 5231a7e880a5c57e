//! `predictions.npz`, for NumPy.
//!
//! `extrinsics` f32 [S,3,4] (camera from world), `intrinsics` f32 [S,3,3], `depth` and `confidence` f32 [S,H,W] and
//! `images` u8 [S,H,W,3]. Views of different sizes have arrays of their own: `depth_0`, `confidence_0`, `images_0` and
//! so on.

use std::{
    io,
    path::{Path, PathBuf},
};

use npyz::{
    AutoSerialize, WriterBuilder,
    npz::NpzWriter,
    zip::{CompressionMethod, DateTime, write::FileOptions},
};

use super::Reconstruction;
use crate::{Result, atomic, recon::View};

type Writer<'a> = NpzWriter<&'a mut atomic::Output>;

pub(super) fn write(reconstruction: &Reconstruction, folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("predictions.npz");
    let views = &reconstruction.views;
    atomic::write(&path, |out| {
        let mut npz = NpzWriter::new(out);
        let count = views.len();
        let numbers = |v: f64| v as f32;
        let extrinsics = views.iter().flat_map(|v| v.pose.matrix().concat()).map(numbers);
        array(&mut npz, "extrinsics", &[count, 3, 4], extrinsics)?;
        let intrinsics = views.iter().flat_map(|v| v.intrinsics.matrix().concat()).map(numbers);
        array(&mut npz, "intrinsics", &[count, 3, 3], intrinsics)?;
        if views.windows(2).all(|w| w[0].size() == w[1].size()) {
            maps(&mut npz, "", views)?;
        } else {
            for (i, view) in views.iter().enumerate() {
                maps(&mut npz, &format!("_{i}"), std::slice::from_ref(view))?;
            }
        }
        npz.zip_writer().finish()?;
        Ok(())
    })?;
    Ok(vec![path])
}

/// The per-pixel arrays of views of one size; of a single view of several (with a suffix) without the first dimension.
fn maps(npz: &mut Writer<'_>, suffix: &str, views: &[View]) -> io::Result<()> {
    let [width, height] = views.first().map_or([0, 0], View::size).map(|s| s as usize);
    let shape = [views.len(), height, width, 3];
    let shape = if suffix.is_empty() { &shape[..] } else { &shape[1..] };
    let plane = &shape[..shape.len() - 1];
    array(npz, &format!("depth{suffix}"), plane, views.iter().flat_map(|v| &v.depth).copied())?;
    array(npz, &format!("confidence{suffix}"), plane, views.iter().flat_map(|v| &v.confidence).copied())?;
    array(npz, &format!("images{suffix}"), shape, views.iter().flat_map(|v| v.image.as_raw()).copied())
}

fn array<T: AutoSerialize>(
    npz: &mut Writer<'_>,
    name: &str,
    shape: &[usize],
    values: impl Iterator<Item = T>,
) -> io::Result<()> {
    // Stored: floats hardly shrink. A fixed time: the same result makes the same bytes.
    let bytes = shape.iter().product::<usize>() as u64 * size_of::<T>() as u64;
    let options = FileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(bytes > u32::MAX as u64 / 2);
    let shape: Vec<u64> = shape.iter().map(|d| *d as u64).collect();
    let mut writer = npz.array(name, options)?.default_dtype().shape(&shape).begin_nd()?;
    writer.extend(values)?;
    writer.finish()
}
