//! Building under module names: params are made once and found again by name.

use std::collections::HashMap;

use lite3r_ir::{
    Builder, DType, Dim, Graph, Op, OpError, Tensor, Value, ValueType,
    ops::{
        Add, Clip, Concat, Constant, Conv2d, ConvTranspose2d, Expand, LayerNorm, Linear, Mul, Relu, Reshape, Resize,
        Slice, Transpose,
        resize::{Coordinates, ResizeMode},
    },
};

pub(super) type Built<T = Value> = std::result::Result<T, OpError>;

/// A graph that grows, with its params by name.
pub(super) struct Scope<'g> {
    builder: Builder<'g>,
    params: HashMap<String, Value>,
}

/// The modules of a checkpoint are named with dots.
pub(super) fn join(module: &str, name: impl std::fmt::Display) -> String {
    if module.is_empty() { name.to_string() } else { format!("{module}.{name}") }
}

impl<'g> Scope<'g> {
    pub(super) fn new(graph: &'g mut Graph) -> Self {
        Self { builder: Builder::new(graph, ""), params: HashMap::new() }
    }

    /// From now on, operations come from that module.
    pub(super) fn at(&mut self, module: &str) {
        self.builder.set_origin(module);
    }

    pub(super) fn graph(&mut self) -> &mut Graph {
        self.builder.graph
    }

    pub(super) fn op(&mut self, op: impl Into<Op>, operands: &[Value]) -> Built {
        self.builder.op(op, operands)
    }

    pub(super) fn ops(&mut self, op: impl Into<Op>, operands: &[Value]) -> Built<Vec<Value>> {
        self.builder.ops(op, operands)
    }

    pub(super) fn shape(&self, value: Value) -> Vec<Dim> {
        self.builder.graph.ty(value).shape.clone()
    }

    /// The f32 param of that name and shape.
    pub(super) fn param(&mut self, name: String, shape: &[usize]) -> Value {
        if let Some(value) = self.params.get(&name) {
            return *value;
        }
        let value = self.builder.graph.param(name.clone(), ValueType::new(DType::F32, shape.iter().copied()));
        self.params.insert(name, value);
        value
    }

    pub(super) fn constant(&mut self, shape: &[usize], values: &[f64]) -> Built {
        self.op(Constant { value: Tensor::from_f64(DType::F32, shape, values) }, &[])
    }

    pub(super) fn index(&mut self, shape: &[usize], values: &[i64]) -> Built {
        self.op(Constant { value: Tensor::from_i64(DType::I64, shape, values) }, &[])
    }

    /// x + s.
    pub(super) fn plus(&mut self, x: Value, s: f64) -> Built {
        let s = self.constant(&[], &[s])?;
        self.op(Add {}, &[x, s])
    }

    /// x s.
    pub(super) fn times(&mut self, x: Value, s: f64) -> Built {
        let s = self.constant(&[], &[s])?;
        self.op(Mul {}, &[x, s])
    }

    pub(super) fn reshape<D: Into<Dim>>(&mut self, x: Value, shape: impl IntoIterator<Item = D>) -> Built {
        self.op(Reshape { shape: shape.into_iter().map(Into::into).collect() }, &[x])
    }

    pub(super) fn transpose(&mut self, x: Value, perm: &[usize]) -> Built {
        self.op(Transpose { perm: perm.to_vec() }, &[x])
    }

    pub(super) fn expand<D: Into<Dim>>(&mut self, x: Value, shape: impl IntoIterator<Item = D>) -> Built {
        self.op(Expand { shape: shape.into_iter().map(Into::into).collect() }, &[x])
    }

    pub(super) fn concat(&mut self, axis: usize, parts: &[Value]) -> Built {
        self.op(Concat { axis }, parts)
    }

    /// Elements start..end of an axis.
    pub(super) fn slice(&mut self, x: Value, axis: usize, start: impl Into<Dim>, end: impl Into<Dim>) -> Built {
        self.op(Slice { axis, start: start.into(), end: end.into(), step: 1 }, &[x])
    }

