//! Every way to measure a scene under one roof: names, what each measures, and what it is worth when a scene fails.

use super::{Similarity, compat, depth, dtu, points, pose, trajectory};
use crate::{Error, Result, eval::points::Surface, geometry::Mat4};

/// A way to measure a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Depth after an alignment.
    Depth(depth::Protocol),
    /// Poses over pairs.
    Pose(pose::Protocol),
    /// Camera centres.
    Trajectory(trajectory::Protocol),
    /// Clouds after an alignment.
    Points(points::Protocol),
    /// Clouds against a scan, in mm.
    Dtu,
    /// The published Lite3R code's own.
    Compat,
}

/// One of the numbers of a protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// As tables head it.
    pub name: &'static str,
    /// What a scene counts that has failed.
    pub worst: Worst,
}

/// What a scene counts that has failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Worst {
    /// The end of the range: 0 for shares and areas, 180 for angles.
    Is(f64),
    /// The worst of all scenes that did not fail, and at least this: what a prediction that says nothing gets, or 0
    /// where that depends on the scene.
    AtLeast(f64),
    /// Nothing: failures improve the mean, as in the code that is imitated.
    LeftOut,
}

/// Groups of protocols that have a name.
pub const GROUPS: [(&str, &[&str]); 1] = [(
    "standard",
    &[
        "depth/none",
        "depth/median-scene",
        "depth/scale-shift-scene",
        "pose/pairs",
        "ate/sim3",
        "points/sim3-cameras",
        "points/umeyama-pixels",
        dtu::PROTOCOL,
    ],
)];

const ANGLE: Worst = Worst::Is(180.0);
const SHARE: Worst = Worst::Is(0.0);

const DEPTH: &[Measure] = &[
    row("AbsRel", Worst::AtLeast(1.0)),
    row("δ<1.25", SHARE),
    row("δ<1.25²", SHARE),
    row("δ<1.25³", SHARE),
    row("RMSE", Worst::AtLeast(0.0)),
];
const POSE: &[Measure] = &[
    row("rotation°", ANGLE),
    row("median rotation°", ANGLE),
    row("translation°", ANGLE),
    row("median translation°", ANGLE),
    row("AUC@3", SHARE),
    row("AUC@5", SHARE),
    row("AUC@15", SHARE),
    row("AUC@30", SHARE),
    row("RRA@3", SHARE),
    row("RRA@5", SHARE),
    row("RRA@15", SHARE),
    row("RRA@30", SHARE),
    row("RTA@3", SHARE),
    row("RTA@5", SHARE),
    row("RTA@15", SHARE),
    row("RTA@30", SHARE),
];
const TRAJECTORY: &[Measure] = &[row("ATE RMSE", Worst::AtLeast(0.0)), row("ATE/spread", Worst::AtLeast(1.0))];
const POINTS: &[Measure] = &[
    row("accuracy", Worst::AtLeast(0.0)),
    row("completeness", Worst::AtLeast(0.0)),
    row("Chamfer", Worst::AtLeast(0.0)),
    row("precision", SHARE),
    row("recall", SHARE),
    row("F-score", SHARE),
];
const DTU: &[Measure] = &[
    row("Acc mm", Worst::AtLeast(dtu::CUT)),
    row("Comp mm", Worst::AtLeast(dtu::CUT)),
    row("Overall mm", Worst::AtLeast(dtu::CUT)),
];
const COMPAT: &[Measure] = &[
    row("abs_rel", Worst::LeftOut),
    row("delta1", Worst::LeftOut),
    row("delta2", Worst::LeftOut),
    row("delta3", Worst::LeftOut),
    row("rmse", Worst::LeftOut),
    row("rot_err_deg", Worst::LeftOut),
    row("trans_err", Worst::LeftOut),
    row("chamfer", Worst::LeftOut),
    row("fscore_5cm", Worst::LeftOut),
];

const fn row(name: &'static str, worst: Worst) -> Measure {
    Measure { name, worst }
}

/// A scene as a model saw it and as it is.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// What the model says about each view.
    pub predicted: &'a [Surface<'a>],
    /// What is known about each view; a depth without pixels where only the camera is.
    pub truth: &'a [Surface<'a>],
    /// The scan, where there is one; the true cameras are in its frame.
    pub scan: Option<&'a dtu::Reference>,
    /// The same for [`Protocol::Compat`].
    pub compat: Option<&'a (compat::Predicted, compat::Truth)>,
    /// τ of the F-score, in units of the median true depth.
    pub threshold: f64,
    /// Draws points.
    pub seed: u64,
}

/// At most so many predicted points go into the DTU measure, drawn by the seed.
pub const MAX_DTU_POINTS: usize = 4_000_000;

