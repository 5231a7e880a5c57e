//! What an evaluation has found: per sample, per scene and over all, with everything that made the numbers.

use serde::Serialize;

use super::{Measured, Options, Pick};
use crate::eval::{
    Interval, Protocol, bootstrap,
    depth::median,
    summary::{Outcome, Row, summarise},
};

/// Everything that `lite3r eval --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The data, as the command line names it.
    pub data: String,
    /// Sentences that must stand beside its numbers.
    pub about: Vec<String>,
    /// Draws views, points and resamples.
    pub seed: u64,
    /// The samples, frozen: `--samples` takes them back.
    pub samples: Vec<Pick>,
    /// What each protocol's numbers need beside them.
    pub notes: Vec<Notes>,
    /// One a plan, or one for several that differ by the seed of their training alone.
    pub runs: Vec<Run>,
}

/// What must be said about a protocol.
#[derive(Clone, Debug, Serialize)]
pub struct Notes {
    /// Its name.
    pub protocol: &'static str,
    /// A sentence each.
    pub notes: Vec<String>,
}

/// One plan over all samples, or several that are one but for the seed of their training.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// As the command line names it, or them.
    pub plan: String,
    /// What each plan costs.
    pub costs: Vec<Cost>,
    /// The target that it was made for.
    pub target: String,
    /// How pictures became frames.
    pub preprocess: String,
    /// Height and width of the frames.
    pub size: (usize, usize),
    /// Over all scenes, and over each group of scenes where there are any.
    pub tables: Vec<Table>,
    /// One a sample; those of one plan after those of another.
    pub samples: Vec<SampleReport>,
}

/// What a plan costs on its target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The plan.
    pub plan: String,
    /// Median wall time of a run, inputs and outputs included.
    pub seconds: f64,
    /// What a run allocates: the arena, and the tensors that it gives back.
    pub run_bytes: u64,
    /// What all weights take.
    pub weight_bytes: u64,
}

/// Rows over some of the scenes.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// `all`, or what these scenes have in common.
    pub scenes: String,
    /// By protocol and measure.
    pub rows: Vec<Line>,
}

/// A number over scenes; of several plans, over their mean in each scene.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Of all plans.
    #[serde(flatten)]
    pub row: Row,
    /// What it is for each, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Seeds>,
}

/// One number of plans that differ by the seed of their training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seeds {
    /// The mean over scenes, one a plan.
    pub estimates: Vec<f64>,
    /// Their standard deviation, as of a sample: over one less than there are.
    pub deviation: f64,
}

/// One sample.
#[derive(Clone, Debug, Serialize)]
pub struct SampleReport {
    /// Which of the plans.
    pub plan: usize,
    /// Its scene.
    pub scene: String,
    /// What must be known about the scene.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The views' numbers.
    pub views: Vec<u32>,
    /// By protocol.
    pub results: Vec<Result>,
    /// Share of the pixels with a true depth that the model saw.
    pub coverage: Option<f64>,
    /// Wall time of the run.
    pub seconds: f64,
}

