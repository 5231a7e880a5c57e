//! `sparse/0/{cameras,images,points3D}.bin`, little-endian.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{PINHOLE, Point, Reconstruction, check_names, places, points_by_view};
use crate::{Result, atomic};

/// A number as little-endian bytes.
macro_rules! put {
    ($out:expr, $($value:expr),+) => {{ $($out.write_all(&$value.to_le_bytes())?;)+ }};
}

pub(in crate::recon::write) fn write(
    reconstruction: &Reconstruction,
    points: &[Point],
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    check_names(reconstruction)?;
    let by_view = points_by_view(reconstruction, points);
    let file = |name: &str| folder.join("sparse/0").join(name);
    let paths = ["cameras.bin", "images.bin", "points3D.bin"].map(file);
    atomic::write(&paths[0], |out| cameras(out, reconstruction))?;
    atomic::write(&paths[1], |out| images(out, reconstruction, points, &by_view))?;
    atomic::write(&paths[2], |out| points3d(out, points, &places(&by_view, points.len())))?;
    Ok(paths.to_vec())
}

fn cameras(out: &mut impl Write, reconstruction: &Reconstruction) -> io::Result<()> {
    put!(out, reconstruction.views.len() as u64);
    for (i, view) in reconstruction.views.iter().enumerate() {
        let k = view.intrinsics;
        put!(out, i as u32 + 1, PINHOLE, view.image.width() as u64, view.image.height() as u64, k.fx, k.fy, k.cx, k.cy);
    }
    Ok(())
}

fn images(
    out: &mut impl Write,
    reconstruction: &Reconstruction,
    points: &[Point],
    by_view: &[Vec<usize>],
) -> io::Result<()> {
    put!(out, reconstruction.views.len() as u64);
    for (i, (view, list)) in reconstruction.views.iter().zip(by_view).enumerate() {
        let [x, y, z, w] = view.pose.quaternion();
        let [tx, ty, tz] = view.pose.translation;
        put!(out, i as u32 + 1, w, x, y, z, tx, ty, tz, i as u32 + 1);
        out.write_all(view.name.as_bytes())?;
        put!(out, 0u8, list.len() as u64);
        for point in list {
            let [u, v] = points[*point].pixel.map(f64::from);
            put!(out, u, v, *point as u64 + 1);
        }
    }
    Ok(())
}

fn points3d(out: &mut impl Write, points: &[Point], places: &[u32]) -> io::Result<()> {
    put!(out, points.len() as u64);
    for (i, (point, place)) in points.iter().zip(places).enumerate() {
        let [x, y, z] = point.position.map(f64::from);
        put!(out, i as u64 + 1, x, y, z);
        out.write_all(&point.color)?;
        // The reprojection error is zero: the point was made from its pixel.
        put!(out, 0f64, 1u64, point.view + 1, *place);
    }
    Ok(())
}
