//! `attention_kinds`: what every attention looks over, told by where the view axis of the images went.
//!
//! The axis of views is found in an input (see [`view_axes`]) and followed through every operation up to the queries
//! of each attention ([`provenance`]). Sizes decide nothing, so the same model is classified alike at any number of
//! views:
//!
//! - views in the batch, with RoPE or q/k norm: `frame`; with neither: `encoder`;
//! - views in the sequence, several tokens a view: `global`; one token a view: `camera`.
//!
//! An export whose view axis is fixed at one has nothing to follow: there `frame` and `global` are the same
//! mathematics. The names of the modules decide if they say `frame` or `global`; otherwise the attention is ambiguous
//! and refused. Who names the axis with `views_axis` settles it: what names leave open is then `frame`, and a note says
//! so.
//!
//! Runs on recognised graphs before symbols are bound. `views_axis=N` says which axis of the image input counts views.

mod inventory;
pub mod provenance;

pub use inventory::{Inventory, Row, inventory};
use provenance::{Axis, Role, has_views, trace};

use super::{Effect, Options, Pass, PassError, Report};
use crate::{
    dim::Dim,
    graph::{Graph, NodeId, Value},
    ops::{Attention, Op, Reshape, attention::AttentionKind},
    patch::Patch,
};

/// The pass.
pub const ATTENTION_KINDS: Pass = Pass {
    name: "attention_kinds",
    law: "an attention knows whether it looks over an image, a view, all views or cameras",
    effect: Effect::Exact,
    run,
};

/// The view axis of the images and of other inputs that have it.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewAxes {
    /// Inputs with the index of their view axis; images first.
    pub seeds: Vec<(Value, usize)>,
    /// The number of views.
    pub views: Dim,
}

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["views_axis"])?;
    let asked = options.get::<usize>("views_axis")?;
    let attentions: Vec<NodeId> =
        graph.topological().into_iter().filter(|id| matches!(graph.op(*id), Op::Attention(_))).collect();
    if attentions.is_empty() {
        return Ok(Report::count("attention", 0));
    }
    let Some(axes) = view_axes(graph, asked)? else {
        let note = "no input has an axis of views, so the attentions stay unknown; `--views AXIS` names it".into();
        return Ok(Report { notes: vec![note], ..Report::count("unknown", attentions.len()) });
    };
    let mut judge = Judge { asked: asked.is_some(), notes: Vec::new(), problems: Vec::new() };
    let verdicts: Vec<(AttentionKind, Dim)> = match axes.views.is_one() {
        true => attentions.iter().map(|id| (judge.single_view(graph, *id), Dim::from(1))).collect(),
        false => {
            let known = trace(graph, &axes.seeds);
            let layout = |id: &NodeId| known.get(&graph.operands(*id)[0]).cloned();
            attentions.iter().map(|id| judge.several_views(graph, *id, layout(id))).collect()
        }
    };
    if !judge.problems.is_empty() {
        return Err(PassError::Refused(judge.problems));
    }
    let mut report = Report { counts: Vec::new(), notes: judge.notes };
    for (word, kind) in AttentionKind::WORDS {
        let count = verdicts.iter().filter(|(k, _)| k == kind).count();
        if count > 0 {
            report.counts.push(((*word).into(), count));
        }
    }
    for (id, (kind, views)) in attentions.into_iter().zip(verdicts) {
        let Op::Attention(old) = graph.op(id) else { continue };
        let new = Attention { kind, views, ..old.clone() };
        let (operands, result) = (graph.operands(id), Value { node: id, slot: 0 });
        let mut patch = Patch::new(graph, "attention_kinds", result);
        let value = patch.wire(new, &operands)?;
        patch.shunt(result, value)?;
        patch.apply();
    }
    Ok(report)
}

