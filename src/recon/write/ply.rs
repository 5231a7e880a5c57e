//! `points.ply`: binary little-endian, position, colour and confidence of every point.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::Point;
use crate::{Result, atomic};

pub(super) fn write(points: &[Point], folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("points.ply");
    atomic::write(&path, |out| {
        writeln!(out, "ply\nformat binary_little_endian 1.0")?;
        writeln!(out, "comment world frame of cameras.json: x right, y down, z forward of an upright camera")?;
        writeln!(out, "element vertex {}", points.len())?;
        for axis in ["x", "y", "z"] {
            writeln!(out, "property float {axis}")?;
        }
        for channel in ["red", "green", "blue"] {
            writeln!(out, "property uchar {channel}")?;
        }
        writeln!(out, "property float confidence\nend_header")?;
        for point in points {
            for value in point.position {
                out.write_all(&value.to_le_bytes())?;
            }
            out.write_all(&point.color)?;
            out.write_all(&point.confidence.to_le_bytes())?;
        }
        Ok(())
    })?;
    Ok(vec![path])
}
