//! Matrix products: `linear` and `matmul`, by the `gemm` crate on tiles of the result.
//!
//! The result is cut into tiles that depend on the shape alone. A task multiplies one tile over the whole inner
//! dimension with strides, so nothing is transposed or packed here; then bias, activation and residual are applied
//! while the tile is in the cache. Operands narrower than f32 are widened panel by panel into scratch memory, and all
//! sums are f32.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{
        Linear, MatMul, activation::Activation, elementwise::indices, quantize::Granularity, shape_rules::strides_for,
    },
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    lanes::{self, Shared, part},
    math::{activate, vectorised},
    quantize::{Scales, group_width, quantize_group},
};
use crate::backend::Request;

/// `linear` by tiles.
pub const LINEAR: Kernel = Kernel {
    name: "linear.gemm",
    op: "linear",
    dtypes: FLOATS,
    accepts: |request| match request.op {
        Op::Linear(op) => floats_or_codes(request, op.quantize, op.out.unwrap_or(request.operands[0].dtype)),
        other => Err(format!("is no kernel for {}", other.name())),
    },
    lane,
    run: |op, args, results, scratch| match op {
        Op::Linear(op) => linear(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// `matmul` by tiles of every matrix of the batch.
pub const MATMUL: Kernel = Kernel {
    name: "matmul.gemm",
    op: "matmul",
    dtypes: FLOATS,
    accepts: all_floats,
    lane,
    run: |op, args, results, scratch| match op {
        Op::MatMul(op) => matmul(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Refuses requests with operands or results that are not f32, f16 or bf16.
pub fn all_floats(request: &Request<'_>) -> Result<(), String> {
    match request.operands.iter().chain(request.results).find(|t| !FLOATS.contains(&t.dtype)) {
        Some(odd) => Err(format!("takes f32, f16 and bf16, not {odd}")),
        None => Ok(()),
    }
}

/// As [`all_floats`], where results may be codes under scales of rows or columns, of a y that is f32.
fn floats_or_codes(request: &Request<'_>, quantize: Option<Granularity>, y: DType) -> Result<(), String> {
    let Some(scale) = quantize else { return all_floats(request) };
    takes_codes(scale, y)?;
    all_floats(&Request { results: &[], ..*request })
}

/// Refuses codes of anything but f32 under scales of rows or columns.
pub fn takes_codes(scale: Granularity, y: DType) -> Result<(), String> {
    match (scale, y) {
        (Granularity::Tensor, _) => Err("quantises by rows or groups of columns".into()),
        (_, DType::F32) => Ok(()),
        (_, y) => Err(format!("quantises f32, not {y}")),
    }
}

/// A matrix with any strides, for reading.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> View<'a> {
    /// Rows of `columns` neighbours, `row_step` apart.
    ///
    /// # Panics
    /// If the matrix reaches beyond the data: a defect of the caller.
    pub fn rows(data: &'a [f32], rows: usize, columns: usize, row_step: usize) -> Self {
        assert!(rows * columns == 0 || (rows - 1) * row_step + columns <= data.len(), "a matrix outside its data");
        Self { data, rows, columns, row_step, column_step: 1 }
    }

    /// Rows and columns exchanged.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_step: self.column_step, column_step: self.row_step, ..self }
    }
}

/// out = a·b, or out += a·b with `add`; rows of out are `step` apart.
pub fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32], step: usize, add: bool) {
    let len = out.len();
    // SAFETY: `out` is borrowed exclusively.
    unsafe { multiply_into(a, b, out.as_mut_ptr(), len, step, add) }
}

/// As [`multiply`], into memory between whose rows other tasks may write.
///
/// # Safety
/// `out` must point to `len` elements, and nobody else may access those of the a.rows × b.columns matrix with rows
/// `step` apart.
///
/// # Panics
/// If the matrices do not fit each other or the memory: a defect of the caller.
pub unsafe fn multiply_into(a: View<'_>, b: View<'_>, out: *mut f32, len: usize, step: usize, add: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions");
    if m * n == 0 {
        return;
    }
    assert!(n <= step && (m - 1) * step + n <= len, "a product outside its memory");
    if k == 0 {
        if !add {
            // SAFETY: inside `len` elements by the assertion, ours by the contract.
            (0..m).for_each(|row| unsafe { std::slice::from_raw_parts_mut(out.add(row * step), n).fill(0.0) });
        }
        return;
    }
    // SAFETY: both views were checked against their data when they were made, the result above; strides fit isize
    // because they are smaller than allocations.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            step as isize,
            add,
            a.data.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            b.data.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// What sits after a product.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Applied to sum and bias.
    pub activation: Activation,
    /// One value a column.
    pub bias: Option<Floats<'a>>,
    /// One value an element.
    pub residual: Option<Floats<'a>>,
}

impl Epilogue<'_> {
    /// Of `values`, which start at `column` of a row; `at` is the flat index of the first in the result.
    pub fn apply(&self, values: &mut [f32], column: usize, at: usize) {
        const SEGMENT: usize = 256;
        let mut buffer = [0.0; SEGMENT];
        let add = |values: &mut [f32], other: &[f32]| {
            vectorised(
                #[inline(always)]
                || values.iter_mut().zip(other).for_each(|(y, x)| *y += x),
            )
        };
        for (i, segment) in values.chunks_mut(SEGMENT).enumerate() {
            let len = segment.len();
            if let Some(bias) = &self.bias {
                add(segment, bias.view(column + i * SEGMENT, &mut buffer[..len]));
            }
            activate(self.activation, segment);
            if let Some(residual) = &self.residual {
                add(segment, residual.view(at + i * SEGMENT, &mut buffer[..len]));
            }
        }
    }
}

/// Sizes of a product [m, k]·[k, n].
#[derive(Clone, Copy)]
pub struct Shape {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The inner dimension.
    pub k: usize,
}

impl Shape {
    /// Rows and columns of a tile, which holds whole groups of `group` columns.
    fn tile(&self, group: usize) -> (usize, usize) {
        let columns = if group == 1 { part(self.n, 512, 16) } else { part(self.n, 512, group) };
        (part(self.m, 512, 8).min(self.m.max(1)), columns.min(self.n.max(1)))
    }

    /// Floats of scratch a task: the panels of a and b and the tile that are not f32 in memory.
    fn floats(&self, group: usize, [a, b, result]: [bool; 3]) -> usize {
        let (rows, columns) = self.tile(group);
        let on = |narrow: bool, floats: usize| if narrow { floats } else { 0 };
        on(a, rows * self.k) + on(b, columns * self.k) + on(result, rows * columns)
    }
}

/// Scratch bytes a task of any product.
pub fn lane(request: &Request<'_>) -> usize {
    let (weights, quantize) = match request.op {
        Op::ScaledLinear(op) => (2, op.quantize),
        Op::Linear(op) => (1, op.quantize),
        _ => (1, None),
    };
    let narrow = |t: Option<&ValueType>| t.is_some_and(|t| t.dtype != DType::F32);
    let types = [request.operands.first(), request.operands.get(weights), request.results.first()];
    let floats = |s: Shape| s.floats(quantize.map_or(1, |scale| group_width(scale, s.n)), types.map(narrow));
    shape_of(request).map_or(0, floats) * size_of::<f32>()
}

/// The sizes of a product as compilation sees it; rows of `linear` are all but its last dimension.
fn shape_of(request: &Request<'_>) -> Option<Shape> {
    let (x, y) = (request.operands.first()?.dims()?, request.results.first()?.dims()?);
    let (&k, &n) = (x.last()?, y.last()?);
    let m = match request.op {
        Op::MatMul(_) => y[y.len() - 2],
        _ => y[..y.len() - 1].iter().product(),
    };
    Some(Shape { m, n, k })
}

/// A factor of a product: elements, and the scales of whole rows of k where they are codes.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// All elements.
    pub floats: Floats<'a>,
    /// Of codes, which are then stored [.., k].
    pub scales: Option<Scales<'a>>,
}