impl Protocol {
    /// All, in the order of tables.
    pub fn all() -> Vec<Self> {
        let depth = depth::PROTOCOLS.map(Self::Depth);
        let (pose, trajectory) = (pose::PROTOCOLS.map(Self::Pose), trajectory::PROTOCOLS.map(Self::Trajectory));
        let points = points::PROTOCOLS.map(Self::Points);
        depth.into_iter().chain(pose).chain(trajectory).chain(points).chain([Self::Dtu, Self::Compat]).collect()
    }

    /// Those of a name, of a group (`standard`), or of a family (`depth` for all `depth/…`), or `all`.
    /// Errors: `eval.protocol`, which lists all names.
    pub fn named(name: &str) -> Result<Vec<Self>> {
        let all = Self::all();
        let group = GROUPS.iter().find(|(group, _)| *group == name).map(|(_, names)| *names);
        let wanted = |p: &Self| match group {
            Some(names) => names.contains(&p.name()),
            None => name == "all" || p.name() == name || p.name().split('/').next() == Some(name),
        };
        let found: Vec<Self> = all.iter().copied().filter(wanted).collect();
        if found.is_empty() {
            let known: Vec<&str> = GROUPS.iter().map(|g| g.0).chain(all.iter().map(Self::name)).collect();
            let problem = format!("there is no protocol `{name}`; known: {}", known.join(", "));
            return Err(Error::usage("eval.protocol", problem));
        }
        Ok(found)
    }

