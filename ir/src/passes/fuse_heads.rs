//! `fuse_heads`: what stands between the joint projection of an attention and the attention is one operation.
//!
//! ```text
//! q, k, v = split_heads(x) {parts=3}
//! q' = cast(rope(layer_norm(q, g, b), cos, sin))        →   q', k', v' = qkv_heads(x, g, b, …, cos, sin)
//! k' = cast(rope(layer_norm(k, g, b), cos, sin))
//! v' = cast(v)
//! ```
//!
//! Norm, rotation and cast may each be absent, as long as q and k agree, and v ends in their type; a part may be widened
//! first. Intermediate values must have no other reader. Numbers are rounded once instead of after every step.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE, uses::result};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Cast, LayerNorm, Op, QkvHeads, Rope, SplitHeads},
    patch::Patch,
    types::DType,
};

/// The pass.
pub const FUSE_HEADS: Pass = Pass {
    name: "fuse_heads",
    law: "splitting into heads, QK norm, RoPE and rounding are one operation",
    effect: Effect::Reassociates,
    run,
};

/// What happens to q or k on the way to the attention.
struct Chain {
    norm: Option<(f64, [Value; 2])>,
    rope: Option<(usize, [Value; 2])>,
    end: Value,
}

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let splits: Vec<(NodeId, usize)> = graph
        .node_ids()
        .filter_map(|id| match graph.op(id) {
            Op::SplitHeads(SplitHeads { parts: 3, heads }) => Some((id, *heads)),
            _ => None,
        })
        .collect();
    let mut fused = 0;
    for (split, heads) in splits {
        let part = |slot| chain(graph, Value { node: split, slot });
        let (q, k, v) = (part(0), part(1), part(2));
        let x = graph.operands(split)[0];
        let [own, out, k_out, v_out] = [x, q.end, k.end, v.end].map(|value| graph.ty(value).dtype);
        let alike = q.norm.map(|n| n.0) == k.norm.map(|n| n.0) && q.rope == k.rope && [k_out, v_out] == [out; 2];
        // A plain split moves elements and nothing else: there is nothing to join.
        if !alike || v.norm.is_some() || v.rope.is_some() || (q.norm, q.rope, out) == (None, None, own) {
            continue;
        }
        let mut operands = vec![x];
        operands.extend([&q, &k].iter().filter_map(|c| c.norm).flat_map(|(_, affine)| affine));
        operands.extend(q.rope.iter().flat_map(|(_, tables)| *tables));
        let op = QkvHeads {
            heads,
            norm: q.norm.is_some(),
            eps: q.norm.map_or(1e-5, |n| n.0),
            segments: q.rope.map_or(0, |r| r.0),
            out: Some(out).filter(|out| *out != own),
        };
        let mut patch = Patch::new(graph, "fuse_heads", q.end);
        let new = patch.wire_all(op, &operands)?;
        for (old, new) in [q.end, k.end, v.end].into_iter().zip(new) {
            patch.shunt(old, new)?;
        }
        patch.apply();
        fused += 1;
    }
    Ok(Report::count("attentions", fused))
}

/// Follows a part through widening, norm, rotation and rounding, in this order, each the only reader of what comes
/// before.
fn chain(graph: &Graph, start: Value) -> Chain {
    let mut chain = Chain { norm: None, rope: None, end: start };
    let dtype = |value: Value| graph.ty(value).dtype;
    let next = |value: Value| match graph.users(value)[..] {
        [(reader, 0)] if graph.use_count(value) == 1 => Some(reader),
        _ => None,
    };
    let mut rounded = false;
    while let Some(reader) = next(chain.end).filter(|_| !rounded) {
        let (operands, end) = (graph.operands(reader), result(reader));
        match graph.op(reader) {
            Op::LayerNorm(LayerNorm { eps, .. }) if operands.len() == 3 && dtype(end) == dtype(chain.end) => {
                if chain.norm.is_some() || chain.rope.is_some() {
                    break;
                }
                chain.norm = Some((*eps, [operands[1], operands[2]]));
            }
            Op::Rope(Rope { segments }) if chain.rope.is_none() => {
                chain.rope = Some((*segments, [operands[1], operands[2]]));
            }
            Op::Cast(Cast { to: DType::F32 }) if chain.end == start && dtype(start).size() < 4 => {}
            Op::Cast(Cast { to }) if to.is_float() && *to != DType::F64 => rounded = true,
            _ => break,
        }
        chain.end = end;
    }
    chain
}
