//! Patches: the only way a pass changes a graph.
//!
//! A patch wires new operations beside the old ones and then shunts old values to new ones of the same type. Nothing is
//! edited or removed: operations that nobody reads any more are swept by the `dce` pass.

use std::sync::Arc;

use crate::{
    graph::{Graph, NodeId, OpError, Value},
    ops::{Constant, Op},
    tensor::Tensor,
    types::ValueType,
};

/// Why a patch was refused. Both are defects of the pass, reported with the patch's name.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// A new operation does not fit its operands.
    #[error("patch `{patch}`: {source}")]
    Op {
        /// The patch.
        patch: &'static str,
        /// What does not fit.
        source: OpError,
    },
    /// Old and new value differ in type.
    #[error("patch `{patch}`: {old} cannot become {new}")]
    Type {
        /// The patch.
        patch: &'static str,
        /// The type before.
        old: String,
        /// The type after.
        new: String,
    },
}

/// New operations and the values that they replace.
pub struct Patch<'g> {
    graph: &'g mut Graph,
    name: &'static str,
    origin: Arc<str>,
    created: Vec<NodeId>,
    shunts: Vec<(Value, Value)>,
}

impl<'g> Patch<'g> {
    /// A patch around `root`, whose origin the new operations inherit.
    pub fn new(graph: &'g mut Graph, name: &'static str, root: Value) -> Self {
        let origin = graph.node(root.node).origin.clone();
        Self { graph, name, origin, created: Vec::new(), shunts: Vec::new() }
    }

    /// The graph as it stands, new operations included.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Adds an operation on old or new values and returns its first result.
    pub fn wire(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Value, PatchError> {
        Ok(self.wire_all(op, operands)?[0])
    }

    /// Adds an operation on old or new values and returns all its results.
    pub fn wire_all(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Vec<Value>, PatchError> {
        let node =
            self.graph.add(op, operands, &self.origin).map_err(|source| PatchError::Op { patch: self.name, source })?;
        self.created.push(node);
        Ok(self.graph.results(node).collect())
    }

    /// Adds a constant.
    pub fn constant(&mut self, value: Tensor) -> Value {
        self.wire(Constant { value }, &[]).expect("a constant always has its type")
    }

    /// Adds a weight of that name.
    pub fn param(&mut self, name: impl Into<String>, ty: ValueType) -> Value {
        self.graph.param(name, ty)
    }

    /// Everybody who reads `old` shall read `new`. The new operations themselves may go on reading `old`.
    pub fn shunt(&mut self, old: Value, new: Value) -> Result<(), PatchError> {
        let (before, after) = (self.graph.ty(old), self.graph.ty(new));
        if before != after {
            return Err(PatchError::Type { patch: self.name, old: before.to_string(), new: after.to_string() });
        }
        self.shunts.push((old, new));
        Ok(())
    }

    /// Carries out the shunts. The operations of this patch go on reading old values. A new value must not depend on
    /// an old reader of what it replaces; [`crate::verify`] finds the cycle that would arise.
    pub fn apply(self) {
        for (old, new) in self.shunts {
            self.graph.redirect(old, new, &self.created);
        }
    }
}
