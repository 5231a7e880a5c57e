//! `fuse_heads`: what stands between the joint projection of an attention and the attention is one operation.
//!
//! ```text
//! q, k, v = split_heads(x) {parts=3}
//! q' = cast(rope(layer_norm(q, g, b), cos, sin))        →   q', k', v' = qkv_heads(x, g, b, …, cos, sin)
//! k' = cast(rope(layer_norm(k, g, b), cos, sin))
//! v' = cast(v)
//! ```
//!
//! Norm, rotation and cast may each be absent, as long as q and k agree, and v is cast as they are. Intermediate values
//! must have no other reader. Numbers are rounded once instead of after every step.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE};
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
    cast: Option<DType>,
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
        let cast = [&q, &k, &v].map(|c| c.cast);
        let alike = q.norm.map(|n| n.0) == k.norm.map(|n| n.0) && q.rope == k.rope && cast == [q.cast; 3];
        // A plain split moves elements and nothing else: there is nothing to join.
        if !alike || v.norm.is_some() || v.rope.is_some() || (q.norm, q.rope, q.cast) == (None, None, None) {
            continue;
        }
        let x = graph.operands(split)[0];
        let mut operands = vec![x];
        operands.extend([&q, &k].iter().filter_map(|c| c.norm).flat_map(|(_, affine)| affine));
        operands.extend(q.rope.iter().flat_map(|(_, tables)| *tables));
        let op = QkvHeads {
            heads,
            norm: q.norm.is_some(),
            eps: q.norm.map_or(1e-5, |n| n.0),
            segments: q.rope.map_or(0, |r| r.0),
            out: q.cast,
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

/// Follows a part through norm, rotation and cast, in this order, each the only reader of what comes before.
fn chain(graph: &Graph, start: Value) -> Chain {
    let mut chain = Chain { norm: None, rope: None, cast: None, end: start };
    let dtype = graph.ty(start).dtype;
    let next = |value: Value| match graph.users(value)[..] {
        [(reader, 0)] if graph.use_count(value) == 1 => Some(reader),
        _ => None,
    };
    while let Some(reader) = next(chain.end) {
        let operands = graph.operands(reader);
        match graph.op(reader) {
            Op::LayerNorm(LayerNorm { eps, out }) if operands.len() == 3 && out.is_none_or(|t| t == dtype) => {
                if chain.norm.is_some() || chain.rope.is_some() || chain.cast.is_some() {
                    break;
                }
                chain.norm = Some((*eps, [operands[1], operands[2]]));
            }
            Op::Rope(Rope { segments }) if chain.rope.is_none() && chain.cast.is_none() => {
                chain.rope = Some((*segments, [operands[1], operands[2]]));
            }
            Op::Cast(Cast { to }) if chain.cast.is_none() && to.is_float() && *to != DType::F64 => {
                chain.cast = Some(*to);
            }
            _ => break,
        }
        chain.end = Value { node: reader, slot: 0 };
    }
    chain
}
