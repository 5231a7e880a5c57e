//! `fp8_attention{kind=all, keys=256, widths=…, blocks=…, queries=…}`: attention over e4m3 codes of queries, keys and values.
//!
//! ```text
//! attention(q, k, v)   →   attention(q, k, v) {codes=e4m3}
//! ```
//!
//! The same goes for `block_attention`. What codes are is said in [`crate::ops::attention_codes`]; the operation makes
//! them itself, so operands stay as they are. Options. `kind`: `encoder`, `frame`, `global`, or `all` three; cameras
//! stay wide. `keys`: fewer keys than this stay wide, where making codes takes longer than they save. What a target
//! computes may be said too, and all else stays wide: `widths` of heads, `blocks` of keys and the most `queries` of a
//! block in lists.

use super::{Effect, Options, Pass, PassError, Report, uses::result};
use crate::{
    graph::{Graph, NodeId},
    ops::{
        Op,
        attention::AttentionKind::{self, Encoder, Frame, Global},
        attention_codes::Codes,
    },
    patch::Patch,
};

/// The pass.
pub const FP8_ATTENTION: Pass = Pass {
    name: "fp8_attention",
    law: "attention multiplies e4m3 codes of its operands",
    effect: Effect::Approximates,
    run,
};

crate::word_enum! {
    /// Which attentions.
    pub enum Kinds {
        /// Those of an image encoder.
        Encoder = "encoder",
        /// Those within a view.
        Frame = "frame",
        /// Those over all views.
        Global = "global",
        /// All three.
        All = "all",
    }
}

impl Kinds {
    /// The kinds that it names.
    pub const fn kinds(self) -> &'static [AttentionKind] {
        match self {
            Self::Encoder => &[Encoder],
            Self::Frame => &[Frame],
            Self::Global => &[Global],
            Self::All => &[Encoder, Frame, Global],
        }
    }
}

/// What a tensor core takes at once.
const GRANULE: usize = 16;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["kind", "keys", "widths", "blocks", "queries"])?;
    let kinds = options.get_or("kind", Kinds::All)?.kinds();
    let least = options.get_or("keys", 256)?;
    let widths: Option<Vec<usize>> = options.get("widths")?;
    let blocks: Option<Vec<usize>> = options.get("blocks")?;
    let queries: Option<usize> = options.get("queries")?;
    let (mut coded, mut few, mut others) = (0, 0, 0);
    for id in graph.topological() {
        let mut op = graph.op(id).clone();
        let (kind, codes) = match &mut op {
            Op::Attention(op) => (op.kind, &mut op.codes),
            Op::BlockAttention(op) => (op.kind, &mut op.codes),
            _ => continue,
        };
        if *codes != Codes::None || !kinds.contains(&kind) || !fits(graph, id) {
            continue;
        }
        *codes = Codes::E4m3;
        let among = |known: &Option<Vec<usize>>, n: usize| known.as_ref().is_none_or(|known| known.contains(&n));
        let listed = match &op {
            Op::BlockAttention(op) => among(&blocks, op.block_k) && queries.is_none_or(|most| op.block_q <= most),
            _ => true,
        };
        if !(listed && [0, 2].into_iter().all(|operand| among(&widths, width(graph, id, operand).unwrap_or(0)))) {
            others += 1;
            continue;
        }
        let operands = graph.operands(id);
        if graph.ty(operands[1]).shape[2].size().is_some_and(|keys| keys < least) {
            few += 1;
            continue;
        }
        let mut patch = Patch::new(graph, "fp8_attention", result(id));
        let new = patch.wire_all(op, &operands)?;
        for (slot, new) in new.into_iter().enumerate() {
            patch.shunt(crate::graph::Value { node: id, slot: slot as u32 }, new)?;
        }
        patch.apply();
        coded += 1;
    }
    let reasons =
        [(few, format!("fewer than {least} keys")), (others, "heads or lists that the target does not take".into())];
    let notes = reasons
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, why)| format!("{n} attentions stay wide: {why}"))
        .collect();
    Ok(Report { notes, ..Report::count("attentions", coded) })
}

/// Whether heads have widths that tensor cores take.
fn fits(graph: &Graph, id: NodeId) -> bool {
    [0, 2].into_iter().all(|operand| width(graph, id, operand).is_some_and(|d| d % GRANULE == 0))
}

fn width(graph: &Graph, id: NodeId, operand: usize) -> Option<usize> {
    graph.ty(graph.operands(id)[operand]).shape[3].size()
}
