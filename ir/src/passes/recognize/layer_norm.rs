//! `layer_norm`: a normalisation that is spelled out, and the gain and bias behind one that has none.

use super::{Embedded, Outcome, decimal, patterns, replace};
use crate::{
    attr::{Attr, AttrField},
    graph::Graph,
    ops::{LayerNorm, Op, Reshape},
    passes::{Effect, Options, Pass, PassError, Report},
    patch::Patch,
};

/// The pass.
pub const RECOGNIZE_LAYER_NORM: Pass = Pass {
    name: "layer_norm",
    law: "mean, variance, division, gain and bias are one normalisation",
    effect: Effect::Reassociates,
    run,
};

pub(super) static PATTERNS: Embedded = patterns!("layer_norm");
pub(super) static AFFINE: Embedded = patterns!("layer_norm_affine");

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let mut report = replace(graph, "layer_norm", &PATTERNS, |graph, found, _| {
        let x = found.value("x");
        let last = graph.ty(x).rank().checked_sub(1);
        if last.is_none() || found.attr("axes") != last.map(|axis| vec![axis].put()).as_ref() {
            let axes = found.attr("axes").map_or(String::new(), Attr::to_string);
            return Ok(Outcome::Refused(format!("it runs over axes {axes} of {}, not over the last", graph.ty(x))));
        }
        let eps = found.number("eps").unwrap_or_default();
        let mut patch = Patch::new(graph, "layer_norm", found.root);
        let new = patch.wire(LayerNorm { eps: decimal(eps), out: None }, &[x])?;
        patch.shunt(found.root, new)?;
        patch.apply();
        Ok(Outcome::Replaced)
    })?;
    let affine = replace(graph, "affine", &AFFINE, |graph, found, _| {
        let (n, g, b) = (found.value("n"), found.value("g"), found.value("b"));
        let Op::LayerNorm(op) = graph.op(n.node).clone() else { return Ok(Outcome::Unrelated) };
        let columns = graph.ty(n).shape[graph.ty(n).rank() - 1].clone();
        let row = |shape: &[crate::dim::Dim]| {
            shape.split_last().is_some_and(|(last, rest)| *last == columns && rest.iter().all(|d| d.is_one()))
        };
        if graph.ty(n) != graph.ty(found.root) || !row(&graph.ty(g).shape) || !row(&graph.ty(b).shape) {
            return Ok(Outcome::Unrelated);
        }
        let mut patch = Patch::new(graph, "layer_norm", found.root);
        let mut operands = vec![found.value("x")];
        for table in [g, b] {
            operands.push(match patch.graph().ty(table).rank() {
                1 => table,
                _ => patch.wire(Reshape { shape: vec![columns.clone()] }, &[table])?,
            });
        }
        let new = patch.wire(op, &operands)?;
        patch.shunt(found.root, new)?;
        patch.apply();
        Ok(Outcome::Replaced)
    })?;
    report.counts.extend(affine.counts);
    Ok(report)
}
