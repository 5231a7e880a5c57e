//! `merge_heads`: heads side by side again, [B, H, N, D] → [B, N, H·D], whatever shape the rows take then.

use super::{Embedded, Outcome, patterns, replace};
use crate::{
    graph::Graph,
    ops::{MergeHeads, Reshape},
    passes::{Effect, Options, Pass, PassError, Report},
    patch::Patch,
};

/// The pass.
pub const RECOGNIZE_MERGE_HEADS: Pass = Pass {
    name: "merge_heads",
    law: "heads moved behind the tokens and joined are one merge",
    effect: Effect::Exact,
    run,
};

pub(super) static PATTERNS: Embedded = patterns!("merge_heads");

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    replace(graph, "merge_heads", &PATTERNS, |graph, found, _| {
        let x = found.value("x");
        let shape = graph.ty(found.root).shape.clone();
        let [_, heads, _, d] = &graph.ty(x).shape[..] else { return Ok(Outcome::Unrelated) };
        if shape.last() != Some(&(heads.clone() * d.clone())) {
            return Ok(Outcome::Unrelated);
        }
        let mut patch = Patch::new(graph, "merge_heads", found.root);
        let mut new = patch.wire(MergeHeads {}, &[x])?;
        if patch.graph().ty(new).shape != shape {
            new = patch.wire(Reshape { shape }, &[new])?;
        }
        patch.shunt(found.root, new)?;
        patch.apply();
        Ok(Outcome::Replaced)
    })
}
