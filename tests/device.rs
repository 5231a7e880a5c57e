//! What a CUDA device does beyond the right numbers: memory as predicted, overlapping launches with the same bits,
//! faults that are named. Without a driver or NVRTC every test says that it was skipped.
#![cfg(feature = "cuda")]

use std::{collections::BTreeMap, process::Command};

use lite3r::{
    Result,
    backend::{
        Probe, Tally, Trust, cuda,
        cuda::driver::{Context, Memory},
    },
    plan::{EntrySource, ImageInput, Meta, Plan, Storage, build},
    session::{Options, Session},
    weights::{Weight, Weights},
};
use lite3r_ir::{Bindings, DType, Op, Tensor, text::parse};

/// The device, or why there is no test.
fn device() -> Option<std::sync::Arc<Context>> {
    let context = Context::open(0).map_err(|e| eprintln!("skipped: {e}")).ok()?;
    if !cuda::nvrtc::is_present() {
        eprintln!("skipped: NVRTC is not installed");
        return None;
    }
    Some(context)
}

fn plan(text: &str, images: Option<&str>) -> Plan {
    plan_of(&[text], images)
}

/// An entry a text.
fn plan_of(texts: &[&str], images: Option<&str>) -> Plan {
    let mut weights = Weights::default();
    let mut sources = Vec::new();
    for (text, number) in texts.iter().zip(1..) {
        let graph = parse(text).unwrap();
        for id in graph.node_ids() {
            if let Op::Param(param) = graph.op(id) {
                let tensor = Tensor::wave(param.ty.dtype, &param.ty.dims().unwrap(), 1);
                weights.insert(param.name.clone(), Weight::owned(tensor));
            }
        }
        sources.push(EntrySource { bindings: Bindings::from([("S".to_string(), number)]), graph });
    }
    let images = images.map(|name| ImageInput {
        name: name.into(),
        size: (1024, 1024),
        normalised_in_graph: true,
        preprocess: "plain_crop".into(),
    });
    build(&sources, &weights, &cuda::SM_90A, Meta { images, ..Meta::default() }).unwrap()
}

fn session(plan: Plan) -> Result<Session> {
    Session::new(plan, &Options { trust: Trust::Plan, ..Options::default() })
}

fn inputs(name: &str, tensor: Tensor) -> BTreeMap<String, Tensor> {
    BTreeMap::from([(name.to_string(), tensor)])
}

const CHAIN: &str = "graph @chain(%x: bf16[1374,1024]) -> (y: bf16[1374,1024], s: f32[1374,1]) {
  param $a: bf16[1024,1024], $g: f32[1024], $b: f32[1024]
  %0 = linear(%x, $a) : bf16[1374,1024]
  %1 = softmax(%0) {axis=1}
  %2 = linear(%1, $a) : bf16[1374,1024]
  %3 = add(%2, %x)
  %4 = cast(%3) {to=f32}
  %5 = layer_norm(%4, $g, $b)
  %6, %s = quantize(%5) {scale=row}
  %y = cast(%3) {to=bf16}
  return y=%y, s=%s
}";

#[test]
fn plans_carry_what_the_device_needs() {
    if !cuda::nvrtc::is_present() {
        eprintln!("skipped: NVRTC is not installed");
        return;
    }
    let plan = plan(CHAIN, None);
    let header = plan.header();
    assert_eq!(header.limits[cuda::DRIVER], 1000 * cuda::nvrtc::version().unwrap().0 as u64);
    for dtype in [DType::F32, DType::BF16, DType::F8E4M3] {
        assert!(header.modules.contains_key(&cuda::tally(dtype).key()), "{dtype:?}");
    }
}

#[test]
fn memory_is_what_was_predicted() {
    let Some(context) = device() else { return };
    let plan = plan(CHAIN, None);
    let predicted = plan.device_bytes();
    let (before, _) = context.memory().unwrap();
    let mut session = session(plan).unwrap();
    session.run(0, &inputs("x", Tensor::wave(DType::BF16, &[1374, 1024], 2))).unwrap();
    let (after, _) = context.memory().unwrap();
    assert_eq!(session.allocated_bytes(), predicted);
    // Pages of 2 MiB, machine code and the graph come on top.
    let taken = before - after;
    assert!((predicted..predicted + (64 << 20)).contains(&taken), "predicted {predicted}, taken {taken}");
}

#[test]
fn entries_that_share_a_kernel_may_need_different_memory() {
    let Some(_context) = device() else { return };
    let sizes = [640, 10992, 2748];
    let text = |tokens: usize| {
        format!(
            "graph @routed(%q: bf16[1,16,{tokens},64], %k: bf16[1,16,{tokens},64]) {{
  %idx, %cnt = block_route(%q, %k) {{block_q=64,block_k=64,router=pooled,kept=4,scale=0.125}}
  return idx=%idx, cnt=%cnt
}}"
        )
    };
    let texts = sizes.map(text);
    let mut session = session(plan_of(&texts.each_ref().map(String::as_str), None)).unwrap();
    for (entry, tokens) in sizes.into_iter().enumerate() {
        let tensor = |seed| Tensor::wave(DType::BF16, &[1, 16, tokens, 64], seed);
        let inputs = BTreeMap::from([("q".to_string(), tensor(1)), ("k".to_string(), tensor(2))]);
        let counts = session.run(entry, &inputs).unwrap()["cnt"].to_i64();
        assert!(counts.iter().all(|count| *count == 4), "{tokens} tokens");
    }
}