    /// As reports print it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Depth(p) => p.name,
            Self::Pose(p) => p.name,
            Self::Trajectory(p) => p.name,
            Self::Points(p) => p.name,
            Self::Dtu => dtu::PROTOCOL,
            Self::Compat => compat::PROTOCOL,
        }
    }

    /// The numbers that it gives, in order.
    pub fn measures(&self) -> &'static [Measure] {
        match self {
            Self::Depth(_) => DEPTH,
            Self::Pose(_) => POSE,
            Self::Trajectory(_) => TRAJECTORY,
            Self::Points(_) => POINTS,
            Self::Dtu => DTU,
            Self::Compat => COMPAT,
        }
    }

    /// Whether the truth of a scene suffices: depth for depth and clouds, two views for pairs, three for trajectories,
    /// a scan for DTU.
    pub fn applies(&self, scene: &Scene<'_>) -> bool {
        let depth = scene.truth.iter().any(|v| !v.depth.is_empty());
        match self {
            Self::Depth(_) | Self::Points(_) => depth,
            Self::Pose(_) => scene.truth.len() > 1,
            Self::Trajectory(_) => scene.truth.len() >= trajectory::FEWEST_VIEWS,
            Self::Dtu => scene.scan.is_some(),
            Self::Compat => scene.compat.is_some(),
        }
    }

    /// The numbers of a scene that it applies to, one for each of [`Protocol::measures`]; `None` where the truth has no
    /// such number. Errors: those of the protocol: the scene has failed.
    pub fn measure<'a>(&self, scene: &Scene<'a>) -> Result<Vec<Option<f64>>> {
        let depths = |views: &[Surface<'a>]| -> Vec<&'a [f32]> { views.iter().map(|v| v.depth).collect() };
        let poses = |views: &[Surface<'_>]| -> Vec<Mat4> { views.iter().map(|v| v.camera.extrinsic).collect() };
        let all = |values: &[f64]| values.iter().map(|v| Some(*v)).collect();
        Ok(match self {
            Self::Depth(p) => {
                let m = p.measure(&depths(scene.predicted), &depths(scene.truth))?;
                all(&[m.abs_rel, m.delta1, m.delta2, m.delta3, m.rmse])
            }
            Self::Pose(p) => {
                let m = p.measure(&poses(scene.predicted), &poses(scene.truth))?;
                let directed = |v: f64| (m.pairs > m.undirected).then_some(v);
                let angles =
                    [Some(m.rotation.0), Some(m.rotation.1), directed(m.translation.0), directed(m.translation.1)];
                let shares = m.auc.iter().chain(&m.rra).map(|(_, v)| Some(*v));
                angles.into_iter().chain(shares).chain(m.rta.iter().map(|(_, v)| directed(*v))).collect()
            }
            Self::Trajectory(p) => {
                let m = p.measure(&poses(scene.predicted), &poses(scene.truth))?;
                all(&[m.rmse, m.relative])
            }
            Self::Points(p) => {
                let m = p.measure(scene.predicted, scene.truth, scene.threshold, scene.seed)?;
                all(&[m.accuracy.0, m.completeness.0, m.chamfer, m.precision, m.recall, m.f_score])
            }
            Self::Dtu => {
                let scan = scene.scan.ok_or_else(|| Error::usage("eval.dtu", "the scene has no scan"))?;
                let fit = Similarity::of_cameras(&poses(scene.predicted), &poses(scene.truth))?;
                let mut cloud = points::cloud(scene.predicted);
                points::draw(&mut cloud, MAX_DTU_POINTS, scene.seed);
                cloud.iter_mut().for_each(|p| *p = fit.apply(*p));
                let m = scan.measure(&cloud, scene.seed)?;
                all(&[m.accuracy, m.completeness, m.overall])
            }
            Self::Compat => {
                let (predicted, truth) =
                    scene.compat.ok_or_else(|| Error::usage("eval.compat", "the scene has no compatible truth"))?;
                let m = compat::measure(predicted, truth, scene.seed);
                let [d1, d2, d3] = m.delta;
                vec![m.abs_rel, d1, d2, d3, m.rmse, m.rot_err_deg, m.trans_err, m.chamfer, m.fscore_5cm]
            }
        })
    }

    /// What stands beside a table of it, a sentence each.
    pub fn notes(&self, threshold: f64) -> Vec<String> {
        match self {
            Self::Points(_) => vec![format!(
                "distances are in units of the median true depth of the scene, the F-score is at {threshold} of them"
            )],
            Self::Dtu => vec![format!(
                "similarity from cameras, all pixels, thinned to {} mm, distances below {} mm; a failed scan counts {} mm",
                dtu::DENSITY,
                dtu::CUT,
                dtu::CUT
            )],
            Self::Compat => {
                let faults = compat::FAULTS.iter().map(|f| format!("fault repeated: {f}"));
                faults.chain(compat::DIFFERENCES.iter().map(|d| format!("not repeated: {d}"))).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Camera, IDENTITY, rigid};

    #[test]
    fn names_are_unique_and_found() {
        let all = Protocol::all();
        for protocol in &all {
            assert_eq!(Protocol::named(protocol.name()).unwrap(), [*protocol]);
        }
        assert_eq!(Protocol::named("standard").unwrap().len(), GROUPS[0].1.len());
        assert_eq!(Protocol::named("pose").unwrap().len(), pose::PROTOCOLS.len());
        assert_eq!(Protocol::named("all").unwrap(), all);
        assert!(Protocol::named("auc").unwrap_err().to_string().contains("lite3r-compat"));
    }

    #[test]
    fn every_protocol_gives_its_measures_on_an_exact_prediction() {
        let depth: Vec<f32> = (0..400).map(|i| 2.0 + (i % 7) as f32 / 4.0).collect();
        let k = [[20.0, 0.0, 10.0], [0.0, 20.0, 10.0], [0.0, 0.0, 1.0]];
        let poses = [IDENTITY, rigid(&crate::geometry::rotation(&IDENTITY), [0.5, 0.0, 0.0]), {
            rigid(&crate::geometry::rotation(&IDENTITY), [0.0, 0.7, 0.1])
        }];
        let views =
            poses.map(|extrinsic| Surface { camera: Camera { extrinsic, intrinsic: k }, width: 20, depth: &depth });
        let compat = (
            compat::Predicted {
                extrinsics: poses.to_vec(),
                intrinsics: vec![k; 3],
                depths: vec![depth.clone(); 3],
                da3: false,
            },
            compat::Truth::new(
                &poses.map(|extrinsic| compat::View { extrinsic, intrinsic: k, depth: &depth, range: &[] }),
                20,
            ),
        );
        let scan = dtu::Reference {
            bounds: [[-9.0; 3], [9.0; 3]],
            resolution: 1.0,
            shape: [19; 3],
            observed: vec![true; 19 * 19 * 19],
            plane: [0.0, 0.0, 0.0, 1.0],
            surface: points::cloud(&views),
        };
        let scene = Scene {
            predicted: &views,
            truth: &views,
            scan: Some(&scan),
            compat: Some(&compat),
            threshold: 0.05,
            seed: 0,
        };
        for protocol in Protocol::all() {
            assert!(protocol.applies(&scene));
            let values = protocol.measure(&scene).unwrap();
            assert_eq!(values.len(), protocol.measures().len());
            for (measure, value) in protocol.measures().iter().zip(values) {
                let best = if matches!(measure.worst, Worst::Is(0.0)) { 1.0 } else { 0.0 };
                // Thinning to 0.2 mm leaves distances, and the imitated numbers have ideals of their own.
                if protocol.name() != dtu::PROTOCOL && protocol.name() != compat::PROTOCOL {
                    assert!((value.unwrap() - best).abs() < 1e-6, "{} {measure:?}: {value:?}", protocol.name());
                }
            }
        }
        let bare = views.map(|v| Surface { depth: &[], ..v });
        let posed = Scene { truth: &bare[..2], scan: None, compat: None, ..scene };
        let applying: Vec<&str> = Protocol::all().into_iter().filter(|p| p.applies(&posed)).map(|p| p.name()).collect();
        assert_eq!(applying, pose::PROTOCOLS.map(|p| p.name));
    }
}
