//! act(resize(x) + a + b) = resize{addends, activation}(x, a, b), of images that keep channels side by side.

use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Op, Resize, activation::Activation, images::ImageLayout},
    passes::{
        dce::weight_time,
        uses::{result, sole_reader},
    },
    patch::{Patch, PatchError},
};

/// Operands that a kernel adds in one go.
const MOST: usize = 2;

/// Fuses all and says how many additions and activations.
pub fn fuse(graph: &mut Graph) -> Result<usize, PatchError> {
    let fixed = weight_time(graph);
    let ids: Vec<NodeId> = graph.topological().into_iter().filter(|id| !fixed.contains(id)).collect();
    let mut fused = 0;
    for id in ids {
        let Some((x, op, addend)) = gathered(graph, id) else { continue };
        let operands: Vec<Value> = graph.operands(x.node).into_iter().chain(addend).collect();
        let mut patch = Patch::new(graph, "fuse_resize", x);
        let y = patch.wire(op, &operands)?;
        patch.shunt(result(id), y)?;
        patch.apply();
        fused += 1;
    }
    Ok(fused)
}

/// The resize that an operation is gathered into, as it will be, and what it adds.
fn gathered(graph: &Graph, id: NodeId) -> Option<(Value, Resize, Option<Value>)> {
    let room = |x: Value| match graph.op(x.node) {
        Op::Resize(op) if op.layout == ImageLayout::Pixels && op.activation == Activation::None => {
            sole_reader(graph, x).map(|_| op.clone())
        }
        _ => None,
    };
    match (graph.op(id), &graph.operands(id)[..]) {
        (Op::Relu(_), &[x]) => Some((x, Resize { activation: Activation::Relu, ..room(x)? }, None)),
        (Op::Add(_), &[a, b]) => {
            let fits = |x: Value, addend: Value| {
                let op = room(x).filter(|op| op.addends < MOST)?;
                let same = graph.ty(x) == graph.ty(result(id)) && graph.ty(addend).shape.len() == 4;
                same.then_some((x, Resize { addends: op.addends + 1, ..op }, Some(addend)))
            };
            fits(a, b).or_else(|| fits(b, a))
        }
        _ => None,
    }
}
