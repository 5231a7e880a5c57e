//! `join_slices`: slices that cut a value into pieces along an axis, without gap or overlap, are one split.

use std::collections::BTreeMap;

use super::{Effect, Options, Pass, PassError, Report, dce::weight_time, uses::result};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Op, Slice, Split},
    patch::Patch,
};

/// The pass.
pub const JOIN_SLICES: Pass =
    Pass { name: "join_slices", law: "slices that cut a value into pieces are one split", effect: Effect::Exact, run };

/// A slice: where it begins, how long it is.
type Piece = (usize, usize, NodeId);

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let mut pieces: BTreeMap<(Value, usize), Vec<Piece>> = BTreeMap::new();
    for id in graph.node_ids().filter(|id| !fixed.contains(id)) {
        let Op::Slice(Slice { axis, start, end, step: 1 }) = graph.op(id) else { continue };
        if let (Some(start), Some(end)) = (start.size(), end.size()) {
            let key = (graph.operands(id)[0], *axis);
            pieces.entry(key).or_default().push((start, end.saturating_sub(start), id));
        }
    }
    let mut joined = 0;
    for ((x, axis), mut pieces) in pieces {
        pieces.sort_by_key(|(start, ..)| *start);
        let mut end = 0;
        let touch = pieces.iter().all(|(start, len, _)| std::mem::replace(&mut end, start + len) == *start);
        if pieces.len() < 2 || !touch || graph.ty(x).shape[axis].size() != Some(end) {
            continue;
        }
        let sizes = pieces.iter().map(|(_, len, _)| (*len).into()).collect();
        let mut patch = Patch::new(graph, "join_slices", result(pieces[0].2));
        let parts = patch.wire_all(Split { axis, sizes }, &[x])?;
        for ((.., slice), part) in pieces.iter().zip(parts) {
            patch.shunt(result(*slice), part)?;
        }
        patch.apply();
        joined += pieces.len();
    }
    Ok(Report::count("slices", joined))
}
