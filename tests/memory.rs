//! The memory that a plan predicts against what the operating system sees a run take.

use std::collections::BTreeMap;

use lite3r::{
    backend::cpu::Cpu,
    plan::{EntrySource, Meta, build},
    session::{Options, Session},
    weights::{Weight, Weights},
};
use lite3r_ir::{Bindings, DType, Op, Tensor, text::parse};

const TOKENS: usize = 24576;

fn block() -> String {
    format!(
        "graph @block(%x: f32[1,{TOKENS},256]) -> (y: f32[1,{TOKENS},256]) {{
  param $fc1.w: f32[2048,256], $fc2.w: f32[256,2048], $qkv.w: f32[768,256]
  %p = linear(%x, $qkv.w) : f32[1,{TOKENS},768]
  %q, %k, %v = split_heads(%p) {{parts=3,heads=4}}
  %m = merge_heads(%q)
  %a = add(%m, %x)
  %h = linear(%a, $fc1.w) : f32[1,{TOKENS},2048]
  %g = gelu(%h)
  %z = linear(%g, $fc2.w) : f32[1,{TOKENS},256]
  %y = add(%z, %a)
  return y=%y
}}"
    )
}

/// The largest resident size since the mark was last cleared, in bytes.
fn high_water() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[test]
fn a_run_takes_what_its_plan_predicts() {
    let graph = parse(&block()).unwrap();
    let mut weights = Weights::default();
    for id in graph.node_ids() {
        if let Op::Param(param) = graph.op(id) {
            let tensor = Tensor::wave(DType::F32, &param.ty.dims().unwrap(), 1);
            weights.insert(param.name.clone(), Weight::owned(tensor));
        }
    }
    let source = EntrySource { bindings: Bindings::new(), graph };
    let plan = build(&[source], &weights, &Cpu, Meta::default()).unwrap();
    let predicted = plan.entries()[0].peak_bytes();
    let mut session = Session::new(plan, &Options { threads: Some(2), ..Options::default() }).unwrap();
    let inputs = BTreeMap::from([("x".to_string(), Tensor::wave(DType::F32, &[1, TOKENS, 256], 2))]);
    // "5" lowers the high-water mark to what is resident now: proc_pid_clear_refs(5).
    if std::fs::write("/proc/self/clear_refs", "5").is_err() {
        eprintln!("skipped: the kernel does not count resident memory for us");
        return;
    }
    let Some(before) = high_water() else { return eprintln!("skipped: no /proc/self/status") };
    let outputs = session.run(0, &inputs).unwrap();
    let taken = high_water().unwrap() - before;
    drop(outputs);
    let ratio = taken as f64 / predicted as f64;
    println!("predicted {predicted} bytes, taken {taken}: {ratio:.4}");
    assert!((0.95..1.05).contains(&ratio), "predicted {predicted} bytes, taken {taken}");
}