impl<'a> Factor<'a> {
    /// An operand without scales.
    fn of(arg: &Arg<'a>) -> Result<Self, String> {
        Ok(Self { floats: Floats::of(arg)?, scales: None })
    }
}

/// A batch of products with one epilogue.
pub struct Problem<'a> {
    /// Of every product.
    pub shape: Shape,
    /// The left factors, [m, k].
    pub a: Factor<'a>,
    /// The right factors, [k, n] or [n, k].
    pub b: Factor<'a>,
    /// Whether b is stored [n, k].
    pub transposed: bool,
    /// Where the matrices of every product start in a and b.
    pub starts: Vec<[usize; 2]>,
    /// Applied to every tile.
    pub epilogue: Epilogue<'a>,
    /// What shares a scale where the results are codes and scales.
    pub quantize: Option<Granularity>,
}

fn linear(op: &Linear, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (x, w) = (operand(args, 0)?, operand(args, 1)?);
    let &[n, k] = w.shape else { return Err("w must be a matrix".into()) };
    let m = x.shape[..x.shape.len() - 1].iter().product();
    let problem = Problem {
        shape: Shape { m, n, k },
        a: Factor::of(x)?,
        b: Factor::of(w)?,
        transposed: true,
        starts: vec![[0, 0]],
        epilogue: Epilogue {
            activation: op.activation,
            bias: op.bias.then(|| Floats::of(operand(args, 2)?)).transpose()?,
            residual: op.residual.then(|| Floats::of(operand(args, 2 + op.bias as usize)?)).transpose()?,
        },
        quantize: op.quantize,
    };
    problem.solve(results, scratch)
}

fn matmul(op: &MatMul, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (a, b, y) = (operand(args, 0)?, operand(args, 1)?, only(results)?.shape);
    let (Some((batch, &[m, n])), Some((batch_a, &[_, k])), Some((batch_b, _))) =
        (y.split_last_chunk::<2>(), a.shape.split_last_chunk::<2>(), b.shape.split_last_chunk::<2>())
    else {
        return Err("takes operands of rank 2 and more".into());
    };
    let starts = indices(batch, [strides_for(batch_a, batch), strides_for(batch_b, batch)]);
    let problem = Problem {
        shape: Shape { m, n, k },
        a: Factor::of(a)?,
        b: Factor::of(b)?,
        transposed: op.transpose_b,
        starts: starts.map(|[i, j]| [i * m * k, j * k * n]).collect(),
        epilogue: Epilogue { activation: Activation::None, bias: None, residual: None },
        quantize: None,
    };
    problem.solve(results, scratch)
}

