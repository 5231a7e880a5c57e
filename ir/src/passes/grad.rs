//! `grad{loss="loss",wrt=["blocks.*"]}`: reverse-mode differentiation (Linnainmaa 1970).
//!
//! Walks back from a scalar, adds the vector-Jacobian product of every operation that lies between it and what is asked
//! for, and sums the cotangents of values that are read more than once. What comes out is an ordinary graph: the other
//! passes, the planner and every backend treat it like any other.
//!
//! An operation of which a residual is needed gives it as an extra result ([`crate::ops::OpDef::with_residuals`]):
//! attention its logarithms of sums. Nothing is computed that no gradient needs, and nothing of a frozen weight.
//!
//! As a pass it takes patterns of the names of inputs and params ([`super::glob`]) and adds an output `grad.<name>` for
//! each; `loss` names an output with one element.

use std::collections::{HashMap, HashSet};

use super::{Effect, Options, Pass, PassError, Report, dce::DCE, glob::matches};
use crate::{
    graph::{Graph, NodeId, OpError, Value},
    ops::{Add, Constant, Expand, Op},
    patch::Patch,
    tensor::Tensor,
    vjp::Vjp,
};

/// The pass.
pub const GRAD: Pass =
    Pass { name: "grad", law: "a loss gets its gradients as outputs grad.<name>", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["loss", "wrt"])?;
    let loss = options.get_or("loss", "loss".to_string())?;
    let wanted: Vec<String> = options.get_or("wrt", vec!["*".to_string()])?;
    let output = graph.outputs().iter().find(|(name, _)| *name == loss).map(|(_, value)| *value);
    let mut problems = Vec::new();
    if output.is_none() {
        problems.push(format!("there is no output `{loss}`"));
    }
    let sources = sources(graph);
    for pattern in &wanted {
        if !sources.iter().any(|(name, _)| matches(pattern, name)) {
            problems.push(format!("no floating-point input or weight is called `{pattern}`"));
        }
    }
    let Some(output) = output.filter(|_| problems.is_empty()) else { return Err(PassError::Refused(problems)) };
    let chosen: Vec<(String, Value)> =
        sources.into_iter().filter(|(name, _)| wanted.iter().any(|pattern| matches(pattern, name))).collect();
    let values: Vec<Value> = chosen.iter().map(|(_, value)| *value).collect();
    let mut report = Report::count("gradients", 0);
    for ((name, value), gradient) in chosen.into_iter().zip(grad(graph, output, &values)?) {
        let gradient = match gradient {
            Some(gradient) => gradient,
            None => {
                report.notes.push(format!("the loss does not depend on `{name}`"));
                zeros(graph, value)?
            }
        };
        graph.output(format!("grad.{name}"), gradient);
        report.counts[0].1 += 1;
    }
    (DCE.run)(graph, &Options::default())?;
    Ok(report)
}

