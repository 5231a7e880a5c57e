//! `fuse_pointwise`: elementwise operations that read each other are one operation.
//!
//! ```text
//! add(mul(x, add(s, 1)), t)   →   pointwise(x, s, t) {expr="add(mul(a,add(b,1)),c)"}
//! ```
//!
//! An intermediate value goes where one operation alone reads it, in the shape of its own result; where it is small and all
//! its readers are elementwise, each computes it anew, which takes less than a launch. A cast of the last value is the type of the result. Numbers
//! are rounded once instead of after every step, to 16 bits too.

use std::collections::HashSet;

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::{DCE, weight_time},
    uses::{is_output, result, sole_reader},
};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{
        Op, Pointwise,
        pointwise::{Expression, Function, MOST_OPERANDS},
    },
    patch::Patch,
    pattern::number,
    types::DType,
};

/// The pass.
pub const FUSE_POINTWISE: Pass = Pass {
    name: "fuse_pointwise",
    law: "elementwise operations that read each other are one operation",
    effect: Effect::Reassociates,
    run,
};

/// The most functions of one expression.
const MOST_CALLS: usize = 24;
/// The most elements that are computed more than once.
const SMALL: usize = 1024;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let fixed = weight_time(graph);
    let mut inner: HashSet<NodeId> = HashSet::new();
    let (mut fused, mut operations) = (0, 0);
    // Readers before what they read: the last operation of a chain is met first.
    for id in graph.topological().into_iter().rev() {
        if fixed.contains(&id) || inner.contains(&id) || step(graph, id).is_none() {
            continue;
        }
        let mut chain = Chain { graph, fixed: &fixed, operands: Vec::new(), nodes: Vec::new() };
        let Some(expr) = chain.of(id) else { continue };
        let Chain { operands, nodes, .. } = chain;
        if nodes.len() < 2 || expr.calls() == 0 || operands.is_empty() {
            continue;
        }
        let out = graph.ty(result(id)).dtype;
        let mut patch = Patch::new(graph, "fuse_pointwise", result(id));
        let new = patch.wire(Pointwise { expr, out }, &operands)?;
        patch.shunt(result(id), new)?;
        patch.apply();
        fused += 1;
        operations += nodes.len();
        // What others read too may have to be a chain of its own.
        inner.extend(nodes.into_iter().filter(|node| sole_reader(graph, result(*node)).is_some()));
    }
    let counts = [("chains", fused), ("operations", operations)];
    Ok(Report { counts: counts.map(|(what, n)| (what.to_string(), n)).into(), notes: Vec::new() })
}

/// A step of a chain.
enum Step {
    Call(Function),
    /// To or from a narrower type.
    Cast,
}

fn step(graph: &Graph, id: NodeId) -> Option<Step> {
    let wide = |value: Value| matches!(graph.ty(value).dtype, DType::F32 | DType::F16 | DType::BF16);
    if !wide(result(id)) || !graph.operands(id).into_iter().all(wide) {
        return None;
    }
    match graph.op(id) {
        Op::Cast(_) => Some(Step::Cast),
        op => Function::of(op).map(Step::Call),
    }
}

struct Chain<'g> {
    graph: &'g Graph,
    fixed: &'g HashSet<NodeId>,
    operands: Vec<Value>,
    /// The operations that become one.
    nodes: Vec<NodeId>,
}

impl Chain<'_> {
    /// What an operation computes, with as much before it as fits; `None` if it has too many operands itself.
    fn of(&mut self, id: NodeId) -> Option<Expression> {
        let step = step(self.graph, id)?;
        self.nodes.push(id);
        let operands = self.graph.operands(id);
        let arguments = operands.into_iter().map(|v| self.argument(v, id)).collect::<Option<Vec<_>>>()?;
        match step {
            Step::Cast => arguments.into_iter().next(),
            Step::Call(function) => Some(Expression::Call(function, arguments)),
        }
    }

    fn argument(&mut self, value: Value, reader: NodeId) -> Option<Expression> {
        if let Some(number) = number(self.graph, value) {
            return Some(Expression::Number(number));
        }
        if self.joins(value, reader) {
            let (operands, nodes) = (self.operands.len(), self.nodes.len());
            if let Some(inner) = self.of(value.node) {
                return Some(inner);
            }
            self.operands.truncate(operands);
            self.nodes.truncate(nodes);
        }
        let at = self.operands.iter().position(|v| *v == value);
        if at.is_none() && self.operands.len() == MOST_OPERANDS {
            return None;
        }
        if at.is_none() {
            self.operands.push(value);
        }
        Some(Expression::Operand(at.unwrap_or(self.operands.len() - 1)))
    }

    /// Whether a value is computed here instead of read.
    fn joins(&self, value: Value, reader: NodeId) -> bool {
        let graph = self.graph;
        let ty = graph.ty(value);
        let takes = |node: NodeId| step(graph, node).is_some() && graph.ty(result(node)).shape == ty.shape;
        let anew = || {
            let small = ty.elements().is_some_and(|n| n <= SMALL);
            small && !is_output(graph, value) && graph.users(value).iter().all(|(node, _)| takes(*node))
        };
        self.nodes.len() < MOST_CALLS
            && takes(reader)
            && !self.fixed.contains(&value.node)
            && (sole_reader(graph, value).is_some() || anew())
            && step(graph, value.node).is_some()
    }
}
