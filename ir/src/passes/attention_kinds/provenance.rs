//! Where the view axis went: for every value, the factors of each of its dimensions.
//!
//! A dimension is a product of factors, outermost first. The axis of views starts as one factor of an input and is
//! followed through every operation, so that `[B, S, T, C]` reshaped to `[B, S·T, C]` is known to join views while
//! `[B·S, T, C]` keeps them apart, whatever the sizes are. Values that no factor of the view axis reaches are not
//! listed.

use std::collections::{HashMap, VecDeque};

use crate::{
    dim::Dim,
    graph::{Graph, Value},
    ops::{
        ArgMax, ArgMin, Attention, Concat, Gather, GatherNd, MatMul, Op, ReduceMax, ReduceMean, ReduceMin, ReduceProd,
        ReduceSum, Slice, Split, Transpose,
    },
    types::ValueType,
};

/// What a factor of a dimension counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Anything but views.
    Plain,
    /// Views.
    Views,
    /// Views and other things in an order that is no product.
    Mixed,
}

/// One factor of a dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// How many.
    pub size: Dim,
    /// Of what.
    pub role: Role,
}

/// The factors of one dimension, outermost first: no plain ones, neighbouring plain factors are one.
pub type Axis = Vec<Factor>;

/// The factors of all dimensions of a value.
pub type Layout = Vec<Axis>;

/// An operand: its type, and its layout where views reach it.
type Operand<'a> = (&'a ValueType, Option<&'a Layout>);

/// Follows the view axis of the `seeds` (values with the index of that axis) through the graph.
pub fn trace(graph: &Graph, seeds: &[(Value, usize)]) -> HashMap<Value, Layout> {
    let mut known: HashMap<Value, Layout> = HashMap::new();
    for (value, axis) in seeds {
        let mut layout = plain(&graph.ty(*value).shape);
        layout[*axis] = vec![Factor { size: graph.ty(*value).shape[*axis].clone(), role: Role::Views }];
        known.insert(*value, layout);
    }
    for id in graph.topological() {
        let operands = graph.operands(id);
        if !operands.iter().any(|v| known.contains_key(v)) {
            continue;
        }
        let node = graph.node(id);
        let inputs: Vec<Operand> = operands.iter().map(|v| (graph.ty(*v), known.get(v))).collect();
        let results: Vec<Layout> = node.types.iter().map(|ty| transfer(&node.op, &inputs, ty)).collect();
        for (value, layout) in graph.results(id).zip(results) {
            if layout.iter().any(|axis| has_views(axis)) {
                known.insert(value, layout);
            }
        }
    }
    known
}

/// Whether views take part in a dimension.
pub fn has_views(axis: &[Factor]) -> bool {
    axis.iter().any(|f| f.role != Role::Plain)
}

/// A dimension that views have nothing to do with.
fn plain_axis(size: &Dim) -> Axis {
    if size.is_one() { Vec::new() } else { vec![Factor { size: size.clone(), role: Role::Plain }] }
}

fn plain(shape: &[Dim]) -> Layout {
    shape.iter().map(plain_axis).collect()
}

fn mixed(size: &Dim) -> Axis {
    vec![Factor { size: size.clone(), role: Role::Mixed }]
}

/// A dimension that is nothing but views, of another number.
fn views_of(axis: &[Factor], size: &Dim) -> Option<Axis> {
    match axis {
        [Factor { role: Role::Views, .. }] => Some(vec![Factor { size: size.clone(), role: Role::Views }]),
        _ => None,
    }
}

