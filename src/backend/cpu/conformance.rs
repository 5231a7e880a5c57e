//! Every case of every operation on every kernel that takes it, against the evaluation in f64.

use std::collections::HashSet;

use lite3r_ir::{
    DType, Op, Tensor, ValueType,
    ops::{Case, Tolerance},
};

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
        let mut scratch = Memory::poisoned((kernel.scratch)(&request));
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

/// Checks a kernel on a case: the results meet the reference, every byte is written, and two threads give the same bits.
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
