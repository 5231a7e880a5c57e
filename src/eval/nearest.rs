//! Distances to the nearest point of a cloud, and greedy thinning.

use std::collections::HashMap;

use nabo::{CandidateContainer, KDTree, NotNan, Parameters, Point as _};
use rayon::prelude::*;

use crate::{Error, Result, geometry::Vec3};

/// Points of a leaf, at most: half the time of the library's default where clouds lie apart, as wrong predictions do.
const LEAF: u32 = 32;

/// A point as the tree keeps it.
#[derive(Clone, Copy, Debug, Default)]
struct Place([NotNan<f64>; 3]);

impl nabo::Point<f64> for Place {
    const DIM: u32 = 3;

    fn set(&mut self, i: u32, value: NotNan<f64>) {
        self.0[i as usize] = value;
    }

    fn get(&self, i: u32) -> NotNan<f64> {
        self.0[i as usize]
    }
}

/// A cloud that answers how far its nearest point is; a k-d tree.
pub struct Cloud(KDTree<f64, Place>);

impl Cloud {
    /// Errors: `eval.cloud` without points, with 2³⁰ or more, or where one is not finite.
    pub fn new(points: &[Vec3]) -> Result<Self> {
        if points.is_empty() || points.len() >= 1 << 30 {
            return Err(refuse(format!("a cloud has from 1 to 2^30 points, not {}", points.len())));
        }
        Ok(Self(KDTree::new_with_bucket_size(&places(points)?, LEAF)))
    }

    /// The Euclidean distance from each point to the nearest of the cloud, exactly. Errors: `eval.cloud` where a point
    /// is not finite.
    pub fn distances(&self, points: &[Vec3]) -> Result<Vec<f64>> {
        let exact =
            || Parameters { epsilon: 0.0, max_radius: f64::INFINITY, allow_self_match: true, sort_results: false };
        let nearest = |place: &Place| {
            let found = self.0.knn_advanced(1, place, CandidateContainer::Linear, &exact(), None);
            found.first().map_or(f64::INFINITY, |n| n.dist2.into_inner().sqrt())
        };
        Ok(places(points)?.par_iter().map(nearest).collect())
    }
}

fn places(points: &[Vec3]) -> Result<Vec<Place>> {
    let place = |p: &Vec3| p.iter().all(|v| v.is_finite()).then(|| Place::from_raw(p).ok()).flatten();
    points.iter().map(place).collect::<Option<_>>().ok_or_else(|| refuse("a point of a cloud is not finite".into()))
}

fn refuse(problem: String) -> Error {
    Error::new(crate::Kind::Accuracy, "eval.cloud", problem)
}

/// Greedy thinning: in the given order, a point stays unless one that has stayed lies within `radius` of it. Returns
/// the indices of those that stay, in order.
///
/// Kept points lie in cells as wide as the radius, so that only 27 cells can hold one that is near enough.
pub fn thin(points: &[Vec3], radius: f64) -> Vec<usize> {
    let mut cells: HashMap<[i64; 3], Vec<usize>> = HashMap::new();
    let cell = |p: Vec3| p.map(|v| (v / radius).floor() as i64);
    let square = |a: Vec3, b: Vec3| (0..3).map(|i| (a[i] - b[i]) * (a[i] - b[i])).sum::<f64>();
    let mut kept = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let [x, y, z] = cell(*point);
        let around = (-1..=1).flat_map(|i| (-1..=1).flat_map(move |j| (-1..=1).map(move |k| [x + i, y + j, z + k])));
        let near = around
            .filter_map(|c| cells.get(&c))
            .flatten()
            .any(|other| square(points[*other], *point) <= radius * radius);
        if !near {
            cells.entry([x, y, z]).or_default().push(index);
            kept.push(index);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        geometry::{norm, sub},
        rng::Stream,
    };

    fn points(seed: u64, n: usize) -> Vec<Vec3> {
        let mut r = Stream::new(&[seed]);
        (0..n).map(|_| std::array::from_fn(|_| r.uniform(-1.0, 1.0))).collect()
    }

    fn slow(cloud: &[Vec3], point: Vec3) -> f64 {
        cloud.iter().map(|p| norm(sub(*p, point))).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn distances_are_those_of_a_slow_search() {
        for (seed, n, m) in [(1, 1, 5), (2, 63, 64), (3, 65, 1), (4, 1374, 200)] {
            let (cloud, queries) = (points(seed, n), points(seed + 100, m));
            let found = Cloud::new(&cloud).unwrap().distances(&queries).unwrap();
            for (query, found) in queries.iter().zip(found) {
                assert!((found - slow(&cloud, *query)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn repeated_and_flat_points_are_no_trouble() {
        let mut cloud = vec![[0.5, 0.5, 0.5]; 3000];
        cloud.extend((0..2000).map(|i| [f64::from(i % 40), f64::from(i / 40), 0.0]));
        let tree = Cloud::new(&cloud).unwrap();
        for query in points(5, 50) {
            assert!((tree.distances(&[query]).unwrap()[0] - slow(&cloud, query)).abs() < 1e-12);
        }
    }

    #[test]
    fn clouds_that_cannot_be_searched_are_refused() {
        assert_eq!(Cloud::new(&[]).err().unwrap().code, "eval.cloud");
        assert!(Cloud::new(&[[f64::NAN, 0.0, 0.0]]).is_err());
        let one = Cloud::new(&[[0.0; 3]]).unwrap();
        assert!(one.distances(&[[f64::INFINITY, 0.0, 0.0]]).is_err());
    }

    #[test]
    fn thinning_is_the_greedy_one() {
        let cloud = points(6, 1500);
        let radius = 0.2;
        let mut expect: Vec<usize> = Vec::new();
        for (i, p) in cloud.iter().enumerate() {
            if expect.iter().all(|k| norm(sub(cloud[*k], *p)) > radius) {
                expect.push(i);
            }
        }
        let kept = thin(&cloud, radius);
        assert!(kept == expect && kept.len() < 1500);
        // A line of steps of 0.1: of each three the first stays, since the radius itself counts as near.
        let line: Vec<Vec3> = (0..7).map(|i| [f64::from(i), -5.0, 0.0]).collect();
        assert_eq!(thin(&line, 2.0), [0, 3, 6]);
    }
}
