//! Plans against data whose truth is known: what `lite3r eval` does.
//!
//! A [`Source`] gives samples: some views of a scene as pictures, their cameras, and depth or a scan where it has them. A
//! sample goes through a session as `lite3r run` would take it, and everything is measured in the frames that the model
//! saw: true depth is read there at the nearest pixel, true cameras follow the frame, padding has no truth. Pixels that
//! the frame has cut away are not judged; [`SampleReport::coverage`] tells how many are left.
//!
//! A prediction that cannot be decoded or measured is a failure, and counts as one ([`crate::eval::summary`]). Data that
//! cannot be read ends the run: no number may stand for it.

pub mod report;
pub mod sources;
mod text;

use std::{collections::BTreeMap, time::Instant};

use lite3r_ir::Tensor;
use serde::Serialize;

pub use self::{
    report::{Report, Run, SampleReport},
    sources::Source,
};
use crate::{
    Result,
    eval::{Protocol, Scene, compat, dtu, points::Surface, summary::Outcome},
    geometry::{Camera, Mat4, compose, inverse, norm, rigid},
    predict,
    recon::{Family, FrameMap, Intrinsics, Picture, Prepared, Reconstruction},
    session::Session,
};

/// Some views of a scene, and what is known about them.
#[derive(Clone, Debug)]
pub struct Sample {
    /// As the data gives them.
    pub pictures: Vec<Picture>,
    /// Of the pictures, in one world.
    pub cameras: Vec<Camera>,
    /// Of the pictures, by rows, 0 where unknown; without pixels where the data has no depth.
    pub depths: Vec<Vec<f32>>,
    /// The numbers at the end of each camera file, for [`compat`]; none for data that has no such files.
    pub ranges: Vec<Vec<f64>>,
    /// The scan, in the world of the cameras.
    pub scan: Option<dtu::Reference>,
    /// Whether lengths are brought to the units that VGGT trains with: the mean distance of the true points from the
    /// first camera is one. [`compat`] has units of its own.
    pub normalise: bool,
}

/// Which views of which scene.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Pick {
    /// The scene's name.
    pub scene: String,
    /// The views' numbers, in the order that the model sees them.
    pub views: Vec<u32>,
}

/// How samples are measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// By which protocols.
    pub protocols: Vec<Protocol>,
    /// How pictures become frames; the plan's own way by default.
    pub preprocess: Option<String>,
    /// τ of the F-score, in units of the median true depth.
    pub threshold: f64,
    /// Draws points.
    pub seed: u64,
}

/// What a plan made of one sample.
#[derive(Clone, Debug)]
pub struct Measured {
    /// One a protocol.
    pub outcomes: Vec<Outcome>,
    /// Share of the pixels with a true depth that the model saw; `None` without depth.
    pub coverage: Option<f64>,
    /// Wall time of the run.
    pub seconds: f64,
    /// What the run allocates.
    pub run_bytes: u64,
}

/// Runs a session on a sample and measures the result by every protocol.
///
/// Errors: those of [`predict::frames`] and of the session; a result that makes no sense is an outcome.
pub fn measure(session: &mut Session, sample: &Sample, options: &Options) -> Result<Measured> {
    let input = predict::image_input(session.plan())?;
    let prepared = predict::frames(&sample.pictures, &input, options.preprocess.as_deref())?;
    let inputs = BTreeMap::from([(input.name, prepared.tensor.clone())]);
    let entry = session.entry_for(&inputs)?;
    let start = Instant::now();
    let outputs = session.run(entry, &inputs)?;
    let seconds = start.elapsed().as_secs_f64();
    let family = predict::family(session.plan(), &outputs)?;
    let mut truth = Framed::new(sample, &prepared.frames);
    let compat = options.protocols.contains(&Protocol::Compat).then(|| truth.compat(sample, &prepared.frames));
    if sample.normalise {
        truth.normalise();
    }
    let outcomes = match Predicted::new(&outputs, &prepared, family) {
        Ok(predicted) => outcomes(sample, &truth, compat, &predicted, options),
        Err(error) => options.protocols.iter().map(|_| Outcome::Failed(error.to_string())).collect(),
    };
    let run_bytes = session.plan().entries()[entry].peak_bytes();
    Ok(Measured { outcomes, coverage: truth.coverage, seconds, run_bytes })
}

fn outcomes(
    sample: &Sample,
    truth: &Framed,
    compat: Option<compat::Truth>,
    predicted: &Predicted,
    options: &Options,
) -> Vec<Outcome> {
    let compat = compat.map(|truth| (predicted.compat(), truth));
    let (predicted, truth) = (predicted.surfaces(), truth.surfaces());
    let scene = Scene {
        predicted: &predicted,
        truth: &truth,
        scan: sample.scan.as_ref(),
        compat: compat.as_ref(),
        threshold: options.threshold,
        seed: options.seed,
    };
    let outcome = |protocol: &Protocol| match protocol.applies(&scene) {
        false => Outcome::NotApplicable,
        true => protocol.measure(&scene).map_or_else(|e| Outcome::Failed(e.to_string()), Outcome::Values),
    };
    options.protocols.iter().map(outcome).collect()
}

