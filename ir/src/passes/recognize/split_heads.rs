//! `split_heads`: the parts of a joint projection, heads in front.
//!
//! A part is recognised by itself; all parts of one projection then read one `split_heads`.

use std::collections::HashMap;

use super::{Embedded, Outcome, patterns, replace};
use crate::{
    attr::AttrField,
    dim::Dim,
    graph::{Graph, Value},
    ops::{Reshape, SplitHeads},
    passes::{Effect, Options, Pass, PassError, Report},
    patch::Patch,
    pattern::Match,
};

/// The pass.
pub const RECOGNIZE_SPLIT_HEADS: Pass =
    Pass { name: "split_heads", law: "a projection cut into parts and heads is one split", effect: Effect::Exact, run };

pub(super) static PATTERNS: Embedded = patterns!("split_heads");

/// One part of a projection.
struct Part {
    /// Which, from 0.
    index: usize,
    /// Of how many.
    parts: usize,
    heads: usize,
    /// [B, N, parts·heads·D].
    projected: Vec<Dim>,
}

/// The parts of a projection, by the projection and what it is cut into.
type Splits = HashMap<(Value, usize, usize, Vec<Dim>), Vec<Value>>;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let mut splits = Splits::new();
    let report = replace(graph, "parts", &PATTERNS, |graph, found, _| {
        let part = match found.pattern.as_str() {
            "part_of_permuted" => permuted(graph, found),
            "permuted_part" => cut(graph, found),
            _ => columns(graph, found),
        };
        match part {
            Some(part) => build(graph, found, part, &mut splits),
            None => Ok(Outcome::Unrelated),
        }
    })?;
    let parts = report.counts;
    Ok(Report { counts: vec![("split_heads".into(), splits.len()), parts[0].clone()], notes: Vec::new() })
}

fn build(graph: &mut Graph, found: &Match, part: Part, splits: &mut Splits) -> Result<Outcome, PassError> {
    let x = found.value("x");
    let Part { index, parts, heads, projected } = part;
    let moved = graph.ty(x).shape != projected;
    let key = (x, parts, heads, projected.clone());
    let mut patch = Patch::new(graph, "split_heads", found.root);
    if !splits.contains_key(&key) {
        let x = if moved { patch.wire(Reshape { shape: projected }, &[x])? } else { x };
        splits.insert(key.clone(), patch.wire_all(SplitHeads { parts, heads }, &[x])?);
    }
    let new = splits[&key][index];
    if patch.graph().ty(new) != patch.graph().ty(found.root) {
        return Ok(Outcome::Unrelated);
    }
    patch.shunt(found.root, new)?;
    patch.apply();
    Ok(Outcome::Replaced)
}

fn captured<T: AttrField>(found: &Match, name: &str) -> Option<T> {
    found.attr(name).and_then(T::take)
}

/// The one row that a slice takes: its axis and index.
fn row(found: &Match) -> Option<(usize, usize)> {
    let (start, end): (Dim, Dim) = (captured(found, "start")?, captured(found, "end")?);
    let one = end - start.clone() == Dim::from(1);
    Some((captured(found, "axis")?, start.size().filter(|_| one)?))
}

/// [B, N, parts, H, D], with what it makes of the projection.
fn five(graph: &Graph, found: &Match, index: usize) -> Option<Part> {
    let [b, n, parts, heads, d] = graph.ty(found.value("r")).shape.clone().try_into().ok()?;
    let (parts_n, heads_n) = (parts.size()?, heads.size()?);
    let projected = vec![b, n, parts * heads * d];
    (index < parts_n && same_rows(graph, found.value("x"), &projected[2])).then_some(Part {
        index,
        parts: parts_n,
        heads: heads_n,
        projected,
    })
}

/// Whether the columns of x are those of the projection.
fn same_rows(graph: &Graph, x: Value, columns: &Dim) -> bool {
    graph.ty(x).shape.last() == Some(columns)
}

fn permuted(graph: &Graph, found: &Match) -> Option<Part> {
    let perm: Vec<usize> = Vec::take(found.attr("perm")?)?;
    let (axis, index) = row(found)?;
    let left: Vec<usize> = perm.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, p)| *p).collect();
    // Of [B, N, parts, H, D] the heads come before the tokens.
    let fits = perm.len() == 5 && perm[axis] == 2 && left == [0, 3, 1, 4];
    let part = five(graph, found, index).filter(|_| fits)?;
    let root = &graph.ty(found.root).shape;
    let moved: Vec<&Dim> = [0, 3, 1, 4].iter().map(|i| &graph.ty(found.value("r")).shape[*i]).collect();
    root.iter().eq(moved).then_some(part)
}

fn cut(graph: &Graph, found: &Match) -> Option<Part> {
    let (axis, index) = row(found).filter(|(axis, _)| *axis == 2)?;
    let five_shape = graph.ty(found.value("r")).shape.clone();
    let without: Vec<Dim> = five_shape.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, d)| d.clone()).collect();
    let part = five(graph, found, index)?;
    (graph.ty(found.value("h")).shape == without).then_some(part)
}

fn columns(graph: &Graph, found: &Match) -> Option<Part> {
    let x = graph.ty(found.value("x")).shape.clone();
    let [b, n, heads, d] = graph.ty(found.value("h")).shape.clone().try_into().ok()?;
    let width = heads.clone() * d;
    let (start, end): (Dim, Dim) = (captured(found, "start")?, captured(found, "end")?);
    let all = x.last()?.clone();
    let last = captured::<usize>(found, "axis")? == x.len() - 1;
    if !last || end - start.clone() != width {
        return None;
    }
    let parts = all.divide(&width)?.size()?;
    let index = start.divide(&width)?.size()?;
    let projected = vec![b, n, all];
    (parts > 1 && index < parts).then_some(Part { index, parts, heads: heads.size()?, projected })
}
