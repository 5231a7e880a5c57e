//! What a compilation says about itself.

use std::fmt::Write;

use lite3r_ir::passes::Step;

use super::{Compiled, options::Requirement};
use crate::{Error, Kind, Result};

/// How many of `name` were recognised, over all passes before and after binding, in the first entry; `None` if no pass
/// counts it.
pub fn count(compiled: &Compiled, name: &str) -> Option<usize> {
    let first = compiled.entries.first();
    if name == "attention" {
        return first.map(|e| e.inventory.rows.len());
    }
    let kinds = first.into_iter().flat_map(|e| e.inventory.counts());
    if let Some((_, n)) = kinds.into_iter().find(|(kind, _)| kind.word() == name) {
        return Some(n);
    }
    let mut total = None;
    for step in steps(compiled) {
        for (_, n) in step.report.counts.iter().filter(|(what, _)| what == name) {
            *total.get_or_insert(0) += n;
        }
    }
    total
}

fn steps(compiled: &Compiled) -> impl Iterator<Item = &Step> {
    compiled.recognition.iter().chain(compiled.entries.first().into_iter().flat_map(|e| &e.steps))
}

/// Checks `--require`. Errors: `compile.require`, every count that differs, with what nearly matched.
pub fn require(compiled: &Compiled, required: &[Requirement]) -> Result<()> {
    let mut problems = Vec::new();
    for Requirement { name, count: wanted } in required {
        match count(compiled, name) {
            Some(found) if found == *wanted => {}
            Some(found) => {
                let notes = steps(compiled).flat_map(|s| &s.report.notes).filter(|n| n.contains(name.as_str()));
                let near: String = notes.take(5).fold(String::new(), |text, note| text + "; " + note);
                problems.push(format!("{found} {name} instead of {wanted}{near}"));
            }
            None => problems.push(format!("no pass counts `{name}`")),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Unsupported, "compile.require", problems)) }
}

/// What was recognised and rewritten, a line a pass that did something.
pub fn summary(compiled: &Compiled) -> String {
    let mut text = String::new();
    for step in steps(compiled).filter(|s| s.report.total() > 0) {
        let counts: Vec<String> =
            step.report.counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        let _ = writeln!(text, "  {:<22} {}", step.pass, counts.join(", "));
    }
    text
}

/// What nearly matched and why not.
pub fn notes(compiled: &Compiled) -> String {
    let mut text = String::new();
    for step in steps(compiled) {
        for note in &step.report.notes {
            let _ = writeln!(text, "  {}: {note}", step.pass);
        }
    }
    text
}

/// How long every pass took.
pub fn times(compiled: &Compiled) -> String {
    let mut text = String::new();
    let mut total = 0.0;
    for step in steps(compiled) {
        let ms = step.time.as_secs_f64() * 1e3;
        total += ms;
        let _ = writeln!(text, "  {:<22} {ms:>9.1} ms  {:>6} nodes", step.pass, step.nodes);
    }
    let _ = writeln!(text, "  {:<22} {total:>9.1} ms", "all");
    text
}
