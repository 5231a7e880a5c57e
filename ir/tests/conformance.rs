//! Every case of every operation: types are inferred, the evaluation meets closed forms, and f64 evaluation agrees
//! within the tolerance that the operation declares.

use std::collections::{HashMap, HashSet};

use lite3r_ir::{
    DType, Op, Tensor, ValueType,
    ops::{Case, Tolerance},
};

fn types(tensors: &[Tensor]) -> Vec<ValueType> {
    tensors.iter().map(Tensor::value_type).collect()
}

fn evaluate(op: &Op, inputs: &[Tensor]) -> Vec<Tensor> {
    let results = op.infer(&types(inputs)).unwrap_or_else(|e| panic!("{}: {e}", op.name()));
    op.eval(&inputs.iter().collect::<Vec<_>>(), &results).unwrap_or_else(|e| panic!("{}: {e}", op.name()))
}

fn assert_close(case: &Case, got: &Tensor, want: &Tensor, tolerance: Tolerance) {
    assert_eq!(got.shape(), want.shape(), "{} {}", case.op.name(), case.name);
    let (got, want) = (got.to_f64(), want.to_f64());
    let scale = want.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let near = (g - w).abs() <= tolerance.absolute + tolerance.relative * scale;
        assert!(near || g == w || g.is_nan() && w.is_nan(), "{} {} [{i}]: {g} for {w}", case.op.name(), case.name);
    }
}

#[test]
fn known_results_are_met() {
    for case in Op::all_cases() {
        let Some(expect) = &case.expect else { continue };
        let results = evaluate(&case.op, &case.inputs);
        assert_eq!(types(&results), types(expect), "{} {}", case.op.name(), case.name);
        for (got, want) in results.iter().zip(expect) {
            assert_close(&case, got, want, case.op.tolerance(got.dtype()));
        }
    }
}

/// Rounding happens once, at the end: the result in any width is the f64 result, rounded.
#[test]
fn wide_evaluation_agrees() {
    for case in Op::all_cases() {
        let widened: Vec<Tensor> = case
            .inputs
            .iter()
            .map(|t| {
                if t.dtype() == DType::F8E4M3 {
                    t.clone()
                } else if t.dtype().is_float() {
                    t.cast(DType::F64)
                } else {
                    t.clone()
                }
            })
            .collect();
        let Ok(wide_types) = case.op.infer(&types(&widened)) else { continue };
        let wide = case.op.eval(&widened.iter().collect::<Vec<_>>(), &wide_types).expect("evaluates in f64");
        for (got, want) in evaluate(&case.op, &case.inputs).iter().zip(&wide) {
            assert_close(&case, got, want, case.op.tolerance(got.dtype()));
        }
    }
}

#[test]
fn every_operation_has_cases_with_unique_names() {
    let mut names: HashMap<&str, HashSet<&str>> = HashMap::new();
    for case in Op::all_cases() {
        assert!(names.entry(case.op.name()).or_default().insert(case.name), "{} {} twice", case.op.name(), case.name);
    }
    let without: Vec<_> = Op::NAMES.iter().filter(|n| !names.contains_key(**n)).copied().collect();
    assert_eq!(without, ["input", "param", "constant"]);
}

#[test]
fn attributes_survive_the_text_form() {
    for case in Op::all_cases() {
        assert_eq!(Op::parse(case.op.name(), &case.op.attrs()), Ok(case.op.clone()), "{}", case.name);
    }
}

#[test]
fn unknown_and_missing_attributes_are_all_reported() {
    use lite3r_ir::attr::Attr;
    let problems =
        Op::parse("slice", &vec![("axes".into(), Attr::Word("x".into())), ("step".into(), Attr::Float(0.5))]);
    let problems = problems.expect_err("nothing fits");
    assert_eq!(problems.len(), 5, "{problems:?}");
}
