//! COLMAP's sparse models: one PINHOLE camera and one image a view, at the original resolution, and points that each
//! list the one pixel they come from.
//!
//! Pixels are written as they are used everywhere here, so a point projects exactly onto its pixel.

pub(super) mod binary;
pub(super) mod text;

use super::{Point, Reconstruction};
use crate::{Error, Kind, Result};

/// COLMAP's number of the PINHOLE model: fx, fy, cx, cy.
const PINHOLE: i32 = 1;

/// The indices of the points of every view.
fn points_by_view(reconstruction: &Reconstruction, points: &[Point]) -> Vec<Vec<usize>> {
    let mut by_view = vec![Vec::new(); reconstruction.views.len()];
    points.iter().enumerate().for_each(|(i, p)| by_view[p.view as usize].push(i));
    by_view
}

/// Every point's place in the list of pixels of its image.
fn places(by_view: &[Vec<usize>], points: usize) -> Vec<u32> {
    let mut places = vec![0; points];
    for list in by_view {
        list.iter().enumerate().for_each(|(place, point)| places[*point] = place as u32);
    }
    places
}

/// COLMAP knows an image by its name alone: names must differ and hold no control characters.
fn check_names(reconstruction: &Reconstruction) -> Result<()> {
    let mut names: Vec<&str> = reconstruction.views.iter().map(|v| v.name.as_str()).collect();
    names.sort_unstable();
    let mut problems: Vec<String> = names
        .windows(2)
        .filter(|w| w[0] == w[1])
        .map(|w| format!("two pictures are called {}; COLMAP needs names that differ", w[0]))
        .collect();
    let odd = names.iter().filter(|n| n.is_empty() || n.chars().any(char::is_control));
    problems.extend(odd.map(|n| format!("COLMAP cannot name a picture {n:?}")));
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::BadFile, "recon.colmap", problems)) }
}
