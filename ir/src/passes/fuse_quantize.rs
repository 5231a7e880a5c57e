//! `fuse_quantize`: quantize(f(x)) = f{quantize}(x), where f gives f32 and only quantisations read it.
//!
//! ```text
//! quantize(layer_norm(x, …))              →   layer_norm_quantize(x, …)          every quantisation of it
//! quantize(linear(x, w, …)) {columns256}  →   linear(x, w, …) {quantize}         the only one, by groups of columns
//! ```
//!
//! Norms own whole rows. Products, linear and scaled_linear, own tiles: a scale a row would need all of them.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE, uses::result};
use crate::{
    graph::{Graph, NodeId},
    ops::{LayerNormQuantize, Op, Quantize, quantize::Granularity},
    patch::Patch,
    types::DType,
};

/// The pass.
pub const FUSE_QUANTIZE: Pass = Pass {
    name: "fuse_quantize",
    law: "norms and products give codes and scales themselves",
    effect: Effect::Exact,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let makers: Vec<NodeId> = graph.node_ids().filter(|id| only_quantized(graph, *id)).collect();
    let (mut norms, mut products) = (0, 0);
    for maker in makers {
        for (reader, _) in graph.users(result(maker)) {
            let Op::Quantize(Quantize { scale }) = *graph.op(reader) else { continue };
            let op = match graph.op(maker).clone() {
                Op::LayerNorm(norm) => LayerNormQuantize { eps: norm.eps, scale }.into(),
                mut product => {
                    if let Op::Linear(op) = &mut product {
                        op.quantize = Some(scale);
                    } else if let Op::ScaledLinear(op) = &mut product {
                        op.quantize = Some(scale);
                    }
                    product
                }
            };
            *if matches!(op, Op::LayerNormQuantize(_)) { &mut norms } else { &mut products } += 1;
            let operands = graph.operands(maker);
            let mut patch = Patch::new(graph, "fuse_quantize", result(maker));
            let new = patch.wire_all(op, &operands)?;
            for (old, new) in patch.graph().results(reader).collect::<Vec<_>>().into_iter().zip(new) {
                patch.shunt(old, new)?;
            }
            patch.apply();
        }
    }
    let counts = [("norms", norms), ("products", products)];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// Whether an operation gives f32 that only quantisations read which it can do itself.
fn only_quantized(graph: &Graph, id: NodeId) -> bool {
    let y = result(id);
    let readers = graph.users(y);
    let quantized = |columns: bool| {
        readers.iter().all(|(reader, _)| match graph.op(*reader) {
            Op::Quantize(Quantize { scale }) => !columns || matches!(scale, Granularity::Columns(_)),
            _ => false,
        })
    };
    let fits = match graph.op(id) {
        Op::LayerNorm(_) => quantized(false),
        Op::Linear(_) | Op::ScaledLinear(_) => readers.len() == 1 && quantized(true),
        _ => false,
    };
    fits && graph.ty(y).dtype == DType::F32 && graph.use_count(y) == readers.len()
}