#[test]
fn overlapping_launches_give_the_same_bits() {
    let Some(_context) = device() else { return };
    if std::env::var_os("LITE3R_OVERLAP").is_none() {
        // A process decides once whether its launches overlap.
        let mut own = Command::new(std::env::current_exe().unwrap());
        own.args(["--exact", "overlapping_launches_give_the_same_bits"]).env("LITE3R_OVERLAP", "1");
        let output = own.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let mut session = session(plan(CHAIN, None)).unwrap();
    let inputs = inputs("x", Tensor::wave(DType::BF16, &[1374, 1024], 2));
    let alone = session.run_with(0, &inputs, Probe::Times(&mut |_| {})).unwrap();
    for _ in 0..100 {
        let overlapping = session.run(0, &inputs).unwrap();
        assert!(alone.iter().all(|(name, tensor)| tensor.bytes() == overlapping[name].bytes()));
    }
}

#[test]
fn what_is_not_finite_is_counted_and_named() {
    let Some(_context) = device() else { return };
    let mut session = session(plan(CHAIN, None)).unwrap();
    let good = inputs("x", Tensor::wave(DType::BF16, &[1374, 1024], 2));
    let mut counted = 0;
    let mut values = |run: lite3r::backend::StepRun<'_>, _: &[Tensor], results: &[Tensor]| {
        let codes = results.iter().map(|t| Tally::of(t).saturated).sum::<u64>();
        counted += if run.step.op.name() == "quantize" || codes > 0 { codes } else { 0 };
    };
    session.run_with(0, &good, Probe::Values(&mut values)).unwrap();
    let (_, saturated) = session.check_finite(0, &good).unwrap();
    assert!(counted >= 1374, "the largest of every row is at the limit");
    assert_eq!(saturated.iter().map(|s| s.codes).sum::<u64>(), counted);

    let text = "graph @g(%x: f32[70]) -> (y: f32[70]) {
  %0 = reshape(%x) {shape=[7,10]}
  %1 = log(%0)
  %2 = reduce_sum(%1) {axes=[1],keep=true}
  %3 = add(%1, %2)
  %y = reshape(%3) {shape=[70]}
  return y=%y
}";
    let mut session = self::session(plan(text, None)).unwrap();
    let error = session.check_finite(0, &inputs("x", Tensor::from_f32(&[70], vec![-1.0; 70]))).unwrap_err();
    assert_eq!((error.code, error.exit_code()), ("run.not_finite", 16));
    assert!(error.to_string().contains("log at") && error.to_string().contains("70 NaN"), "{error}");
}

#[test]
fn memory_that_does_not_suffice_is_refused_with_the_views_that_fit() {
    let Some(context) = device() else { return };
    let text = "graph @g(%x: f32[1,64,3,1024,1024]) -> (y: f32[1,64,3,1024,1024]) {
  %0 = exp(%x)
  %1 = reduce_sum(%0) {axes=[3,4],keep=true}
  %y = div(%0, %1)
  return y=%y
}";
    let plan = plan(text, Some("x"));
    let (free, _) = context.memory().unwrap();
    let _hog = Memory::new(&context, free - plan.device_bytes() / 2, "a test").unwrap();
    let error = session(plan).map(drop).unwrap_err();
    assert_eq!((error.code, error.exit_code()), ("memory.predicted", 14));
    assert!(error.to_string().contains("for 64 views, and about"), "{error}");
    let (free, _) = context.memory().unwrap();
    let error = Memory::new(&context, free * 2, "a test").map(drop).unwrap_err();
    assert_eq!((error.code, error.exit_code()), ("device.memory", 14));
}

#[test]
fn a_kernel_that_fails_is_named() {
    let Some(_context) = device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let text = "graph @g(%x: i64[2]) -> (y: f32[2,4]) {
  param $table: f32[8,4]
  %y = gather($table, %x) {axis=0}
  return y=%y
}";
    plan(text, None).save(path("p.l3r").as_ref(), Storage::Embedded).unwrap();
    let header = format!("{:<117}\n", "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }");
    let indices = [1i64, 99].map(i64::to_le_bytes).concat();
    let array = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), &indices].concat();
    std::fs::write(path("x.npy"), array).unwrap();
    let input = format!("x=@{}", path("x.npy"));
    let args = ["run", &path("p.l3r"), "--trust", "--input", &input];
    let output = Command::new(env!("CARGO_BIN_EXE_lite3r")).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(15), "{errors}");
    assert!(errors.contains("[cuda.kernel] gather at"), "{errors}");
}
