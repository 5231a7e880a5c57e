//! The search: goals are worked off one by one, and every order of commutative operands is tried to the end.

use std::collections::HashSet;

use super::{AttrRule, Match, NearMiss, Operand, Pattern, number};
use crate::{
    attr::{Attr, AttrMap},
    graph::{Graph, NodeId, Value},
    ops::Op,
};

/// The match of `pattern` that ends at `root`; or the deepest partial match, if the anchor was in it.
pub(super) fn solve(
    pattern: &Pattern,
    graph: &Graph,
    weights: &HashSet<NodeId>,
    root: NodeId,
) -> Result<Match, Option<NearMiss>> {
    let mut search = Search { pattern, graph, weights, miss: None };
    let state = State {
        statements: vec![None; pattern.statements.len()],
        values: vec![None; pattern.values.len()],
        numbers: vec![None; pattern.numbers.len()],
        attrs: vec![None; pattern.attrs.len()],
    };
    let goals = vec![(Operand::Result(pattern.root, 0), Value { node: root, slot: 0 })];
    match search.work(state, goals) {
        Some(state) => Ok(search.found(state, root)),
        None => Err(search.miss.map(|miss| miss.shown(pattern, graph))),
    }
}

#[derive(Clone)]
struct State {
    statements: Vec<Option<NodeId>>,
    values: Vec<Option<Value>>,
    numbers: Vec<Option<f64>>,
    /// The inner `None` is an attribute at its default.
    attrs: Vec<Option<Option<Attr>>>,
}

struct Search<'a> {
    pattern: &'a Pattern,
    graph: &'a Graph,
    weights: &'a HashSet<NodeId>,
    miss: Option<Miss>,
}

/// A partial match that went no further.
struct Miss {
    matched: usize,
    anchor: NodeId,
    node: NodeId,
    reason: Reason,
}

/// Why it went no further. Put into words only for the one that is reported.
enum Reason {
    Operation { expected: &'static str },
    Slot,
    Operands { expected: usize },
    Attribute { name: String },
    Other { name: String },
    NotAWeight { name: String },
    NotANumber { name: String },
    Number { expected: f64 },
    Reader { result: String, reader: NodeId },
    Output { result: String, output: String },
}

type Goals = Vec<(Operand, Value)>;

impl Search<'_> {
    fn work(&mut self, mut state: State, mut goals: Goals) -> Option<State> {
        while let Some((operand, value)) = goals.pop() {
            match operand {
                Operand::Result(statement, slot) => match state.statements[statement] {
                    Some(node) if (Value { node, slot }) == value => {}
                    Some(_) => {
                        let name = self.pattern.statements[statement].results[slot as usize].clone();
                        return self.fail(&state, value.node, Reason::Other { name });
                    }
                    None => return self.statement(state, goals, statement, slot, value),
                },
                Operand::Any(i) => self.bind(&mut state, i, value)?,
                Operand::Weight(i) => {
                    if !self.weights.contains(&value.node) {
                        let name = self.pattern.values[i].clone();
                        return self.fail(&state, value.node, Reason::NotAWeight { name });
                    }
                    self.bind(&mut state, i, value)?;
                }
                Operand::Number(i) => {
                    let Some(found) = number(self.graph, value) else {
                        let name = self.pattern.numbers[i].clone();
                        return self.fail(&state, value.node, Reason::NotANumber { name });
                    };
                    match state.numbers[i] {
                        Some(expected) if !self.near(found, expected, value) => {
                            return self.fail(&state, value.node, Reason::Number { expected });
                        }
                        Some(_) => {}
                        None => state.numbers[i] = Some(found),
                    }
                }
                Operand::Literal(expected) => {
                    if !number(self.graph, value).is_some_and(|found| self.near(found, expected, value)) {
                        return self.fail(&state, value.node, Reason::Number { expected });
                    }
                }
            }
        }
        self.closed(&state).then_some(state)
    }

    /// Goes on with `statement` at the node of `value`, its operands in every order that is allowed.
    fn statement(
        &mut self,
        mut state: State,
        goals: Goals,
        statement: usize,
        slot: u32,
        value: Value,
    ) -> Option<State> {
        let rule = &self.pattern.statements[statement];
        let op = self.graph.op(value.node);
        if op.name() != rule.op {
            return self.fail(&state, value.node, Reason::Operation { expected: rule.op });
        }
        if slot != value.slot {
            return self.fail(&state, value.node, Reason::Slot);
        }
        let operands = self.graph.operands(value.node);
        if operands.len() != rule.operands.len() {
            return self.fail(&state, value.node, Reason::Operands { expected: rule.operands.len() });
        }
        if !rule.attrs.is_empty() {
            let attrs = op.attrs();
            for (name, rule) in &rule.attrs {
                let found = attrs.iter().find(|(n, _)| n == name).map(|(_, a)| a.clone());
                let fits = match rule {
                    AttrRule::Equals(expected) => found.as_ref() == Some(expected) || is(op, &attrs, name, expected),
                    AttrRule::Capture(i) => *state.attrs[*i].get_or_insert(found.clone()) == found,
                };
                if !fits {
                    return self.fail(&state, value.node, Reason::Attribute { name: name.clone() });
                }
            }
        }
        state.statements[statement] = Some(value.node);
        let orders: &[[usize; 2]] = if rule.commutative { &[[0, 1], [1, 0]] } else { &[] };
        if orders.is_empty() {
            let mut goals = goals;
            goals.extend(rule.operands.iter().cloned().zip(operands).rev());
            return self.work(state, goals);
        }
        orders.iter().find_map(|order| {
            let mut goals = goals.clone();
            goals.extend(order.iter().zip(&rule.operands).map(|(at, o)| (o.clone(), operands[*at])).rev());
            self.work(state.clone(), goals)
        })
    }

