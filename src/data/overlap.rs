//! How much views see of each other, from depth at a coarse grid.

use crate::{
    geometry::{Camera, Vec3},
    recon::Picture,
    scenes::SAME_SURFACE,
};

/// Samples along the width of a view.
pub(super) const ACROSS: usize = 48;
/// Views of which less is shared are no pair.
const LEAST: f64 = 0.02;
/// The longest list of pairs, as in the published files.
const PAIRS: usize = 10;

/// Depth of a view at a grid.
#[derive(Clone, Debug)]
pub(super) struct Coarse {
    camera: Camera,
    /// Width and height of the view.
    size: [u32; 2],
    /// Columns and rows of the grid.
    grid: [usize; 2],
    /// By rows; 0 where there is none.
    depth: Vec<f64>,
    points: Vec<Vec3>,
}

impl Coarse {
    /// From the depth of every pixel, of which the middle of each cell is taken.
    pub(super) fn new(camera: Camera, size: [u32; 2], depth: &[f32]) -> Self {
        let columns = ACROSS.min(size[0] as usize);
        let rows = (size[1] as usize * columns / size[0] as usize).max(1);
        let pixel = |i: usize, cells: usize, side: u32| ((i as f64 + 0.5) * f64::from(side) / cells as f64) as usize;
        let (mut values, mut points) = (Vec::new(), Vec::new());
        for row in 0..rows {
            for column in 0..columns {
                let (x, y) = (pixel(column, columns, size[0]), pixel(row, rows, size[1]));
                let depth = f64::from(depth[y * size[0] as usize + x]);
                values.push(depth);
                if depth > 0.0 {
                    points.push(camera.unproject(x as f64 + 0.5, y as f64 + 0.5, depth));
                }
            }
        }
        Self { camera, size, grid: [columns, rows], depth: values, points }
    }

    /// Of a loaded view; `None` without depth.
    pub(super) fn of(picture: &Picture, camera: Camera, depth: Option<&[f32]>) -> Option<Self> {
        Some(Self::new(camera, [picture.width(), picture.height()], depth?))
    }

    /// The share of the points of `self` that `other` sees too.
    pub(super) fn seen_by(&self, other: &Self) -> f64 {
        let seen = |p: &&Vec3| {
            let (u, v, depth) = other.camera.project(**p);
            let (x, y) = (u / f64::from(other.size[0]), v / f64::from(other.size[1]));
            if !(depth > 0.0 && (0.0..1.0).contains(&x) && (0.0..1.0).contains(&y)) {
                return false;
            }
            let [columns, rows] = other.grid;
            let there = other.depth[(y * rows as f64) as usize * columns + (x * columns as f64) as usize];
            (there - depth).abs() < SAME_SURFACE * depth
        };
        self.points.iter().filter(seen).count() as f64 / self.points.len().max(1) as f64
    }

    /// Whether any point of `self` lies in front of `other`.
    pub(super) fn in_front_of(&self, other: &Self) -> bool {
        self.points.iter().any(|p| other.camera.project(*p).2 > 0.0)
    }
}

/// For every view the views that see the same, with scores up to a thousand, best first; at most ten.
pub(super) fn neighbours(views: &[Coarse]) -> Vec<Vec<(usize, f64)>> {
    let score = |i: usize, j: usize| (views[i].seen_by(&views[j]) + views[j].seen_by(&views[i])) / 2.0;
    let others = |i: usize| {
        let mut scores: Vec<(usize, f64)> =
            (0..views.len()).filter(|j| *j != i).map(|j| (j, score(i, j))).filter(|(_, s)| *s > LEAST).collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scores.truncate(PAIRS);
        scores.into_iter().map(|(j, s)| (j, (s * 1e6).round() / 1e3)).collect()
    };
    (0..views.len()).map(others).collect()
}

/// The views that have everything that others see behind them, and nothing else: their cameras are wrong.
pub(super) fn turned_away(views: &[Coarse], others: impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
    let away = |i: &usize| {
        let mut others = others(*i).into_iter().filter(|j| j != i && !views[*j].points.is_empty()).peekable();
        others.peek().is_some() && !others.any(|j| views[j].in_front_of(&views[*i]))
    };
    (0..views.len()).filter(away).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{IDENTITY, Mat4, inverse, rigid};

    /// A view of 60 x 40 pixels of the plane z = 4, from (x, 0, 0).
    fn plane(x: f64) -> Coarse {
        let extrinsic = rigid(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [-x, 0.0, 0.0]);
        view(extrinsic)
    }

    fn view(extrinsic: Mat4) -> Coarse {
        let camera = Camera { extrinsic, intrinsic: [[30.0, 0.0, 30.0], [0.0, 30.0, 20.0], [0.0, 0.0, 1.0]] };
        Coarse::new(camera, [60, 40], &[4.0; 2400])
    }

    #[test]
    fn overlap_of_a_plane_is_the_share_of_its_width() {
        // The view is 8 wide at the plane; moved by 2 it keeps three quarters.
        assert_eq!(plane(0.0).seen_by(&plane(0.0)), 1.0);
        assert!((plane(0.0).seen_by(&plane(2.0)) - 0.75).abs() < 0.03);
        assert_eq!(plane(0.0).seen_by(&plane(9.0)), 0.0);
        let pairs = neighbours(&[plane(0.0), plane(4.0), plane(1.0), plane(20.0)]);
        assert_eq!(pairs[0].iter().map(|(j, _)| *j).collect::<Vec<_>>(), [2, 1], "best first");
        assert!(pairs[3].is_empty() && (pairs[0][0].1 - 875.0).abs() < 25.0);
    }

    #[test]
    fn cameras_with_the_scene_behind_them_are_found() {
        let back = rigid(&[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]], [0.0, 0.0, -9.0]);
        let views = [plane(0.0), plane(1.0), view(inverse(&back)), view(IDENTITY)];
        assert_eq!(turned_away(&views, |_| (0..4).collect()), [2]);
        assert!(turned_away(&views, |_| Vec::new()).is_empty(), "nothing to compare with");
    }
}
