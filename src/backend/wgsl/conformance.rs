//! Every case of every operation on every kernel that takes it, against the evaluation in f64; and without a device, every
//! shader against the validator.

use lite3r_ir::{Op, Tensor, ValueType, ops::Case};

use super::{adapter::Gpu, shader::tests::fault, *};

fn types(tensors: &[Tensor]) -> Vec<ValueType> {
    tensors.iter().map(Tensor::value_type).collect()
}

/// The device, or why tests are skipped. `LITE3R_REQUIRE_WGPU` makes its absence a failure.
pub fn gpu() -> Option<Gpu> {
    match Gpu::open(0, None) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// What is wrong with the results of a row on a case that it takes.
fn fault_of(gpu: &Gpu, kernel: &Kernel, case: &Case) -> Option<String> {
    let operands = types(&case.inputs);
    let results = case.op.infer(&operands).expect("cases are well-typed");
    let request = Request { op: &case.op, operands: &operands, results: &results };
    let lowered = (kernel.lower)(&request).ok()?;
    alone::error(gpu, &lowered, case).err()
}

/// The rows that may run for a case: those that stand in for the first one which runs everywhere, then that.
fn rows_of(case: &Case) -> Vec<(&'static Kernel, Lowered)> {
    let operands = types(&case.inputs);
    let results = case.op.infer(&operands).expect("cases are well-typed");
    let request = Request { op: &case.op, operands: &operands, results: &results };
    variants(&request).chain([kernel(&request).expect("a kernel takes it")]).collect()
}

/// Holds every row that may run for a case against the reference, where the device offers what it needs; the shaders of
/// all of them against the validator.
pub fn hold(cases: &[Case]) {
    for (case, (kernel, lowered)) in cases.iter().flat_map(|case| rows_of(case).into_iter().map(move |row| (case, row)))
    {
        for launch in &lowered.launches {
            assert_eq!(fault(&launch.shader.text(), &kernel.needs), None, "{} {}", kernel.name, case.name);
        }
    }
    let Some(gpu) = gpu() else { return };
    for case in cases {
        for (kernel, _) in rows_of(case).into_iter().filter(|(k, _)| k.needs.are_in(gpu.offered())) {
            assert_eq!(fault_of(&gpu, kernel, case), None, "{} {}", kernel.name, case.name);
        }
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
        let offered = rows().filter(|k| k.needs.are_in(gpu.offered()));
        for kernel in offered.filter(|k| k.op == case.op.name() && k.name.contains(&only)) {
            match fault_of(&gpu, kernel, &case) {
                Some(fault) => faults.push(format!("{} {}: {fault}", kernel.name, case.name)),
                None => held += 1,
            }
        }
    }
    assert!(faults.is_empty(), "{held} held, {} did not:\n{}", faults.len(), faults.join("\n"));
}

/// Every case where shaders see a third of its largest tensor: the same values from parts, nothing bound that is larger.
#[test]
fn operations_in_parts_agree_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    let only = std::env::var("LITE3R_ONLY").unwrap_or_default();
    let (mut faults, mut whole, mut held) = (Vec::new(), std::collections::BTreeSet::new(), 0);
    for case in Op::all_cases().iter().filter(|case| case.op.name().contains(&only)) {
        let operands = types(&case.inputs);
        let results = case.op.infer(&operands).expect("cases are well-typed");
        let request = Request { op: &case.op, operands: &operands, results: &results };
        let Ok((_, at_once)) = kernel(&request) else { continue };
        let most = split::largest(&at_once) / 3 / 256 * 256;
        if !(512..1 << 20).contains(&most) {
            continue;
        }
        let name = format!("{} {} by {most}", case.op.name(), case.name);
        let Ok(lowered) = split::lower(&request, most) else {
            whole.insert(name);
            continue;
        };
        let largest = split::largest(&lowered);
        assert!(largest <= most, "{name}: {largest}");
        assert!(split::lower(&request, largest).is_ok_and(|again| again == lowered), "{name}: another under {largest}");
        let begun = std::time::Instant::now();
        match alone::error(&gpu, &lowered, case) {
            Err(fault) => faults.push(format!("{name}: {fault}")),
            Ok(_) => held += 1,
        }
        if begun.elapsed().as_secs() >= 2 {
            eprintln!("{name}: {} launches, {:?}", lowered.launches.len(), begun.elapsed());
        }
    }
    eprintln!("{held} held; as a whole only: {whole:#?}");
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
                assert_eq!(fault(&text, &kernel.needs), None, "{} {}", kernel.name, case.name);
            }
        }
    }
    assert!(seen.len() > 50, "{} shaders", seen.len());
}

#[test]
fn rows_that_need_something_stand_before_one_that_does_not() {
    let mut plain = std::collections::HashSet::new();
    for kernel in rows() {
        match kernel.is_plain() {
            true => _ = plain.insert(kernel.op),
            false => assert!(!plain.contains(kernel.op), "{} is never taken", kernel.name),
        }
    }
    assert!(rows().all(|kernel| plain.contains(kernel.op)), "plans run on every adapter");
}