/// One protocol on one sample.
#[derive(Clone, Debug, Serialize)]
pub struct Result {
    /// Its name.
    pub protocol: &'static str,
    /// By measure; empty where it failed.
    pub values: Vec<(&'static str, Option<f64>)>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A sample of a run, with the scene that it belongs to.
pub struct Entry<'a> {
    /// Which of the plans.
    pub plan: usize,
    /// The scene's index and what must be known about it.
    pub scene: (usize, Option<&'a str>),
    /// What was drawn.
    pub pick: &'a Pick,
    /// What was found.
    pub measured: Measured,
}

impl Run {
    /// Summarises the samples of plans, each with what its weights take: the same samples for every plan, those of one after
    /// those of another.
    pub fn new(
        plans: &[(String, u64)],
        target: String,
        frames: (String, (usize, usize)),
        entries: &[Entry<'_>],
        options: &Options,
    ) -> Self {
        let mut groups: Vec<&str> = Vec::new();
        for group in entries.iter().filter_map(|e| e.scene.1) {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups.sort_unstable();
        let all = Table { scenes: "all".into(), rows: rows(entries, options, |_| true) };
        let some = groups.iter().map(|group| Table {
            scenes: group.to_string(),
            rows: rows(entries, options, |e| e.scene.1 == Some(group)),
        });
        let tables = std::iter::once(all).chain(some).collect();
        let samples = entries.iter().map(|entry| SampleReport {
            plan: entry.plan,
            scene: entry.pick.scene.clone(),
            group: entry.scene.1.map(String::from),
            views: entry.pick.views.clone(),
            results: results(&entry.measured, options),
            coverage: entry.measured.coverage,
            seconds: entry.measured.seconds,
        });
        let cost = |(i, (plan, weight_bytes)): (usize, &(String, u64))| {
            let own = || entries.iter().filter(|e| e.plan == i).map(|e| &e.measured);
            Cost {
                plan: plan.clone(),
                seconds: median(own().map(|m| m.seconds)),
                run_bytes: own().map(|m| m.run_bytes).max().unwrap_or(0),
                weight_bytes: *weight_bytes,
            }
        };
        let names: Vec<&str> = plans.iter().map(|(plan, _)| plan.as_str()).collect();
        Self {
            plan: names.join(","),
            costs: plans.iter().enumerate().map(cost).collect(),
            target,
            preprocess: frames.0,
            size: frames.1,
            tables,
            samples: samples.collect(),
        }
    }

    /// A measure of every sample, a mean over the plans; `None` where one has no number.
    fn numbers(&self, protocol: &str, measure: &str) -> Vec<Option<f64>> {
        let value = |s: &SampleReport| {
            let result = s.results.iter().find(|r| r.protocol == protocol)?;
            result.values.iter().find(|(m, _)| *m == measure)?.1
        };
        let plans = self.costs.len().max(1);
        let count = self.samples.len() / plans;
        let mean = |i: usize| {
            let sum: Option<f64> = (0..plans).map(|plan| value(&self.samples[plan * count + i])).sum();
            Some(sum? / plans as f64)
        };
        (0..count).map(mean).collect()
    }
}

fn rows(entries: &[Entry<'_>], options: &Options, wanted: impl Fn(&Entry<'_>) -> bool) -> Vec<Line> {
    let plans = entries.iter().map(|e| e.plan + 1).max().unwrap_or(0);
    let of = |(i, protocol): (usize, &Protocol)| {
        let rows = |own: &dyn Fn(&Entry<'_>) -> bool| {
            let chosen = entries.iter().filter(|e| wanted(e) && own(e));
            let outcomes: Vec<(usize, &Outcome)> = chosen.map(|e| (e.scene.0, &e.measured.outcomes[i])).collect();
            summarise(protocol, &outcomes, options.seed)
        };
        let each: Vec<Vec<Row>> = (0..plans).filter(|_| plans > 1).map(|plan| rows(&|e| e.plan == plan)).collect();
        let line = |row: Row| {
            let of_plan = |rows: &Vec<Row>| Some(rows.iter().find(|r| r.measure == row.measure)?.mean.estimate);
            let estimates: Option<Vec<f64>> = each.iter().map(of_plan).collect();
            let seeds = estimates.filter(|_| plans > 1).map(Seeds::new);
            Line { row, seeds }
        };
        rows(&|_| true).into_iter().map(line).collect::<Vec<_>>()
    };
    options.protocols.iter().enumerate().flat_map(of).collect()
}

impl Seeds {
    fn new(estimates: Vec<f64>) -> Self {
        let count = estimates.len() as f64;
        let mean = estimates.iter().sum::<f64>() / count;
        let squares: f64 = estimates.iter().map(|e| (e - mean).powi(2)).sum();
        Self { deviation: (squares / (count - 1.0).max(1.0)).sqrt(), estimates }
    }
}

fn results(measured: &Measured, options: &Options) -> Vec<Result> {
    let result = |(protocol, outcome): (&Protocol, &Outcome)| {
        let (values, failed) = match outcome {
            Outcome::Values(values) => {
                (protocol.measures().iter().map(|m| m.name).zip(values.iter().copied()).collect(), None)
            }
            Outcome::Failed(why) => (Vec::new(), Some(why.clone())),
            Outcome::NotApplicable => return None,
        };
        Some(Result { protocol: protocol.name(), values, failed })
    };
    options.protocols.iter().zip(&measured.outcomes).filter_map(result).collect()
}

impl Report {
    /// The ratio of the means of a measure on the same samples, of one plan to the first; `None` where a sample of
    /// either has no number.
    pub fn ratio(&self, run: usize, protocol: &str, measure: &str) -> Option<Interval> {
        let complete = |run: &Run| run.numbers(protocol, measure).into_iter().collect::<Option<Vec<f64>>>();
        let (above, below) = (complete(&self.runs[run])?, complete(&self.runs[0])?);
        bootstrap::ratio(&above, &below, self.seed)
            .ok()
            .filter(|r| [r.estimate, r.low, r.high].iter().all(|v| v.is_finite()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str) -> Options {
        Options { protocols: Protocol::named(name).unwrap(), preprocess: None, threshold: 0.05, seed: 3 }
    }

    fn depth(abs_rel: f64) -> Outcome {
        Outcome::Values([abs_rel, 0.9, 1.0, 1.0, 0.2].map(Some).to_vec())
    }

    fn run(plan: &str, outcomes: Vec<Outcome>) -> Run {
        runs(&[(plan, outcomes)])
    }

    /// Plans that differ by their seed, with their outcomes.
    fn runs(plans: &[(&str, Vec<Outcome>)]) -> Run {
        let picks: Vec<Pick> =
            (0..plans[0].1.len()).map(|i| Pick { scene: format!("s{i}"), views: vec![0, 4] }).collect();
        let entry = |plan: usize, i: usize, outcome: &Outcome| Entry {
            plan,
            scene: (i, Some(if i == 0 { "training" } else { "unseen" })),
            pick: &picks[i],
            measured: Measured {
                outcomes: vec![outcome.clone()],
                coverage: Some(0.5),
                seconds: 0.25 * (plan + 1) as f64,
                run_bytes: (3 << 20) + plan as u64,
            },
        };
        let of_plan = |(plan, (_, outcomes)): (usize, &(&str, Vec<Outcome>))| {
            outcomes.iter().enumerate().map(|(i, outcome)| entry(plan, i, outcome)).collect::<Vec<_>>()
        };
        let entries: Vec<Entry<'_>> = plans.iter().enumerate().flat_map(of_plan).collect();
        let names: Vec<(String, u64)> = plans.iter().map(|(name, _)| (name.to_string(), 5 << 20)).collect();
        Run::new(&names, "cpu".into(), ("vggt_crop".into(), (28, 42)), &entries, &options("depth/none"))
    }

    fn report(runs: Vec<Run>) -> Report {
        let samples = runs[0].samples.iter().map(|s| Pick { scene: s.scene.clone(), views: s.views.clone() }).collect();
        let notes = vec![Notes { protocol: "depth/none", notes: vec!["one two ".repeat(20)] }];
        Report { data: "known".into(), about: vec!["units".into()], seed: 3, samples, notes, runs }
    }

    #[test]
    fn numbers_stand_beside_their_protocol() {
        let report =
            report(vec![run("a.l3r", vec![depth(0.1), depth(0.3)]), run("b.l3r", vec![depth(0.2), depth(0.6)])]);
        let text = report.text();
        insta::assert_snapshot!("report", text);
        assert!(text.lines().filter(|l| l.contains("AbsRel")).all(|l| l.starts_with("depth/none")));
        assert_eq!(report.ratio(1, "depth/none", "AbsRel").unwrap().low, 2.0);
        assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
    }

    #[test]
    fn failures_are_told_and_counted() {
        let report = report(vec![run("a.l3r", vec![depth(0.1), Outcome::Failed("no cameras".into())])]);
        let text = report.text();
        assert!(text.contains("1 (each counts 1.000)") && text.contains("s1, depth/none: no cameras"), "{text}");
        assert!(report.ratio(0, "depth/none", "AbsRel").is_none(), "there is nothing to pair");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["runs"][0]["samples"][1]["results"][0]["failed"], "no cameras");
        assert_eq!(json["samples"][1]["views"], serde_json::json!([0, 4]));
        assert_eq!(json["runs"][0]["tables"][0]["rows"][0]["failed"], 1);
        assert_eq!(json["runs"][0]["tables"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn seeds_of_a_training_are_one_row_with_their_spread() {
        let of = |a: f64, b: f64| vec![depth(a), depth(b)];
        let lite = runs(&[("l.0.l3r", of(0.2, 0.6)), ("l.1.l3r", of(0.1, 0.5)), ("l.2.l3r", of(0.3, 0.4))]);
        let report = report(vec![run("a.l3r", of(0.1, 0.3)), lite]);
        insta::assert_snapshot!("seeds", report.text());
        let line = &report.runs[1].tables[0].rows[0];
        assert!((line.row.mean.estimate - 0.35).abs() < 1e-12 && (line.row.scenes, line.row.samples) == (2, 6));
        // In each scene the mean over seeds counts: 0.2 and 0.5.
        assert!((line.row.mean.low - 0.2).abs() < 1e-12 && (line.row.mean.high - 0.5).abs() < 1e-12);
        let seeds = line.seeds.clone().unwrap();
        for (got, want) in seeds.estimates.iter().zip([0.4, 0.3, 0.35]) {
            assert!((got - want).abs() < 1e-12);
        }
        assert!((seeds.deviation - 0.05).abs() < 1e-12);
        let ratio = report.ratio(1, "depth/none", "AbsRel").unwrap();
        assert!((ratio.estimate - 1.75).abs() < 1e-12);
        assert_eq!((report.runs[1].costs[2].seconds, report.runs[1].costs[2].run_bytes), (0.75, (3 << 20) + 2));
    }
}
