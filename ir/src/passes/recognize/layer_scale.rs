//! `layer_scale`: finds the products of a linear and a learned factor a column (Touvron et al. 2021). Changes nothing;
//! `fold_layer_scale` moves them into weights.

use crate::{
    graph::{Graph, NodeId},
    ops::Op,
    passes::{Effect, Options, Pass, PassError, Report, dce::weight_time, fold_layer_scale::column_scale},
};

/// The pass.
pub const LAYER_SCALE: Pass =
    Pass { name: "layer_scale", law: "counts linear(x)·γ with one γ a column", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let vector = |id: &NodeId| {
        let Some((_, gamma)) = column_scale(graph, *id, &fixed) else { return false };
        graph.ty(gamma).elements().is_some_and(|n| n > 1)
    };
    let count = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::Mul(_))).filter(vector).count();
    Ok(Report::count("layer_scale", count))
}
