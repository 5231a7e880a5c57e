//! What a device behind WGSL does beyond single operations: whole plans, times of steps, limits. Without an adapter every
//! test says that it was skipped; `LITE3R_REQUIRE_WGPU` makes that a failure.
#![cfg(all(feature = "wgpu", feature = "cli"))]

use std::{collections::BTreeMap, time::Duration};

use lite3r::{
    backend::{Probe, Target, cpu::Cpu, wgsl},
    cli::compare::relative_error,
    plan::{EntrySource, Meta, Plan, build},
    session::{Options, Session},
    weights::{Weight, Weights},
};
use lite3r_ir::{Bindings, Op, Tensor, text::parse};

/// Whether there is an adapter.
fn is_present() -> bool {
    let found = !wgsl::adapter::adapters().is_empty();
    if !found {
        assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "an adapter was asked for and is not there");
        eprintln!("skipped: no adapter");
    }
    found
}

fn plan(text: &str, target: &dyn Target) -> Plan {
    let graph = parse(text).unwrap();
    let mut weights = Weights::default();
    for id in graph.node_ids() {
        if let Op::Param(param) = graph.op(id) {
            let tensor = Tensor::wave(param.ty.dtype, &param.ty.dims().unwrap(), 1);
            weights.insert(param.name.clone(), Weight::owned(tensor));
        }
    }
    let source = EntrySource { bindings: Bindings::new(), graph };
    build(&[source], &weights, target, Meta::default()).unwrap()
}

/// A block of a transformer without its attention; an operand that is read twice, a value that lives long, narrow ones.
const BLOCK: &str = "graph @block(%x: f32[2,65,64]) -> (y: f32[2,65,64], p: f16[65,2,64], m: i64[2,64]) {
  param $a: bf16[192,64], $b: f32[64,192], $g: f32[64], $h: f32[64]
  %0 = layer_norm(%x, $g, $h) {out=bf16}
  %1 = linear(%0, $a) {activation=gelu,out=bf16}
  %2 = cast(%1) {to=f32}
  %3 = mul(%2, %2)
  %4 = linear(%3, $b)
  %5 = softmax(%4) {axis=1}
  %y = add(%x, %5)
  %6 = cast(%y) {to=f16}
  %p = transpose(%6) {perm=[1,0,2]}
  %m = arg_max(%y) {axis=1,keep=false}
  return y=%y, p=%p, m=%m
}";

/// The largest difference between what a plan for `target` gives and what the CPU gives, relative to the latter.
fn difference(text: &str, target: &dyn Target, inputs: &BTreeMap<String, Tensor>) -> f64 {
    let run = |target: &dyn Target| Session::new(plan(text, target), &Options::default())?.run(0, inputs);
    let (found, wanted) = (run(target).unwrap(), run(&Cpu).unwrap());
    let errors = found.iter().map(|(name, got)| relative_error(got, &wanted[name]).unwrap());
    errors.fold(0.0, f64::max)
}

#[test]
fn maps_larger_than_a_shader_sees_are_computed_in_parts() {
    if !is_present() {
        return;
    }
    let head = "graph @head(%x: f32[1,128,259,259]) -> (y: f32[1,2,518,518]) {
  param $w: f32[2,128,3,3], $b: f32[2]
  %0 = resize(%x) {mode=linear,coordinates=align_corners,size=[518,518]}
  %1 = relu(%0)
  %y = conv2d(%1, $w, $b) {pads=[1,1,1,1],bias=true}
  return y=%y
}";
    let limits = plan(head, &wgsl::PORTABLE).header().limits.clone();
    assert!(limits[wgsl::BINDING_BYTES] <= 128 << 20, "{limits:?}");
    let whole = plan(head, &wgsl::Wgsl { binding: 1 << 30 }).header().limits.clone();
    assert_eq!(whole[wgsl::BINDING_BYTES], 518 * 518 * 128 * 4);
    let x = Tensor::wave(lite3r_ir::DType::F32, &[1, 128, 259, 259], 7);
    let error = difference(head, &wgsl::PORTABLE, &BTreeMap::from([("x".to_string(), x)]));
    assert!(error < 1e-4, "{error}");
}

#[test]
fn plans_in_small_parts_give_what_the_cpu_gives() {
    if !is_present() {
        return;
    }
    for binding in [1 << 13, 1 << 14, 1 << 15] {
        let error = difference(BLOCK, &wgsl::Wgsl { binding }, &inputs());
        assert!(error < 1e-3, "{error} by {binding}");
    }
}

#[test]
fn what_cannot_be_computed_in_parts_is_named() {
    let text = "graph @g(%x: f32[1,1024]) -> (y: f32[1,4]) {
  param $w: f32[4,1024]
  %y = linear(%x, $w)
  return y=%y
}";
    let source = EntrySource { bindings: Bindings::new(), graph: parse(text).unwrap() };
    let mut weights = Weights::default();
    weights.insert("w", Weight::owned(Tensor::wave(lite3r_ir::DType::F32, &[4, 1024], 1)));
    let error = build(&[source], &weights, &wgsl::Wgsl { binding: 2048 }, Meta::default()).unwrap_err();
    assert_eq!(error.code, "plan.gap");
    let text = error.to_string();
    assert!(["linear", "2048 bytes at once", "f32[1,1024] of 4096 bytes"].iter().all(|t| text.contains(t)), "{text}");
}

fn inputs() -> BTreeMap<String, Tensor> {
    BTreeMap::from([("x".to_string(), Tensor::wave(lite3r_ir::DType::F32, &[2, 65, 64], 7))])
}

#[test]
fn plans_give_what_the_cpu_gives() {
    if !is_present() {
        return;
    }
    let run = |target: &dyn Target| {
        let mut session = Session::new(plan(BLOCK, target), &Options::default()).unwrap();
        let first = session.run(0, &inputs()).unwrap();
        let again = session.run(0, &inputs()).unwrap();
        assert!(first.iter().zip(&again).all(|((_, a), (_, b))| a.bytes() == b.bytes()), "not the same bits again");
        first
    };
    let (found, wanted) = (run(&wgsl::PORTABLE), run(&Cpu));
    for ((name, got), (_, want)) in found.iter().zip(&wanted) {
        let error = relative_error(got, want).unwrap();
        assert!(error < 1e-3, "{name}: {error}");
    }
}

#[test]
fn steps_are_timed_by_the_device() {
    if !is_present() {
        return;
    }
    let mut session = Session::new(plan(BLOCK, &wgsl::PORTABLE), &Options::default()).unwrap();
    let mut total = Duration::ZERO;
    let mut steps = 0;
    let mut seen = |run: lite3r::backend::StepRun<'_>| {
        assert_eq!(run.index, steps);
        (total, steps) = (total + run.time, steps + 1);
    };
    session.run_with(0, &inputs(), Probe::Times(&mut seen)).unwrap();
    assert!(steps >= 9 && total > Duration::ZERO, "{steps} steps took {total:?}");
}

#[test]
fn plans_say_what_they_need_of_a_device() {
    let plan = plan(BLOCK, &wgsl::PORTABLE);
    let limits = &plan.header().limits;
    // The widest value is that behind the first product, in f32; linear has three tensors.
    assert_eq!(limits[wgsl::BINDING_BYTES], 2 * 65 * 192 * 4);
    assert_eq!(limits[wgsl::BINDINGS], 4);
}
