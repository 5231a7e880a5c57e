//! What every kind of matrix product has in common: sizes, operands, scales, and what stands behind the sum.

use lite3r_ir::{
    DType, Op,
    ops::{MatMul, activation::Activation, quantize::Granularity},
};

use super::{
    elementwise::{Shape, Strides, pack},
    launch::{Arg, Module},
};
use crate::backend::{Request, gpu::product::Product as Matrices};

/// Scales of an operand.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// The operand that holds them.
    pub operand: usize,
    /// What shares one.
    pub granularity: Granularity,
}

/// What is done with sums, as `cuda/include/epilogue.cuh` says it.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue {
    /// Applied to the sum with its bias.
    pub activation: Activation,
    /// Operand, one value a column.
    pub bias: Option<usize>,
    /// Operand, one value an element.
    pub residual: Option<usize>,
}

/// C[i] = epilogue(A[i] B[i]).
pub struct Product {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Columns of A.
    pub k: usize,
    /// Whether B is stored [N, K].
    pub transposed: bool,
    /// Matrices of the batch.
    pub items: usize,
    /// The operand that is B; A is operand 0.
    pub b: usize,
    /// Scales of A.
    pub x_scales: Option<Scales>,
    /// Scales of B.
    pub w_scales: Option<Scales>,
    /// Bias, activation, residual.
    pub epilogue: Epilogue,
    /// What shares a scale where the results are codes and scales.
    pub quantize: Option<Granularity>,
    /// The batch, with the steps of A and B in elements.
    walk: (Shape, Vec<Strides>),
}

/// Sizes and batch, as the kernels lay them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Layout {
    m: u32,
    n: u32,
    k: u32,
    x_group: u32,
    w_group: u32,
    batch: Shape,
    a: Strides,
    b: Strides,
}

impl Product {
    /// Of `linear`, `scaled_linear`, `weight_scaled_linear`, `matmul`, and what `qkv_linear` splits.
    pub fn of(request: &Request<'_>) -> Result<Self, String> {
        let scales = |operand, granularity| Some(Scales { operand, granularity });
        let (b, x_scales, w_scales, activation, bias, residual, quantize) = match request.op {
            Op::MatMul(op) => return Self::of_matmul(op, request),
            Op::Linear(op) => (1, None, None, op.activation, op.bias, op.residual, op.quantize),
            Op::WeightScaledLinear(op) => (1, None, scales(2, op.w_scale), op.activation, op.bias, op.residual, None),
            Op::ScaledLinear(op) => {
                let (x_scales, w_scales) = (scales(1, op.x_scale), scales(3, op.w_scale));
                (2, x_scales, w_scales, op.activation, op.bias, op.residual, op.quantize)
            }
            Op::QkvLinear(op) => return Self::of(&Request { op: &op.product(op.out)?, ..*request }),
            other => return Err(format!("does not compute {}", other.name())),
        };
        let behind = w_scales.map_or(b, |s: Scales| s.operand) + 1;
        let epilogue = Epilogue {
            activation,
            bias: bias.then_some(behind),
            residual: residual.then_some(behind + usize::from(bias)),
        };
        let matrices = Matrices::of_weights(&request.operands[0], &request.operands[b])?;
        Self::new(matrices, b, [x_scales, w_scales], epilogue, quantize)
    }

    fn of_matmul(op: &MatMul, request: &Request<'_>) -> Result<Self, String> {
        let epilogue = Epilogue { activation: Activation::None, bias: None, residual: None };
        Self::new(Matrices::of_matmul(op, request)?, 1, [None; 2], epilogue, None)
    }

    /// Errors: sizes that the kernels do not count.
    fn new(
        matrices: Matrices,
        b: usize,
        [x_scales, w_scales]: [Option<Scales>; 2],
        epilogue: Epilogue,
        quantize: Option<Granularity>,
    ) -> Result<Self, String> {
        let Matrices { m, n, k, items, walked, transposed } = matrices;
        let walk = pack(&walked, 2)?;
        let most = 1 << 31;
        match [m, n, k, items].iter().all(|size| *size < most) {
            true => Ok(Self { m, n, k, transposed, items, b, x_scales, w_scales, epilogue, quantize, walk }),
            false => Err("takes sizes below 2^31".into()),
        }
    }

