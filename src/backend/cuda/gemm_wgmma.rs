//! `cuda/gemm_wgmma.cu`: matrix products on Hopper, operands by the copy engine, tiles chosen by shape.

use lite3r_ir::{DType, ops::quantize::Granularity};

use super::{
    Arch, Kernel,
    floats::FLOATS,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, SHARED, Swizzle, TensorMap},
    product::Product,
    qkv_linear::Joint,
};
use crate::backend::Request;

const NARROW: &[DType] = &[DType::F16, DType::BF16];

/// The rows of this file: A [M, K] and B [N, K] of one type, rows of A, B and C whole chunks of 16 bytes.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "linear.wgmma", op: "linear", dtypes: NARROW, lower },
    Kernel { name: "matmul.wgmma", op: "matmul", dtypes: NARROW, lower },
    Kernel { name: "scaled_linear.wgmma", op: "scaled_linear", dtypes: &[DType::F8E4M3], lower },
    Kernel {
        name: "qkv_linear.wgmma",
        op: "qkv_linear",
        dtypes: &[DType::F16, DType::BF16, DType::F8E4M3],
        lower: |request, arch| match Joint::of(request)? {
            Some(joint) => lower_joint(request, arch, Some(joint)),
            None => Err("computes qkv_linear".into()),
        },
    },
];

/// How the products of this file are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Variant {
    /// Rows and columns of a tile.
    m: usize,
    n: usize,
    /// Whether two warpgroups take tiles in turn, instead of sharing one, 64 rows each.
    alternate: bool,
    /// Microseconds a slice of 128 bytes of K, and a tile behind its slices: with results of 16 bits, of 32 bits (and a
    /// residual), of codes, of 16 bits and a residual. Fitted to runs on an H200 at 1374 to 43968 rows, K and N of 1024
    /// to 4096, each with operands in the L2 cache and with three sets of operands in turn, and moved within a few
    /// percent so that the choice is the fastest tile.
    slice: f32,
    behind: [f32; 4],
}

const fn variant(m: usize, n: usize, alternate: bool, slice: f32, behind: [f32; 4]) -> Variant {
    Variant { m, n, alternate, slice, behind }
}

const VARIANTS: [Variant; 11] = [
    variant(128, 256, false, 0.658, [2.1, 7.66, 4.13, 2.48]),
    variant(128, 192, false, 0.51, [1.3, 4.36, 3.55, 2.02]),
    variant(192, 128, false, 0.508, [1.39, 4.14, 3.47, 2.0]),
    variant(128, 128, false, 0.338, [1.03, 2.61, 3.16, 1.44]),
    variant(64, 192, false, 0.414, [0.06, 2.06, 2.06, 0.86]),
    variant(64, 128, false, 0.195, [0.88, 1.82, 2.88, 1.04]),
    variant(64, 64, false, 0.153, [0.18, 0.65, 2.18, 1.4]),
    variant(64, 256, true, 0.371, [0.26, 3.15, 1.24, 1.17]),
    variant(128, 192, true, 0.523, [0.45, 10.0, 2.39, 1.39]),
    variant(128, 128, true, 0.335, [0.54, 2.6, 2.54, 0.85]),
    variant(64, 128, true, 0.203, [0.09, 0.97, 2.09, 0.31]),
];

/// Microseconds from the launch to the first product, and from the last result to the end.
const LAUNCH: f32 = 2.6;
/// What of the last tile stands alone where warpgroups take tiles in turn, and of all others does not.
const TAIL: f32 = 0.8;

impl Variant {
    /// Warpgroups that multiply.
    fn groups(self) -> usize {
        if self.alternate { 2 } else { self.m / 64 }
    }

    /// Panels of 64 rows and 128 bytes that a warpgroup has: all of its results where that leaves a ring of at least
    /// `least` slices, or two; and the slices that there is room for.
    fn panels_and_stages(self, out: DType, least: usize, joint: Option<&Joint>) -> (usize, usize) {
        let rows = if self.alternate { self.m } else { 64 };
        let all = (rows / 64 * (self.n * out.size()).div_ceil(128)).max(2);
        let stages = |panels: usize| {
            let columns = self.columns() + joint.map_or(0, Joint::shared);
            let rest = SHARED - self.groups() * panels * PANEL - columns - 64;
            (rest / ((self.m + self.n) * 128 + 16)).min(8)
        };
        match all * self.groups() * PANEL < SHARED / 2 + 1024 && stages(all) >= least {
            true => (all, stages(all)),
            false => (2, stages(2)),
        }
    }

