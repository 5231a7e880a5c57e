//! Every case of every operation on every kernel that takes it, against the evaluation in f64; and without a device, every
//! shader against the validator.

use lite3r_ir::{Op, Tensor, ValueType, ops::Case};

use super::{adapter::Gpu, exec::run_alone, shader::tests::fault, *};

fn types(tensors: &[Tensor]) -> Vec<ValueType> {
    tensors.iter().map(Tensor::value_type).collect()
}

/// The device, or why tests are skipped. `LITE3R_REQUIRE_WGPU` makes its absence a failure.
fn gpu() -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// What is wrong with the results of a case.
fn fault_of(gpu: &Gpu, kernel: &Kernel, case: &Case) -> Option<String> {
    let operands = types(&case.inputs);
    let results = case.op.infer(&operands).expect("cases are well-typed");
    let request = Request { op: &case.op, operands: &operands, results: &results };
    let lowered = (kernel.lower)(&request).ok()?;
    let got = match run_alone(gpu, &lowered, &case.inputs, &results) {
        Ok(got) => got,
        Err(error) => return Some(error.to_string()),
    };
    let again = run_alone(gpu, &lowered, &case.inputs, &results).expect("as before");
    let want = case
        .expect
        .clone()
        .unwrap_or_else(|| case.op.eval(&case.inputs.iter().collect::<Vec<_>>(), &results).expect("cases evaluate"));
    for (n, ((got, again), want)) in got.iter().zip(&again).zip(&want).enumerate() {
        if got.bytes() != again.bytes() {
            return Some(format!("result {n} is another the second time"));
        }
        let tolerance = case.op.tolerance(got.dtype());
        let (got, want) = (got.to_f64(), want.to_f64());
        let scale = want.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
        let allowed = tolerance.absolute + tolerance.relative * scale;
        let near = |g: f64, w: f64| (g - w).abs() <= allowed || g == w || g.is_nan() && w.is_nan();
        let wrong: Vec<usize> = (0..got.len()).filter(|i| !near(got[*i], want[*i])).collect();
        if let Some(i) = wrong.first() {
            let count = wrong.len();
            return Some(format!("result {n} [{i}]: {} for {}, ±{allowed:e}; {count} wrong", got[*i], want[*i]));
        }
    }
    None
}

/// Holds the first kernel that takes each case against the reference.
pub fn hold(cases: &[Case]) {
    let Some(gpu) = gpu() else { return };
    for case in cases {
        let operands = types(&case.inputs);
        let results = case.op.infer(&operands).expect("cases are well-typed");
        let request = Request { op: &case.op, operands: &operands, results: &results };
        let (kernel, _) = kernel(&request).expect("a kernel takes it");
        assert_eq!(fault_of(&gpu, kernel, case), None, "{} {}", kernel.name, case.name);
    }
}

/// The cases of operations that no kernel takes, and why.
pub fn refused(ops: &[&str]) -> Vec<String> {
    let mut clauses = Vec::new();
    for case in Op::all_cases().iter().filter(|case| ops.contains(&case.op.name())) {
        let operands = types(&case.inputs);
        let results = case.op.infer(&operands).expect("cases are well-typed");
        if let Err(gap) = kernel(&Request { op: &case.op, operands: &operands, results: &results }) {
            clauses.push(format!("{} {}: {}", case.op.name(), case.name, gap.clause));
        }
    }
    clauses
}

#[test]
fn kernels_agree_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    let only = std::env::var("LITE3R_ONLY").unwrap_or_default();
    let (mut faults, mut held) = (Vec::new(), 0);
    for case in Op::all_cases() {
        for kernel in rows().filter(|k| k.op == case.op.name() && k.name.contains(&only)) {
            match fault_of(&gpu, kernel, &case) {
                Some(fault) => faults.push(format!("{} {}: {fault}", kernel.name, case.name)),
                None => held += 1,
            }
        }
    }
    assert!(faults.is_empty(), "{held} held, {} did not:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_shader_is_valid() {
    let mut seen = std::collections::HashSet::new();
    for case in Op::all_cases() {
        let operands = types(&case.inputs);
        let results = case.op.infer(&operands).expect("cases are well-typed");
        let request = Request { op: &case.op, operands: &operands, results: &results };
        for kernel in rows().filter(|k| k.op == case.op.name()) {
            let Ok(lowered) = (kernel.lower)(&request) else { continue };
            for text in lowered.launches.iter().map(|l| l.shader.text()).filter(|text| seen.insert(text.clone())) {
                assert_eq!(fault(&text), None, "{} {}", kernel.name, case.name);
            }
        }
    }
    assert!(seen.len() > 50, "{} shaders", seen.len());
}