/// The cotangents of `wrt` for the scalar `loss`; none where it does not depend on one. Unread parts are left for `dce`.
///
/// Errors: a loss that is not one floating-point number, and every operation on the way that has no gradient.
pub fn grad(graph: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Option<Value>>, PassError> {
    let ty = graph.ty(loss).clone();
    if ty.elements() != Some(1) || !ty.dtype.is_float() {
        return Err(PassError::Refused(vec![format!("a loss is one floating-point number, not {ty}")]));
    }
    let loss = save_residuals(graph, loss, wrt)?;
    let active = Active::between(graph, wrt, loss);
    let origin = graph.node(loss.node).origin.clone();
    let one = graph.add(Constant { value: Tensor::scalar(ty.dtype, 1.0) }, &[], &origin)?;
    let one = graph.add(Expand { shape: ty.shape }, &[first(one)], &origin)?;
    let mut cotangents: HashMap<Value, Value> = HashMap::from([(loss, first(one))]);
    let mut problems: Vec<String> = Vec::new();
    let order: Vec<NodeId> = graph.topological().into_iter().filter(|id| active.nodes.contains(id)).collect();
    for id in order.into_iter().rev() {
        let results: Vec<Option<Value>> = graph.results(id).map(|v| cotangents.get(&v).copied()).collect();
        if results.iter().all(Option::is_none) || matches!(graph.op(id), Op::Input(_) | Op::Param(_)) {
            continue;
        }
        let parts = match vjp(graph, id, results) {
            Ok(parts) => parts,
            Err(problem) => {
                problems.push(problem.to_string());
                continue;
            }
        };
        for (operand, part) in graph.operands(id).into_iter().zip(parts) {
            let Some(part) = part.filter(|_| active.values.contains(&operand)) else { continue };
            let sum = match cotangents.get(&operand) {
                Some(other) => first(graph.add(Add {}, &[*other, part], &graph.node(id).origin.clone())?),
                None => part,
            };
            cotangents.insert(operand, sum);
        }
    }
    match problems.is_empty() {
        true => Ok(wrt.iter().map(|v| cotangents.get(v).copied()).collect()),
        false => {
            problems.dedup();
            Err(PassError::Refused(problems))
        }
    }
}

/// The parts of the operands of one node.
fn vjp(graph: &mut Graph, id: NodeId, cotangents: Vec<Option<Value>>) -> Result<Vec<Option<Value>>, OpError> {
    let op = graph.op(id).clone();
    let mut at = Vjp::new(graph, id, cotangents);
    op.vjp(&mut at)?;
    Ok(at.finish())
}

/// What lies between sources and a loss.
struct Active {
    nodes: HashSet<NodeId>,
    /// Floating-point values that depend on a source.
    values: HashSet<Value>,
}

impl Active {
    fn between(graph: &Graph, sources: &[Value], loss: Value) -> Self {
        let mut values: HashSet<Value> = sources.iter().copied().collect();
        let mut nodes: HashSet<NodeId> = sources.iter().map(|v| v.node).collect();
        let order = graph.topological();
        for id in &order {
            if graph.operands(*id).iter().any(|v| values.contains(v)) {
                nodes.insert(*id);
                values.extend(graph.results(*id).filter(|v| graph.ty(*v).dtype.is_float()));
            }
        }
        let mut needed = HashSet::from([loss.node]);
        for id in order.iter().rev() {
            if needed.contains(id) {
                needed.extend(graph.operands(*id).iter().map(|v| v.node));
            }
        }
        nodes.retain(|id| needed.contains(id));
        Self { nodes, values }
    }
}

/// Lets every operation between sources and loss give what its gradient reads, and returns where the loss is now.
fn save_residuals(graph: &mut Graph, loss: Value, sources: &[Value]) -> Result<Value, PassError> {
    let active = Active::between(graph, sources, loss);
    let mut loss = loss;
    for id in graph.topological().into_iter().filter(|id| active.nodes.contains(id)) {
        let Some(op) = graph.op(id).with_residuals() else { continue };
        let (operands, old) = (graph.operands(id), graph.results(id).collect::<Vec<_>>());
        let mut patch = Patch::new(graph, "save_residuals", first(id));
        let new = patch.wire_all(op, &operands)?;
        for (old, new) in old.into_iter().zip(new) {
            patch.shunt(old, new)?;
            loss = if loss == old { new } else { loss };
        }
        patch.apply();
    }
    Ok(loss)
}

/// Floating-point inputs and params by name.
fn sources(graph: &Graph) -> Vec<(String, Value)> {
    let named = graph.node_ids().filter_map(|id| match graph.op(id) {
        Op::Input(op) => Some((op.name.clone(), first(id))),
        Op::Param(op) => Some((op.name.clone(), first(id))),
        _ => None,
    });
    named.filter(|(_, value)| graph.ty(*value).dtype.is_float()).collect()
}

fn zeros(graph: &mut Graph, like: Value) -> Result<Value, OpError> {
    let (ty, origin) = (graph.ty(like).clone(), graph.node(like.node).origin.clone());
    let zero = graph.add(Constant { value: Tensor::scalar(ty.dtype, 0.0) }, &[], &origin)?;
    Ok(first(graph.add(Expand { shape: ty.shape }, &[first(zero)], &origin)?))
}

fn first(node: NodeId) -> Value {
    Value { node, slot: 0 }
}
