//! Building graphs: insert an operation, have its result types inferred and checked at once.

use std::sync::Arc;

use crate::{
    dim::Dim,
    graph::{Graph, OpError, Value},
    ops::{Add, Cast, Constant, Div, Expand, Mul, Neg, Op, ReduceSum, Reshape, Sub},
    tensor::Tensor,
    types::{DType, ValueType},
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

    /// Where operations come from.
    pub fn origin(&self) -> &Arc<str> {
        &self.origin
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

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &ValueType {
        self.graph.ty(value)
    }

    /// A number of the element type of `like`.
    pub fn number(&mut self, like: Value, number: f64) -> Value {
        let dtype = self.ty(like).dtype;
        self.constant(Tensor::scalar(dtype, number))
    }

    /// The same number everywhere.
    pub fn full(&mut self, ty: &ValueType, number: f64) -> Result<Value, OpError> {
        let number = self.constant(Tensor::scalar(ty.dtype, number));
        self.op(Expand { shape: ty.shape.clone() }, &[number])
    }

    /// In an element type.
    pub fn cast(&mut self, x: Value, to: DType) -> Result<Value, OpError> {
        if self.ty(x).dtype == to { Ok(x) } else { self.op(Cast { to }, &[x]) }
    }

    /// In a shape of as many elements.
    pub fn reshape(&mut self, x: Value, shape: &[Dim]) -> Result<Value, OpError> {
        if self.ty(x).shape == shape { Ok(x) } else { self.op(Reshape { shape: shape.to_vec() }, &[x]) }
    }

    /// a + b.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value, OpError> {
        self.op(Add {}, &[a, b])
    }

    /// a − b.
    pub fn sub(&mut self, a: Value, b: Value) -> Result<Value, OpError> {
        self.op(Sub {}, &[a, b])
    }

    /// a·b, elementwise.
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value, OpError> {
        self.op(Mul {}, &[a, b])
    }

    /// a/b, elementwise.
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value, OpError> {
        self.op(Div {}, &[a, b])
    }

    /// −x.
    pub fn neg(&mut self, x: Value) -> Result<Value, OpError> {
        self.op(Neg {}, &[x])
    }

    /// x times a number.
    pub fn times(&mut self, x: Value, number: f64) -> Result<Value, OpError> {
        let number = self.number(x, number);
        self.mul(x, number)
    }

    /// x plus a number.
    pub fn plus(&mut self, x: Value, number: f64) -> Result<Value, OpError> {
        let number = self.number(x, number);
        self.add(x, number)
    }

    /// The sum over axes, which stay with size one.
    pub fn sum(&mut self, x: Value, axes: &[usize]) -> Result<Value, OpError> {
        self.op(ReduceSum { axes: axes.to_vec(), keep: true }, &[x])
    }

    /// The sum of all elements, a scalar.
    pub fn total(&mut self, x: Value) -> Result<Value, OpError> {
        let axes = (0..self.ty(x).rank()).collect();
        self.op(ReduceSum { axes, keep: false }, &[x])
    }
}
