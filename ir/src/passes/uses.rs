//! Questions about readers that several rewrites ask.

use crate::graph::{Graph, NodeId, Value};

/// The only reader of a value with the operand slot; `None` if nobody reads it, several do, or it is an output.
pub fn sole_reader(graph: &Graph, value: Value) -> Option<(NodeId, usize)> {
    match graph.users(value).as_slice() {
        [only] if !is_output(graph, value) => Some(*only),
        _ => None,
    }
}

/// Whether a value is a result of the graph.
pub fn is_output(graph: &Graph, value: Value) -> bool {
    graph.outputs().iter().any(|(_, v)| *v == value)
}

/// The first result of a node.
pub fn result(node: NodeId) -> Value {
    Value { node, slot: 0 }
}