impl Problem<'_> {
    /// Computes all tiles on all cores.
    pub fn solve(&self, results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
        let Shape { m, n, k } = self.shape;
        if m * n * self.starts.len() == 0 {
            return Ok(());
        }
        let group = self.quantize.map_or(1, |scale| group_width(scale, n));
        let (rows, columns) = self.shape.tile(group);
        let (down, across) = (m.div_ceil(rows), n.div_ceil(columns));
        let (result, scales) = results.split_first_mut().ok_or("has a result")?;
        let dtype = result.dtype;
        let size = dtype.size();
        let [narrow_a, narrow_b] = [&self.a, &self.b].map(|f| f.floats.as_f32().is_none());
        let lane = self.shape.floats(group, [narrow_a, narrow_b, dtype != DType::F32]) * size_of::<f32>();
        let out = match dtype {
            DType::F8E4M3 => Out::Codes(Shared::new(&mut *result.bytes), Shared::new(cast_mut(only(scales)?.bytes)?)),
            DType::F32 => Out::F32(Shared::new(cast_mut(result.bytes)?)),
            _ => Out::Narrow(Shared::new(&mut *result.bytes)),
        };
        lanes::run(self.starts.len() * across * down, lane, scratch, |task, memory| {
            // Neighbouring tasks share columns of b.
            let (product, row, column) = (task / (across * down), task % down * rows, task / down % across * columns);
            let (height, width) = (rows.min(m - row), columns.min(n - column));
            let (left, rest) = cast_mut::<f32>(memory)?.split_at_mut(if narrow_a { rows * k } else { 0 });
            let (right, tile) = rest.split_at_mut(if narrow_b { columns * k } else { 0 });
            let [start_a, start_b] = self.starts[product];
            let a = panel(&self.a, start_a + row * k, height, k, k, left);
            let b = match self.transposed {
                true => panel(&self.b, start_b + column * k, width, k, k, right).t(),
                false => panel(&self.b, start_b + column, k, width, n, right),
            };
            let at = |r: usize| (product * m + row + r) * n + column;
            match &out {
                Out::F32(out) => {
                    let (first, len) = out.tail(at(0));
                    // SAFETY: tiles do not overlap, and this task alone has this one.
                    unsafe { multiply_into(a, b, first, len, n, false) };
                    for r in 0..height {
                        // SAFETY: as above.
                        self.epilogue.apply(unsafe { out.slice(at(r), width) }, column, at(r));
                    }
                }
                Out::Codes(codes, scales) => {
                    multiply(a, b, tile, width, false);
                    let groups = n.div_ceil(group);
                    for (r, values) in tile.chunks_mut(width).take(height).enumerate() {
                        self.epilogue.apply(values, column, at(r));
                        // SAFETY: as above; tiles begin and end with groups.
                        let (codes, scales) = unsafe {
                            let first = (product * m + row + r) * groups + column / group;
                            (codes.slice(at(r), width), scales.slice(first, width.div_ceil(group)))
                        };
                        for ((values, codes), scale) in values.chunks(group).zip(codes.chunks_mut(group)).zip(scales) {
                            *scale = quantize_group(values, codes);
                        }
                    }
                }
                Out::Narrow(out) => {
                    multiply(a, b, tile, width, false);
                    for (r, values) in tile.chunks_mut(width).take(height).enumerate() {
                        self.epilogue.apply(values, column, at(r));
                        // SAFETY: as above.
                        store(dtype, values, unsafe { out.slice(at(r) * size, width * size) })?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// Where products go: to their place, or through a tile in scratch memory to be rounded or quantised.
enum Out<'a> {
    F32(Shared<'a, f32>),
    Codes(Shared<'a, u8>, Shared<'a, f32>),
    Narrow(Shared<'a, u8>),
}

/// `rows` rows of `columns` elements, `step` apart from `start`: where they lie, or widened into `buffer`.
pub fn panel<'a>(
    factor: &Factor<'a>,
    start: usize,
    rows: usize,
    columns: usize,
    step: usize,
    buffer: &'a mut [f32],
) -> View<'a> {
    let source = &factor.floats;
    if let Some(data) = source.as_f32() {
        return View::rows(&data[start..], rows, columns, step);
    }
    if step == columns {
        source.read(start, &mut buffer[..rows * columns]);
    } else {
        for (row, out) in buffer.chunks_exact_mut(columns.max(1)).take(rows).enumerate() {
            source.read(start + row * step, out);
        }
    }
    if let Some(scales) = &factor.scales {
        for (row, values) in buffer.chunks_exact_mut(columns.max(1)).take(rows).enumerate() {
            scales.apply(values, start / columns + row);
        }
    }
    View::rows(buffer, rows, columns, columns)
}
