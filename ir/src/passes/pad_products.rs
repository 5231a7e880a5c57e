//! `pad_products`: rows that a tensor core cannot read are made longer with zeros.
//!
//! ```text
//! linear(x, w)   →   linear(pad(x), pad(w))
//! ```
//!
//! Tensor cores read rows of 16-bit elements by 16 bytes: K becomes a multiple of 8. Patches of 14x14 pixels in three
//! channels have K = 588. Weights are padded when the plan is made.

use super::{Effect, Options, Pass, PassError, Report, dce::weight_time, uses::result};
use crate::{
    graph::{Graph, NodeId},
    ops::{Op, Pad},
    patch::Patch,
};

/// The pass.
pub const PAD_PRODUCTS: Pass = Pass {
    name: "pad_products",
    law: "linear layers of 16-bit elements read rows of whole 16 bytes",
    effect: Effect::Reassociates,
    run,
};

/// Elements of 16 bytes.
const WHOLE: usize = 8;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let ragged = |id: &NodeId| {
        let operands = graph.operands(*id);
        matches!(graph.op(*id), Op::Linear(_))
            && operands[..2].iter().all(|v| graph.ty(*v).dtype.size() == 2)
            && fixed.contains(&operands[1].node)
            && graph.ty(operands[1]).shape[1].size().is_some_and(|k| k > WHOLE && k % WHOLE != 0)
    };
    let linears: Vec<NodeId> = graph.node_ids().filter(ragged).collect();
    for id in &linears {
        let mut operands = graph.operands(*id);
        let op = graph.op(*id).clone();
        let results: Vec<_> = graph.results(*id).collect();
        let mut patch = Patch::new(graph, "pad_products", result(*id));
        for operand in &mut operands[..2] {
            let ty = patch.graph().ty(*operand);
            let k = ty.shape.last().and_then(|k| k.size()).unwrap_or(0);
            let mut after = vec![0; ty.rank()];
            if let Some(last) = after.last_mut() {
                *last = k.next_multiple_of(WHOLE) - k;
            }
            *operand = patch.wire(Pad { before: vec![0; after.len()], after, value: 0.0 }, &[*operand])?;
        }
        for (old, new) in results.into_iter().zip(patch.wire_all(op, &operands)?) {
            patch.shunt(old, new)?;
        }
        patch.apply();
    }
    Ok(Report::count("linears", linears.len()))
}
