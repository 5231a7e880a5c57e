//! `recompute{bytes=4294967296,forward=["loss*"]}`: what a reverse pass reads of the forward pass is kept or computed again, so that what is
//! kept stays within a budget (Griewank and Walther 2000; Chen et al. 2016).
//!
//! Forward is what certain outputs depend on, by pattern ([`super::glob`]); what the rest reads of it is kept from one pass
//! to the other. Values are given up one after the other, the cheapest to compute again per byte first: elementwise results and
//! norms before products, products before attention. Computing one again may need others that were given up before; their
//! cost counts in. Operands that would have to be kept in its place count against it.
//!
//! ```text
//! y = gelu(x); …; g = linear(…, y)   →   y = gelu(x); …; g = linear(…, gelu(again(x)))
//! ```

use std::collections::{HashMap, HashSet};

use super::{Effect, Options, Pass, PassError, Report, dce, glob};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Again, Op},
    patch::Patch,
};

/// The pass.
pub const RECOMPUTE: Pass = Pass {
    name: "recompute",
    law: "what the reverse pass reads is computed again where keeping it exceeds a budget",
    effect: Effect::Exact,
    run,
};

/// What is kept between the passes, and what is not.
struct Kept<'g> {
    graph: &'g Graph,
    forward: HashSet<NodeId>,
    /// Inputs, params, constants and what follows from weights alone: there in any case.
    free: HashSet<NodeId>,
    /// Nodes whose results are computed again.
    given_up: HashSet<NodeId>,
    /// Values that are kept, as long as something reads them.
    saved: HashSet<Value>,
    /// What the nodes of the forward pass cost by themselves.
    costs: HashMap<NodeId, f64>,
    /// What a caller gets, which is computed once.
    returned: HashSet<NodeId>,
}

impl<'g> Kept<'g> {
    fn new(graph: &'g Graph, patterns: &[String]) -> Self {
        let mut forward = HashSet::new();
        let outputs = graph.outputs().iter().filter(|(name, _)| patterns.iter().any(|p| glob::matches(p, name)));
        let mut stack: Vec<NodeId> = outputs.map(|(_, value)| value.node).collect();
        while let Some(id) = stack.pop() {
            if forward.insert(id) {
                stack.extend(graph.operands(id).into_iter().map(|v| v.node));
            }
        }
        let mut free = dce::weight_time(graph);
        free.extend(graph.inputs());
        let costs = forward.iter().map(|id| (*id, cost_alone(graph, *id))).collect();
        let (given_up, saved, returned) = Default::default();
        let mut kept = Self { graph, forward, free, given_up, saved, costs, returned };
        kept.returned = graph.outputs().iter().map(|(_, value)| kept.base(*value).node).collect();
        for id in graph.topological() {
            if !kept.forward.contains(&id) {
                graph.operands(id).into_iter().for_each(|value| kept.save(value));
            }
        }
        kept
    }

    /// The value whose memory a value is in.
    fn base(&self, mut value: Value) -> Value {
        while is_view(self.graph.op(value.node)) {
            value = self.graph.operands(value.node)[0];
        }
        value
    }

    fn crosses(&self, value: Value) -> bool {
        self.forward.contains(&value.node) && !self.free.contains(&value.node)
    }

    fn save(&mut self, value: Value) {
        let base = self.base(value);
        if self.crosses(base) && !self.given_up.contains(&base.node) {
            self.saved.insert(base);
        }
    }

    fn bytes(&self, value: Value) -> u64 {
        self.graph.ty(value).bytes().unwrap_or(0) as u64
    }

    fn total(&self) -> u64 {
        self.saved.iter().map(|v| self.bytes(*v)).sum()
    }

    /// What computing a node again costs, with all that was given up before it.
    fn cost(&self, id: NodeId) -> f64 {
        let (mut stack, mut seen, mut sum) = (vec![id], HashSet::from([id]), 0.0);
        while let Some(id) = stack.pop() {
            sum += self.costs[&id];
            for operand in self.graph.operands(id) {
                let base = self.base(operand).node;
                if self.given_up.contains(&base) && seen.insert(base) {
                    stack.push(base);
                }
            }
        }
        sum
    }

    /// Bytes that giving up a node saves, less what has to be kept for it.
    fn gain(&self, id: NodeId) -> i128 {
        let own: u64 = self.graph.results(id).filter(|v| self.saved.contains(v)).map(|v| self.bytes(v)).sum();
        let mut needed = HashSet::new();
        for operand in self.graph.operands(id) {
            let base = self.base(operand);
            if self.crosses(base) && !self.given_up.contains(&base.node) && !self.saved.contains(&base) {
                needed.insert(base);
            }
        }
        i128::from(own) - needed.into_iter().map(|v| i128::from(self.bytes(v))).sum::<i128>()
    }

