//! The memory that a plan predicts against what a run has allocated at the same time.

use std::collections::BTreeMap;

use lite3r::{
    backend::cpu::Cpu,
    plan::{EntrySource, Meta, build},
    session::{Options, Session},
    weights::{Weight, Weights},
};
use lite3r_ir::{Bindings, DType, Op, Tensor, text::parse};
use peak_alloc::PeakAlloc;

/// Counts every allocation of this process, also those of the libraries.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const THREADS: usize = 2;

fn block(tokens: usize) -> String {
    format!(
        "graph @block(%x: f32[1,{tokens},256]) -> (y: f32[1,{tokens},256]) {{
  param $fc1.w: f32[2048,256], $fc2.w: f32[256,2048], $qkv.w: f32[768,256]
  %p = linear(%x, $qkv.w) : f32[1,{tokens},768]
  %q, %k, %v = split_heads(%p) {{parts=3,heads=4}}
  %m = merge_heads(%q)
  %a = add(%m, %x)
  %h = linear(%a, $fc1.w) : f32[1,{tokens},2048]
  %g = gelu(%h)
  %z = linear(%g, $fc2.w) : f32[1,{tokens},256]
  %y = add(%z, %a)
  return y=%y
}}"
    )
}

#[test]
fn a_run_allocates_what_its_plan_predicts() {
    for tokens in [1024, 4096, 24576] {
        let graph = parse(&block(tokens)).unwrap();
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
        let mut session = Session::new(plan, &Options { threads: Some(THREADS), ..Options::default() }).unwrap();
        let inputs = BTreeMap::from([("x".to_string(), Tensor::wave(DType::F32, &[1, tokens, 256], 2))]);
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let outputs = session.run(0, &inputs).unwrap();
        let taken = MEMORY.peak_usage() - before;
        drop(outputs);
        println!("{tokens} tokens: predicted {predicted} bytes, taken {taken}: {:.4}", taken as f64 / predicted as f64);
        // The `gemm` crate packs panels as large as the caches of the machine suggest, which shows in the smallest arena
        // alone.
        let panels = if tokens < 4096 { THREADS << 21 } else { 0 };
        let bounds = predicted as f64 * 0.95..predicted as f64 * 1.05 + panels as f64;
        assert!(bounds.contains(&(taken as f64)), "{tokens} tokens: predicted {predicted} bytes, taken {taken}");
    }
}
