//! The graph: operations connected by values. The only file that names petgraph.
//!
//! A node is one operation with one or more results; a [`Value`] is one result of one node. Edges carry (result slot,
//! operand slot), because petgraph neither orders parallel edges nor keeps them apart; operands are sorted here, once.
//! Node indices are stable while other nodes come and go, and are never printed: the text form renumbers.
//!
//! Passes change a graph through [`crate::patch::Patch`] only.

use std::{collections::HashMap, fmt, sync::Arc};

use petgraph::{
    Direction,
    stable_graph::{NodeIndex, StableDiGraph},
    visit::EdgeRef,
};

use crate::{
    ops::{Input, Op, Param},
    types::ValueType,
};

/// A node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(NodeIndex<u32>);

impl NodeId {
    /// A dense-ish number for tables; not stable across graphs.
    pub fn index(self) -> usize {
        self.0.index()
    }
}

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The operation that computes it.
    pub node: NodeId,
    /// Which of its results.
    pub slot: u32,
}

/// An operation in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// The types of the results.
    pub types: Vec<ValueType>,
    /// Where it comes from: the name of the ONNX node or of the module; printed with `--locs`, named in errors.
    pub origin: Arc<str>,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    result: u32,
    operand: u32,
}

/// An operation does not fit its operands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{op}: {problem}{}", if .origin.is_empty() { String::new() } else { format!(" (at `{}`)", .origin) })]
pub struct OpError {
    /// The operation's name.
    pub op: &'static str,
    /// Where it comes from.
    pub origin: Arc<str>,
    /// What does not fit.
    pub problem: String,
}

/// A computation from inputs and params to named outputs.
#[derive(Clone, Default)]
pub struct Graph {
    name: String,
    nodes: StableDiGraph<Node, Edge, u32>,
    inputs: Vec<NodeId>,
    outputs: Vec<(String, Value)>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// What the text form calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends an operation after inferring the types of its results.
    pub fn add(&mut self, op: impl Into<Op>, operands: &[Value], origin: &Arc<str>) -> Result<NodeId, OpError> {
        let op = op.into();
        let types: Vec<ValueType> = operands.iter().map(|v| self.ty(*v).clone()).collect();
        let types = op.infer(&types).map_err(|problem| OpError { op: op.name(), origin: origin.clone(), problem })?;
        let is_input = matches!(op, Op::Input(_));
        let id = NodeId(self.nodes.add_node(Node { op, types, origin: origin.clone() }));
        for (operand, value) in operands.iter().enumerate() {
            self.nodes.add_edge(value.node.0, id.0, Edge { result: value.slot, operand: operand as u32 });
        }
        if is_input {
            self.inputs.push(id);
        }
        Ok(id)
    }

    /// Adds an input.
    pub fn input(&mut self, name: impl Into<String>, ty: ValueType) -> Value {
        let op = Input { name: name.into(), ty };
        let origin = op.name.as_str().into();
        Value { node: self.add(op, &[], &origin).expect("an input always has its type"), slot: 0 }
    }

    /// Adds a weight. Callers keep names unique; [`crate::verify`] checks.
    pub fn param(&mut self, name: impl Into<String>, ty: ValueType) -> Value {
        let op = Param { name: name.into(), ty, init: String::new(), state: false };
        let origin = op.name.as_str().into();
        Value { node: self.add(op, &[], &origin).expect("a param always has its type"), slot: 0 }
    }

    /// Names a value as a result of the graph. Order is kept.
    pub fn output(&mut self, name: impl Into<String>, value: Value) {
        self.outputs.push((name.into(), value));
    }

    /// Says what a state of that name becomes at the end of a run.
    pub fn update(&mut self, state: &str, value: Value) {
        self.output(format!("${state}"), value);
    }

    /// The inputs in declared order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// The named results in declared order.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// Keeps only the outputs that `keep` accepts.
    pub fn retain_outputs(&mut self, keep: impl Fn(&str) -> bool) {
        self.outputs.retain(|(name, _)| keep(name));
    }