/// The layout of one result.
fn transfer(op: &Op, inputs: &[Operand], result: &ValueType) -> Layout {
    let first = |i: usize| inputs[i].1.cloned().unwrap_or_else(|| plain(&inputs[i].0.shape));
    match op {
        Op::Reshape(_) => regroup(&first(0), &result.shape),
        Op::Transpose(Transpose { perm }) => {
            let x = first(0);
            perm.iter().map(|p| x[*p].clone()).collect()
        }
        Op::Slice(Slice { axis, .. }) => part(first(0), &inputs[0].0.shape, *axis, &result.shape),
        Op::Split(Split { axis, .. }) => part(first(0), &inputs[0].0.shape, *axis, &result.shape),
        Op::Concat(Concat { axis }) => joined(inputs, *axis, result),
        Op::Gather(Gather { axis }) => {
            let x = first(0);
            let taken = indexed(&x[*axis..*axis + 1], inputs[1]);
            [&x[..*axis], &taken, &x[axis + 1..]].concat()
        }
        Op::GatherNd(GatherNd { batch_dims }) => {
            let x = first(0);
            let tuple = inputs[1].0.shape.last().and_then(Dim::size).unwrap_or(0);
            let outer = inputs[1].0.shape.len().saturating_sub(1);
            let index_type = inputs[1].0.with_shape(inputs[1].0.shape[..outer].to_vec());
            let index_layout = inputs[1].1.map(|l| l[..outer].to_vec());
            let mut layout = indexed(&x[*batch_dims..batch_dims + tuple], (&index_type, index_layout.as_ref()));
            layout.extend_from_slice(&x[batch_dims + tuple..]);
            layout
        }
        Op::ReduceSum(ReduceSum { axes, keep })
        | Op::ReduceMean(ReduceMean { axes, keep })
        | Op::ReduceMax(ReduceMax { axes, keep })
        | Op::ReduceMin(ReduceMin { axes, keep })
        | Op::ReduceProd(ReduceProd { axes, keep }) => reduced(first(0), axes, *keep),
        Op::ArgMax(ArgMax { axis, keep }) | Op::ArgMin(ArgMin { axis, keep }) => reduced(first(0), &[*axis], *keep),
        Op::MatMul(MatMul { transpose_b }) => {
            let (a, b, n) = (first(0), first(1), result.rank());
            let mut layout = aligned(inputs, result);
            layout[n - 2] = a[a.len() - 2].clone();
            layout[n - 1] = b[b.len() - if *transpose_b { 2 } else { 1 }].clone();
            layout
        }
        Op::Attention(Attention { .. }) => {
            let (q, v) = (first(0), first(2));
            vec![q[0].clone(), q[1].clone(), q[2].clone(), v[3].clone()]
        }
        Op::SplitHeads(_) => {
            let x = first(0);
            vec![x[0].clone(), plain_axis(&result.shape[1]), x[1].clone(), plain_axis(&result.shape[3])]
        }
        Op::MergeHeads(_) => {
            let x = first(0);
            vec![x[0].clone(), x[2].clone(), plain_axis(&result.shape[2])]
        }
        // Everything else keeps dimensions where they are, aligned at the right.
        _ => aligned(inputs, result),
    }
}

/// Broadcasting: of the operands that have the size of the result in a dimension, the one that knows of views tells.
fn aligned(inputs: &[Operand], result: &ValueType) -> Layout {
    let mut layout = plain(&result.shape);
    for (at, axis) in layout.iter_mut().enumerate() {
        let size = &result.shape[at];
        let candidates = inputs.iter().filter_map(|(ty, known)| {
            let own = (at + ty.rank()).checked_sub(result.rank())?;
            known.filter(|_| ty.shape[own] == *size).map(|l| &l[own]).filter(|a| has_views(a))
        });
        match agreed(candidates) {
            Some(Ok(said)) => *axis = said,
            Some(Err(Contradiction)) => *axis = mixed(size),
            None => {}
        }
    }
    layout
}

/// Descriptions of one dimension differ.
struct Contradiction;

/// What several descriptions of one dimension say, if there is any.
fn agreed<'a>(mut candidates: impl Iterator<Item = &'a Axis>) -> Option<Result<Axis, Contradiction>> {
    let first = candidates.next()?;
    Some(if candidates.all(|other| other == first) { Ok(first.clone()) } else { Err(Contradiction) })
}

/// A range of one dimension.
fn part(mut layout: Layout, from: &[Dim], axis: usize, to: &[Dim]) -> Layout {
    if from[axis] != to[axis] {
        let size = &to[axis];
        let old = &layout[axis];
        layout[axis] = match has_views(old) {
            true => views_of(old, size).unwrap_or_else(|| mixed(size)),
            false => plain_axis(size),
        };
    }
    layout
}

