//! The operations: a closed enum, one operation a file.
//!
//! A file holds everything that is true of its operation on any device: the law as documentation, the attributes, the
//! types of its results, the reference evaluation, the cost, the tolerance of other implementations, and cases. Adding
//! an operation is that file and one row of [`ops!`]; the compiler and the conformance tests name whatever is missing.

use crate::{
    attr::{AttrMap, Attributes},
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

pub mod activation;
pub mod attention_codes;
pub mod blocks;
pub mod elementwise;
pub mod images;
pub mod linear_attention_vjp;
pub mod reduce;
pub mod shape_rules;
pub mod special;

/// What an operation costs when nothing is fused.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: f64,
    /// Bytes read and written once.
    pub bytes: f64,
}

/// How far another implementation may be from [`OpDef::eval`] in f64: |error| ≤ absolute + relative·|reference|, where
/// |reference| is the largest magnitude in the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// In units of the result.
    pub absolute: f64,
    /// Relative to the largest magnitude of the reference.
    pub relative: f64,
}

impl Tolerance {
    /// Nothing but the same bits.
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };

    /// `n` units in the last place of `dtype`, but never tighter than f32 arithmetic allows.
    pub fn ulps(dtype: DType, n: f64) -> Self {
        let relative = n * dtype.epsilon();
        Self { absolute: relative * 1e-3, relative }
    }
}

/// An operation with inputs: what conformance tests run on every backend.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique within the operation: `ragged_65`.
    pub name: &'static str,
    /// The operation under test.
    pub op: Op,
    /// Its operands.
    pub inputs: Vec<Tensor>,
    /// Results known from a closed form, where there is one; otherwise [`OpDef::eval`] in f64 is the reference.
    pub expect: Option<Vec<Tensor>>,
}

impl Case {
    /// A case whose reference is the evaluation itself.
    pub fn new(name: &'static str, op: impl Into<Op>, inputs: Vec<Tensor>) -> Self {
        Self { name, op: op.into(), inputs, expect: None }
    }

    /// A case with results from a closed form.
    pub fn known(name: &'static str, op: impl Into<Op>, inputs: Vec<Tensor>, expect: Vec<Tensor>) -> Self {
        Self { name, op: op.into(), inputs, expect: Some(expect) }
    }
}

/// Everything that is true of an operation on any device.
pub trait OpDef: Attributes + Clone + PartialEq + std::fmt::Debug + Into<Op> {
    /// As the text form writes it.
    const NAME: &'static str;

    /// The types of the results, or why the operands do not fit.
    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String>;

    /// The reference. Real arithmetic is done in f64 and rounded once to the type of the result, unless the law says
    /// otherwise. Operands and results have static shapes that [`OpDef::infer`] has accepted.
    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String>;

    /// Without fusion. Default: one operation an element of the first result, every operand and result moved once.
    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost {
            flops: results.first().and_then(ValueType::elements).unwrap_or(0) as f64,
            bytes: traffic(inputs, results),
        }
    }

    /// What other implementations may differ by.
    fn tolerance(&self, result: DType) -> Tolerance {
        if result.is_float() { Tolerance::ulps(result, 4.0) } else { Tolerance::EXACT }
    }

    /// Gives the operands their parts of the cotangents of the results. Operations that passes make late have no
    /// gradient of their own: graphs are differentiated before.
    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        Err(at.refuse("has no gradient"))
    }

    /// The same operation with the further results that its gradient reads; none if it reads no others.
    fn with_residuals(&self) -> Option<Self> {
        None
    }

    /// Edge shapes and known results.
    fn cases() -> Vec<Case>;
}

/// Bytes of all operands and results, each once.
pub fn traffic(inputs: &[ValueType], results: &[ValueType]) -> f64 {
    inputs.iter().chain(results).filter_map(ValueType::bytes).map(|b| b as f64).sum()
}

