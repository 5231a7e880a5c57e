//! Data sets written by hand, with every trap that the published ones hold.

mod blendedmvs;
mod dtu;
mod synthetic;

use std::{fs, path::Path};

use image::{Rgb, RgbImage};

/// Writes a file and the folders that it stands in.
fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A small picture whose columns differ.
fn put_image(path: &Path, width: u32, height: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 40) as u8, (y * 60) as u8, 9])).save(path).unwrap();
}

/// A camera `x` units to the right of the world's origin, with a principal point in the middle of 6 x 4 pixels.
fn cam(x: f64, tail: &str) -> String {
    format!(
        "extrinsic\n1 0 0 {}\n0 1 0 0\n0 0 1 0\n0.0 0.0 0.0 1.0\n\nintrinsic\n5 0 2.5\n0 5 1.5\n0 0 1\n\n{tail} \n",
        0.0 - x
    )
}

/// A PFM of 6 x 4 pixels by rows from the top, in either order of bytes.
fn pfm(values: &[f32], big: bool) -> Vec<u8> {
    let mut out = format!("Pf\n6 4\n{}\n", if big { "1.0" } else { "-1.000000" }).into_bytes();
    for row in values.chunks_exact(6).rev() {
        row.iter().for_each(|v| out.extend(if big { v.to_be_bytes() } else { v.to_le_bytes() }));
    }
    out
}
