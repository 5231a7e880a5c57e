//! What a device behind WGSL does beyond single operations: whole plans, times of steps, limits. Without an adapter every
//! test says that it was skipped; `LITE3R_REQUIRE_WGPU` makes that a failure.
#![cfg(all(feature = "wgpu", feature = "cli"))]

use std::{collections::BTreeMap, time::Duration};

use lite3r::{
    backend::{Probe, Target, cpu::Cpu, wgsl},
    cli::compare::relative_error,
    plan::{EntrySource, Meta, OpenOptions, Plan, Storage, build, inspect},
    session::{Options, Session},
    weights::{Weight, Weights},
};
use lite3r_ir::{
    Bindings, DType, Graph, Op, Tensor,
    passes::{
        ALL,
        pipeline::{execute, select},
    },
    text::parse,
};

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
    planned(parse(text).unwrap(), target)
}

fn planned(graph: Graph, target: &dyn Target) -> Plan {
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
    BTreeMap::from([("x".to_string(), Tensor::wave(DType::F32, &[2, 65, 64], 7))])
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

/// What a small plan needs is what it gets.
#[test]
fn memory_is_as_predicted() {
    if !is_present() {
        return;
    }
    let plan = plan(BLOCK, &wgsl::PORTABLE);
    let predicted = plan.device_bytes();
    let mut session = Session::new(plan, &Options::default()).unwrap();
    assert_eq!(session.allocated_bytes(), predicted);
    session.run(0, &inputs()).unwrap();
    assert_eq!(session.allocated_bytes(), predicted, "after a run");
    let parts: Vec<&str> = session.load_times().iter().map(|(part, _)| *part).collect();
    assert!(["weights", "pipelines"].iter().all(|part| parts.contains(part)), "{parts:?}");
}

#[test]
fn runs_need_not_wait() {
    if !is_present() {
        return;
    }
    let mut waiting = Session::new(plan(BLOCK, &wgsl::PORTABLE), &Options::default()).unwrap();
    let wanted = waiting.run(0, &inputs()).unwrap();
    let found = pollster::block_on(async {
        let mut session = Session::new_async(plan(BLOCK, &wgsl::PORTABLE), &Options::default()).await.unwrap();
        session.run_async(0, &inputs()).await.unwrap()
    });
    assert!(found.iter().all(|(name, got)| got.bytes() == wanted[name].bytes()));
}

/// A step by itself, named where it fails; here none does.
#[test]
fn steps_run_one_by_one_on_demand() {
    if !is_present() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("block.l3r");
    plan(BLOCK, &wgsl::PORTABLE).save(&path, Storage::default()).unwrap();
    let (said, _) = bench(&path, dir.path(), &[("LITE3R_SYNC", "1")]);
    assert!(said.contains("ms a run"), "{said}");
}

/// What `lite3r bench` says of a plan, on both streams.
fn bench(plan: &std::path::Path, cache: &std::path::Path, variables: &[(&str, &str)]) -> (String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lite3r"))
        .args(["bench", "--runs", "1", "--time", "--device", "wgsl:0"])
        .arg(plan)
        .env("LITE3R_CACHE", cache)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn pipelines_are_kept_and_damage_is_told() {
    if !is_present() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (dir.path().join("block.l3r"), dir.path().join("cache"));
    plan(BLOCK, &wgsl::PORTABLE).save(&path, Storage::default()).unwrap();
    let (said, _) = bench(&path, &cache, &[]);
    assert!(said.contains("pipelines"), "{said}");
    let Ok(files) = std::fs::read_dir(cache.join("pipelines")) else {
        return eprintln!("skipped: the adapter keeps no pipelines");
    };
    let file = files.map(|f| f.unwrap().path()).next().expect("a file");
    let kept = std::fs::read(&file).unwrap();
    bench(&path, &cache, &[]);
    std::fs::write(&file, &kept[..kept.len() / 2]).unwrap();
    let (_, warned) = bench(&path, &cache, &[]);
    assert!(warned.contains("damaged, and not used"), "{warned}");
    assert!(std::fs::read(&file).unwrap().len() > kept.len() / 2, "written again");
}

#[test]
fn adapters_that_are_not_there_are_told() {
    let error =
        Session::new(plan(BLOCK, &wgsl::PORTABLE), &Options { device: Some("wgsl:999".into()), ..Options::default() });
    assert_eq!(error.err().unwrap().code, "wgsl.adapter");
    for adapter in wgsl::adapter::adapters() {
        assert_eq!(adapter.software, adapter.name.contains("llvmpipe"), "{adapter:?}");
    }
}

#[test]
fn limits_that_are_too_small_are_told_before_loading() {
    if !is_present() {
        return;
    }
    let large = "graph @g(%x: f32[1500,1024,1024]) -> (y: f32[1500,1024,1024]) {\n  %y = relu(%x)\n  return y=%y\n}";
    let load = |binding| Session::new(plan(large, &wgsl::Wgsl { binding }), &Options::default()).err().unwrap();
    let error = load(8 << 30);
    assert_eq!(error.code, "wgsl.limit");
    assert!(error.to_string().contains("the plan needs 6291456000"), "{error}");
    // In parts it would run, if its values had room.
    let error = load(128 << 20);
    assert!(["wgsl.limit", "wgsl.memory"].contains(&error.code), "{error}");
    assert!(error.to_string().contains("f32[1500,1024,1024] of relu"), "{error}");
}

#[test]
fn shaders_are_those_of_this_library() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("block.l3r");
    plan(BLOCK, &wgsl::PORTABLE).save(&path, Storage::default()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // Of all: which of them run, the adapter decides.
    let found = bytes.windows(8).enumerate().filter(|(_, w)| w == b"@compute").map(|(at, _)| at);
    let shaders: Vec<usize> = found.collect();
    assert!(!shaders.is_empty());
    shaders.into_iter().for_each(|at| bytes[at + 1] = b'k');
    std::fs::write(&path, &bytes).unwrap();
    let hashed = Plan::open(&path, &OpenOptions::default()).unwrap_err();
    assert_eq!(hashed.code, "plan.corrupt");
    if !is_present() {
        return;
    }
    let unverified = Plan::open(&path, &OpenOptions { verify: false, ..OpenOptions::default() }).unwrap();
    let error = Session::new(unverified, &Options::default()).err().unwrap();
    assert_eq!(error.code, "plan.kernel");
    assert!(error.to_string().contains("is not what its name says"), "{error}");
}

/// An attention of two heads after passes.
fn attention(dtype: DType, tokens: usize, runs: &str, passes: &str) -> Graph {
    let ty = format!("{}[1,2,{tokens},64]", dtype.name());
    let mut graph = parse(&format!(
        "graph @attention(%q: {ty}, %k: {ty}, %v: {ty}) -> (y: {dtype}[1,{tokens},128]) {{
  %a = attention(%q, %k, %v) {{scale=0.125,kind=global,views=3,runs={runs}}}  // at /blocks.0/attn
  %y = merge_heads(%a)
  return y=%y
}}",
        dtype = dtype.name()
    ))
    .unwrap();
    execute(&mut graph, &select(passes, ALL).unwrap(), true, &mut |_, _| true).unwrap();
    graph
}

