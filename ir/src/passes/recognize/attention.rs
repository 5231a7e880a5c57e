//! `attention`: softmax(scale·q kᵀ) v in all the forms in which exporters write it (`patterns/attention`).
//!
//! Wherever the scale stands, it ends as one number: the product of all factors, in f64. Factors are rounded to the
//! precision of the model; where their product is D^(−1/2) within that rounding, D^(−1/2) is meant and taken. Every
//! softmax that stays is a note.

use super::{Embedded, Outcome, decimal, patterns, replace};
use crate::{
    dim::Dim,
    graph::{Graph, Value},
    ops::{Attention, Op, Reshape, Transpose, shape_rules},
    passes::{Effect, Options, Pass, PassError, Report, dce},
    patch::Patch,
    pattern::Match,
};

/// The pass.
pub const RECOGNIZE_ATTENTION: Pass =
    Pass { name: "attention", law: "softmax(scale·q kᵀ) v is one attention", effect: Effect::Reassociates, run };

pub(super) static PATTERNS: Embedded = patterns!(
    "attention/scaled_both",
    "attention/scaled_both_inside",
    "attention/scaled_query",
    "attention/divided_query",
    "attention/scaled_key",
    "attention/scaled_after",
    "attention/divided_after",
    "attention/unscaled",
);

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let ready = dce::live(graph).into_iter().filter(|id| matches!(graph.op(*id), Op::Attention(_))).count();
    let mut report = replace(graph, "attention", &PATTERNS, |graph, found, _| build(graph, found))?;
    report.counts[0].1 += ready;
    let live = dce::live(graph);
    let left = live.iter().filter(|id| matches!(graph.op(**id), Op::Softmax(_))).count();
    report.counts.push(("softmax left".into(), left));
    Ok(report)
}

fn build(graph: &mut Graph, found: &Match) -> Result<Outcome, PassError> {
    let (q, v) = (found.value("q"), found.value("v"));
    let (products, p) = (found.value("s"), found.value("p"));
    let (Op::MatMul(first), Op::MatMul(second), Op::Softmax(softmax)) =
        (graph.op(products.node), graph.op(found.root.node), graph.op(p.node))
    else {
        return Ok(Outcome::Unrelated);
    };
    let rank = graph.ty(q).rank();
    if shape_rules::axis(softmax.axis, graph.ty(p).rank()) != Ok(rank - 1) {
        return Ok(Outcome::Refused(format!("the softmax runs over axis {}, not over the last", softmax.axis)));
    }
    if second.transpose_b || !(3..=4).contains(&rank) {
        return Ok(Outcome::Refused(format!("takes q [B,H,N,D] or [B,N,D], not {}", graph.ty(q))));
    }
    let keys = match found.pattern.as_str() {
        "attention_scaled_both_inside" => Keys { value: found.value("k"), perm: permutation(graph, found.value("kt")) },
        _ if first.transpose_b => Keys { value: found.value("kt"), perm: None },
        _ => Keys::of(graph, found.value("kt")),
    };
    let scale = scale(graph, found);
    let (batch, heads) = (graph.ty(q).shape[0].clone(), graph.ty(q).shape[1].clone());
    let agrees =
        |v: Value, from: usize| graph.ty(v).rank() == rank && graph.ty(v).shape[..from] == graph.ty(q).shape[..from];
    let kt = &graph.ty(products).shape;
    if !agrees(v, rank - 2) || !agrees(products, rank - 2) || kt[rank - 1] != graph.ty(v).shape[rank - 2] {
        let why = format!("q {}, products {} and v {} differ in batch", graph.ty(q), graph.ty(products), graph.ty(v));
        return Ok(Outcome::Refused(why));
    }
    let result = graph.ty(found.root).shape.clone();
    let mut patch = Patch::new(graph, "attention", found.root);
    let k = match keys.perm {
        Some(perm) => patch.wire(Transpose { perm }, &[keys.value])?,
        None => keys.value,
    };
    let mut operands = [q, k, v];
    if rank == 3 {
        for operand in &mut operands {
            let mut shape = patch.graph().ty(*operand).shape.clone();
            shape.insert(1, Dim::from(1));
            *operand = patch.wire(Reshape { shape }, &[*operand])?;
        }
    }
    if patch.graph().ty(operands[1]).shape[..2] != [batch, if rank == 3 { Dim::from(1) } else { heads }] {
        let why = format!("keys {} differ from queries in batch", patch.graph().ty(operands[1]));
        return Ok(Outcome::Refused(why));
    }
    let mut new = patch.wire(Attention::new(scale), &operands)?;
    if rank == 3 {
        new = patch.wire(Reshape { shape: result }, &[new])?;
    }
    patch.shunt(found.root, new)?;
    patch.apply();
    Ok(Outcome::Replaced)
}

/// Keys [.., M, D]: a value, moved once more where that is needed.
struct Keys {
    value: Value,
    perm: Option<Vec<usize>>,
}

impl Keys {
    /// From keys [.., D, M]: what a transpose has moved is moved back, and nothing is left of both where only the last
    /// two dimensions were exchanged.
    fn of(graph: &Graph, kt: Value) -> Self {
        let rank = graph.ty(kt).rank();
        let (source, mut perm) = match graph.op(kt.node) {
            Op::Transpose(op) => (graph.operands(kt.node)[0], op.perm.clone()),
            _ => (kt, (0..rank).collect()),
        };
        perm.swap(rank - 2, rank - 1);
        let moves = perm.iter().enumerate().any(|(i, p)| i != *p);
        Self { value: source, perm: moves.then_some(perm) }
    }
}

/// What is left to be done to the operand of a transpose to have [.., M, D].
fn permutation(graph: &Graph, kt: Value) -> Option<Vec<usize>> {
    Keys::of(graph, kt).perm
}

/// The product of all factors; D^(−1/2) where that is meant.
fn scale(graph: &Graph, found: &Match) -> f64 {
    let factor = |name: &str| found.number(name).unwrap_or(1.0);
    let product = factor("c") * factor("d") / factor("r");
    let ty = graph.ty(found.value("q"));
    let usual = ty.shape[ty.rank() - 1].size().map(|d| (d as f64).powf(-0.5));
    match usual {
        Some(usual) if (product / usual - 1.0).abs() <= 4.0 * ty.dtype.epsilon() => usual,
        _ => decimal(product),
    }
}
