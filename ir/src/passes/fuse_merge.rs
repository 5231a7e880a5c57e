//! `fuse_merge`: attention writes its heads side by side.
//!
//! ```text
//! merge_heads(attention(q, k, v))   →   attention(q, k, v) {merged}
//! merge_heads(cast(x))              →   cast(merge_heads(x))           where x ends in attention
//! merge_heads(add(x, y))            →   add(merge_heads(x), merge_heads(y))       where both do
//! ```
//!
//! and what a `linear_attention` adds to its result with it.
//!
//! The same goes for `block_attention` and `linear_attention`. Values that something else reads stay as they are.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Attention, BlockAttention, Op},
    patch::{Patch, PatchError},
};

/// The pass.
pub const FUSE_MERGE: Pass =
    Pass { name: "fuse_merge", law: "attention writes its heads side by side", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let merges: Vec<NodeId> = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::MergeHeads(_))).collect();
    let mut fused = 0;
    for id in merges {
        let heads = graph.operands(id)[0];
        if !ends_in_attention(graph, heads) {
            continue;
        }
        let old = Value { node: id, slot: 0 };
        let mut patch = Patch::new(graph, "fuse_merge", old);
        let new = merge(&mut patch, heads)?;
        patch.shunt(old, new)?;
        patch.apply();
        fused += 1;
    }
    Ok(Report::count("attentions", fused))
}

/// Whether heads can be merged where they are made. Sums of sums of … end somewhere: each value has one reader.
fn ends_in_attention(graph: &Graph, heads: Value) -> bool {
    let operands = graph.operands(heads.node);
    let alike = || operands.iter().all(|x| graph.ty(*x).shape == graph.ty(heads).shape);
    graph.use_count(heads) == 1
        && match graph.op(heads.node) {
            Op::Attention(Attention { merged, .. }) | Op::BlockAttention(BlockAttention { merged, .. }) => {
                !merged && heads.slot == 0
            }
            Op::LinearAttention(op) => {
                !op.merged && op.residual_at().is_none_or(|at| ends_in_attention(graph, operands[at]))
            }
            Op::Cast(_) | Op::Add(_) => alike() && operands.iter().all(|x| ends_in_attention(graph, *x)),
            _ => false,
        }
}

/// The heads of such a value side by side.
fn merge(patch: &mut Patch<'_>, heads: Value) -> Result<Value, PatchError> {
    let mut op = patch.graph().op(heads.node).clone();
    let mut operands = patch.graph().operands(heads.node);
    match &mut op {
        Op::Attention(Attention { merged, .. }) | Op::BlockAttention(BlockAttention { merged, .. }) => *merged = true,
        Op::LinearAttention(op) => {
            op.merged = true;
            if let Some(at) = op.residual_at() {
                operands[at] = merge(patch, operands[at])?;
            }
        }
        _ => operands = operands.into_iter().map(|x| merge(patch, x)).collect::<Result<_, _>>()?,
    }
    let results = patch.wire_all(op, &operands)?;
    for (slot, new) in results.iter().enumerate().skip(1) {
        patch.shunt(Value { node: heads.node, slot: slot as u32 }, *new)?;
    }
    Ok(results[0])
}