#[test]
fn every_form_of_sparse_attention_gives_what_the_cpu_gives() {
    if !is_present() {
        return;
    }
    let forms = [
        "form=sparse",
        "form=add",
        "form=add,map=softmax,scope=rest",
        "form=mix,map=softmax",
        "form=mix,scope=rest",
        "form=centroid",
        "form=centroid,block_k=16,router=sub16",
        "form=centroid,block_k=32,router=sub16,centroid=16,always=[own]",
        "form=add,block_k=32,router=sub32,always=[own]",
    ];
    let behind = "cse,fuse_merge,fuse,dce";
    for (tokens, runs, always) in [
        (1, "[]", ""),
        (63, "[]", ""),
        (64, "[]", ""),
        (65, "[]", ""),
        (195, "[15,60]", ",always=[special,reference]"),
        (195, "[15,60]", ",always=[frame]"),
        (1374, "[]", ""),
    ] {
        let few = |form: &str| ["form=add", "form=centroid,block_k=16,router=sub16"].contains(&form);
        let fits = |form: &str| (always.is_empty() || !form.contains("always")) && (tokens < 1000 || few(form));
        for form in forms.iter().filter(|form| fits(form)) {
            for (dtype, allowed) in [(DType::F32, 2e-5), (DType::F16, 2e-3)] {
                let passes = format!("sla{{keep=0.3,{form}{always}}},{behind}");
                let graph = attention(dtype, tokens, runs, &passes);
                let wave = |seed| Tensor::wave(dtype, &[1, 2, tokens, 64], seed);
                let inputs =
                    BTreeMap::from([("q", 1), ("k", 2), ("v", 3)].map(|(n, seed)| (n.to_string(), wave(seed))));
                let run = |target: &dyn Target| {
                    let mut session = Session::new(planned(graph.clone(), target), &Options::default()).unwrap();
                    session.run(0, &inputs).unwrap().remove("y").unwrap()
                };
                let error = relative_error(&run(&wgsl::PORTABLE), &run(&Cpu)).unwrap();
                assert!(error < allowed, "{passes} {} {tokens} {runs}: {error}", dtype.name());
            }
        }
    }
}

const HALVES: &str = "graph @halves(%x: f16[70,64]) -> (y: f16[70,32]) {
  param $w: f16[32,64]
  %y = linear(%x, $w)
  return y=%y
}";

#[test]
fn plans_name_rows_that_run_everywhere_and_carry_those_that_stand_in_for_them() {
    let plan = plan(HALVES, &wgsl::PORTABLE);
    assert_eq!(plan.entries()[0].steps[0].kernel, "linear.tiled");
    let files: Vec<&str> = plan.header().modules.keys().filter_map(|key| key.split(' ').next()).collect();
    assert_eq!(files, ["gemm.wgsl", "gemm_matrices.wgsl"]);
    let view = &inspect::inspect(&plan).entries[0];
    assert_eq!(view.stand_ins["linear.tiled"]["linear.matrices"], "f16+matrices");
    if is_present() {
        let options = Options { device: Some("wgsl:0:plain".into()), ..Options::default() };
        assert_eq!(Session::new(plan, &options).unwrap().kernel(0, 0), "linear.tiled");
    }
}
