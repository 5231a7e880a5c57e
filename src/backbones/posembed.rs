//! Learned positions: a square grid of vectors, resampled to the grid of the image by a bicubic filter.
//!
//! The filter works on params alone, so plans hold its result.

use lite3r_ir::{
    Value,
    ops::{
        Resize,
        resize::{Coordinates, ResizeMode},
    },
};

use super::scope::{Built, Scope};

/// How a grid is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// VGGT: to the exact size, widened when shrinking, a = −1/2, weights outside dropped.
    Antialiased,
    /// DA3: by the factor (size + 0.1)/side, a = −3/4, the border repeated.
    Offset,
}

/// The positions `name` for `grid` patches. Stored are `first` vectors that stay as they are (the class token) and
/// side·side patches, [1, first + side², C]; the result has the same form.
pub(super) fn positions(
    s: &mut Scope<'_>,
    name: &str,
    (side, first, dim): (usize, usize, usize),
    grid: (usize, usize),
    filter: Filter,
) -> Built {
    let stored = s.param(name.to_string(), &[1, first + side * side, dim]);
    if grid == (side, side) {
        return Ok(stored);
    }
    s.at(name);
    let patches = s.slice(stored, 1, first, first + side * side)?;
    let square = s.reshape(patches, [1, side, side, dim])?;
    let planes = s.transpose(square, &[0, 3, 1, 2])?;
    let resized = s.op(filter.resize(side, grid), &[planes])?;
    let flat = s.reshape(resized, [1, dim, grid.0 * grid.1])?;
    let patches = s.transpose(flat, &[0, 2, 1])?;
    if first == 0 {
        return Ok(patches);
    }
    let kept = s.slice(stored, 1, 0, first)?;
    s.concat(1, &[kept, patches])
}

impl Filter {
    fn resize(self, side: usize, (rows, columns): (usize, usize)) -> Resize {
        let factor = |n: usize| (n as f64 + 0.1) / side as f64;
        let antialias = self == Self::Antialiased;
        Resize {
            scales: if antialias { Vec::new() } else { vec![factor(rows), factor(columns)] },
            cubic_a: if antialias { -0.5 } else { -0.75 },
            antialias,
            exclude_outside: antialias,
            ..Resize::new(ResizeMode::Cubic, Coordinates::HalfPixel, [rows.into(), columns.into()])
        }
    }
}

/// x [S, N, C] with positions [1, N, C] added.
pub(super) fn add(s: &mut Scope<'_>, x: Value, positions: Value) -> Built {
    s.op(lite3r_ir::ops::Add {}, &[x, positions])
}
