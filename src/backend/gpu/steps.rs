//! The steps of a plan on a device: what each launches, and errors that name it.

use crate::{
    Error, Kind, Result,
    plan::{ALIAS, Entry, Plan, Step},
};

/// Launches of a step and the bytes of scratch memory that they share, or why there are none.
pub type Lowering<L> = std::result::Result<(Vec<L>, usize), String>;

/// What every step of every entry launches, by `lower`. All steps that cannot be launched are reported. Errors:
/// `plan.kernel`.
pub fn lowered<L>(plan: &Plan, lower: &dyn Fn(&Entry, &Step) -> Lowering<L>) -> Result<Vec<Vec<Vec<L>>>> {
    let mut problems = Vec::new();
    let mut entries = Vec::new();
    for entry in plan.entries() {
        let mut steps = Vec::with_capacity(entry.steps.len());
        for step in &entry.steps {
            if step.kernel == ALIAS {
                steps.push(Vec::new());
                continue;
            }
            let lowered = lower(entry, step).and_then(|(launches, scratch)| {
                let given = step.scratch.map_or(0, |s| s.bytes);
                match scratch as u64 {
                    needs if needs > given => Err(format!("needs {needs} bytes of scratch, not {given}")),
                    _ => Ok(launches),
                }
            });
            match lowered {
                Ok(launches) => steps.push(launches),
                Err(problem) => problems.push(format!("{} at `{}`: {problem}", step.op.name(), step.origin)),
            }
        }
        entries.push(steps);
    }
    match problems.is_empty() {
        true => Ok(entries),
        false => Err(Error::all(Kind::BadFile, "plan.kernel", problems)),
    }
}

/// An error of a step with the operation and where it comes from.
pub fn at(step: &Step, mut error: Error) -> Error {
    let place = format!("{} at `{}` ({})", step.op.name(), step.origin, step.kernel);
    error.problems.iter_mut().for_each(|p| *p = format!("{place}: {p}"));
    error
}