    fn bind(&mut self, state: &mut State, i: usize, value: Value) -> Option<()> {
        match state.values[i] {
            Some(other) if other != value => {
                let name = self.pattern.values[i].clone();
                self.fail(state, value.node, Reason::Other { name })
            }
            _ => {
                state.values[i] = Some(value);
                Some(())
            }
        }
    }

    /// Equal within the rounding of the constant's type, and within 1e-6 of what exporters write as f32.
    fn near(&self, found: f64, expected: f64, value: Value) -> bool {
        (found - expected).abs() <= self.graph.ty(value).dtype.epsilon().max(1e-6) * expected.abs()
    }

    /// Whether nothing else reads what lies between.
    fn closed(&mut self, state: &State) -> bool {
        let matched: Vec<NodeId> = state.statements.iter().flatten().copied().collect();
        for (i, rule) in self.pattern.statements.iter().enumerate() {
            let Some(node) = state.statements[i] else { continue };
            if i == self.pattern.root || rule.shared {
                continue;
            }
            for value in self.graph.results(node) {
                let result = || rule.results.get(value.slot as usize).cloned().unwrap_or_default();
                if let Some((reader, _)) = self.graph.users(value).into_iter().find(|(u, _)| !matched.contains(u)) {
                    self.fail::<()>(state, node, Reason::Reader { result: result(), reader });
                    return false;
                }
                if let Some((output, _)) = self.graph.outputs().iter().find(|(_, v)| *v == value) {
                    let output = output.clone();
                    self.fail::<()>(state, node, Reason::Output { result: result(), output });
                    return false;
                }
            }
        }
        true
    }

    /// Notes why this branch of the search ends, if it came further than the others and contains the anchor.
    fn fail<T>(&mut self, state: &State, node: NodeId, reason: Reason) -> Option<T> {
        let matched = state.statements.iter().flatten().count();
        let mut anchors = self.pattern.statements.iter().zip(&state.statements).filter(|(rule, _)| rule.anchor);
        if self.miss.as_ref().is_none_or(|m| m.matched < matched)
            && let Some(anchor) = anchors.find_map(|(_, node)| *node)
        {
            self.miss = Some(Miss { matched, anchor, node, reason });
        }
        None
    }

    fn found(&self, state: State, root: NodeId) -> Match {
        let pattern = self.pattern;
        let inputs = pattern.values.iter().cloned().zip(state.values).filter_map(|(n, v)| Some((n, v?)));
        let results = pattern.statements.iter().zip(&state.statements).flat_map(|(rule, node)| {
            let named = rule.results.iter().enumerate();
            named.filter_map(|(slot, name)| Some((name.clone(), Value { node: (*node)?, slot: slot as u32 })))
        });
        let nodes = pattern.statements.iter().zip(&state.statements);
        Match {
            nodes: nodes.filter_map(|(rule, node)| Some(((*node)?, rule.shared))).collect(),
            pattern: pattern.name.clone(),
            root: Value { node: root, slot: 0 },
            values: inputs.chain(results).collect(),
            numbers: pattern.numbers.iter().cloned().zip(state.numbers).filter_map(|(n, v)| Some((n, v?))).collect(),
            attrs: pattern.attrs.iter().cloned().zip(state.attrs).filter_map(|(n, v)| Some((n, v??))).collect(),
        }
    }
}

/// Whether an attribute that is not written out has this value: the default.
fn is(op: &Op, attrs: &AttrMap, name: &str, expected: &Attr) -> bool {
    let mut changed: AttrMap = attrs.iter().filter(|(n, _)| n != name).cloned().collect();
    changed.push((name.to_string(), expected.clone()));
    Op::parse(op.name(), &changed).is_ok_and(|other| other == *op)
}

impl Miss {
    fn shown(&self, pattern: &Pattern, graph: &Graph) -> NearMiss {
        let node = graph.node(self.node);
        let op = node.op.name();
        let types: Vec<String> = node.types.iter().map(ToString::to_string).collect();
        let here = format!("`{op}` : {}", types.join(", "));
        let why = match &self.reason {
            Reason::Operation { expected } => format!("expected `{expected}`, found {here}"),
            Reason::Slot => format!("another result of {here} was expected"),
            Reason::Operands { expected } => format!("expected {expected} operands of {here}"),
            Reason::Attribute { name } => format!("attribute `{name}` of {here} differs"),
            Reason::Other { name } => format!("expected the same value as `%{name}`, found {here}"),
            Reason::NotAWeight { name } => format!("`${name}` must be known before any input, but is {here}"),
            Reason::NotANumber { name } => format!("`?{name}` must be a constant number, but is {here}"),
            Reason::Number { expected } => format!("expected the number {expected}, found {here}"),
            Reason::Reader { result, reader } => {
                let reader = graph.node(*reader);
                format!("`%{result}` is also read by `{}` at `{}`", reader.op.name(), reader.origin)
            }
            Reason::Output { result, output } => format!("`%{result}` is also output `{output}`"),
        };
        NearMiss {
            pattern: pattern.name.clone(),
            matched: self.matched,
            anchor: self.anchor,
            of: pattern.statements.len(),
            origin: node.origin.to_string(),
            why,
        }
    }
}
