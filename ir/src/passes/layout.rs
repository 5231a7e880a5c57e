//! `layout`: movements that cancel go.
//!
//! reshape ∘ reshape is one reshape, transpose ∘ transpose one transpose; a reshape to the same shape and a transpose
//! that leaves every dimension in place are nothing; a chain of both that leaves the elements in order (tokens to an
//! image and back) is a reshape. One walk in topological order reaches the fixed point, because an operation sees its
//! operands already rewritten.

use std::collections::VecDeque;

use super::{Effect, Options, Pass, PassError, Report, uses::result};
use crate::{
    dim::Dim,
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
    let chain = chain(graph, id);
    if chain.is_empty() {
        return None;
    }
    let shape = &graph.ty(result(id)).shape;
    let origin = |node: NodeId| graph.operands(node)[0];
    // From the far end of the chain: the longest part that keeps the order of elements.
    if let Some(first) = (0..chain.len()).rev().find(|first| keeps_order(graph, &chain[..=*first])) {
        let x = origin(chain[first]);
        let reshape = || Simpler::Op(Reshape { shape: shape.clone() }.into(), x);
        return match (graph.ty(x).shape == *shape, graph.op(id)) {
            (true, _) => Some(Simpler::Value(x)),
            (false, Op::Reshape(_)) if first == 0 => None,
            _ => Some(reshape()),
        };
    }
    let (Op::Transpose(outer), Some(before)) = (graph.op(id), chain.get(1)) else { return None };
    let Op::Transpose(inner) = graph.op(*before) else { return None };
    let perm = outer.perm.iter().map(|p| inner.perm[*p]).collect();
    Some(Simpler::Op(Transpose { perm }.into(), origin(*before)))
}

/// The reshapes and transposes that end in `id`, last first. Bounded, so that a walk over all nodes stays linear.
fn chain(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let mut chain = Vec::new();
    let mut at = id;
    while chain.len() < 8 && matches!(graph.op(at), Op::Reshape(_) | Op::Transpose(_)) {
        chain.push(at);
        at = graph.operands(at)[0].node;
    }
    chain
}

/// A factor of a dimension: how many elements, and how far they are apart in the value where the chain begins.
#[derive(Clone)]
struct Run {
    size: Dim,
    stride: Dim,
}

/// Whether movements, last first, leave the elements of their operand in row-major order.
fn keeps_order(graph: &Graph, chain: &[NodeId]) -> bool {
    let Some(first) = chain.last() else { return true };
    let mut stride = Dim::from(1);
    let mut axes: Vec<Vec<Run>> = Vec::new();
    for size in graph.ty(graph.operands(*first)[0]).shape.iter().rev() {
        axes.push(vec![Run { size: size.clone(), stride: stride.clone() }]);
        stride = stride * size.clone();
    }
    axes.reverse();
    for id in chain.iter().rev() {
        axes = match graph.op(*id) {
            Op::Transpose(t) => t.perm.iter().map(|p| axes[*p].clone()).collect(),
            _ => match regroup(&axes, &graph.ty(result(*id)).shape) {
                Some(axes) => axes,
                None => return false,
            },
        };
    }
    let runs = joined(&axes);
    runs.len() <= 1 && runs.iter().all(|run| run.stride.is_one())
}

/// All runs in order, neighbours that follow each other without a gap as one, without those of one element.
fn joined(axes: &[Vec<Run>]) -> VecDeque<Run> {
    let mut queue: VecDeque<Run> = VecDeque::new();
    for run in axes.iter().flatten().filter(|run| !run.size.is_one()) {
        match queue.back_mut() {
            Some(last) if last.stride == run.size.clone() * run.stride.clone() => {
                *last = Run { size: last.size.clone() * run.size.clone(), stride: run.stride.clone() };
            }
            _ => queue.push_back(run.clone()),
        }
    }
    queue
}

/// The runs dealt out to new dimensions; `None` where a dimension would need a part of a run that is no factor of it.
fn regroup(axes: &[Vec<Run>], shape: &[Dim]) -> Option<Vec<Vec<Run>>> {
    let mut queue = joined(axes);
    let mut out = Vec::with_capacity(shape.len());
    for size in shape {
        let (mut axis, mut need) = (Vec::new(), size.clone());
        while !need.is_one() {
            let Run { size, stride } = queue.pop_front()?;
            if let Some(left) = need.divide(&size).filter(|_| need.constant() != Some(0)) {
                need = left;
                axis.push(Run { size, stride });
            } else {
                let inner = size.divide(&need)?;
                axis.push(Run { size: need, stride: stride.clone() * inner.clone() });
                queue.push_front(Run { size: inner, stride });
                need = Dim::from(1);
            }
        }
        out.push(axis);
    }
    Some(out)
}
