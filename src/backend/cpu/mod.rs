//! The CPU backend: the oracle that every other backend is held against, and the default where there is no GPU.

pub mod attention;
pub mod attention_grad;
pub mod block_attention;
pub mod block_attention_grad;
pub mod block_mean;
pub mod cast;
pub mod conv;
pub mod conv_transpose;
pub mod conv_weight_grad;
pub mod elementwise;
pub mod exec;
pub mod floats;
pub mod gemm;
pub mod lanes;
pub mod layer_norm;
pub mod layer_norm_grad;
pub mod linear_attention;
pub mod math;
mod memory;
pub mod movement;
pub mod pixels;
pub mod pointwise;
pub mod qkv_heads;
pub mod qkv_linear;
pub mod quantize;
pub mod reduce;
pub mod resize;
pub mod rope;
pub mod scaled_linear;
pub mod scatter_add;
pub mod self_attention;
pub mod softmax;
pub mod strided;

#[cfg(test)]
mod conformance;

use elementwise::{binary, unary};
use lite3r_ir::{DType, Op, Tensor, ValueType};
pub use memory::{AlignedBytes, is_aligned};
use movement::movement;
use reduce::{reduction, search};

use super::{Choice, Gap, Request, Target};

/// An operand of a kernel: dense, row-major, aligned to 64 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The elements.
    pub bytes: &'a [u8],
}

/// A result of a kernel: dense, row-major, aligned to 64 bytes, contents undefined before the call.
#[derive(Debug)]
pub struct ArgMut<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The elements, all to be written.
    pub bytes: &'a mut [u8],
}

