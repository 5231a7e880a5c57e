//! `sparse_text/0/{cameras,images,points3D}.txt`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{Point, Reconstruction, check_names, places, points_by_view};
use crate::{Result, atomic};

pub(in crate::recon::write) fn write(
    reconstruction: &Reconstruction,
    points: &[Point],
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    check_names(reconstruction)?;
    let by_view = points_by_view(reconstruction, points);
    let file = |name: &str| folder.join("sparse_text/0").join(name);
    let paths = ["cameras.txt", "images.txt", "points3D.txt"].map(file);
    atomic::write(&paths[0], |out| cameras(out, reconstruction))?;
    atomic::write(&paths[1], |out| images(out, reconstruction, points, &by_view))?;
    atomic::write(&paths[2], |out| points3d(out, points, &places(&by_view, points.len())))?;
    Ok(paths.to_vec())
}

fn cameras(out: &mut impl Write, reconstruction: &Reconstruction) -> io::Result<()> {
    writeln!(out, "# CAMERA_ID, MODEL, WIDTH, HEIGHT, FX, FY, CX, CY")?;
    for (i, view) in reconstruction.views.iter().enumerate() {
        let (k, [width, height]) = (view.intrinsics, view.size());
        writeln!(out, "{} PINHOLE {width} {height} {} {} {} {}", i + 1, k.fx, k.fy, k.cx, k.cy)?;
    }
    Ok(())
}

fn images(
    out: &mut impl Write,
    reconstruction: &Reconstruction,
    points: &[Point],
    by_view: &[Vec<usize>],
) -> io::Result<()> {
    writeln!(out, "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME")?;
    writeln!(out, "# X, Y, POINT3D_ID of every pixel")?;
    for (i, (view, list)) in reconstruction.views.iter().zip(by_view).enumerate() {
        let [x, y, z, w] = view.pose.quaternion();
        let [tx, ty, tz] = view.pose.translation;
        let id = i + 1;
        writeln!(out, "{id} {w} {x} {y} {z} {tx} {ty} {tz} {id} {}", view.name)?;
        for (n, point) in list.iter().enumerate() {
            let [u, v] = points[*point].pixel;
            let space = if n == 0 { "" } else { " " };
            write!(out, "{space}{u} {v} {}", point + 1)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn points3d(out: &mut impl Write, points: &[Point], places: &[u32]) -> io::Result<()> {
    writeln!(out, "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, then IMAGE_ID, POINT2D_IDX")?;
    for (i, (point, place)) in points.iter().zip(places).enumerate() {
        let ([x, y, z], [r, g, b]) = (point.position, point.color);
        writeln!(out, "{} {x} {y} {z} {r} {g} {b} 0 {} {place}", i + 1, point.view + 1)?;
    }
    Ok(())
}
