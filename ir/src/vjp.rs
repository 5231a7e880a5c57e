//! Vector-Jacobian products: from the cotangents of an operation's results to those of its operands.
//!
//! With a loss L, the cotangent of a value v is ∂L/∂v, of the type of v. [`crate::ops::OpDef::vjp`] of an operation
//! y = f(x₀, x₁, …) is given the cotangents of its results and gives each operand its part. It may give all of them
//! whether or not they are asked for: what nobody reads is swept.

use std::ops::{Deref, DerefMut};

use crate::{
    builder::Builder,
    dim::Dim,
    graph::{Graph, NodeId, OpError, Value},
    ops::Op,
    tensor::Tensor,
};

/// One operation on its way back.
pub struct Vjp<'g> {
    builder: Builder<'g>,
    name: &'static str,
    operands: Vec<Value>,
    results: Vec<Value>,
    cotangents: Vec<Option<Value>>,
    parts: Vec<Option<Value>>,
}

impl<'g> Vjp<'g> {
    /// Of a node whose results have these cotangents. What is built has the origin of the node.
    pub fn new(graph: &'g mut Graph, id: NodeId, cotangents: Vec<Option<Value>>) -> Self {
        let (name, origin) = (graph.op(id).name(), graph.node(id).origin.clone());
        let (operands, results) = (graph.operands(id), graph.results(id).collect());
        let parts = vec![None; operands.len()];
        let builder = Builder::new(graph, origin);
        Self { builder, name, operands, results, cotangents, parts }
    }

    /// What was given to each operand, of its type.
    pub fn finish(self) -> Vec<Option<Value>> {
        self.parts
    }

    /// All operands.
    pub fn operands(&self) -> &[Value] {
        &self.operands
    }

    /// One operand.
    pub fn operand(&self, index: usize) -> Value {
        self.operands[index]
    }

    /// One result.
    pub fn result(&self, slot: usize) -> Value {
        self.results[slot]
    }

    /// The cotangent of the first result; zeros where nothing reads it.
    pub fn cotangent(&mut self) -> Result<Value, OpError> {
        self.cotangent_of(0)
    }

    /// The cotangent of a result; zeros where nothing reads it.
    pub fn cotangent_of(&mut self, slot: usize) -> Result<Value, OpError> {
        match self.cotangents[slot] {
            Some(value) => Ok(value),
            None => {
                let ty = self.ty(self.results[slot]).clone();
                self.full(&ty, 0.0)
            }
        }
    }

    /// Whether anything reads a result.
    pub fn has_cotangent(&self, slot: usize) -> bool {
        self.cotangents[slot].is_some()
    }

    /// What a constant holds; none for any other value.
    pub fn literal(&self, value: Value) -> Option<&Tensor> {
        match self.graph.op(value.node) {
            Op::Constant(constant) => Some(&constant.value),
            _ => None,
        }
    }

    /// The shape of a value, static.
    pub fn dims(&self, value: Value) -> Result<Vec<usize>, OpError> {
        let ty = self.ty(value);
        ty.dims().ok_or_else(|| self.refuse(format!("a gradient needs static shapes, not {ty}")))
    }

    /// Gives an operand a part of its cotangent: parts add up, what was broadcast is summed, and the element type
    /// becomes that of the operand.
    pub fn give(&mut self, operand: usize, part: Value) -> Result<(), OpError> {
        let want = self.ty(self.operands[operand]).clone();
        let part = self.summed_to(part, &want.shape)?;
        let part = self.cast(part, want.dtype)?;
        self.parts[operand] = Some(match self.parts[operand] {
            Some(other) => self.add(other, part)?,
            None => part,
        });
        Ok(())
    }

    /// Why there is no gradient.
    pub fn refuse(&self, problem: impl Into<String>) -> OpError {
        OpError { op: self.name, origin: self.origin().clone(), problem: problem.into() }
    }

    /// `x` summed to a shape that broadcasts to its own.
    fn summed_to(&mut self, x: Value, shape: &[Dim]) -> Result<Value, OpError> {
        let own = self.ty(x).shape.clone();
        if own == shape {
            return Ok(x);
        }
        let missing = own.len().checked_sub(shape.len()).ok_or_else(|| self.refuse("a cotangent lost a dimension"))?;
        let stretched = |axis: &usize| match axis.checked_sub(missing) {
            Some(at) => shape[at].is_one() && !own[*axis].is_one(),
            None => true,
        };
        let axes: Vec<usize> = (0..own.len()).filter(stretched).collect();
        let x = if axes.is_empty() { x } else { self.sum(x, &axes)? };
        self.reshape(x, shape)
    }
}

/// What is built on the way back.
impl<'g> Deref for Vjp<'g> {
    type Target = Builder<'g>;

    fn deref(&self) -> &Self::Target {
        &self.builder
    }
}

impl DerefMut for Vjp<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.builder
    }
}