/// Finds the axis of views: the one that `asked` names, else the only symbol that is a whole dimension of an input,
/// else the one in front of the three channels of an image input [.., views, 3, H, W]. Other inputs that begin like
/// the images up to that axis have it too. `None` if nothing looks like images.
pub fn view_axes(graph: &Graph, asked: Option<usize>) -> Result<Option<ViewAxes>, PassError> {
    let inputs: Vec<Value> = graph.inputs().iter().map(|id| Value { node: *id, slot: 0 }).collect();
    let shape = |v: &Value| graph.ty(*v).shape.as_slice();
    let channels = |v: &Value| shape(v).len().checked_sub(4).filter(|axis| shape(v)[axis + 1].constant() == Some(3));
    let images = inputs.iter().find(|v| channels(v).is_some());
    let symbols: std::collections::BTreeSet<&str> =
        inputs.iter().flat_map(|v| shape(v).iter().flat_map(Dim::symbols)).collect();
    let symbolic = |v: &Value| match symbols.len() {
        1 => shape(v).iter().position(|d| !d.symbols().is_empty()),
        _ => None,
    };
    let found = match asked {
        Some(axis) => {
            let input = images.or_else(|| inputs.iter().find(|v| shape(v).len() > axis));
            let fits = input.filter(|v| axis < shape(v).len());
            let refused = || PassError::Refused(vec![format!("`--views {axis}`: no input has an axis {axis}")]);
            Some((*fits.ok_or_else(refused)?, axis))
        }
        None => {
            let by_symbol = images.and_then(|v| symbolic(v).map(|axis| (*v, axis)));
            by_symbol
                .or_else(|| images.and_then(|v| channels(v).map(|axis| (*v, axis))))
                .or_else(|| inputs.iter().find_map(|v| symbolic(v).map(|axis| (*v, axis))))
        }
    };
    let Some((images, axis)) = found else { return Ok(None) };
    let leading = shape(&images)[..=axis].to_vec();
    let mut seeds = vec![(images, axis)];
    seeds.extend(inputs.iter().filter(|v| **v != images && shape(v).starts_with(&leading)).map(|v| (*v, axis)));
    Ok(Some(ViewAxes { seeds, views: leading[axis].clone() }))
}

struct Judge {
    /// Whether the user named the axis of views.
    asked: bool,
    notes: Vec<String>,
    problems: Vec<String>,
}

impl Judge {
    fn several_views(&mut self, graph: &Graph, id: NodeId, layout: Option<Vec<Axis>>) -> (AttentionKind, Dim) {
        let origin = &graph.node(id).origin;
        let mut ambiguous = |why: &str| {
            self.problems.push(format!("attention at `{origin}`: {why}; `--views AXIS` names the axis of views"));
            (AttentionKind::Unknown, Dim::from(1))
        };
        let Some(layout) = layout else { return ambiguous("the views of no input reach its queries") };
        let (batch, sequence) = (&layout[0], &layout[2]);
        match (has_views(batch), sequence.as_slice()) {
            (true, sequence) if has_views(sequence) => ambiguous("views are both in the batch and in the sequence"),
            (true, _) if batch.iter().any(|f| f.role == Role::Mixed) => {
                ambiguous("the batch mixes views with something else")
            }
            (true, _) => (per_view(graph, id), Dim::from(1)),
            (false, [only]) if only.role == Role::Views => (AttentionKind::Camera, only.size.clone()),
            (false, [views, tokens]) if (views.role, tokens.role) == (Role::Views, Role::Plain) => {
                (AttentionKind::Global, views.size.clone())
            }
            (false, sequence) if has_views(sequence) => {
                ambiguous("its sequence is not the tokens of one view after those of the other")
            }
            _ => ambiguous("views are neither in the batch nor in the sequence"),
        }
    }

    fn single_view(&mut self, graph: &Graph, id: NodeId) -> AttentionKind {
        let q = graph.operands(id)[0];
        if graph.ty(q).shape[2].is_one() {
            return AttentionKind::Camera;
        }
        if per_view(graph, id) == AttentionKind::Encoder {
            return AttentionKind::Encoder;
        }
        let names = module_names(graph, id);
        let said = |word: &str| names.iter().any(|n| n.split(|c: char| !c.is_alphanumeric()).any(|part| part == word));
        match (said("frame"), said("global")) {
            (false, true) => AttentionKind::Global,
            (true, false) => AttentionKind::Frame,
            _ => {
                let origin = &graph.node(id).origin;
                let same = format!("attention at `{origin}`: one view, so frame and global are the same");
                match self.asked {
                    true => self.notes.push(format!("{same}; called frame")),
                    false => self.problems.push(format!(
                        "{same}, and no module name tells; export with a symbolic number of views or with two and more, \
                         or accept `frame` by naming the axis with `--views AXIS`"
                    )),
                }
                AttentionKind::Frame
            }
        }
    }
}

