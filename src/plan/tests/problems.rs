//! What users see when a model or its weights do not fit: everything at once.

use super::*;

/// A target that has nothing but `exp` on f32.
struct OnlyExp;

impl Target for OnlyExp {
    fn name(&self) -> &'static str {
        "only-exp"
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        match (request.op.name(), request.operands[0].dtype) {
            ("exp", DType::F32) => Ok(Choice { kernel: "exp.f32", scratch: 0 }),
            ("exp", dtype) => Err(Gap { nearest: Some("exp.f32"), clause: format!("takes f32, not {dtype}") }),
            _ => Err(Gap { nearest: None, clause: "no kernel computes it".into() }),
        }
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        vec![("exp", "exp.f32", vec![DType::F32])]
    }
}

fn refused(text: &str, weights: &Weights, target: &dyn Target) -> crate::Error {
    build(&[entry(graph(text))], weights, target, Meta::default()).unwrap_err()
}

#[test]
fn all_gaps_at_once() {
    let text = "graph @g(%x: f32[2], %h: f16[2]) -> (y: f32[2], z: f16[2]) {
      %a = exp(%x) : f32[2]
      %b = sin(%a) : f32[2]  // at first
      %c = sin(%b) : f32[2]  // at second
      %z = exp(%h) : f16[2]
      return y=%c, z=%z
    }";
    let error = refused(text, &Weights::default(), &OnlyExp);
    assert_eq!((error.code, error.kind), ("plan.gap", crate::Kind::Unsupported));
    insta::assert_snapshot!(error);
}

#[test]
fn all_missing_weights_at_once() {
    let text = "graph @g(%x: f32[2]) -> (y: f32[2]) {
      param $a: f32[2], $b: f32[2]
      param $c: f32[2] {init=\"zeros\"}
      param $d: f32[2] {init=\"fill:3.0\"}
      %0 = add(%x, $a)
      %1 = add(%0, $b)
      %2 = add(%1, $c)
      %3 = add(%2, $d)
      return y=%3
    }";
    let mut weights = Weights::default();
    weights.insert("b", Weight::owned(Tensor::wave(DType::F32, &[3], 1)));
    let error = refused(text, &weights, &Cpu);
    assert_eq!((error.code, error.kind), ("weights.missing", crate::Kind::BadFile));
    insta::assert_snapshot!(error);
}

#[test]
fn graphs_that_are_not_final_are_refused() {
    let text = "graph @g(%x: f32[S], %d: f64[]) -> (y: f32[S]) {\n  %0 = exp(%x)\n  return y=%0\n}";
    assert_eq!(refused(text, &Weights::default(), &Cpu).code, "plan.graph");
}

#[test]
fn all_wrong_inputs_at_once() {
    let text = "graph @g(%x: f32[2], %z: i64[]) -> (y: f32[2]) {\n  %0 = exp(%x)\n  return y=%0\n}";
    let mut session = session(plan(&graph(text), &Weights::default()));
    let inputs = BTreeMap::from([
        ("x".to_string(), Tensor::wave(DType::F32, &[3], 0)),
        ("q".to_string(), Tensor::wave(DType::F32, &[3], 0)),
    ]);
    let error = session.run(0, &inputs).unwrap_err();
    assert_eq!((error.code, error.kind), ("run.inputs", crate::Kind::Usage));
    assert_eq!(session.entry_for(&inputs).unwrap_err(), error);
    insta::assert_snapshot!(error);
    assert_eq!(session.run(1, &inputs).unwrap_err().code, "run.entry");
    let options = Options { device: Some("tpu".into()), ..Options::default() };
    let other = Session::new(plan(&graph(text), &Weights::default()), &options).map(|_| ()).unwrap_err();
    assert_eq!(other.code, "device.unknown");
}
