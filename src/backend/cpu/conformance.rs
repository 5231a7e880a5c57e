//! Every case of every operation on every kernel that takes it, and random edge shapes, against the evaluation in f64.

use std::collections::HashSet;

use lite3r_ir::{
    DType, Op, Tensor, ValueType,
    ops::{Attention, Case, Conv2d, Linear, MatMul, Tolerance, activation::Activation},
};
use proptest::strategy::Strategy;

use super::*;

/// Dense bytes aligned as the executor aligns them, poisoned.
struct Memory {
    words: Vec<[u64; 8]>,
    len: usize,
}

impl Memory {
    fn poisoned(len: usize) -> Self {
        Self { words: vec![[u64::MAX; 8]; len.div_ceil(64)], len }
    }

    fn of(bytes: &[u8]) -> Self {
        let mut memory = Self::poisoned(bytes.len());
        memory.bytes_mut().copy_from_slice(bytes);
        memory
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

fn types(tensors: &[Tensor]) -> Vec<ValueType> {
    tensors.iter().map(Tensor::value_type).collect()
}

/// Runs one kernel on poisoned results and scratch with a number of threads.
pub fn run(kernel: &Kernel, op: &Op, inputs: &[Tensor], threads: usize) -> Result<Vec<Tensor>, String> {
    let operands = types(inputs);
    let results = op.infer(&operands)?;
    let request = Request { op, operands: &operands, results: &results };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
    pool.install(|| {
        let mut scratch = Memory::poisoned(lanes::scratch((kernel.lane)(&request)));
        let inputs: Vec<(Memory, &Tensor)> = inputs.iter().map(|t| (Memory::of(t.bytes()), t)).collect();
        let args: Vec<Arg<'_>> =
            inputs.iter().map(|(m, t)| Arg { dtype: t.dtype(), shape: t.shape(), bytes: m.bytes() }).collect();
        let shapes: Vec<Vec<usize>> = results.iter().map(|t| t.dims().expect("static")).collect();
        let size = |t: &ValueType| t.bytes().expect("static");
        let mut outputs: Vec<Memory> = results.iter().map(|t| Memory::poisoned(size(t))).collect();
        let mut out: Vec<ArgMut<'_>> = outputs
            .iter_mut()
            .zip(results.iter().zip(&shapes))
            .map(|(m, (t, shape))| ArgMut { dtype: t.dtype, shape, bytes: m.bytes_mut() })
            .collect();
        (kernel.run)(op, &args, &mut out, scratch.bytes_mut())?;
        let tensors = outputs.iter().zip(results.iter().zip(&shapes));
        Ok(tensors.map(|(m, (t, shape))| Tensor::from_bytes(t.dtype, shape, m.bytes()).expect("sized")).collect())
    })
}

/// Panics where `got` is further from `want` than the tolerance allows.
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) {
    assert_eq!(got.value_type(), want.value_type(), "{what}");
    let (got, want) = (got.to_f64(), want.to_f64());
    let scale = want.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let near = (g - w).abs() <= tolerance.absolute + tolerance.relative * scale;
        assert!(near || g == w || g.is_nan() && w.is_nan(), "{what} [{i}]: {g} for {w}");
    }
}

