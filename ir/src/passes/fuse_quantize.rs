//! `fuse_quantize`: quantize(f(x)) = f{quantize}(x), where only quantisations read f(x).
//!
//! ```text
//! quantize(layer_norm(x, …))              →   layer_norm_quantize(x, …)          every quantisation of it
//! quantize(linear(x, w, …)) {columns256}  →   linear(x, w, …) {quantize}         the only one, by groups of columns
//! quantize_items(scaled_conv2d(x, w, …))  →   scaled_conv2d(x, w, …) {quantize}  the only one
//! ```
//!
//! Norms own whole rows. Products, linear and scaled_linear, own tiles: a scale a row would need all of them. Both give
//! f32. Convolutions measure their images for the scales.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE, uses::result};
use crate::{
    graph::{Graph, NodeId},
    ops::{
        LayerNormQuantize, Linear, Op, Quantize, QuantizeItems, ScaledConv2d, ScaledLinear, activation::Activation,
        quantize::Granularity,
    },
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
    let (mut norms, mut products, mut convolutions) = (0, 0, 0);
    for maker in makers {
        for (reader, _) in graph.users(result(maker)) {
            let Some(op) = quantizing(graph.op(maker), graph.op(reader)) else { continue };
            let count = match op {
                Op::LayerNormQuantize(_) => &mut norms,
                Op::ScaledConv2d(_) => &mut convolutions,
                _ => &mut products,
            };
            *count += 1;
            let operands = graph.operands(maker);
            let mut patch = Patch::new(graph, "fuse_quantize", result(maker));
            let new = patch.wire_all(op, &operands)?;
            for (old, new) in patch.graph().results(reader).collect::<Vec<_>>().into_iter().zip(new) {
                patch.shunt(old, new)?;
            }
            patch.apply();
        }
    }
    let counts = [("norms", norms), ("products", products), ("convolutions", convolutions)];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// The operation that does what `reader` does with the result of `maker`, too.
fn quantizing(maker: &Op, reader: &Op) -> Option<Op> {
    Some(match (maker.clone(), reader) {
        (Op::LayerNorm(norm), Op::Quantize(Quantize { scale })) => {
            LayerNormQuantize { eps: norm.eps, scale: *scale }.into()
        }
        (Op::Linear(op), Op::Quantize(Quantize { scale })) => Linear { quantize: Some(*scale), ..op }.into(),
        (Op::ScaledLinear(op), Op::Quantize(Quantize { scale })) => {
            ScaledLinear { quantize: Some(*scale), ..op }.into()
        }
        (Op::ScaledConv2d(op), Op::QuantizeItems(QuantizeItems { activation: Activation::None })) if !op.quantize => {
            ScaledConv2d { quantize: true, ..op }.into()
        }
        _ => return None,
    })
}

/// Whether only quantisations read the result of an operation which it can do itself.
fn only_quantized(graph: &Graph, id: NodeId) -> bool {
    let y = result(id);
    let readers = graph.users(y);
    let quantized = |columns: bool| {
        readers.iter().all(|(reader, _)| match graph.op(*reader) {
            Op::Quantize(Quantize { scale }) => !columns || matches!(scale, Granularity::Columns(_)),
            _ => false,
        })
    };
    let f32s = graph.ty(y).dtype == DType::F32;
    let fits = match (graph.op(id), &readers[..]) {
        (Op::LayerNorm(_), _) => f32s && quantized(false),
        (Op::Linear(_) | Op::ScaledLinear(_), [_]) => f32s && quantized(true),
        (Op::ScaledConv2d(_), [(reader, _)]) => quantizing(graph.op(id), graph.op(*reader)).is_some(),
        _ => false,
    };
    fits && graph.use_count(y) == readers.len()
}
