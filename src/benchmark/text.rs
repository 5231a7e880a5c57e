//! A report as text: every number beside the name of its protocol.

use std::fmt::Write;

use super::report::{Line, Notes, Report, Run, Seeds, Table};
use crate::eval::Interval;

impl Report {
    /// The tables as text: every number beside the name of its protocol.
    pub fn text(&self) -> String {
        let mut out = format!("{}, seed {}\n", self.data, self.seed);
        self.about.iter().for_each(|line| wrap(&mut out, line));
        out.push('\n');
        self.print_costs(&mut out);
        for (index, run) in self.runs.iter().enumerate() {
            let (height, width) = run.size;
            let views: std::collections::BTreeSet<usize> = run.samples.iter().map(|s| s.views.len()).collect();
            let views: Vec<String> = views.iter().map(usize::to_string).collect();
            let _ = write!(
                out,
                "\n{} ({}), {} samples of {} views, {height}x{width} by {}",
                run.plan,
                run.target,
                run.samples.len() / run.costs.len().max(1),
                views.join(" and "),
                run.preprocess,
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

    /// What every plan costs, and the ratio of times to the first.
    fn print_costs(&self, out: &mut String) {
        let Some(first) = self.runs.first().and_then(|run| run.costs.first()) else { return };
        let mut cells = vec![["plan", "target", "ms a run"].map(String::from).to_vec()];
        cells[0].extend([format!("times {}", first.plan), "a run allocates".into(), "weights".into()]);
        for (run, cost) in self.runs.iter().flat_map(|run| run.costs.iter().map(move |cost| (run, cost))) {
            cells.push(vec![
                cost.plan.clone(),
                run.target.clone(),
                number(1e3 * cost.seconds),
                format!("{:.3}", cost.seconds / first.seconds),
                mebibytes(cost.run_bytes),
                mebibytes(cost.weight_bytes),
            ]);
        }
        columns(out, &cells);
    }

    fn print_rows(&self, out: &mut String, index: usize, table: &Table) {
        let run = &self.runs[index];
        let (paired, seeds) = (index > 0 && table.scenes == "all", run.costs.len() > 1);
        let mut cells = vec![["protocol", "measure", "mean", "95 % interval"].map(String::from).to_vec()];
        if seeds {
            cells[0].push(format!("over {} seeds", run.costs.len()));
        }
        cells[0].extend(["scenes", "failed"].map(String::from));
        if paired {
            cells[0].push(format!("times {}", self.runs[0].plan));
        }
        for Line { row, seeds: spread } in &table.rows {
            let Interval { estimate, low, high } = row.mean;
            let failed = match row.failure_counts {
                Some(worst) => format!("{} (each counts {})", row.failed, number(worst)),
                None if row.failed > 0 => format!("{} (left out)", row.failed),
                None => "0".into(),
            };
            let interval = format!("{} .. {}", number(low), number(high));
            let mut line = vec![row.protocol.into(), row.measure.into(), number(estimate), interval];
            line.extend(seeds.then(|| spread.as_ref().map_or("none".into(), spread_of)));
            line.extend([row.scenes.to_string(), failed]);
            let ratio = paired.then(|| self.ratio(index, row.protocol, row.measure)).flatten();
            line.extend(ratio.map(|r| format!("{:.3} ({:.3} .. {:.3})", r.estimate, r.low, r.high)));
            cells.push(line);
        }
        columns(out, &cells);
    }

    /// What stands beside the protocols that gave numbers; protocols that say the same say it once.
    fn print_notes(&self, out: &mut String) {
        let has_rows =
            |n: &&Notes| self.runs.iter().any(|run| run.tables[0].rows.iter().any(|r| r.row.protocol == n.protocol));
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

/// Cells in columns as wide as the widest of them.
fn columns(out: &mut String, cells: &[Vec<String>]) {
    let width = |i: usize| cells.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    for row in cells {
        let line: Vec<String> = row.iter().enumerate().map(|(i, cell)| format!("{cell:<w$}", w = width(i))).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
}

/// The deviation over seeds, and the least and the most.
fn spread_of(seeds: &Seeds) -> String {
    let (low, high) =
        seeds.estimates.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), e| (l.min(*e), h.max(*e)));
    format!("± {} ({} .. {})", number(seeds.deviation), number(low), number(high))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn failures(out: &mut String, run: &Run) {
    let mut lines = Vec::new();
    for sample in &run.samples {
        for result in &sample.results {
            if let Some(why) = &result.failed {
                let plan =
                    if run.costs.len() > 1 { format!("{}, ", run.costs[sample.plan].plan) } else { String::new() };
                lines.push(format!("{plan}{}, {}: {why}", sample.scene, result.protocol));
            }
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(out, "\nfailed:");
        lines.iter().for_each(|line| wrap(out, line));
    }
}

/// Four significant digits up to the ninth decimal, or what is not finite.
fn number(v: f64) -> String {
    match v.is_finite() {
        false => "none".into(),
        true if v.abs() < 5e-10 => "0".into(),
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

    #[test]
    fn numbers_have_four_digits() {
        assert_eq!([0.0930123, 6.7412, 180.0, 0.0, 12345.6].map(number), ["0.09301", "6.741", "180.0", "0", "12346"]);
        assert_eq!([f64::INFINITY, 3e-17].map(number), ["none", "0"]);
    }
}