    pub(super) fn relu(&mut self, x: Value) -> Built {
        self.op(Relu {}, &[x])
    }

    pub(super) fn at_least(&mut self, x: Value, min: f64) -> Built {
        self.op(Clip { min, max: f64::INFINITY }, &[x])
    }

    /// The linear layer `module` of `outputs` columns.
    pub(super) fn linear(&mut self, module: &str, x: Value, outputs: usize) -> Built {
        self.at(module);
        let inputs = self.columns(x);
        let w = self.param(join(module, "weight"), &[outputs, inputs]);
        let b = self.param(join(module, "bias"), &[outputs]);
        self.op(Linear::new(true), &[x, w, b])
    }

    /// The LayerNorm `module` over the last axis.
    pub(super) fn layer_norm(&mut self, module: &str, x: Value, eps: f64) -> Built {
        self.at(module);
        let c = self.columns(x);
        let g = self.param(join(module, "weight"), &[c]);
        let b = self.param(join(module, "bias"), &[c]);
        self.op(LayerNorm { eps, out: None }, &[x, g, b])
    }

    /// The convolution `module`: a square kernel, any stride, zero padding.
    pub(super) fn conv(&mut self, module: &str, x: Value, outputs: usize, how: Kernel) -> Built {
        self.at(module);
        let inputs = self.channels(x);
        let w = self.param(join(module, "weight"), &[outputs, inputs, how.side, how.side]);
        let op = Conv2d { strides: vec![how.stride; 2], ..Conv2d::same(how.pad, how.bias) };
        match how.bias {
            true => {
                let b = self.param(join(module, "bias"), &[outputs]);
                self.op(op, &[x, w, b])
            }
            false => self.op(op, &[x, w]),
        }
    }

    /// The transposed convolution `module`, whose kernel is as wide as its stride: no two stamps overlap.
    pub(super) fn upsample(&mut self, module: &str, x: Value, factor: usize) -> Built {
        self.at(module);
        let c = self.channels(x);
        let w = self.param(join(module, "weight"), &[c, c, factor, factor]);
        let b = self.param(join(module, "bias"), &[c]);
        let op = ConvTranspose2d {
            strides: vec![factor; 2],
            pads: vec![0; 4],
            output_padding: vec![0; 2],
            dilations: vec![1; 2],
            groups: 1,
            bias: true,
        };
        self.op(op, &[x, w, b])
    }

    /// Bilinear, corners on corners.
    pub(super) fn bilinear(&mut self, x: Value, (rows, columns): (usize, usize)) -> Built {
        let op = Resize::new(ResizeMode::Linear, Coordinates::AlignCorners, [rows.into(), columns.into()]);
        self.op(op, &[x])
    }

    /// The size of the last axis.
    pub(super) fn columns(&self, x: Value) -> usize {
        self.shape(x).last().and_then(Dim::size).expect("channels are constant in every backbone")
    }

    /// The size of the channel axis of images [N, C, H, W].
    pub(super) fn channels(&self, x: Value) -> usize {
        self.shape(x).get(1).and_then(Dim::size).expect("channels are constant in every backbone")
    }

    /// Rows and columns of images [N, C, H, W].
    pub(super) fn size(&self, x: Value) -> (usize, usize) {
        let axis =
            |i: usize| self.shape(x).get(i).and_then(Dim::size).expect("image sizes are constant in every backbone");
        (axis(2), axis(3))
    }
}

/// The kernel of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) side: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
    pub(super) bias: bool,
}

/// 3x3 that keeps the size.
pub(super) const SAME_3X3: Kernel = Kernel { side: 3, stride: 1, pad: 1, bias: true };
/// 1x1.
pub(super) const POINTWISE: Kernel = Kernel { side: 1, stride: 1, pad: 0, bias: true };
