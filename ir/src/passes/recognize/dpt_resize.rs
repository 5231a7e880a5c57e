//! `dpt_resize`: the bilinear resize with aligned corners, in one form.
//!
//! With aligned corners the scale plays no part, no neighbour lies outside, and neither do the attributes of other
//! modes matter; exporters write them nevertheless. Without them, equal resizes are equal, and a kernel has one case.
//! A resize to the same size is nothing.

use std::collections::BTreeMap;

use crate::{
    graph::{Graph, NodeId},
    ops::{
        Op, Resize,
        resize::{Coordinates, ResizeMode},
    },
    passes::{Effect, Options, Pass, PassError, Report, dce::weight_time, uses::result},
    patch::Patch,
};

/// The pass.
pub const DPT_RESIZE: Pass = Pass {
    name: "dpt_resize",
    law: "a bilinear resize with aligned corners has no other attribute",
    effect: Effect::Exact,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let fixed = weight_time(graph);
    let ids: Vec<NodeId> = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::Resize(_))).collect();
    let (mut count, mut others) = (0, BTreeMap::<String, Vec<String>>::new());
    for id in ids.into_iter().filter(|id| !fixed.contains(id)) {
        let Op::Resize(op) = graph.op(id).clone() else { continue };
        if op.mode != ResizeMode::Linear || op.coordinates != Coordinates::AlignCorners || op.antialias {
            let form = format!("{}, {}", op.mode.word(), op.coordinates.word());
            others.entry(form).or_default().push(format!("`{}`", graph.node(id).origin));
            continue;
        }
        count += 1;
        let x = graph.operands(id)[0];
        let plain = aligned(&op);
        let mut patch = Patch::new(graph, "dpt_resize", result(id));
        if patch.graph().ty(x) == patch.graph().ty(result(id)) {
            patch.shunt(result(id), x)?;
        } else if plain != op {
            let y = patch.wire(plain, &[x])?;
            patch.shunt(result(id), y)?;
        }
        patch.apply();
    }
    let note = |(form, at): (String, Vec<String>)| format!("another resize ({form}) at {}", at.join(", "));
    Ok(Report { notes: others.into_iter().map(note).collect(), ..Report::count("dpt_resize", count) })
}

/// Bilinear with aligned corners and nothing else said.
fn aligned(op: &Resize) -> Resize {
    Resize::new(ResizeMode::Linear, Coordinates::AlignCorners, op.size.clone())
}