/// Computes the results of an operation. Operands and results never overlap.
pub type Run = fn(op: &Op, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String>;

/// A row of the kernel table.
pub struct Kernel {
    /// `linear.f32`: unique; what plans and `inspect` print.
    pub name: &'static str,
    /// The operation that it computes.
    pub op: &'static str,
    /// The element types of the first floating-point operand that it takes; for the coverage table.
    pub dtypes: &'static [DType],
    /// Whether it takes a request; the refusal names the clause.
    pub accepts: fn(&Request<'_>) -> Result<(), String>,
    /// Bytes of scratch memory for each task that runs at a time: one [lane](lanes::run). Independent of the machine.
    pub lane: fn(&Request<'_>) -> usize,
    /// Computes the results. Operands and results never overlap.
    pub run: Run,
}

/// Every kernel, the fast ones first: the first row that accepts is taken.
pub const KERNELS: &[Kernel] = &[
    unary("neg.float", "neg"),
    unary("abs.float", "abs"),
    unary("exp.float", "exp"),
    unary("log.float", "log"),
    unary("sqrt.float", "sqrt"),
    unary("reciprocal.float", "reciprocal"),
    unary("sin.float", "sin"),
    unary("cos.float", "cos"),
    unary("tan.float", "tan"),
    unary("atan.float", "atan"),
    unary("erf.float", "erf"),
    unary("tanh.float", "tanh"),
    unary("sigmoid.float", "sigmoid"),
    unary("silu.float", "silu"),
    unary("gelu.float", "gelu"),
    unary("relu.float", "relu"),
    unary("sign.float", "sign"),
    unary("floor.float", "floor"),
    unary("ceil.float", "ceil"),
    unary("round.float", "round"),
    unary("clip.float", "clip"),
    cast::CAST,
    binary("add.float", "add"),
    binary("sub.float", "sub"),
    binary("mul.float", "mul"),
    binary("div.float", "div"),
    binary("pow.float", "pow"),
    binary("max.float", "max"),
    binary("min.float", "min"),
    binary("remainder.float", "remainder"),
    binary("equal.float", "equal"),
    binary("less.float", "less"),
    binary("less_equal.float", "less_equal"),
    movement("where.bytes", "where"),
    pointwise::POINTWISE,
    movement("reshape.bytes", "reshape"),
    movement("transpose.bytes", "transpose"),
    movement("concat.bytes", "concat"),
    movement("slice.bytes", "slice"),
    movement("split.bytes", "split"),
    movement("expand.bytes", "expand"),
    movement("pad.bytes", "pad"),
    movement("gather.bytes", "gather"),
    movement("gather_nd.bytes", "gather_nd"),
    movement("gather_elements.bytes", "gather_elements"),
    movement("scatter_elements.bytes", "scatter_elements"),
    movement("scatter_nd.bytes", "scatter_nd"),
    scatter_add::SCATTER_ADD,
    movement("split_heads.bytes", "split_heads"),
    movement("merge_heads.bytes", "merge_heads"),
    reduction("reduce_sum.float", "reduce_sum"),
    reduction("reduce_mean.float", "reduce_mean"),
    reduction("reduce_max.float", "reduce_max"),
    reduction("reduce_min.float", "reduce_min"),
    reduction("reduce_prod.float", "reduce_prod"),
    search("arg_max.float", "arg_max"),
    search("arg_min.float", "arg_min"),
    gemm::MATMUL,
    gemm::LINEAR,
    scaled_linear::SCALED_LINEAR,
    scaled_linear::WEIGHT_SCALED_LINEAR,
    quantize::QUANTIZE,
    quantize::QUANTIZE_ITEMS,
    quantize::DEQUANTIZE,
    quantize::LAYER_NORM_QUANTIZE,
    layer_norm::LAYER_NORM,
    layer_norm_grad::LAYER_NORM_GRAD,
    softmax::SOFTMAX,
    attention::ATTENTION,
    attention_grad::ATTENTION_GRAD,
    block_mean::BLOCK_MEAN,
    block_attention::BLOCK_ATTENTION,
    block_attention_grad::BLOCK_ATTENTION_GRAD,
    block_attention_grad::BLOCK_TRANSPOSE,
    linear_attention::LINEAR_ATTENTION,
    rope::ROPE,
    qkv_heads::QKV_HEADS,
    qkv_linear::QKV_LINEAR,
    self_attention::SELF_ATTENTION,
    conv::CONV2D,
    pixels::CONV2D,
    pixels::SCALED_CONV2D,
    conv_weight_grad::CONV2D_WEIGHT_GRAD,
    conv_transpose::CONV_TRANSPOSE2D,
    conv_transpose::OVERLAPPING,
    resize::RESIZE,
    pixels::RESIZE,
    resize::RESIZE_GRAD,
    pixels::RESIZE_GRAD,
    ORACLE,
];

/// Every operation by its own reference evaluation: exact and slow.
const ORACLE: Kernel = Kernel {
    name: "oracle",
    op: "*",
    dtypes: &DType::ALL,
    accepts: |_| Ok(()),
    lane: |_| 0,
    run: |op, args, results, _| {
        let tensors: Vec<Tensor> = args
            .iter()
            .map(|a| Tensor::from_bytes(a.dtype, a.shape, a.bytes).ok_or("an operand has the wrong length"))
            .collect::<Result<_, _>>()?;
        let types: Vec<ValueType> = results.iter().map(|r| ValueType::new(r.dtype, r.shape.iter().copied())).collect();
        let values = op.eval(&tensors.iter().collect::<Vec<_>>(), &types)?;
        for (result, value) in results.iter_mut().zip(&values) {
            result.bytes.copy_from_slice(value.bytes());
        }
        Ok(())
    },
};

/// The compile side of the CPU backend.
pub struct Cpu;

impl Target for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        kernel(request).map(|kernel| Choice { kernel: kernel.name, scratch: lanes::scratch((kernel.lane)(request)) })
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        KERNELS.iter().map(|k| (k.op, k.name, k.dtypes.to_vec())).collect()
    }
}

/// The first row that takes a request, or why the last row of its operation refused.
pub fn kernel(request: &Request<'_>) -> Result<&'static Kernel, Gap> {
    let mut gap = Gap { nearest: None, clause: "no kernel computes it".into() };
    for kernel in KERNELS.iter().filter(|k| k.op == request.op.name() || k.op == "*") {
        match (kernel.accepts)(request) {
            Ok(()) => return Ok(kernel),
            Err(clause) => gap = Gap { nearest: Some(kernel.name), clause },
        }
    }
    Err(gap)
}

/// The row of that name.
pub fn named(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name)
}
