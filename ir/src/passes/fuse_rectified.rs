//! `fuse_rectified`: what makes an image gives max(y, 0) beside y, where both are read.
//!
//! ```text
//! y = conv2d(x, w, …); r = relu(y)   →   y, r = conv2d(x, w, …) {rectified}
//! y = resize(x, …);    r = relu(y)   →   y, r = resize(x, …) {rectified}
//! ```
//!
//! For images of 16 bits whose pixels keep their channels side by side: residual units of dense heads, which convolve
//! max(y, 0) and add y. Convolutions that add a residual themselves stay: their kernels have no room for a second result.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE, uses::result};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Op, images::ImageLayout},
    patch::Patch,
};

/// The pass.
pub const FUSE_RECTIFIED: Pass = Pass {
    name: "fuse_rectified",
    law: "convolutions and resizes give max(y, 0) beside y",
    effect: Effect::Exact,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let makers: Vec<NodeId> = graph.node_ids().filter(|id| graph.ty(result(*id)).dtype.size() == 2).collect();
    let mut fused = 0;
    for maker in makers {
        let y = result(maker);
        let positive: Vec<NodeId> = graph
            .users(y)
            .into_iter()
            .filter_map(|(reader, _)| matches!(graph.op(reader), Op::Relu(_)).then_some(reader))
            .collect();
        let alone = positive.len() == graph.use_count(y);
        let Some(op) = rectifying(graph.op(maker)).filter(|_| !positive.is_empty() && !alone) else { continue };
        let operands = graph.operands(maker);
        let mut patch = Patch::new(graph, "fuse_rectified", y);
        let both: Vec<Value> = patch.wire_all(op, &operands)?;
        patch.shunt(y, both[0])?;
        for relu in positive {
            patch.shunt(result(relu), both[1])?;
        }
        patch.apply();
        fused += 1;
    }
    Ok(Report::count("operations", fused))
}

/// The operation with a second result, if it has room for one.
fn rectifying(op: &Op) -> Option<Op> {
    let mut op = op.clone();
    let (own, fits) = match &mut op {
        Op::Conv2d(op) => (&mut op.rectified, op.layout == ImageLayout::Pixels && !op.residual),
        Op::Resize(op) => (&mut op.rectified, op.layout == ImageLayout::Pixels),
        _ => return None,
    };
    let free = fits && !*own;
    *own = true;
    free.then_some(op)
}
