//! `gelu`: x·Φ(x), by the error function or by its approximation with tanh.

use super::{Embedded, Outcome, patterns, replace};
use crate::{
    graph::Graph,
    ops::{Gelu, gelu::Approximate},
    passes::{Effect, Options, Pass, PassError, Report},
    patch::Patch,
};

/// The pass.
pub const RECOGNIZE_GELU: Pass =
    Pass { name: "gelu", law: "x·(1 + erf(x/√2))/2 is gelu(x)", effect: Effect::Reassociates, run };

pub(super) static PATTERNS: Embedded = patterns!("gelu");

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    replace(graph, "gelu", &PATTERNS, |graph, found, _| {
        let approximate = if found.pattern.starts_with("gelu_tanh") { Approximate::Tanh } else { Approximate::None };
        let mut patch = Patch::new(graph, "gelu", found.root);
        let new = patch.wire(Gelu { approximate }, &[found.value("x")])?;
        patch.shunt(found.root, new)?;
        patch.apply();
        Ok(Outcome::Replaced)
    })
}
