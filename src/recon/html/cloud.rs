//! The clouds as the page's script reads them: 16-bit positions within a box, 8-bit colours, both base64.

use serde::Serialize;

use super::{Report, base64};
use crate::{Error, Result, recon::Reconstruction};

/// Depth of a frustum, in median depths.
const FRUSTUM_DEPTH: f64 = 0.05;
/// Points farther from the middle half of an axis than so many times its width are not shown.
const REACH: f32 = 4.0;

#[derive(Serialize)]
struct Data {
    home: Home,
    clouds: Vec<Cloud>,
}

/// What the camera of the page turns around, and from how far.
#[derive(Serialize)]
struct Home {
    target: [f32; 3],
    away: f32,
}

/// `position = low + step * value`, per axis.
#[derive(Serialize)]
struct Cloud {
    name: String,
    count: usize,
    low: [f32; 3],
    step: [f32; 3],
    positions: String,
    colors: String,
    /// Apex and corners of every camera.
    frusta: Vec<[[f32; 3]; 5]>,
}

/// The clouds of all runs, and of the truth.
pub(super) fn json(report: &Report<'_>) -> Result<String> {
    let truth = report.truth.map(|t| ("ground truth", t));
    let all = report.runs.iter().map(|r| (r.name.as_str(), r.reconstruction)).chain(truth);
    let mut home = None;
    let mut clouds = Vec::new();
    for (name, reconstruction) in all {
        let (cloud, middle) = cloud(name, reconstruction, report);
        home.get_or_insert(middle);
        clouds.push(cloud);
    }
    let home = home.unwrap_or(Home { target: [0.0; 3], away: 1.0 });
    serde_json::to_string(&Data { home, clouds })
        .map_err(|e| Error::bad_file("recon.json", format!("the data of the report: {e}")))
}

fn cloud(name: &str, reconstruction: &Reconstruction, report: &Report<'_>) -> (Cloud, Home) {
    let unit = reconstruction.median_depth().unwrap_or(1.0);
    let mut scene = reconstruction.in_first_camera();
    for view in &mut scene.views {
        view.pose.translation.iter_mut().for_each(|t| *t /= unit);
        view.depth.iter_mut().for_each(|d| *d /= unit as f32);
    }
    let mut points = scene.points(&report.points);
    let quartiles = [0, 1, 2].map(|axis| quartiles(points.iter().map(|p| p.position[axis]).collect()));
    let reach = quartiles.map(|[low, _, high]| REACH * (high - low).max(1e-3));
    points.retain(|p| {
        (0..3).all(|a| p.position[a] >= quartiles[a][0] - reach[a] && p.position[a] <= quartiles[a][2] + reach[a])
    });
    let bound = |pick: fn(f32, f32) -> f32, axis: usize| points.iter().map(|p| p.position[axis]).reduce(pick);
    let low = [0, 1, 2].map(|a| bound(f32::min, a).unwrap_or(0.0));
    let step = [0, 1, 2].map(|a| ((bound(f32::max, a).unwrap_or(0.0) - low[a]) / u16::MAX as f32).max(1e-9));
    let positions: Vec<u8> = points
        .iter()
        .flat_map(|p| [0, 1, 2].map(|a| ((p.position[a] - low[a]) / step[a]).round() as u16))
        .flat_map(u16::to_le_bytes)
        .collect();
    let colors: Vec<u8> = points.iter().flat_map(|p| p.color).collect();
    let frusta = scene.views.iter().map(|v| v.frustum(FRUSTUM_DEPTH).map(|p| p.map(|v| v as f32))).collect();
    let target = quartiles.map(|q| q[1]);
    // Far enough for the cameras and the middle of the scene.
    let home = Home { target, away: 1.55 * target[2].max(0.5) };
    let cloud = Cloud {
        name: name.into(),
        count: points.len(),
        low,
        step,
        positions: base64(&positions),
        colors: base64(&colors),
        frusta,
    };
    (cloud, home)
}

/// The values at a quarter, the half and three quarters in rank; zeros if there are none.
fn quartiles(mut values: Vec<f32>) -> [f32; 3] {
    let Some(last) = values.len().checked_sub(1) else { return [0.0; 3] };
    [1, 2, 3].map(|q| *values.select_nth_unstable_by(last * q / 4, f32::total_cmp).1)
}
