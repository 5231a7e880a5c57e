//! `rope`: rotary position embeddings.
//!
//! First every rotation t·cos + rotate_half(t)·sin becomes `rope{segments=1}`; then two of them on the two halves of a
//! head become one `rope{segments=2}`, whose tables are those of the halves side by side. Tables are known when the
//! plan is made, so that joining them costs nothing at run time.

use std::collections::HashMap;

use super::{Embedded, Outcome, patterns, replace};
use crate::{
    attr::AttrField,
    dim::Dim,
    graph::{Graph, Value},
    ops::{Concat, Op, Rope, shape_rules::broadcast},
    passes::{Effect, Options, Pass, PassError, Report, dce},
    patch::Patch,
    pattern::Match,
};

/// The pass.
pub const RECOGNIZE_ROPE: Pass = Pass {
    name: "rope",
    law: "x·cos + rotate_half(x)·sin, on both halves of a head, is one rotation",
    effect: Effect::Reassociates,
    run,
};

pub(super) static ONE: Embedded = patterns!("rope");
pub(super) static TWO: Embedded = patterns!("rope_2d");

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let one = replace(graph, "rope", &ONE, |graph, found, _| rotation(graph, found))?;
    // Tables are shared by all layers, and joined once.
    let mut joined: HashMap<(Value, Value), Value> = HashMap::new();
    let two = replace(graph, "rope", &TWO, |graph, found, _| halves(graph, found, &mut joined))?;
    let count = |segments: usize| {
        let is = |id: &&_| matches!(graph.op(**id), Op::Rope(op) if op.segments == segments);
        dce::live(graph).iter().filter(is).count()
    };
    let counts = vec![("rope".to_string(), count(1) + count(2)), ("along one axis".to_string(), count(1))];
    Ok(Report { counts, notes: [one.notes, two.notes].concat() })
}

fn rotation(graph: &mut Graph, found: &Match) -> Result<Outcome, PassError> {
    let (t, cos, sin) = (found.value("t"), found.value("cos"), found.value("sin"));
    let (ty, tables) = (graph.ty(t), [graph.ty(cos), graph.ty(sin)]);
    let Some(width) = ty.shape.last().cloned() else { return Ok(Outcome::Unrelated) };
    if found.attr("axis") != Some(&(ty.rank() - 1).put()) {
        return Ok(Outcome::Refused(format!("it does not run along the last axis of {ty}")));
    }
    let start = found.attr("start").and_then(Dim::take).unwrap_or_else(|| Dim::from(0));
    let half = found.attr("half").and_then(Dim::take).map(|half| half - start);
    if half.is_none_or(|half| half.clone() + half != width) {
        return Ok(Outcome::Refused(format!("the last axis of {ty} is not cut in halves")));
    }
    let fits = tables[0] == tables[1] && broadcast(&[&ty.shape, &tables[0].shape]).is_ok_and(|shape| shape == ty.shape);
    if !fits {
        return Ok(Outcome::Refused(format!("tables {} and {} do not go with {ty}", tables[0], tables[1])));
    }
    let mut patch = Patch::new(graph, "rope", found.root);
    let new = patch.wire(Rope { segments: 1 }, &[t, cos, sin])?;
    patch.shunt(found.root, new)?;
    patch.apply();
    Ok(Outcome::Replaced)
}

fn halves(graph: &mut Graph, found: &Match, joined: &mut HashMap<(Value, Value), Value>) -> Result<Outcome, PassError> {
    let x = found.value("x");
    let ty = graph.ty(x);
    let width = ty.shape.last().cloned().unwrap_or_else(|| Dim::from(0));
    let half = found.attr("half").and_then(Dim::take);
    let whole = found.attr("width").and_then(Dim::take);
    let last = found.attr("axis") == Some(&(ty.rank() - 1).put());
    if !last || whole.as_ref() != Some(&width) || half.is_none_or(|half| half.clone() + half != width) {
        return Ok(Outcome::Refused(format!("the last axis of {ty} is not cut in halves")));
    }
    let tables = ["cos_y", "cos_x", "sin_y", "sin_x"].map(|name| found.value(name));
    let types = tables.map(|v| graph.ty(v).clone());
    if types.iter().any(|ty| *ty != types[0])
        || types[0].shape.last() != Some(&graph.ty(found.value("v")).shape[ty.rank() - 1])
    {
        let types = types.map(|ty| ty.to_string()).join(", ");
        return Ok(Outcome::Refused(format!("the tables of the halves differ: {types}")));
    }
    let axis = types[0].rank() - 1;
    let mut patch = Patch::new(graph, "rope", found.root);
    let mut join = |patch: &mut Patch, a: Value, b: Value| -> Result<Value, PassError> {
        match joined.get(&(a, b)) {
            Some(table) => Ok(*table),
            None => {
                let table = patch.wire(Concat { axis }, &[a, b])?;
                joined.insert((a, b), table);
                Ok(table)
            }
        }
    };
    let cos = join(&mut patch, tables[0], tables[1])?;
    let sin = join(&mut patch, tables[2], tables[3])?;
    let new = patch.wire(Rope { segments: 2 }, &[x, cos, sin])?;
    patch.shunt(found.root, new)?;
    patch.apply();
    Ok(Outcome::Replaced)
}
