//! add(add(x, c), d) = add(x, add(c, d)) where c and d are known when the plan is made and their sum is small.

use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Add, Op, shape_rules::broadcast},
    passes::{
        dce::weight_time,
        uses::{result, sole_reader},
    },
    patch::{Patch, PatchError},
};

/// Elements of a sum that is kept in a plan.
const MOST: usize = 1 << 21;

/// Fuses all and says how many.
pub fn fuse(graph: &mut Graph) -> Result<usize, PatchError> {
    let mut fixed = weight_time(graph);
    let apart = |graph: &Graph, id: NodeId, fixed: &std::collections::HashSet<NodeId>| -> Option<(Value, Value)> {
        let Op::Add(_) = graph.op(id) else { return None };
        let [a, b] = graph.operands(id)[..] else { return None };
        match [a, b].map(|v| fixed.contains(&v.node)) {
            [false, true] => Some((a, b)),
            [true, false] => Some((b, a)),
            _ => None,
        }
    };
    let mut fused = 0;
    for id in graph.topological() {
        let Some((sum, d)) = apart(graph, id, &fixed) else { continue };
        let Some((x, c)) = apart(graph, sum.node, &fixed).filter(|_| sole_reader(graph, sum).is_some()) else {
            continue;
        };
        let shape = broadcast(&[&graph.ty(c).shape, &graph.ty(d).shape]);
        let small = shape.is_ok_and(|s| graph.ty(c).with_shape(s).elements().is_some_and(|n| n <= MOST));
        if !small {
            continue;
        }
        let mut patch = Patch::new(graph, "fuse_constants", sum);
        let both = patch.wire(Add {}, &[c, d])?;
        let y = patch.wire(Add {}, &[x, both])?;
        patch.shunt(result(id), y)?;
        patch.apply();
        fixed.insert(both.node);
        fused += 1;
    }
    Ok(fused)
}
