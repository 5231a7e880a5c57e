//! `cuda/gemm_wgmma.cu`: matrix products on Hopper, operands by the copy engine, tiles chosen by shape.

use lite3r_ir::{
    DType,
    ops::{activation::Activation, quantize::Granularity},
};

use super::{
    Arch, Kernel,
    floats::FLOATS,
    launch::{Arg, Base, Launch, Lowered, Module, PROCESSORS, Pointer, Swizzle, TensorMap},
    product::Product,
};
use crate::backend::Request;

const NARROW: &[DType] = &[DType::F16, DType::BF16];

/// The rows of this file: A [M, K] and B [N, K] of one type, rows of A, B and C whole chunks of 16 bytes.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "linear.wgmma", op: "linear", dtypes: NARROW, lower },
    Kernel { name: "matmul.wgmma", op: "matmul", dtypes: NARROW, lower },
    Kernel { name: "scaled_linear.wgmma", op: "scaled_linear", dtypes: &[DType::F8E4M3], lower },
];

/// A variant of the kernels: the part of a result that a block computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Slices of the ring: as many as shared memory holds.
    pub stages: usize,
    /// Registers of producer and consumers; 0 leaves those of the launch.
    pub registers: (u32, u32),
}

const fn tile(m: usize, n: usize, stages: usize, registers: (u32, u32)) -> Tile {
    Tile { m, n, stages, registers }
}

/// Every variant.
pub const TILES: [Tile; 8] = [
    tile(128, 256, 4, (24, 240)),
    tile(128, 192, 4, (24, 240)),
    tile(128, 128, 6, (24, 240)),
    tile(192, 128, 4, (32, 160)),
    tile(64, 256, 5, (0, 0)),
    tile(64, 192, 6, (0, 0)),
    tile(64, 128, 8, (0, 0)),
    tile(64, 64, 8, (0, 0)),
];

impl Tile {
    /// Warpgroups that multiply.
    pub fn groups(self) -> usize {
        self.m / 64
    }

    /// Threads a block, the producer's warpgroup included.
    pub fn threads(self) -> u32 {
        128 * (self.groups() as u32 + 1)
    }

    /// Bytes of the ring and its barriers.
    pub fn ring(self) -> usize {
        self.stages * ((self.m + self.n) * 128 + 16)
    }

    fn shared(self) -> usize {
        self.ring() + self.groups() * 2 * 64 * 128
    }

    /// Whether there is room for scaled sums beside running ones.
    fn holds_groups(self) -> bool {
        self.n <= 128 && self.m <= 128
    }

    /// Tiles of a result.
    pub fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// The macros of the kernels.
    pub fn define(self, module: Module) -> Module {
        module
            .define("TILE_M", self.m)
            .define("TILE_N", self.n)
            .define("STAGES", self.stages)
            .define("PRODUCER", self.registers.0)
            .define("CONSUMER", self.registers.1)
    }

    /// Clock cycles of so many tiles of so many slices of 128 bytes, `work` instructions an element behind them. A slice
    /// costs what is slowest of its products, its traffic in shared memory (128 bytes a cycle) and in the L2 cache (64
    /// bytes a cycle). Epilogues stand between tiles.
    pub fn cycles(self, tiles: usize, slices: usize, work: usize) -> usize {
        let products = 2 * self.n * self.groups();
        let shared = self.m + self.n + self.groups() * (64 + self.n);
        let cache = 2 * (self.m + self.n);
        let main = slices * products.max(shared).max(cache) * 20 / 17;
        // A lone warpgroup waits for its own loads.
        let lone = if self.groups() == 1 { 2 } else { 1 };
        let epilogue = 600 + lone * self.m * self.n * work / 128;
        tiles.div_ceil(PROCESSORS) * (main + epilogue) + 1500
    }
}