/// The kind of an attention within views: positions or q/k norm tell frame attention from an image encoder.
fn per_view(graph: &Graph, id: NodeId) -> AttentionKind {
    let operands = graph.operands(id);
    let marked = operands[..2]
        .iter()
        .any(|v| query_chain(graph, *v).iter().any(|id| matches!(graph.op(*id), Op::Rope(_) | Op::LayerNorm(_))));
    if marked { AttentionKind::Frame } else { AttentionKind::Encoder }
}

/// The operations between a query or key and the projection that made it, the projection included.
fn query_chain(graph: &Graph, mut value: Value) -> Vec<NodeId> {
    let mut chain = vec![value.node];
    // A projection is a handful of operations away; the bound keeps a query that has none from walking the graph.
    for _ in 0..16 {
        let passes = matches!(
            graph.op(value.node),
            Op::Rope(_)
                | Op::LayerNorm(_)
                | Op::Reshape(_)
                | Op::Transpose(_)
                | Op::SplitHeads(_)
                | Op::Split(_)
                | Op::Slice(_)
                | Op::Gather(_)
                | Op::Cast(_)
                | Op::Mul(_)
        );
        match graph.operands(value.node).first() {
            Some(first) if passes => value = *first,
            _ => break,
        }
        chain.push(value.node);
    }
    chain
}

/// What modules are called around an attention: its own origin, those of its projection, and of the params these read.
fn module_names(graph: &Graph, id: NodeId) -> Vec<String> {
    let mut names = vec![graph.node(id).origin.to_string()];
    for node in query_chain(graph, graph.operands(id)[0]) {
        names.push(graph.node(node).origin.to_string());
        for mut operand in graph.operands(node).into_iter().skip(1) {
            while let Op::Transpose(_) | Op::Reshape(Reshape { .. }) | Op::Cast(_) = graph.op(operand.node) {
                operand = graph.operands(operand.node)[0];
            }
            if let Op::Param(param) = graph.op(operand.node) {
                names.push(param.name.clone());
            }
        }
    }
    names.iter_mut().for_each(|n| n.make_ascii_lowercase());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str, options: &Options) -> Result<(Graph, Report), PassError> {
        let mut graph: Graph = text.parse().unwrap();
        crate::verify(&graph).unwrap();
        let report = run(&mut graph, options)?;
        crate::passes::run(&crate::passes::dce::DCE, &mut graph, &Options::default())?;
        crate::verify(&graph).unwrap();
        Ok((graph, report))
    }

    fn kinds(graph: &Graph) -> Vec<(AttentionKind, String)> {
        inventory(graph).rows.iter().map(|r| (r.kind, r.views.to_string())).collect()
    }

    #[test]
    fn four_kinds_at_any_number_of_views() {
        use AttentionKind::{Camera, Encoder, Frame, Global};
        let (fixed, report) =
            judged(include_str!("../../tests/passes/attention_kinds/static_views.ir"), &Options::default()).unwrap();
        let of = |n: &str| vec![(Encoder, "1".into()), (Frame, "1".into()), (Global, n.into()), (Camera, n.into())];
        assert_eq!(kinds(&fixed), of("3"));
        assert_eq!(report.total(), 4);
        let text = include_str!("../../tests/passes/attention_kinds/symbolic_views.ir");
        assert_eq!(kinds(&judged(text, &Options::default()).unwrap().0), of("S"));
    }

    #[test]
    fn ambiguity_names_every_attention_and_the_way_out() {
        let text = include_str!("../../tests/passes/attention_kinds/ambiguous.ir");
        let error = judged(text, &Options::default()).unwrap_err().to_string();
        for part in ["`channels`", "`interleaved`", "--views AXIS"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn one_view_is_ambiguous_without_a_name() {
        let text = include_str!("../../tests/passes/attention_kinds/one_view.ir");
        let (graph, report) = judged(text, &Options::default().with("views_axis", 1usize)).unwrap();
        let one = |kind| (kind, "1".to_string());
        assert_eq!(kinds(&graph), [one(AttentionKind::Global), one(AttentionKind::Frame)]);
        assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
        let error = judged(text, &Options::default()).unwrap_err().to_string();
        assert!(error.contains("`unnamed`") && !error.contains("`named`"), "{error}");
    }

    #[test]
    fn an_axis_that_is_not_there_is_refused() {
        let text = include_str!("../../tests/passes/attention_kinds/one_view.ir");
        assert!(judged(text, &Options::default().with("views_axis", 7usize)).is_err());
    }
}