/// Checks a kernel on a case: the results meet the reference, every byte is written, and two threads give the same
/// bits.
pub fn check(kernel: &Kernel, case: &Case) {
    let what = format!("{} {}", kernel.name, case.name);
    let results = case.op.infer(&types(&case.inputs)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let want =
        case.op.eval(&case.inputs.iter().collect::<Vec<_>>(), &results).unwrap_or_else(|e| panic!("{what}: {e}"));
    let one = run(kernel, &case.op, &case.inputs, 1).unwrap_or_else(|e| panic!("{what}: {e}"));
    let two = run(kernel, &case.op, &case.inputs, 2).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (i, (got, want)) in one.iter().zip(&want).enumerate() {
        // Poison is a NaN in every floating-point type, and no boolean.
        assert_close(&what, got, want, case.op.tolerance(got.dtype()));
        assert_eq!(got.bytes(), two[i].bytes(), "{what}: the bits depend on the number of threads");
    }
}

/// Whether a row takes a case.
fn takes(kernel: &Kernel, case: &Case) -> bool {
    let operands = types(&case.inputs);
    let results = case.op.infer(&operands).expect("cases are well-typed");
    let request = Request { op: &case.op, operands: &operands, results: &results };
    (kernel.op == case.op.name() || kernel.op == "*") && (kernel.accepts)(&request).is_ok()
}

#[test]
fn kernels_agree_with_the_reference() {
    let mut used = HashSet::new();
    for case in Op::all_cases() {
        for kernel in KERNELS.iter().filter(|k| k.name != ORACLE.name && takes(k, &case)) {
            check(kernel, &case);
            used.insert(kernel.name);
        }
    }
    let unused: Vec<_> = KERNELS.iter().map(|k| k.name).filter(|n| *n != ORACLE.name && !used.contains(n)).collect();
    assert!(unused.is_empty(), "no case reaches {unused:?}");
}

#[test]
fn every_case_has_a_kernel() {
    for case in Op::all_cases() {
        assert!(KERNELS.iter().any(|k| takes(k, &case)), "{} {}", case.op.name(), case.name);
    }
}

#[test]
fn rows_are_named_once_and_after_operations() {
    let mut names = HashSet::new();
    for kernel in KERNELS {
        assert!(names.insert(kernel.name), "{} twice", kernel.name);
        assert!(kernel.op == "*" || Op::NAMES.contains(&kernel.op), "{} computes no operation", kernel.name);
        assert!(kernel.op == "*" || kernel.name.split('.').next() == Some(kernel.op), "{}", kernel.name);
        assert!(kernel.dtypes.iter().all(|t| DType::ALL.contains(t)));
    }
}

/// The first row that takes the operation on operands of these types, and a case on waves of them.
fn check_shapes(op: impl Into<Op>, dtype: DType, shapes: &[&[usize]]) {
    let inputs = shapes.iter().zip(1..).map(|(shape, seed)| Tensor::wave(dtype, shape, seed)).collect();
    let case = Case::new("shapes", op, inputs);
    let kernel = KERNELS.iter().find(|k| takes(k, &case)).expect("the oracle takes everything");
    assert_ne!(kernel.name, ORACLE.name, "{} {shapes:?} has no fast row", case.op.name());
    check(kernel, &case);
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const EDGES: [usize; 6] = [1, 2, 63, 64, 65, 129];

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn linear_at_edge_shapes(
        m in proptest::sample::select(&[1usize, 63, 64, 65, 513, 1374][..]),
        n in proptest::sample::select(&EDGES[..]),
        k in proptest::sample::select(&EDGES[..]),
        dtype in proptest::sample::select(&DTYPES[..]),
        activation in proptest::sample::select(&[Activation::None, Activation::Relu, Activation::Gelu, Activation::Silu][..]),
        bias: bool,
        residual: bool,
    ) {
        let op = Linear { activation, residual, ..Linear::new(bias) };
        let all: [(bool, &[usize]); 4] = [(true, &[m, k]), (true, &[n, k]), (bias, &[n]), (residual, &[m, n])];
        check_shapes(op, dtype, &all.iter().filter(|s| s.0).map(|s| s.1).collect::<Vec<_>>());
    }

    #[test]
    fn matmul_at_edge_shapes(
        m in proptest::sample::select(&EDGES[..]),
        n in proptest::sample::select(&[1usize, 64, 65, 513, 1374][..]),
        k in proptest::sample::select(&EDGES[..]),
        batch in 1usize..4,
        dtype in proptest::sample::select(&DTYPES[..]),
        transpose_b: bool,
    ) {
        let b = if transpose_b { [n, k] } else { [k, n] };
        check_shapes(MatMul { transpose_b }, dtype, &[&[batch, 1, m, k], &[2, b[0], b[1]]]);
    }

    #[test]
    fn attention_at_edge_shapes(
        n in proptest::sample::select(&[1usize, 63, 64, 65, 129, 300][..]),
        m in proptest::sample::select(&[1usize, 63, 64, 65, 511, 512, 513, 1374][..]),
        d in proptest::sample::select(&[1usize, 32, 64, 65][..]),
        e in proptest::sample::select(&[1usize, 32, 64, 65][..]),
        dtype in proptest::sample::select(&DTYPES[..]),
        // In units of D^(−1/2): f32 rounds scores relative to their size, so huge ones have no exact exponentials.
        sharpness in 0.1f64..6.0,
    ) {
        let scale = sharpness * (d as f64).powf(-0.5);
        check_shapes(Attention::new(scale), dtype, &[&[1, 2, n, d], &[1, 2, m, d], &[1, 2, m, e]]);
    }

    #[test]
    fn conv_at_edge_shapes(
        (h, w) in (1usize..40, 1usize..70),
        (i, o) in (1usize..5, 1usize..5),
        kernel in 1usize..5,
        stride in 1usize..4,
        dilation in 1usize..3,
        pads in proptest::array::uniform4(0usize..3),
        groups in 1usize..3,
        dtype in proptest::sample::select(&DTYPES[..]),
        residual: bool,
    ) {
        let reach = dilation * (kernel - 1) + 1;
        proptest::prop_assume!(h + pads[0] + pads[2] >= reach && w + pads[1] + pads[3] >= reach);
        let op = Conv2d {
            strides: vec![stride, 1 + stride % 2],
            pads: pads.to_vec(),
            dilations: vec![dilation, dilation],
            groups,
            activation: Activation::Silu,
            residual,
            ..Conv2d::same(0, true)
        };
        let x = [2, i * groups, h, w];
        let weights = [o * groups, i, kernel, kernel];
        let types = [&x[..], &weights, &[o * groups]].map(|s| ValueType::new(dtype, s.iter().copied()));
        let plain = Conv2d { residual: false, ..op.clone() };
        let y = lite3r_ir::ops::OpDef::infer(&plain, &types).expect("fits")[0].dims().expect("static");
        let all: [&[usize]; 4] = [&x, &weights, &[o * groups], &y];
        check_shapes(op, dtype, &all[..3 + residual as usize]);
    }

    #[test]
    fn transpose_of_any_shape(
        shape in proptest::collection::vec(1usize..20, 4),
        perm in proptest::strategy::Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
        dtype in proptest::sample::select(&[DType::F32, DType::BF16, DType::I64, DType::Bool][..]),
    ) {
        check_shapes(lite3r_ir::ops::Transpose { perm }, dtype, &[&shape]);
    }

    #[test]
    fn reductions_over_any_axes(
        shape in proptest::collection::vec(1usize..30, 3),
        mask in 0usize..8,
        dtype in proptest::sample::select(&DTYPES[..]),
    ) {
        let axes: Vec<usize> = (0..3).filter(|a| mask >> a & 1 == 1).collect();
        check_shapes(lite3r_ir::ops::ReduceMean { axes: axes.clone(), keep: true }, dtype, &[&shape]);
        check_shapes(lite3r_ir::ops::ReduceMax { axes, keep: false }, dtype, &[&shape]);
    }
}

#[test]
fn the_coverage_table_lists_every_operation() {
    let table = crate::backend::coverage_table(&[&Cpu]);
    for name in Op::NAMES.iter().filter(|n| !matches!(**n, "input" | "param" | "constant")) {
        assert!(table.contains(&format!("| `{name}` |")), "{name} is missing");
    }
    assert!(table.contains("| `linear` | `linear.gemm`: f32 f16 bf16; `oracle`: f64 "), "{table}");
}
