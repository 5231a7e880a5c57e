//! What an evaluation has found: per sample, per scene and over all, with everything that made the numbers.

use std::fmt::Write;

use serde::Serialize;

use super::{Measured, Options, Pick};
use crate::eval::{
    Interval, Protocol, bootstrap,
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
    /// One a plan.
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

/// One plan over all samples.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The plan.
    pub plan: String,
    /// The target that it was made for.
    pub target: String,
    /// How pictures became frames.
    pub preprocess: String,
    /// Height and width of the frames.
    pub size: (usize, usize),
    /// Over all scenes, and over each group of scenes where there are any.
    pub tables: Vec<Table>,
    /// One a sample.
    pub samples: Vec<SampleReport>,
    /// Median wall time of a run.
    pub seconds: f64,
}

/// Rows over some of the scenes.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// `all`, or what these scenes have in common.
    pub scenes: String,
    /// By protocol and measure.
    pub rows: Vec<Row>,
}

/// One sample.
#[derive(Clone, Debug, Serialize)]
pub struct SampleReport {
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
    /// The scene's index and what must be known about it.
    pub scene: (usize, Option<&'a str>),
    /// What was drawn.
    pub pick: &'a Pick,
    /// What was found.
    pub measured: Measured,
}

impl Run {
    /// Summarises the samples of a plan.
    pub fn new(
        plan: String,
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
            scene: entry.pick.scene.clone(),
            group: entry.scene.1.map(String::from),
            views: entry.pick.views.clone(),
            results: results(&entry.measured, options),
            coverage: entry.measured.coverage,
            seconds: entry.measured.seconds,
        });
        let seconds = crate::eval::depth::median(entries.iter().map(|e| e.measured.seconds));
        Self { plan, target, preprocess: frames.0, size: frames.1, tables, samples: samples.collect(), seconds }
    }

    /// (scene, number) of every sample that has one, for a measure.
    fn numbers(&self, protocol: &str, measure: &str) -> Vec<Option<f64>> {
        let value = |s: &SampleReport| {
            let result = s.results.iter().find(|r| r.protocol == protocol)?;
            result.values.iter().find(|(m, _)| *m == measure)?.1
        };
        self.samples.iter().map(value).collect()
    }
}