/// Concatenation: views that continue views are views.
fn joined(inputs: &[Operand], axis: usize, result: &ValueType) -> Layout {
    let mut layout = aligned(inputs, result);
    let size = &result.shape[axis];
    let parts: Vec<Option<&Axis>> = inputs
        .iter()
        .filter(|(ty, _)| ty.shape[axis].constant() != Some(0))
        .map(|(_, known)| known.map(|l| &l[axis]).filter(|a| has_views(a)))
        .collect();
    layout[axis] = if parts.iter().all(Option::is_none) {
        plain_axis(size)
    } else if let [Some(only)] = parts[..] {
        only.clone()
    } else {
        let pure = parts.iter().all(|p| p.is_some_and(|a| views_of(a, size).is_some()));
        if pure { vec![Factor { size: size.clone(), role: Role::Views }] } else { mixed(size) }
    };
    layout
}

/// Dimensions `x` replaced by those of an index: an index over views with as many entries as there are views reorders
/// them.
fn indexed(x: &[Axis], (index, known): Operand) -> Layout {
    let views = x.iter().find(|axis| has_views(axis));
    let mut layout = known.cloned().unwrap_or_else(|| plain(&index.shape));
    let Some(views) = views else { return layout };
    let count = views.iter().fold(Dim::from(1), |n, f| n * f.size.clone());
    match index.shape.iter().rposition(|size| *size == count) {
        Some(at) if views_of(views, &count).is_some() => layout[at] = views.clone(),
        _ => layout.iter_mut().zip(&index.shape).filter(|(_, n)| !n.is_one()).for_each(|(axis, n)| *axis = mixed(n)),
    }
    layout
}

/// Without the reduced dimensions, or with ones in their place.
fn reduced(layout: Layout, axes: &[usize], keep: bool) -> Layout {
    let all = layout.into_iter().enumerate();
    match keep {
        true => all.map(|(i, axis)| if axes.contains(&i) { Vec::new() } else { axis }).collect(),
        false => all.filter(|(i, _)| !axes.contains(i)).map(|(_, axis)| axis).collect(),
    }
}

/// The factors dealt out to new dimensions in row-major order; plain ones are cut where that is needed.
fn regroup(layout: &Layout, shape: &[Dim]) -> Layout {
    let mut queue: VecDeque<Factor> = VecDeque::new();
    layout.iter().flatten().for_each(|f| push(&mut queue, f.clone()));
    let mut out: Layout = Vec::with_capacity(shape.len());
    for size in shape {
        match take(&mut queue, size) {
            Some(axis) => out.push(axis),
            None => break,
        }
    }
    // From the first dimension that is no product of factors on, nothing is known but whether views are in it.
    let lost = queue.iter().any(|f| f.role != Role::Plain);
    let rest =
        shape[out.len()..].iter().map(|size| if lost && !size.is_one() { mixed(size) } else { plain_axis(size) });
    let rest: Vec<Axis> = rest.collect();
    out.extend(rest);
    out
}

fn push(queue: &mut VecDeque<Factor>, factor: Factor) {
    match queue.back_mut() {
        Some(last) if last.role == Role::Plain && factor.role == Role::Plain => {
            last.size = last.size.clone() * factor.size;
        }
        _ => queue.push_back(factor),
    }
}

/// The next factors whose product is `size`; leaves the queue as it was where there are none.
fn take(queue: &mut VecDeque<Factor>, size: &Dim) -> Option<Axis> {
    let mut rest = queue.clone();
    let (mut axis, mut need) = (VecDeque::new(), size.clone());
    if need.is_one() && rest.front().is_some_and(|f| f.size.is_one()) {
        axis.extend(rest.pop_front());
    }
    while !need.is_one() {
        let next = rest.pop_front()?;
        if let Some(left) = need.divide(&next.size).filter(|_| need.constant() != Some(0)) {
            push(&mut axis, next);
            need = left;
        } else {
            let left = next.size.divide(&need).filter(|_| next.role == Role::Plain)?;
            rest.push_front(Factor { size: left, role: Role::Plain });
            push(&mut axis, Factor { size: need, role: Role::Plain });
            need = Dim::from(1);
        }
    }
    *queue = rest;
    Some(axis.into())
}