    /// The node itself.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The operation of a node.
    pub fn op(&self, id: NodeId) -> &Op {
        &self.nodes[id.0].op
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &ValueType {
        &self.nodes[value.node.0].types[value.slot as usize]
    }

    /// The results of a node.
    pub fn results(&self, id: NodeId) -> impl ExactSizeIterator<Item = Value> + use<> {
        (0..self.nodes[id.0].types.len() as u32).map(move |slot| Value { node: id, slot })
    }

    /// The operands of a node, in order.
    pub fn operands(&self, id: NodeId) -> Vec<Value> {
        let mut edges: Vec<(u32, Value)> = self
            .nodes
            .edges_directed(id.0, Direction::Incoming)
            .map(|e| (e.weight().operand, Value { node: NodeId(e.source()), slot: e.weight().result }))
            .collect();
        edges.sort_unstable();
        edges.into_iter().map(|(_, value)| value).collect()
    }

    /// Who reads a value: (node, operand slot), sorted. Outputs of the graph are not counted.
    pub fn users(&self, value: Value) -> Vec<(NodeId, usize)> {
        let mut users: Vec<(NodeId, usize)> = self
            .nodes
            .edges_directed(value.node.0, Direction::Outgoing)
            .filter(|e| e.weight().result == value.slot)
            .map(|e| (NodeId(e.target()), e.weight().operand as usize))
            .collect();
        users.sort_unstable();
        users
    }

    /// How often a value is read, outputs of the graph included.
    pub fn use_count(&self, value: Value) -> usize {
        self.users(value).len() + self.outputs.iter().filter(|(_, v)| *v == value).count()
    }

    /// All nodes, in creation order.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.node_indices().map(NodeId)
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every node after the nodes that it reads; otherwise in creation order. Graphs are acyclic by construction: a
    /// node reads only what exists. Should a patch have closed a cycle, its nodes are missing here, and
    /// [`crate::verify`] says so.
    pub fn topological(&self) -> Vec<NodeId> {
        use std::{cmp::Reverse, collections::BinaryHeap};
        let mut waiting: HashMap<NodeId, usize> = HashMap::with_capacity(self.len());
        let mut ready = BinaryHeap::new();
        for id in self.node_ids() {
            match self.nodes.edges_directed(id.0, Direction::Incoming).count() {
                0 => ready.push(Reverse(id)),
                n => drop(waiting.insert(id, n)),
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for edge in self.nodes.edges_directed(id.0, Direction::Outgoing) {
                let target = NodeId(edge.target());
                let left = waiting.get_mut(&target).expect("targets wait until their last operand");
                *left -= 1;
                if *left == 0 {
                    ready.push(Reverse(target));
                }
            }
        }
        order
    }

    /// Lets every reader of `old` read `new`, graph outputs included. [`crate::patch::Patch`] has checked types and
    /// cycles.
    pub(crate) fn redirect(&mut self, old: Value, new: Value, except: &[NodeId]) {
        let edges: Vec<_> = self
            .nodes
            .edges_directed(old.node.0, Direction::Outgoing)
            .filter(|e| e.weight().result == old.slot && !except.contains(&NodeId(e.target())))
            .map(|e| (e.id(), e.target(), e.weight().operand))
            .collect();
        for (edge, target, operand) in edges {
            self.nodes.remove_edge(edge);
            self.nodes.add_edge(new.node.0, target, Edge { result: new.slot, operand });
        }
        for (_, value) in &mut self.outputs {
            if *value == old {
                *value = new;
            }
        }
    }

    /// Removes every node that `keep` rejects; what is kept must not read what goes.
    pub(crate) fn retain_nodes(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.nodes.retain_nodes(|_, index| keep(NodeId(index)));
        self.inputs.retain(|id| keep(*id));
    }

    /// Adds a node with the types that are written down, without inference: for the parser, whose text
    /// [`crate::verify`] judges afterwards, and for tests of the verifier.
    pub(crate) fn add_unchecked(&mut self, node: Node, operands: &[Value]) -> NodeId {
        let is_input = matches!(node.op, Op::Input(_));
        let id = NodeId(self.nodes.add_node(node));
        for (operand, value) in operands.iter().enumerate() {
            self.nodes.add_edge(value.node.0, id.0, Edge { result: value.slot, operand: operand as u32 });
        }
        if is_input {
            self.inputs.push(id);
        }
        id
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{} ({} nodes, {} outputs)", self.name, self.len(), self.outputs.len())
    }
}