fn rows(entries: &[Entry<'_>], options: &Options, wanted: impl Fn(&Entry<'_>) -> bool) -> Vec<Row> {
    let entries: Vec<&Entry<'_>> = entries.iter().filter(|e| wanted(e)).collect();
    let of = |(i, protocol): (usize, &Protocol)| {
        let outcomes: Vec<(usize, &Outcome)> = entries.iter().map(|e| (e.scene.0, &e.measured.outcomes[i])).collect();
        summarise(protocol, &outcomes, options.seed)
    };
    options.protocols.iter().enumerate().flat_map(of).collect()
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

    /// The tables as text: every number beside the name of its protocol.
    pub fn text(&self) -> String {
        let mut out = format!("{}, seed {}\n", self.data, self.seed);
        self.about.iter().for_each(|line| wrap(&mut out, line));
        for (index, run) in self.runs.iter().enumerate() {
            let (height, width) = run.size;
            let views: std::collections::BTreeSet<usize> = run.samples.iter().map(|s| s.views.len()).collect();
            let views: Vec<String> = views.iter().map(usize::to_string).collect();
            let _ = write!(
                out,
                "\n{} ({}), {} samples of {} views, {height}x{width} by {}, {:.3} s a run",
                run.plan,
                run.target,
                run.samples.len(),
                views.join(" and "),
                run.preprocess,
                run.seconds
            );
            let covered: Vec<f64> = run.samples.iter().filter_map(|s| s.coverage).collect();
            if let Some(least) = covered.iter().copied().reduce(f64::min) {
                let mean = covered.iter().sum::<f64>() / covered.len() as f64;
                let _ =
                    write!(out, ", {:.1} % of the truth in the frames (least {:.1} %)", 100.0 * mean, 100.0 * least);
            }
            out.push('\n');
            for table in &run.tables {
                let _ = writeln!(out, "\n{}", heading(table));
                self.print_rows(&mut out, index, table);
            }
            failures(&mut out, run);
        }
        self.print_notes(&mut out);
        out
    }

    fn print_rows(&self, out: &mut String, index: usize, table: &Table) {
        let paired = index > 0 && table.scenes == "all";
        let mut cells =
            vec![["protocol", "measure", "mean", "95 % interval", "scenes", "failed"].map(String::from).to_vec()];
        if paired {
            cells[0].push(format!("times {}", self.runs[0].plan));
        }
        for row in &table.rows {
            let Interval { estimate, low, high } = row.mean;
            let failed = match row.failure_counts {
                Some(worst) => format!("{} (each counts {})", row.failed, number(worst)),
                None if row.failed > 0 => format!("{} (left out)", row.failed),
                None => "0".into(),
            };
            let mut line = vec![
                row.protocol.into(),
                row.measure.into(),
                number(estimate),
                format!("{} .. {}", number(low), number(high)),
                row.scenes.to_string(),
                failed,
            ];
            let ratio = paired.then(|| self.ratio(index, row.protocol, row.measure)).flatten();
            line.extend(ratio.map(|r| format!("{:.3} ({:.3} .. {:.3})", r.estimate, r.low, r.high)));
            cells.push(line);
        }
        let width = |i: usize| cells.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
        for row in &cells {
            let line: Vec<String> =
                row.iter().enumerate().map(|(i, cell)| format!("{cell:<w$}", w = width(i))).collect();
            let _ = writeln!(out, "{}", line.join("  ").trim_end());
        }
    }

    /// What stands beside the protocols that gave numbers; protocols that say the same say it once.
    fn print_notes(&self, out: &mut String) {
        let has_rows =
            |n: &&Notes| self.runs.iter().any(|run| run.tables[0].rows.iter().any(|r| r.protocol == n.protocol));
        let mut told: Vec<(Vec<&str>, &[String])> = Vec::new();
        for notes in self.notes.iter().filter(|n| !n.notes.is_empty()).filter(has_rows) {
            match told.iter_mut().find(|(_, lines)| *lines == notes.notes) {
                Some((names, _)) => names.push(notes.protocol),
                None => told.push((vec![notes.protocol], &notes.notes)),
            }
        }
        for (names, lines) in told {
            let _ = writeln!(out, "\n{}:", names.join(", "));
            lines.iter().for_each(|line| wrap(out, line));
        }
    }
}

fn heading(table: &Table) -> String {
    match table.scenes.as_str() {
        "all" => "all scenes".into(),
        group => format!("scenes: {group}"),
    }
}

fn failures(out: &mut String, run: &Run) {
    let mut lines = Vec::new();
    for sample in &run.samples {
        for result in &sample.results {
            if let Some(why) = &result.failed {
                lines.push(format!("{}, {}: {why}", sample.scene, result.protocol));
            }
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(out, "\nfailed:");
        lines.iter().for_each(|line| wrap(out, line));
    }
}

/// Four significant digits, or what is not finite.
fn number(v: f64) -> String {
    match v.is_finite() {
        false => "none".into(),
        true if v == 0.0 => "0".into(),
        true => {
            let digits = (3 - v.abs().log10().floor() as i32).clamp(0, 9) as usize;
            format!("{v:.digits$}")
        }
    }
}

/// A sentence as an item of a list, in lines of at most 110 columns.
fn wrap(out: &mut String, sentence: &str) {
    let mut line = String::from("-");
    for word in sentence.split_whitespace() {
        if line.chars().count() + word.chars().count() > 109 {
            let _ = writeln!(out, "{line}");
            line = " ".into();
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
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
        let picks: Vec<Pick> =
            (0..outcomes.len()).map(|i| Pick { scene: format!("s{i}"), views: vec![0, 4] }).collect();
        let entries: Vec<Entry<'_>> = outcomes
            .into_iter()
            .zip(&picks)
            .enumerate()
            .map(|(i, (outcome, pick))| Entry {
                scene: (i, Some(if i == 0 { "training" } else { "unseen" })),
                pick,
                measured: Measured { outcomes: vec![outcome], coverage: Some(0.5), seconds: 0.25 },
            })
            .collect();
        Run::new(plan.into(), "cpu".into(), ("vggt_crop".into(), (28, 42)), &entries, &options("depth/none"))
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
    fn numbers_have_four_digits() {
        assert_eq!([0.0930123, 6.7412, 180.0, 0.0, 12345.6].map(number), ["0.09301", "6.741", "180.0", "0", "12346"]);
        assert_eq!(number(f64::INFINITY), "none");
    }
}
