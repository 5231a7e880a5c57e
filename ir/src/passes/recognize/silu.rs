//! `silu`: x times its own sigmoid.

use super::{Embedded, Outcome, patterns, replace};
use crate::{
    graph::Graph,
    ops::Silu,
    passes::{Effect, Options, Pass, PassError, Report},
    patch::Patch,
};

/// The pass.
pub const RECOGNIZE_SILU: Pass =
    Pass { name: "silu", law: "x·sigmoid(x) is silu(x)", effect: Effect::Reassociates, run };

pub(super) static PATTERNS: Embedded = patterns!("silu");

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    replace(graph, "silu", &PATTERNS, |graph, found, _| {
        let mut patch = Patch::new(graph, "silu", found.root);
        let new = patch.wire(Silu {}, &[found.value("x")])?;
        patch.shunt(found.root, new)?;
        patch.apply();
        Ok(Outcome::Replaced)
    })
}