/// The fastest variant by [`Tile::cycles`]; of equals the first.
fn tile_for(product: &Product, slices: usize, out: DType, grouped: bool) -> Result<Tile, String> {
    let work = work(product, out);
    let tiles = TILES.into_iter().filter(|t| !grouped || t.holds_groups());
    let best = tiles.min_by_key(|t| t.cycles(t.count(product.m, product.n), slices, work));
    best.ok_or_else(|| "has no tile".into())
}

/// Instructions an element of the epilogue.
fn work(product: &Product, out: DType) -> usize {
    let activation = match product.epilogue.activation {
        Activation::None => 0,
        Activation::Relu => 1,
        _ if out.size() == 2 => 8,
        _ => 24,
    };
    3 + out.size() / 2 + activation + usize::from(product.epilogue.residual.is_some())
}

fn lower(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
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
    let odd = extra.into_iter().flatten().map(|i| request.operands[i].dtype).chain([out]).find(|t| !FLOATS.contains(t));
    if let Some(odd) = odd {
        return Err(format!("takes bias, residual and results of f32, f16 and bf16, not {odd}"));
    }
    if !product.transposed || product.items != 1 {
        return Err("takes one product with B stored [N, K]".into());
    }
    if [product.m, product.n, product.k].contains(&0) {
        return Err("takes no empty products".into());
    }
    let whole = |size: usize, dtype: DType| (size * dtype.size()).is_multiple_of(16);
    if !whole(product.k, a) || !whole(product.n, out) {
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
    let tile = tile_for(&product, product.k.div_ceil(depth), out, group.is_some())?;
    let tiles = product.tiles((tile.m, tile.n))?;
    let module = tile.define(Module::new("gemm_wgmma.cu").element("MATH", a));
    let matrix = |base: Base, dtype: DType, (rows, columns): (usize, usize), height: usize| {
        Arg::TensorMap(TensorMap {
            base: Pointer { base, offset: 0 },
            dtype,
            dims: vec![columns as u64, rows as u64],
            strides: vec![(columns * dtype.size()) as u64],
            tile: vec![128 / dtype.size() as u32, height as u32],
            swizzle: Swizzle::B128,
        })
    };
    let mut args = vec![
        matrix(Base::Operand(0), a, (product.m, product.k), tile.m),
        matrix(Base::Operand(product.b), b, (product.n, product.k), tile.n),
        matrix(Base::Result(0), out, (product.m, product.n), 64),
    ];
    args.extend(product.scale_args());
    args.extend([product.m, product.n, product.k, group.unwrap_or(depth)].map(|size| Arg::of(size as u32)));
    Ok(Launch {
        module: product.define(module, request),
        function: "product_wgmma",
        grid: [tiles.min(PROCESSORS as u32), 1, 1],
        block: tile.threads(),
        cluster: 1,
        shared: tile.shared() as u32,
        args,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        Op, ValueType,
        ops::{Linear, ScaledLinear},
    };

    use super::*;
    use crate::backend::cuda::conformance;

    #[test]
    fn rings_fit_into_shared_memory() {
        TILES.iter().for_each(|t| assert!(t.shared() <= 232_448, "{t:?}: {}", t.shared()));
    }

    /// One wave where one is enough, wide tiles where there are many.
    #[test]
    fn tiles_fill_the_device() {
        for (m, n, k, want) in [
            (1374, 1024, 1024, (64, 192)),
            (1374, 3072, 1024, (128, 256)),
            (2748, 1024, 4096, (128, 192)),
            (43968, 3072, 1024, (128, 256)),
            (1, 2048, 2048, (64, 64)),
        ] {
            let best = TILES.into_iter().min_by_key(|t| t.cycles(t.count(m, n), k / 128, 4)).unwrap();
            assert_eq!((best.m, best.n), want, "{m}x{k} -> {n}");
        }
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
                        let w_scale = Granularity::Row;
                        let op =
                            ScaledLinear { activation, bias: true, residual, x_scale, w_scale, out, quantize: None };
                        requests.push(scaled(m, k, n, &op));
                    }
                }
            }
        }
        conformance::compiles(&requests, "wgmma");
    }
}