    /// Bytes for what belongs to columns: scales and biases of up to four bytes.
    fn columns(self) -> usize {
        if self.alternate { 16 * self.n } else { 8 * self.n }
    }

    /// Whether this variant computes the product, with scales for groups of columns of A (`grouped`), and its heads.
    fn takes(self, product: &Product, grouped: bool, joint: Option<&Joint>) -> bool {
        let sums = self.m * self.n / 128 / if self.alternate { 1 } else { self.groups() };
        let quantizes = match product.quantize {
            Some(Granularity::Columns(columns)) => self.n.is_multiple_of(columns) && columns.is_multiple_of(128),
            _ => true,
        };
        let holds = joint.is_none_or(|j| j.fits(self.n, sums, self.groups()) && !(self.alternate && self.m > 64));
        quantizes && holds && (!grouped || (sums <= 96 && self.groups() < 3 && !(self.alternate && self.m > 64)))
    }

    /// Microseconds for a product of so many slices.
    fn time(self, product: &Product, slices: usize, out: DType, grouped: bool) -> f32 {
        let waves = (product.m.div_ceil(self.m) * product.n.div_ceil(self.n)).div_ceil(PROCESSORS) as f32;
        // Sums of groups are waited for, scaled and added up.
        let slice = if grouped { 1.25 * self.slice } else { self.slice };
        let behind = match (out.size(), product.epilogue.residual) {
            (1, _) => self.behind[2],
            (2, None) => self.behind[0],
            (2, Some(_)) => self.behind[3],
            _ => self.behind[1],
        };
        let tail = if self.alternate { TAIL } else { 0.0 };
        LAUNCH + tail + waves * (slices as f32 * slice + behind)
    }

    /// The fastest one for a product; of equals the first.
    fn best(
        product: &Product,
        slices: usize,
        out: DType,
        grouped: bool,
        joint: Option<&Joint>,
    ) -> Result<Self, String> {
        let fit = VARIANTS.into_iter().filter(|v| v.takes(product, grouped, joint));
        let time = |v: &Self| v.time(product, slices, out, grouped);
        fit.min_by(|a, b| time(a).total_cmp(&time(b))).ok_or_else(|| "has no tile of whole groups of columns".into())
    }
}

/// Bytes of 64 rows of 128 bytes.
const PANEL: usize = 64 * 128;

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    lower_joint(request, arch, None)
}

