//! A transformer block: schedule, memory and results.

use super::*;

/// Two images of four tokens: attention, an MLP, views of the tokens, a weight that is transposed when the plan is
/// made.
const BLOCK: &str = "graph @block(%x: f32[2,65,64]) -> (y: f32[2,65,64], camera: f32[2,1,64]) {
  param $norm.g: f32[64], $norm.b: f32[64]
  param $qkv.w: f32[64,192], $qkv.b: f32[192]
  param $proj.w: f32[64,64], $proj.b: f32[64]
  param $fc1.w: f32[256,64], $fc1.b: f32[256]
  param $fc2.w: f32[64,256], $fc2.b: f32[64]
  %wt = transpose($qkv.w) {perm=[1,0]} : f32[192,64]
  %n = layer_norm(%x, $norm.g, $norm.b) : f32[2,65,64]  // at norm1
  %p = linear(%n, %wt, $qkv.b) {bias=true} : f32[2,65,192]  // at attn.qkv
  %q, %k, %v = split_heads(%p) {parts=3,heads=4} : f32[2,4,65,16], f32[2,4,65,16], f32[2,4,65,16]
  %o = attention(%q, %k, %v) {scale=0.25} : f32[2,4,65,16]  // at attn
  %m = merge_heads(%o) : f32[2,65,64]
  %a = linear(%m, $proj.w, $proj.b, %x) {bias=true,residual=true} : f32[2,65,64]  // at attn.proj
  %f = reshape(%a) {shape=[130,64]} : f32[130,64]
  %h = linear(%f, $fc1.w, $fc1.b) {bias=true} : f32[130,256]  // at mlp.fc1
  %g = gelu(%h) : f32[130,256]
  %z = linear(%g, $fc2.w, $fc2.b, %f) {bias=true,residual=true} : f32[130,64]  // at mlp.fc2
  %y = reshape(%z) {shape=[2,65,64]} : f32[2,65,64]
  %c = slice(%y) {axis=1,start=0,end=1} : f32[2,1,64]
  return y=%y, camera=%c
}";

#[test]
fn a_block_runs_as_the_evaluator_says() {
    let graph = graph(BLOCK);
    let weights = weights_for(&[&graph]);
    let mut session = session(plan(&graph, &weights));
    let inputs = inputs_for(&graph);
    let entry = session.entry_for(&inputs).unwrap();
    let expected = reference(&graph, &weights);
    assert_close(&session.run(entry, &inputs).unwrap(), &expected, 1e-5);
    assert_close(&session.run(entry, &inputs).unwrap(), &expected, 1e-5);
}

#[test]
fn schedule_and_arena_of_a_block() {
    let graph = graph(BLOCK);
    let plan = build(&[entry(graph.clone())], &weights_for(&[&graph]), &Plain, Meta::default()).unwrap();
    let entry = &plan.entries()[0];
    let place = |n: &u32| match entry.buffers[*n as usize].place {
        Place::Arena(at) => format!("{at}+{}", entry.buffers[*n as usize].bytes()),
        Place::Weight(index) => plan.header().weights[index as usize].name.clone(),
    };
    let places = |all: &[u32]| all.iter().map(place).collect::<Vec<_>>().join(", ");
    let line = |step: &Step| {
        let scratch = step.scratch.map_or(String::new(), |s| format!(", scratch {}+{}", s.offset, s.bytes));
        let (from, to) = (places(&step.operands), places(&step.results));
        format!("{:<12} {:<6} {from} -> {to}{scratch}\n", step.op.name(), step.kernel)
    };
    let mut text: String = entry.steps.iter().map(line).collect();
    text += &format!("arena {} bytes, a run allocates {}\n", entry.arena_bytes, entry.peak_bytes());
    insta::assert_snapshot!(text);
}

#[test]
fn a_plan_survives_its_file() {
    let graph = graph(BLOCK);
    let weights = weights_for(&[&graph]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("block.l3r");
    let made = plan(&graph, &weights);
    made.save(&path, Storage::Embedded).unwrap();
    let opened = Plan::open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(opened.header(), made.header());
    let inputs = inputs_for(&graph);
    let direct = session(made).run(0, &inputs).unwrap();
    assert_eq!(session(opened).run(0, &inputs).unwrap(), direct);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half written stays");
}

#[test]
fn inspection_of_a_block() {
    let graph = graph(BLOCK);
    let plan = build(&[entry(graph.clone())], &weights_for(&[&graph]), &Plain, Meta::default()).unwrap();
    let inspection = inspect::inspect(&plan);
    let entry = &inspection.entries[0];
    // The arena of this block is as small as any can be.
    assert_eq!(entry.steps.iter().map(|s| s.live_bytes).max(), Some(entry.arena_bytes));
    assert!(serde_json::to_value(&inspection).unwrap()["entries"][0]["steps"].is_array());
    insta::assert_snapshot!(inspection.text(true).replace(&plan.header().producer, "lite3r"));
}
