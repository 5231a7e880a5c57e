//! Building graphs: insert an operation, have its result types inferred and checked at once.

use std::sync::Arc;

use crate::{
    graph::{Graph, OpError, Value},
    ops::{Constant, Op},
    tensor::Tensor,
};

/// Appends to a graph under one origin.
pub struct Builder<'g> {
    /// The graph that grows.
    pub graph: &'g mut Graph,
    origin: Arc<str>,
}

impl<'g> Builder<'g> {
    /// Appends to `graph`; `origin` names the ONNX node or module that everything here comes from.
    pub fn new(graph: &'g mut Graph, origin: impl Into<Arc<str>>) -> Self {
        Self { graph, origin: origin.into() }
    }

    /// From now on, operations come from there.
    pub fn set_origin(&mut self, origin: impl Into<Arc<str>>) {
        self.origin = origin.into();
    }

    /// Appends an operation and returns its first result.
    pub fn op(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Value, OpError> {
        Ok(Value { node: self.graph.add(op, operands, &self.origin)?, slot: 0 })
    }

    /// Appends an operation and returns all its results.
    pub fn ops(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Vec<Value>, OpError> {
        let node = self.graph.add(op, operands, &self.origin)?;
        Ok(self.graph.results(node).collect())
    }

    /// Appends a constant.
    pub fn constant(&mut self, value: Tensor) -> Value {
        self.op(Constant { value }, &[]).expect("a constant always has its type")
    }
}
