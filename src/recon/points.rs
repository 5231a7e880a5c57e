//! Depth maps as one coloured cloud of points.

use rayon::prelude::*;

use super::reconstruction::{Reconstruction, View};

/// Which pixels become points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointOptions {
    /// Pixels whose confidence lies below this percentile of all valid pixels are dropped; 0 keeps all.
    pub confidence_percentile: f64,
    /// At most so many points, drawn evenly and reproducibly from those that are left.
    pub max_points: usize,
}

impl Default for PointOptions {
    fn default() -> Self {
        Self { confidence_percentile: 40.0, max_points: 1_000_000 }
    }
}

/// A point of the cloud and the pixel it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// World coordinates.
    pub position: [f32; 3],
    /// Red, green, blue.
    pub color: [u8; 3],
    /// The model's confidence.
    pub confidence: f32,
    /// Index of the view.
    pub view: u32,
    /// Column and row of the pixel, at the original resolution.
    pub pixel: [u32; 2],
}

impl Reconstruction {
    /// The confidence at a percentile (0 to 100) of all valid pixels, interpolated linearly between neighbours in rank;
    /// `None` if there is no valid pixel.
    pub fn confidence_percentile(&self, percentile: f64) -> Option<f32> {
        let mut values: Vec<f32> = self
            .views
            .iter()
            .flat_map(|v| (0..v.depth.len()).filter(|i| v.is_valid(*i)).map(|i| v.confidence[i]))
            .collect();
        let last = values.len().checked_sub(1)?;
        let rank = percentile.clamp(0.0, 100.0) / 100.0 * last as f64;
        let (_, low, above) = values.select_nth_unstable_by(rank.floor() as usize, f32::total_cmp);
        let low = *low as f64;
        let high = above.iter().copied().min_by(f32::total_cmp).map_or(low, f64::from);
        Some((low + (high - low) * rank.fract()) as f32)
    }

    /// The cloud: valid pixels of sufficient confidence, view by view and row by row.
    pub fn points(&self, options: &PointOptions) -> Vec<Point> {
        let Some(threshold) = self.confidence_percentile(options.confidence_percentile) else { return Vec::new() };
        let kept = |view: &View, i: usize| view.is_valid(i) && view.confidence[i] >= threshold;
        let counts: Vec<usize> =
            self.views.par_iter().map(|view| (0..view.depth.len()).filter(|i| kept(view, *i)).count()).collect();
        let mut draw = Draw::new(counts.iter().sum(), options.max_points);
        let mut points = Vec::with_capacity(options.max_points.min(counts.iter().sum()));
        for (index, view) in self.views.iter().enumerate() {
            let world = view.pose.inverse();
            for i in (0..view.depth.len()).filter(|i| kept(view, *i)) {
                if !draw.take() {
                    continue;
                }
                let pixel = [i as u32 % view.image.width(), i as u32 / view.image.width()];
                let local = view.intrinsics.unproject(pixel[0] as f64, pixel[1] as f64, view.depth[i] as f64);
                points.push(Point {
                    position: world.apply(local).map(|v| v as f32),
                    color: view.image.get_pixel(pixel[0], pixel[1]).0,
                    confidence: view.confidence[i],
                    view: index as u32,
                    pixel,
                });
            }
        }
        points
    }
}

/// Selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S): exactly `want` of `left` items, in order, each equally
/// likely.
struct Draw {
    left: usize,
    want: usize,
    state: u64,
}

impl Draw {
    fn new(left: usize, want: usize) -> Self {
        Self { left, want: want.min(left), state: 0 }
    }

    fn take(&mut self) -> bool {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        let taken = unit * (self.left as f64) < self.want as f64;
        self.left -= 1;
        self.want -= taken as usize;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recon::testing::scene;

    #[test]
    fn points_project_back_to_their_pixels() {
        let scene = scene();
        let points = scene.points(&PointOptions { confidence_percentile: 0.0, max_points: usize::MAX });
        let valid: usize = scene.views.iter().map(|v| (0..v.depth.len()).filter(|i| v.is_valid(*i)).count()).sum();
        assert_eq!(points.len(), valid);
        for p in points {
            let view = &scene.views[p.view as usize];
            let local = view.pose.apply(p.position.map(f64::from));
            let [u, v] = view.intrinsics.project(local);
            assert!((u - p.pixel[0] as f64).abs() < 1e-3 && (v - p.pixel[1] as f64).abs() < 1e-3, "{p:?}: {u} {v}");
            let depth = view.depth[(p.pixel[1] * view.image.width() + p.pixel[0]) as usize] as f64;
            assert!((local[2] - depth).abs() < 1e-4 * depth);
            assert_eq!(p.color, view.image.get_pixel(p.pixel[0], p.pixel[1]).0);
        }
    }

    #[test]
    fn percentiles_are_numpys() {
        let mut scene = scene();
        scene.views.truncate(1);
        let view = &mut scene.views[0];
        view.mask = None;
        view.depth.fill(0.0);
        for (i, c) in [5.0, 1.0, 3.0, 2.0].into_iter().enumerate() {
            (view.depth[i], view.confidence[i]) = (1.0, c);
        }
        // numpy.percentile([1, 2, 3, 5], p)
        for (p, want) in [(0.0, 1.0), (40.0, 2.2), (50.0, 2.5), (90.0, 4.4), (100.0, 5.0)] {
            assert!((scene.confidence_percentile(p).unwrap() - want).abs() < 1e-6, "{p}");
        }
        let kept = scene.points(&PointOptions { confidence_percentile: 50.0, max_points: 9 });
        assert_eq!(kept.iter().map(|p| p.confidence).collect::<Vec<_>>(), [5.0, 3.0]);
        scene.views[0].depth.fill(0.0);
        assert_eq!(scene.confidence_percentile(50.0), None);
        assert!(scene.points(&PointOptions::default()).is_empty());
    }

    #[test]
    fn the_draw_is_exact_even_and_reproducible() {
        for (left, want) in [(0, 5), (1, 1), (64, 64), (65, 64), (1374, 137), (100, 0)] {
            let run = || {
                let mut draw = Draw::new(left, want);
                (0..left).filter(|_| draw.take()).collect::<Vec<_>>()
            };
            let taken = run();
            assert_eq!((taken.len(), &taken), (want.min(left), &run()));
        }
        let mut draw = Draw::new(100_000, 10_000);
        let first_half = (0..50_000).filter(|_| draw.take()).count();
        assert!((first_half as i64 - 5_000).abs() < 200, "{first_half}");
    }

    #[test]
    fn masked_pixels_never_become_points() {
        let scene = scene();
        assert!(scene.views[1].mask.is_some());
        let all = scene.points(&PointOptions { confidence_percentile: 0.0, max_points: usize::MAX });
        let masked = |p: &Point| {
            scene.views[p.view as usize].mask.as_ref().is_some_and(|m| m.get_pixel(p.pixel[0], p.pixel[1]).0[0] == 0)
        };
        assert!(!all.is_empty() && !all.iter().any(masked));
    }
}