/// The truth in the frames of a model.
struct Framed {
    cameras: Vec<Camera>,
    depths: Vec<Vec<f32>>,
    width: usize,
    coverage: Option<f64>,
}

impl Framed {
    fn new(sample: &Sample, frames: &[FrameMap]) -> Self {
        let cameras = sample.cameras.iter().zip(frames).map(|(camera, frame)| {
            // A map counts positions from the outer corner of the first pixel, as cameras do here.
            let k = frame.to_processed(intrinsics(camera, 0.0));
            Camera { intrinsic: k.matrix(), ..*camera }
        });
        let depths: Vec<Vec<f32>> = sample.depths.iter().zip(frames).map(|(d, frame)| nearest(d, frame)).collect();
        // An original pixel counts as seen where the frame shows its middle.
        let (mut seen, mut known) = (0usize, 0usize);
        for (depth, frame) in sample.depths.iter().zip(frames) {
            let shown = |axis: usize| -> Vec<bool> {
                (0..frame.original[axis]).map(|i| frame.sample(axis, i).is_some()).collect()
            };
            let (columns, rows) = (shown(0), shown(1));
            for (i, _) in depth.iter().enumerate().filter(|(_, d)| **d > 0.0) {
                known += 1;
                seen += usize::from(columns[i % columns.len()] && rows[i / columns.len()]);
            }
        }
        Self {
            cameras: cameras.collect(),
            depths,
            width: frames[0].processed[0] as usize,
            coverage: (known > 0).then(|| seen as f64 / known as f64),
        }
    }

    fn surfaces(&self) -> Vec<Surface<'_>> {
        surfaces(&self.cameras, &self.depths, self.width)
    }

    /// Puts the world on the first camera and makes the mean distance of the points from it one; every fourth pixel in
    /// both directions counts, as [`crate::scenes::normalise`] is used in training. Truth without points stays as it is.
    fn normalise(&mut self) {
        let to_first = inverse(&self.cameras[0].extrinsic);
        let (mut sum, mut count) = (0.0, 0usize);
        for (camera, depth) in self.cameras.iter_mut().zip(&self.depths) {
            camera.extrinsic = compose(&camera.extrinsic, &to_first);
            for (i, d) in depth.iter().enumerate().filter(|(_, d)| **d > 0.0) {
                let (x, y) = (i % self.width, i / self.width);
                if x % 4 == 0 && y % 4 == 0 {
                    sum += norm(camera.unproject(x as f64 + 0.5, y as f64 + 0.5, f64::from(*d)));
                    count += 1;
                }
            }
        }
        if count == 0 {
            return;
        }
        let unit = sum / count as f64;
        self.cameras.iter_mut().for_each(|c| (0..3).for_each(|i| c.extrinsic[i][3] /= unit));
        self.depths.iter_mut().flatten().for_each(|d| *d = (f64::from(*d) / unit) as f32);
    }

    /// As the published code sees it, which scales intrinsics of whole-numbered pixels without regard to half a pixel.
    fn compat(&self, sample: &Sample, frames: &[FrameMap]) -> compat::Truth {
        let views = sample.cameras.iter().zip(frames).enumerate().map(|(i, (camera, frame))| compat::View {
            extrinsic: camera.extrinsic,
            intrinsic: frame.to_processed(intrinsics(camera, 0.5)).matrix(),
            depth: self.depths.get(i).map_or(&[], Vec::as_slice),
            range: sample.ranges.get(i).map_or(&[], Vec::as_slice),
        });
        compat::Truth::new(&views.collect::<Vec<_>>(), self.width)
    }
}

/// Intrinsics with the principal point moved towards the first pixel.
fn intrinsics(camera: &Camera, shift: f64) -> Intrinsics {
    let k = &camera.intrinsic;
    Intrinsics { fx: k[0][0], fy: k[1][1], cx: k[0][2] - shift, cy: k[1][2] - shift }
}

/// A map of the original picture read at the pixel nearest to each of the frame's; 0 outside the picture.
fn nearest(depth: &[f32], frame: &FrameMap) -> Vec<f32> {
    if depth.is_empty() {
        return Vec::new();
    }
    let places = |axis: usize| -> Vec<Option<usize>> {
        let place = |i: u32| {
            let original = ((f64::from(i) + 0.5 - frame.offset[axis]) / frame.scale[axis]).floor();
            (0.0..f64::from(frame.original[axis])).contains(&original).then_some(original as usize)
        };
        (0..frame.processed[axis]).map(place).collect()
    };
    let (columns, rows) = (places(0), places(1));
    let width = frame.original[0] as usize;
    let pixels = rows.iter().flat_map(|y| columns.iter().map(move |x| x.zip(*y)));
    pixels.map(|place| place.map_or(0.0, |(x, y)| depth[y * width + x])).collect()
}