/// A product, or one that writes the heads of an attention.
fn lower_joint(request: &Request<'_>, arch: Arch, joint: Option<Joint>) -> Result<Lowered, String> {
    let product = Product::of(request)?;
    let (a, b) = (request.operands[0].dtype, request.operands[product.b].dtype);
    let out = request.results[0].dtype;
    if arch != Arch::Sm90a {
        return Err("needs sm_90a".into());
    }
    if a != b || !(NARROW.contains(&a) || a == DType::F8E4M3) {
        return Err(format!("multiplies f16, bf16 or f8e4m3, not {a} and {b}"));
    }
    let extra = [product.epilogue.bias, product.epilogue.residual];
    let extra: Vec<DType> = extra.into_iter().flatten().map(|i| request.operands[i].dtype).collect();
    let plain = product.quantize.is_none().then_some(out);
    if let Some(odd) = extra.iter().copied().chain(plain).find(|t| !FLOATS.contains(t)) {
        return Err(format!("takes bias, residual and results of f32, f16 and bf16, not {odd}"));
    }
    if !product.transposed || product.items != 1 {
        return Err("takes one product with B stored [N, K]".into());
    }
    if [product.m, product.n, product.k].contains(&0) {
        return Err("takes no empty products".into());
    }
    let whole = |size: usize, dtype: DType| (size * dtype.size()).is_multiple_of(16);
    let bias = product.epilogue.bias.map(|i| request.operands[i].dtype);
    if !whole(product.k, a) || !whole(product.n, out) || bias.is_some_and(|t| !whole(product.n, t)) {
        return Err(format!(
            "takes rows of whole 16 bytes, not K = {} of {a} and N = {} of {out}",
            product.k, product.n
        ));
    }
    let depth = 128 / a.size();
    let group = match product.x_scales.map(|s| s.granularity) {
        Some(Granularity::Columns(columns)) if columns % depth != 0 => {
            return Err(format!("takes scales of a multiple of {depth} columns"));
        }
        Some(Granularity::Columns(columns)) => Some(columns),
        _ => None,
    };
    if matches!(product.w_scales.map(|s| s.granularity), Some(Granularity::Columns(_))) {
        return Err("takes one scale a row of weights".into());
    }
    let slices = product.k.div_ceil(depth);
    let variant = Variant::best(&product, slices, out, group.is_some(), joint.as_ref())?;
    let residual = product.epilogue.residual.map(|i| (Base::Operand(i), request.operands[i].dtype));
    // Residuals as wide as results are copied to their panels in advance, for which a slice less is a fair price.
    let (panels, stages) = variant.panels_and_stages(out, if residual.is_some() { 3 } else { 4 }, joint.as_ref());
    let tiles = product.tiles((variant.m, variant.n))?;
    let registers = match variant.groups() {
        1 => (0, 0),
        2 => (40, 232),
        _ => (32, 160),
    };
    let module = Module::new("gemm_wgmma.cu")
        .element("MATH", a)
        .define("TILE_M", variant.m)
        .define("TILE_N", variant.n)
        .define("STAGES", stages)
        .define("ALTERNATE", i32::from(variant.alternate))
        .define("BUFFERS", panels)
        .define("PRODUCER", registers.0)
        .define("CONSUMER", registers.1)
        .define("HEAD", joint.map_or(0, |j| j.head));
    let module = joint.map_or(module.clone(), |j| j.define(module));
    let matrix = |base: Base, dtype: DType, (rows, columns): (usize, usize), height: usize| {
        Arg::TensorMap(TensorMap {
            base: Pointer { base, offset: 0 },
            dtype,
            dims: vec![columns as u64, rows as u64],
            strides: vec![(columns * dtype.size()) as u64],
            tile: vec![128 / dtype.size() as u32, height as u32],
            steps: vec![1; 2],
            swizzle: Swizzle::B128,
        })
    };
    let results = |(base, dtype): (Base, DType)| matrix(base, dtype, (product.m, product.n), 64);
    let y = (Base::Result(0), out);
    let mut args = vec![
        matrix(Base::Operand(0), a, (product.m, product.k), variant.m),
        matrix(Base::Operand(product.b), b, (product.n, product.k), variant.n),
        joint.map_or_else(|| results(y), |j| j.panels(0)),
        results(residual.filter(|r| whole(product.n, r.1)).unwrap_or(y)),
    ];
    args.extend(product.scale_args());
    args.push(product.code_scales());
    args.extend([product.m, product.n, product.k, group.unwrap_or(depth)].map(|size| Arg::of(size as u32)));
    args.extend(joint.iter().flat_map(Joint::args));
    Ok(Launch {
        module: product.define(module, request),
        function: "product_wgmma",
        grid: [tiles.min(PROCESSORS as u32), 1, 1],
        block: 128 * (variant.groups() as u32 + 1),
        shared: SHARED as u32,
        args,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        Op, ValueType,
        ops::{Linear, ScaledLinear, activation::Activation},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    #[test]
    fn panels_and_stages_fit_into_shared_memory() {
        for v in VARIANTS {
            for out in [DType::F8E4M3, DType::BF16, DType::F32] {
                for least in [3, 4] {
                    let (panels, stages) = v.panels_and_stages(out, least, None);
                    let barriers = 16 * stages + 8 * v.groups() + 32;
                    let bytes = stages * (v.m + v.n) * 128 + v.groups() * panels * PANEL + v.columns() + barriers;
                    assert!(bytes <= SHARED && stages >= 3 && panels >= 2, "{v:?} {out}: {panels} {stages} {bytes}");
                }
            }
        }
    }

    /// The fastest tile of runs on an H200, or one within 3 % of it; within 7 % where a residual of 32 bits is added.
    #[test]
    fn choices_are_those_that_were_measured() {
        let picks = |[m, k, n]: [usize; 3], residual: bool, x_scale: Granularity, out: DType| {
            let quantize = (out == DType::F8E4M3).then_some(Granularity::Columns(256));
            let op = ScaledLinear { quantize, ..plain(Activation::None, residual, x_scale, DType::BF16) };
            let (op, operands) = scaled(m, k, n, &op);
            let request = Request { op: &op, operands: &operands, results: &[of(out, &[m, n])] };
            let grouped = x_scale != Granularity::Row;
            let v = Variant::best(&Product::of(&request).unwrap(), k / 128, out, grouped, None).unwrap();
            (v.m, v.n, v.alternate)
        };
        let (b, f, e) = (DType::BF16, DType::F32, DType::F8E4M3);
        for (shape, want) in [
            ([1374, 1024, 1024], (64, 192, false)),
            ([1374, 1024, 3072], (128, 128, true)),
            ([1374, 1024, 4096], (128, 192, true)),
            ([1374, 4096, 1024], (128, 128, false)),
            ([2748, 1024, 1024], (128, 192, false)),
            ([2748, 1024, 3072], (128, 128, true)),
            ([2748, 1024, 4096], (128, 192, true)),
            ([2748, 4096, 1024], (128, 192, false)),
            ([10992, 1024, 1024], (128, 192, true)),
            ([10992, 1024, 3072], (128, 192, true)),
            ([10992, 1024, 4096], (128, 128, true)),
            ([10992, 4096, 1024], (128, 128, true)),
            ([43968, 1024, 1024], (128, 128, true)),
            ([43968, 1024, 3072], (128, 192, true)),
            ([43968, 1024, 4096], (128, 192, true)),
            ([43968, 4096, 1024], (128, 128, true)),
            ([1, 2048, 2048], (64, 64, false)),
        ] {
            assert_eq!(picks(shape, false, Granularity::Row, b), want, "{shape:?}");
        }
        for (m, added, grouped) in [
            (1374, (128, 128, false), (128, 128, false)),
            (2748, (192, 128, false), (128, 192, false)),
            (10992, (128, 128, true), (128, 192, false)),
            (43968, (128, 128, true), (128, 128, false)),
        ] {
            let shape = [m, 4096, 1024];
            assert_eq!(picks(shape, true, Granularity::Row, b), added, "{shape:?} + residual");
            assert_eq!(picks(shape, true, Granularity::Columns(256), b), grouped, "{shape:?}, groups");
            assert_eq!(picks([m, 1024, 4096], false, Granularity::Row, e), (64, 256, true), "{m}, codes");
        }
        assert_eq!(picks([10992, 1024, 1024], true, Granularity::Row, f), (64, 128, true));
    }

    fn of(dtype: DType, shape: &[usize]) -> ValueType {
        ValueType::new(dtype, shape.iter().copied())
    }

    fn linear(m: usize, k: usize, n: usize, op: &Linear) -> conformance::Typed {
        let mut operands = vec![of(DType::BF16, &[m, k]), of(DType::BF16, &[n, k])];
        operands.extend(op.bias.then(|| of(DType::F32, &[n])));
        operands.extend(op.residual.then(|| of(DType::F32, &[m, n])));
        (Op::Linear(op.clone()), operands)
    }

    fn scaled(m: usize, k: usize, n: usize, op: &ScaledLinear) -> conformance::Typed {
        let (x, w) = (of(DType::F8E4M3, &[m, k]), of(DType::F8E4M3, &[n, k]));
        let (xs, ws) = (op.x_scale.scales(&x).unwrap(), op.w_scale.scales(&w).unwrap());
        let mut operands = vec![x, xs, w, ws];
        operands.extend(op.bias.then(|| of(DType::F32, &[n])));
        operands.extend(op.residual.then(|| of(DType::F32, &[m, n])));
        (Op::ScaledLinear(op.clone()), operands)
    }

    fn plain(activation: Activation, residual: bool, x_scale: Granularity, out: DType) -> ScaledLinear {
        let w_scale = Granularity::Row;
        ScaledLinear { activation, bias: true, residual, x_scale, w_scale, out, quantize: None }
    }

    /// Every tile with the epilogues that transformers have.
    #[test]
    fn tiles_of_transformers_compile_without_spills() {
        let mut requests = Vec::new();
        for m in [1, 1374, 2748, 4122, 10992, 43968] {
            for (k, n) in [(1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024), (2048, 2048)] {
                for (activation, residual, out) in [
                    (Activation::None, false, DType::BF16),
                    (Activation::Gelu, false, DType::BF16),
                    (Activation::None, true, DType::F32),
                ] {
                    let op = Linear { activation, residual, out: Some(out), ..Linear::new(true) };
                    requests.push(linear(m, k, n, &op));
                    for x_scale in [Granularity::Row, Granularity::Columns(256)] {
                        requests.push(scaled(m, k, n, &plain(activation, residual, x_scale, out)));
                    }
                }
                let op = plain(Activation::Gelu, false, Granularity::Row, DType::BF16);
                requests.push(scaled(m, k, n, &ScaledLinear { quantize: Some(Granularity::Columns(256)), ..op }));
            }
        }
        conformance::compiles(&requests, "wgmma");
    }
}
