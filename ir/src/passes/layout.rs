//! `layout`: movements that cancel go.
//!
//! reshape ∘ reshape is one reshape, transpose ∘ transpose one transpose; a reshape to the same shape and a transpose that
//! leaves every dimension in place are nothing; a transpose that moves only dimensions of size one is a reshape. One walk
//! in topological order reaches the fixed point, because an operation sees its operands already rewritten.

use super::{Effect, Options, Pass, PassError, Report, uses::result};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Op, Reshape, Transpose},
    patch::Patch,
};

/// The pass.
pub const LAYOUT: Pass = Pass { name: "layout", law: "movements that undo each other go", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let (mut cancelled, mut joined) = (0, 0);
    for id in graph.topological() {
        match simpler(graph, id) {
            Some(Simpler::Value(same)) => {
                cancelled += 1;
                let mut patch = Patch::new(graph, "layout", result(id));
                patch.shunt(result(id), same)?;
                patch.apply();
            }
            Some(Simpler::Op(op, x)) => {
                joined += 1;
                let mut patch = Patch::new(graph, "layout", result(id));
                let y = patch.wire(op, &[x])?;
                patch.shunt(result(id), y)?;
                patch.apply();
            }
            None => {}
        }
    }
    let counts = vec![("cancelled".into(), cancelled), ("joined".into(), joined)];
    Ok(Report { counts, notes: Vec::new() })
}

enum Simpler {
    /// Nothing happens.
    Value(Value),
    /// One movement in place of two, or a cheaper one.
    Op(Op, Value),
}

fn simpler(graph: &Graph, id: NodeId) -> Option<Simpler> {
    if !matches!(graph.op(id), Op::Reshape(_) | Op::Transpose(_)) {
        return None;
    }
    let mut x = *graph.operands(id).first()?;
    let mut op = graph.op(id).clone();
    let mut changed = false;
    // Behind a rewritten operand there may be one more movement of the same kind, seldom two.
    loop {
        if let Op::Transpose(t) = &op
            && moves_only_ones(graph, x, &t.perm)
        {
            op = Reshape { shape: graph.ty(result(id)).shape.clone() }.into();
            changed = true;
        }
        let before = graph.operands(x.node);
        match (&op, graph.op(x.node)) {
            (Op::Reshape(_), Op::Reshape(_)) => x = before[0],
            (Op::Transpose(outer), Op::Transpose(inner)) => {
                op = Transpose { perm: outer.perm.iter().map(|p| inner.perm[*p]).collect() }.into();
                x = before[0];
            }
            _ => break,
        }
        changed = true;
    }
    let still = match &op {
        Op::Transpose(t) => t.perm.iter().copied().eq(0..t.perm.len()),
        _ => graph.ty(x) == graph.ty(result(id)),
    };
    if still {
        return Some(Simpler::Value(x));
    }
    changed.then_some(Simpler::Op(op, x))
}

/// Whether all dimensions above one keep their order.
fn moves_only_ones(graph: &Graph, x: Value, perm: &[usize]) -> bool {
    let shape = &graph.ty(x).shape;
    perm.iter().filter(|p| !shape[**p].is_one()).is_sorted()
}