fn surfaces<'a>(cameras: &[Camera], depths: &'a [Vec<f32>], width: usize) -> Vec<Surface<'a>> {
    let surface = |(i, camera): (usize, &Camera)| Surface {
        camera: *camera,
        width,
        depth: depths.get(i).map_or(&[], Vec::as_slice),
    };
    cameras.iter().enumerate().map(surface).collect()
}

/// A prediction in the frames of a model.
struct Predicted {
    cameras: Vec<Camera>,
    depths: Vec<Vec<f32>>,
    width: usize,
    family: Family,
}

impl Predicted {
    fn new(outputs: &BTreeMap<String, Tensor>, prepared: &Prepared, family: Family) -> Result<Self> {
        let [width, height] = prepared.size();
        let views = prepared.frames.len();
        // The frames themselves stand in for the pictures, so nothing is resampled.
        let frames = vec![FrameMap::identity(width, height); views];
        let blank = Picture::new("", image::RgbImage::new(width, height));
        let prepared = Prepared { tensor: prepared.tensor.clone(), frames };
        let reconstruction = Reconstruction::from_outputs(outputs, &prepared, &vec![blank; views], family)?;
        let camera = |v: &crate::recon::View| {
            let Intrinsics { fx, fy, cx, cy } = v.intrinsics;
            let shifted = Intrinsics { fx, fy, cx: cx + 0.5, cy: cy + 0.5 };
            Camera { extrinsic: rigid(&v.pose.rotation, v.pose.translation), intrinsic: shifted.matrix() }
        };
        Ok(Self {
            cameras: reconstruction.views.iter().map(camera).collect(),
            depths: reconstruction.views.into_iter().map(|v| v.depth).collect(),
            width: width as usize,
            family,
        })
    }

    fn surfaces(&self) -> Vec<Surface<'_>> {
        surfaces(&self.cameras, &self.depths, self.width)
    }

    fn compat(&self) -> compat::Predicted {
        let poses: Vec<Mat4> = self.cameras.iter().map(|c| c.extrinsic).collect();
        compat::Predicted {
            extrinsics: poses,
            intrinsics: self.cameras.iter().map(|c| intrinsics(c, 0.5).matrix()).collect(),
            depths: self.depths.clone(),
            da3: self.family == Family::Da3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::IDENTITY;

    #[test]
    fn truth_follows_the_frame() {
        // Eight by four pixels, doubled, the middle sixteen by six kept: a row is lost above and one below.
        let frame = FrameMap::identity(8, 4).resized(16, 8).window(0, 1, 16, 6);
        let depth: Vec<f32> = (1..=32).map(|v| v as f32).collect();
        let k = [[8.0, 0.0, 4.0], [0.0, 8.0, 2.0], [0.0, 0.0, 1.0]];
        let camera = Camera { extrinsic: IDENTITY, intrinsic: k };
        let sample = Sample {
            pictures: Vec::new(),
            cameras: vec![camera],
            depths: vec![depth.clone()],
            ranges: Vec::new(),
            scan: None,
            normalise: true,
        };
        let truth = Framed::new(&sample, &[frame]);
        assert_eq!(truth.cameras[0].intrinsic, [[16.0, 0.0, 8.0], [0.0, 16.0, 3.0], [0.0, 0.0, 1.0]]);
        assert_eq!((truth.depths[0].len(), truth.width, truth.coverage), (96, 16, Some(1.0)));
        for y in 0..6usize {
            for x in 0..16 {
                let original = (x / 2, y.div_ceil(2));
                assert_eq!(truth.depths[0][y * 16 + x], depth[original.1 * 8 + original.0]);
                // The point behind the middle of an original pixel lies behind a corner of four of the frame's.
                let p = truth.cameras[0].unproject(x as f64 + 0.5, y as f64 + 0.5, 1.0);
                let (u, v, _) = camera.project(p);
                assert_eq!((u.floor() as usize, v.floor() as usize), original);
            }
        }
        // A frame that shows the left half, with padding to its right.
        let half = FrameMap::identity(8, 4).window(0, 0, 4, 4);
        let truth = Framed::new(&sample, &[half]);
        assert_eq!((truth.coverage, &truth.depths[0][..5]), (Some(0.5), &[1.0, 2.0, 3.0, 4.0, 9.0][..]));
        let padded = FrameMap::identity(8, 4).window(-2, 0, 12, 4);
        let depth = &Framed::new(&sample, &[padded]).depths[0];
        assert_eq!(depth[..12], [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0]);
    }
}
