//! act(product(x)) = product{activation}(x), for linear layers of every precision and conv2d, without residual.

use crate::{
    graph::{Graph, NodeId},
    ops::{Op, activation::Activation, gelu::Approximate},
    passes::uses::{result, sole_reader},
    patch::{Patch, PatchError},
};

/// Fuses all and says how many.
pub fn fuse(graph: &mut Graph) -> Result<usize, PatchError> {
    let ids: Vec<NodeId> = graph.node_ids().filter(|id| activation(graph.op(*id)).is_some()).collect();
    let mut fused = 0;
    for id in ids {
        let x = graph.operands(id)[0];
        let with = activation(graph.op(id)).and_then(|a| applying(graph.op(x.node), a));
        if let Some(op) = with.filter(|_| sole_reader(graph, x).is_some()) {
            let operands = graph.operands(x.node);
            let mut patch = Patch::new(graph, "fuse_activation", x);
            let y = patch.wire(op, &operands)?;
            patch.shunt(result(id), y)?;
            patch.apply();
            fused += 1;
        }
    }
    Ok(fused)
}

fn activation(op: &Op) -> Option<Activation> {
    match op {
        Op::Relu(_) => Some(Activation::Relu),
        Op::Silu(_) => Some(Activation::Silu),
        Op::Gelu(gelu) => Some(match gelu.approximate {
            Approximate::None => Activation::Gelu,
            Approximate::Tanh => Activation::GeluTanh,
        }),
        _ => None,
    }
}

/// The product with that activation, if it has room for one.
fn applying(op: &Op, activation: Activation) -> Option<Op> {
    let mut op = op.clone();
    let (own, behind) = match &mut op {
        Op::Linear(op) => (&mut op.activation, op.residual || op.quantize.is_some()),
        Op::ScaledLinear(op) => (&mut op.activation, op.residual || op.quantize.is_some()),
        Op::WeightScaledLinear(op) => (&mut op.activation, op.residual),
        Op::Conv2d(op) => (&mut op.activation, op.residual),
        _ => return None,
    };
    if behind || *own != Activation::None {
        return None;
    }
    *own = activation;
    Some(op)
}