    fn give_up(&mut self, id: NodeId) {
        self.given_up.insert(id);
        for value in self.graph.results(id) {
            self.saved.remove(&value);
        }
        for operand in self.graph.operands(id) {
            self.save(operand);
        }
    }

    /// The node that costs least per byte that it frees.
    fn cheapest(&self) -> Option<NodeId> {
        let mut nodes: Vec<NodeId> = self.saved.iter().map(|v| v.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|id| !self.returned.contains(id));
        let price =
            |id: NodeId| Some((self.cost(id) / u64::try_from(self.gain(id)).ok().filter(|g| *g > 0)? as f64, id));
        nodes.into_iter().filter_map(price).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, id)| id)
    }
}

/// Whether a result is its operand in another shape or under another name.
fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Again(_) | Op::StopGradient(_))
}

/// What a node costs: bytes moved, and operations by how many a device does while it moves a byte.
fn cost_alone(graph: &Graph, id: NodeId) -> f64 {
    const OPERATIONS_A_BYTE: f64 = 100.0;
    let types: Vec<_> = graph.operands(id).iter().map(|v| graph.ty(*v).clone()).collect();
    let cost = graph.op(id).cost(&types, &graph.node(id).types);
    cost.bytes + cost.flops / OPERATIONS_A_BYTE
}

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["bytes", "forward"])?;
    let Some(budget) = options.get::<usize>("bytes")? else {
        return Err(PassError::Option("`bytes` is required: how much may be kept for the reverse pass".into()));
    };
    let forward: Vec<String> = options.get_or("forward", vec!["loss*".to_string()])?;
    let mut kept = Kept::new(graph, &forward);
    let before = kept.total();
    let mut cost = 0.0;
    while kept.total() > budget as u64 {
        let Some(id) = kept.cheapest() else {
            let problem = format!(
                "{} bytes have to be kept for the reverse pass at least, {budget} are allowed; of {before} in all",
                kept.total()
            );
            return Err(PassError::Refused(vec![problem]));
        };
        cost += kept.cost(id);
        kept.give_up(id);
    }
    let after = kept.total();
    let order = graph.topological().into_iter().filter(|id| kept.forward.contains(id) && !kept.free.contains(id));
    let all: f64 = order.map(|id| kept.costs[&id]).sum();
    let (given_up, forward) = (std::mem::take(&mut kept.given_up), std::mem::take(&mut kept.forward));
    let mut report = Report::count("recomputed", given_up.len());
    report.notes.push(format!(
        "{after} of {before} bytes are kept for the reverse pass; computing again costs {:.0} % of the forward pass",
        100.0 * cost / all.max(1.0)
    ));
    copy(graph, &given_up, &forward)?;
    (dce::DCE.run)(graph, &Options::default())?;
    Ok(report)
}

/// Lets everything outside the forward pass read second copies of what was given up.
fn copy(graph: &mut Graph, given_up: &HashSet<NodeId>, forward: &HashSet<NodeId>) -> Result<(), PassError> {
    // Views of what was given up are given up with it.
    let mut lost = given_up.clone();
    let order = graph.topological();
    for id in &order {
        if forward.contains(id) && is_view(graph.op(*id)) && lost.contains(&graph.operands(*id)[0].node) {
            lost.insert(*id);
        }
    }
    let mut copies: HashMap<NodeId, Vec<Value>> = HashMap::new();
    let mut again: HashMap<Value, Value> = HashMap::new();
    let mut made: HashSet<NodeId> = HashSet::new();
    for id in order.into_iter().filter(|id| lost.contains(id)) {
        let old: Vec<Value> = graph.results(id).collect();
        let (op, operands) = (graph.op(id).clone(), graph.operands(id));
        let mut patch = Patch::new(graph, "recompute", old[0]);
        let mut own = Vec::with_capacity(operands.len());
        for operand in operands {
            // Every operand, so that a planner sees what had better wait until it is needed.
            own.push(match again.get(&operand) {
                Some(value) => *value,
                None => {
                    let source = copies.get(&operand.node).map_or(operand, |copy| copy[operand.slot as usize]);
                    let value = patch.wire(Again { copy: 1 }, &[source])?;
                    again.insert(operand, value);
                    made.insert(value.node);
                    value
                }
            });
        }
        let new = patch.wire_all(op, &own)?;
        patch.apply();
        made.insert(new[0].node);
        copies.insert(id, new);
    }
    for (id, new) in copies {
        for (old, new) in graph.results(id).zip(new).collect::<Vec<_>>() {
            let readers: Vec<NodeId> = graph.users(old).into_iter().map(|(user, _)| user).collect();
            let stay: Vec<NodeId> =
                readers.into_iter().filter(|user| forward.contains(user) || made.contains(user)).collect();
            graph.redirect(old, new, &stay);
        }
    }
    Ok(())
}