/// The table: variant, module, and nothing else. Order is the order of documentation.
macro_rules! ops {
    ($($variant:ident: $module:ident),* $(,)?) => {
        $(pub mod $module;)*
        $(pub use $module::$variant;)*

        /// An operation with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)] // documented in their own files
        pub enum Op { $($variant($variant)),* }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Self { Self::$variant(op) }
        })*

        impl Op {
            /// The names of all operations, in table order.
            pub const NAMES: &[&'static str] = &[$($variant::NAME),*];

            /// As the text form writes it.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $variant::NAME),* }
            }

            /// The attributes that differ from their defaults.
            pub fn attrs(&self) -> AttrMap {
                match self { $(Self::$variant(op) => op.attrs()),* }
            }

            /// From name and attributes; all problems at once.
            pub fn parse(name: &str, attrs: &AttrMap) -> Result<Self, Vec<String>> {
                match name {
                    $(n if n == $variant::NAME => $variant::from_attrs(attrs).map(Self::$variant),)*
                    _ => Err(vec![format!("there is no operation `{name}`")]),
                }
            }

            /// See [`OpDef::infer`].
            pub fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
                match self { $(Self::$variant(op) => op.infer(inputs)),* }
            }

            /// See [`OpDef::eval`].
            pub fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
                match self { $(Self::$variant(op) => op.eval(inputs, results)),* }
            }

            /// See [`OpDef::cost`].
            pub fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
                match self { $(Self::$variant(op) => op.cost(inputs, results)),* }
            }

            /// See [`OpDef::tolerance`].
            pub fn tolerance(&self, result: DType) -> Tolerance {
                match self { $(Self::$variant(op) => op.tolerance(result)),* }
            }

            /// See [`OpDef::vjp`].
            pub fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
                match self { $(Self::$variant(op) => op.vjp(at)),* }
            }

            /// See [`OpDef::with_residuals`].
            pub fn with_residuals(&self) -> Option<Self> {
                match self { $(Self::$variant(op) => op.with_residuals().map(Self::$variant)),* }
            }

            /// The cases of every operation, in table order.
            pub fn all_cases() -> Vec<Case> {
                [$($variant::cases()),*].concat()
            }
        }
    };
}

ops! {
    // Sources.
    Input: input,
    Param: param,
    Constant: constant,
    Range: range,
    // Elementwise, one operand.
    Neg: neg,
    Abs: abs,
    Exp: exp,
    Log: log,
    Sqrt: sqrt,
    Reciprocal: reciprocal,
    Sin: sin,
    Cos: cos,
    Tan: tan,
    Atan: atan,
    Erf: erf,
    Tanh: tanh,
    Sigmoid: sigmoid,
    Silu: silu,
    Gelu: gelu,
    Relu: relu,
    Sign: sign,
    Floor: floor,
    Ceil: ceil,
    Round: round,
    Not: not,
    Clip: clip,
    Cast: cast,
    // Elementwise, two and three operands.
    Add: add,
    Sub: sub,
    Mul: mul,
    Div: div,
    Pow: pow,
    Max: max,
    Min: min,
    Remainder: remainder,
    Equal: equal,
    Less: less,
    LessEqual: less_equal,
    And: and,
    Or: or,
    Where: select,
    Pointwise: pointwise,
    // Shape and movement.
    Reshape: reshape,
    Again: again,
    StopGradient: stop_gradient,
    Transpose: transpose,
    Concat: concat,
    Slice: slice,
    Split: split,
    Expand: expand,
    Pad: pad,
    Gather: gather,
    GatherNd: gather_nd,
    GatherElements: gather_elements,
    ScatterElements: scatter_elements,
    ScatterNd: scatter_nd,
    ScatterAdd: scatter_add,
    // Reductions.
    ReduceSum: reduce_sum,
    ReduceMean: reduce_mean,
    ReduceMax: reduce_max,
    ReduceMin: reduce_min,
    ReduceProd: reduce_prod,
    ArgMax: arg_max,
    ArgMin: arg_min,
    // Products, attention, images.
    MatMul: matmul,
    Linear: linear,
    LayerNorm: layer_norm,
    LayerNormGrad: layer_norm_grad,
    Softmax: softmax,
    Attention: attention,
    AttentionGrad: attention_grad,
    BlockMean: block_mean,
    BlockRoute: block_route,
    BlockAttention: block_attention,
    BlockTranspose: block_transpose,
    BlockAttentionGrad: block_attention_grad,
    LinearAttention: linear_attention,
    Rope: rope,
    SplitHeads: split_heads,
    MergeHeads: merge_heads,
    QkvHeads: qkv_heads,
    QkvLinear: qkv_linear,
    SelfAttention: self_attention,
    Conv2d: conv2d,
    Conv2dWeightGrad: conv2d_weight_grad,
    ConvTranspose2d: conv_transpose2d,
    Resize: resize,
    ResizeGrad: resize_grad,
    // 8-bit floats.
    Quantize: quantize,
    QuantizeItems: quantize_items,
    Dequantize: dequantize,
    FakeQuantize: fake_quantize,
    ScaledLinear: scaled_linear,
    ScaledConv2d: scaled_conv2d,
    WeightScaledLinear: weight_scaled_linear,
    LayerNormQuantize: layer_norm_quantize,
}
