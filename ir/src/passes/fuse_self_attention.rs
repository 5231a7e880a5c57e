//! `fuse_self_attention{tokens=128}`: where few tokens look at each other, heads are not moved about.
//!
//! ```text
//! merge_heads(attention(split_heads(x)))   →   self_attention(x)
//! ```
//!
//! Up to so many tokens, and 128 columns a head. Nothing else may read the parts, or the attention. Numbers are rounded once.

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::DCE,
    uses::{result, sole_reader},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Op, SelfAttention, SplitHeads, attention_codes::Codes},
    patch::Patch,
};

/// The pass.
pub const FUSE_SELF_ATTENTION: Pass = Pass {
    name: "fuse_self_attention",
    law: "attention of few tokens reads a joint projection and gives merged heads",
    effect: Effect::Reassociates,
    run,
};

/// Where moving heads costs more than attention itself.
const FEW: usize = 128;

/// Columns of a head.
const WIDEST: usize = 128;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["tokens"])?;
    let most = options.get_or("tokens", FEW)?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let merges: Vec<NodeId> = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::MergeHeads(_))).collect();
    let mut fused = 0;
    for merge in merges {
        let Some((op, x)) = whole(graph, merge, most) else { continue };
        let mut patch = Patch::new(graph, "fuse_self_attention", result(merge));
        let y = patch.wire(op, &[x])?;
        patch.shunt(result(merge), y)?;
        patch.apply();
        fused += 1;
    }
    Ok(Report::count("attentions", fused))
}

/// The attention that ends in a merge of heads and begins with a split of three parts, and what is split.
fn whole(graph: &Graph, merge: NodeId, most: usize) -> Option<(SelfAttention, Value)> {
    let y = graph.operands(merge)[0];
    let Op::Attention(attention) = graph.op(y.node) else { return None };
    let parts = graph.operands(y.node);
    let split = parts[0].node;
    let Op::SplitHeads(SplitHeads { parts: 3, heads }) = graph.op(split) else { return None };
    let own = parts
        .iter()
        .zip(0..)
        .all(|(part, slot)| *part == Value { node: split, slot } && sole_reader(graph, *part).is_some());
    let up_to = |axis: usize, most: usize| graph.ty(y).shape[axis].size().is_some_and(|n| n <= most);
    let few = up_to(2, most) && up_to(3, WIDEST);
    let op =
        SelfAttention { heads: *heads, scale: attention.scale, kind: attention.kind, views: attention.views.clone() };
    let plain = attention.codes == Codes::None && !attention.lse;
    (own && few && plain && sole_reader(graph, y).is_some()).then(|| (op, graph.operands(split)[0]))
}
