//! `fuse_quantize`: quantize(layer_norm(x)) = layer_norm_quantize(x), where the norm gives f32 and only quantisations
//! read it.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{LayerNormQuantize, Op},
    patch::Patch,
    types::DType,
};

/// The pass.
pub const FUSE_QUANTIZE: Pass =
    Pass { name: "fuse_quantize", law: "norms give codes and scales themselves", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let norms: Vec<NodeId> = graph.node_ids().filter(|id| only_quantized(graph, *id)).collect();
    let mut fused = 0;
    for norm in norms {
        let y = Value { node: norm, slot: 0 };
        for (reader, _) in graph.users(y) {
            let (Op::LayerNorm(norm_op), Op::Quantize(op)) = (graph.op(norm), graph.op(reader)) else { continue };
            let op = LayerNormQuantize { eps: norm_op.eps, scale: op.scale };
            let operands = graph.operands(norm);
            let mut patch = Patch::new(graph, "fuse_quantize", y);
            let new = patch.wire_all(op, &operands)?;
            for (slot, new) in new.into_iter().enumerate() {
                patch.shunt(Value { node: reader, slot: slot as u32 }, new)?;
            }
            patch.apply();
            fused += 1;
        }
    }
    Ok(Report::count("norms", fused))
}

fn only_quantized(graph: &Graph, id: NodeId) -> bool {
    let y = Value { node: id, slot: 0 };
    matches!(graph.op(id), Op::LayerNorm(_))
        && graph.ty(y).dtype == DType::F32
        && graph.use_count(y) == graph.users(y).len()
        && graph.users(y).iter().all(|(reader, _)| matches!(graph.op(*reader), Op::Quantize(_)))
}