    /// Sizes and batch by value.
    pub fn layout(&self) -> Arg {
        let group = |scales: Option<Scales>| match scales.map(|s| s.granularity) {
            Some(Granularity::Columns(n)) => n.min(self.k.max(1)) as u32,
            _ => 1,
        };
        Arg::of(Layout {
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            x_group: group(self.x_scales),
            w_group: group(self.w_scales),
            batch: self.walk.0,
            a: self.walk.1[0],
            b: self.walk.1[1],
        })
    }

    /// Tiles of the result, over the batch; 0 of an empty one. An error if a grid cannot count them.
    pub fn tiles(&self, (tile_m, tile_n): (usize, usize)) -> Result<u32, String> {
        let tiles = self.m.div_ceil(tile_m) * self.n.div_ceil(tile_n) * self.items;
        match i32::try_from(tiles) {
            Ok(tiles) => Ok(tiles as u32),
            Err(_) => Err(format!("takes up to 2^31 tiles of {tile_m}x{tile_n}, not {tiles}")),
        }
    }

    /// The macros of scales and epilogue; QUANTIZE is the columns that share a scale of codes, 0 where results are plain.
    pub fn define(&self, module: Module, request: &Request<'_>) -> Module {
        let word = |scales: Option<Scales>| match scales.map(|s| s.granularity) {
            None => "NONE",
            Some(Granularity::Row) => "ROW",
            Some(Granularity::Tensor) => "TENSOR",
            Some(Granularity::Columns(_)) => "COLUMNS",
        };
        let quantize = match self.quantize {
            Some(Granularity::Columns(columns)) => columns,
            _ => 0,
        };
        let module = module
            .define("XSCALE", word(self.x_scales))
            .define("WSCALE", word(self.w_scales))
            .define("QUANTIZE", quantize);
        self.epilogue.define(module, request, self.x_scales.is_some())
    }

    /// The operands, the result, scales, bias and residual, in the order of the kernels' parameters.
    pub fn args(&self) -> Vec<Arg> {
        let mut args = vec![Arg::operand(0), Arg::operand(self.b), Arg::result(0)];
        args.extend(self.scale_args());
        args
    }

    /// The scales of codes.
    pub fn code_scales(&self) -> Arg {
        if self.quantize.is_some() { Arg::result(1) } else { Arg::Null }
    }

    /// Scales, bias and residual.
    pub fn scale_args(&self) -> [Arg; 4] {
        let scales = |s: Option<Scales>| Arg::maybe(s.map(|s| s.operand));
        [
            scales(self.x_scales),
            scales(self.w_scales),
            Arg::maybe(self.epilogue.bias),
            Arg::maybe(self.epilogue.residual),
        ]
    }
}

/// The function of `cuda/include/activations.cuh` for results of a type: approximate ones for 8 and 16 bits, coarser
/// ones where operands were `rounded` to 8 bits.
pub fn activation(activation: Activation, result: DType, rounded: bool) -> &'static str {
    let fast = result.size() <= 2;
    match activation {
        Activation::None => "linear",
        Activation::Relu => "relu",
        Activation::Gelu if fast && rounded => "gelu_coarse",
        Activation::Gelu if fast => "gelu_fast",
        Activation::Gelu => "gelu",
        Activation::GeluTanh if fast => "gelu_tanh_fast",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu if fast => "silu_fast",
        Activation::Silu => "silu",
    }
}

impl Epilogue {
    /// The macros of the result, the activation, bias and residual, see [`activation`].
    pub fn define(&self, module: Module, request: &Request<'_>, rounded: bool) -> Module {
        let result = request.results[0].dtype;
        let activation = activation(self.activation, result, rounded);
        let of = |operand: Option<usize>| operand.map_or(DType::F32, |i| request.operands[i].dtype);
        module
            .define("ACTIVATION", activation)
            .element("TY", result)
            .define("BIAS", i32::from(self.bias.is_some()))
            .define("RESIDUAL", i32::from(self.residual.is_some()))
            .element("TBIAS", of(self.bias))
            .element("TRESIDUAL", of(self.residual))
    }
}
