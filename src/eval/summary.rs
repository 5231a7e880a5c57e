//! Means over scenes with intervals, in which a failure counts as one.

use serde::Serialize;

use super::{
    Interval, bootstrap,
    protocol::{Measure, Protocol, Worst},
};

/// What a protocol says about one sample of a scene.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Its numbers, in the order of [`Protocol::measures`]; `None` where the truth has none.
    Values(Vec<Option<f64>>),
    /// It could not be measured, and why.
    Failed(String),
    /// The truth does not suffice for the protocol.
    NotApplicable,
}

/// One number of a protocol over all scenes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The protocol that made the number.
    pub protocol: &'static str,
    /// What it measures.
    pub measure: &'static str,
    /// The mean over scenes; each scene is the mean over its samples. Not finite, and null in JSON, where all samples
    /// failed and the measure has no end of range.
    pub mean: Interval,
    /// Scenes in the mean.
    pub scenes: usize,
    /// Samples in the mean.
    pub samples: usize,
    /// Samples that failed.
    pub failed: usize,
    /// What each failure counts; `None` where nothing failed, or where failures are left out.
    pub failure_counts: Option<f64>,
}

/// Summarises the outcomes of one protocol: (scene, outcome) of every sample. Measures without any number have no row.
pub fn summarise(protocol: &Protocol, outcomes: &[(usize, &Outcome)], seed: u64) -> Vec<Row> {
    let measures = protocol.measures().iter().enumerate();
    measures.filter_map(|(i, measure)| summarise_one(protocol.name(), i, measure, outcomes, seed)).collect()
}

fn summarise_one(
    protocol: &'static str,
    index: usize,
    measure: &Measure,
    outcomes: &[(usize, &Outcome)],
    seed: u64,
) -> Option<Row> {
    // (scene, number), without a number where the sample failed.
    let mut numbers: Vec<(usize, Option<f64>)> = Vec::new();
    for (scene, outcome) in outcomes {
        match outcome {
            Outcome::Values(values) => match values[index] {
                Some(v) => numbers.push((*scene, v.is_finite().then_some(v))),
                None if measure.worst == Worst::LeftOut => numbers.push((*scene, None)),
                None => {}
            },
            Outcome::Failed(_) => numbers.push((*scene, None)),
            Outcome::NotApplicable => {}
        }
    }
    let failed = numbers.iter().filter(|(_, v)| v.is_none()).count();
    let observed = numbers.iter().filter_map(|(_, v)| *v).reduce(f64::max);
    let worst = match (measure.worst, observed) {
        (Worst::Is(worst), _) => Some(worst),
        (Worst::AtLeast(least), Some(observed)) => Some(observed.max(least)),
        (Worst::AtLeast(least), None) => Some(if least > 0.0 { least } else { f64::INFINITY }),
        (Worst::LeftOut, _) => None,
    };
    let mut scenes: Vec<(usize, f64, f64)> = Vec::new();
    let mut samples = 0;
    for (scene, value) in numbers {
        let Some(value) = value.or(worst) else { continue };
        samples += 1;
        match scenes.iter_mut().find(|(s, ..)| *s == scene) {
            Some((_, sum, n)) => (*sum, *n) = (*sum + value, *n + 1.0),
            None => scenes.push((scene, value, 1.0)),
        }
    }
    let means: Vec<f64> = scenes.iter().map(|(_, sum, n)| sum / n).collect();
    let mean = bootstrap::mean(&means, seed).ok()?;
    let failure_counts = worst.filter(|_| failed > 0);
    Some(Row { protocol, measure: measure.name, mean, scenes: means.len(), samples, failed, failure_counts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(name: &str, outcomes: &[(usize, Outcome)]) -> Vec<Row> {
        let outcomes: Vec<(usize, &Outcome)> = outcomes.iter().map(|(s, o)| (*s, o)).collect();
        summarise(&Protocol::named(name).unwrap()[0], &outcomes, 1)
    }

    fn depth(abs_rel: f64, delta: f64) -> Outcome {
        Outcome::Values([abs_rel, delta, 1.0, 1.0, 0.2].map(Some).to_vec())
    }

    #[test]
    fn a_failure_counts_the_worst() {
        let failed = || Outcome::Failed("no depth".into());
        let all = rows("depth/none", &[(0, depth(0.1, 0.9)), (1, depth(0.3, 0.7)), (2, failed())]);
        let (abs_rel, delta, rmse) = (&all[0], &all[1], &all[4]);
        // AbsRel of nothing is one; shares end at zero; a root mean square takes the worst that was seen.
        assert!((abs_rel.mean.estimate - 1.4 / 3.0).abs() < 1e-12);
        assert!((delta.mean.estimate - 1.6 / 3.0).abs() < 1e-12 && (rmse.mean.estimate - 0.2).abs() < 1e-12);
        assert_eq!((abs_rel.failed, abs_rel.scenes, abs_rel.failure_counts), (1, 3, Some(1.0)));
        let worse = rows("depth/none", &[(0, depth(2.5, 0.0)), (1, failed())]);
        assert_eq!((worse[0].mean.estimate, worse[0].failure_counts), (2.5, Some(2.5)));
        let lost = rows("depth/none", &[(0, failed()), (1, failed())]);
        assert_eq!((lost[0].mean.estimate, lost[1].mean.estimate), (1.0, 0.0));
        assert!(lost[4].mean.estimate.is_infinite());
        assert_eq!(serde_json::to_value(&lost[4]).unwrap()["mean"]["estimate"], serde_json::Value::Null);
    }

    #[test]
    fn the_imitated_code_leaves_failures_out() {
        let values = |v: Option<f64>| Outcome::Values(vec![v; 9]);
        let all = rows(
            "lite3r-compat",
            &[(0, values(Some(0.2))), (1, values(None)), (2, Outcome::Failed("x".into())), (3, values(Some(0.4)))],
        );
        assert!((all[0].mean.estimate - 0.3).abs() < 1e-12);
        assert_eq!((all[0].failed, all[0].scenes, all[0].failure_counts), (2, 2, None));
        assert!(rows("lite3r-compat", &[(0, values(None))]).is_empty());
    }

    #[test]
    fn scenes_weigh_the_same_whatever_their_samples() {
        let all = rows("depth/none", &[(7, depth(0.1, 1.0)), (7, depth(0.3, 1.0)), (9, depth(0.8, 1.0))]);
        assert!((all[0].mean.estimate - 0.5).abs() < 1e-12);
        assert_eq!((all[0].scenes, all[0].samples), (2, 3));
        assert!(rows("depth/none", &[(0, Outcome::NotApplicable)]).is_empty());
    }
}
