//! Recognition on exported models: how much of each construct is found, with views bound and unbound, and that the
//! recognised graph computes what was recorded.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lite3r::{
    npy,
    onnx::{ImportOptions, Imported, import, import_with},
};
use lite3r_ir::{Bindings, Graph, Op, Tensor, interpret::interpret, passes::recognize, passes::specialize, verify};

/// What a model contains.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    attention: usize,
    gelu: usize,
    layer_norm: usize,
    rope: usize,
    split_heads: usize,
    merge_heads: usize,
    silu: usize,
}

impl Counts {
    fn of(graph: &Graph) -> Self {
        let mut counts = Self::default();
        for id in graph.node_ids() {
            match graph.op(id) {
                Op::Attention(_) => counts.attention += 1,
                Op::Gelu(_) => counts.gelu += 1,
                Op::LayerNorm(_) => counts.layer_norm += 1,
                Op::Rope(op) if op.segments == 2 => counts.rope += 1,
                Op::SplitHeads(_) => counts.split_heads += 1,
                Op::MergeHeads(_) => counts.merge_heads += 1,
                Op::Silu(_) => counts.silu += 1,
                _ => {}
            }
        }
        counts
    }
}

/// What must not be left: softmax outside of attention, products with weights, rotations spelled out.
fn leftovers(graph: &Graph) -> Vec<String> {
    let weights = lite3r_ir::passes::dce::weight_time(graph);
    let left = graph.node_ids().filter(|id| match graph.op(*id) {
        Op::Softmax(_) | Op::Erf(_) => true,
        Op::MatMul(_) => {
            let operands = graph.operands(*id);
            !weights.contains(id) && weights.contains(&operands[1].node) && graph.ty(operands[1]).rank() == 2
        }
        Op::Rope(op) => op.segments != 2,
        _ => false,
    });
    left.map(|id| format!("{} at `{}`", graph.op(id).name(), graph.node(id).origin)).collect()
}

fn recognised(graph: &Graph, name: &str) -> Graph {
    let mut graph = graph.clone();
    recognize::recognize(&mut graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    verify(&graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    graph
}

/// Expects these counts, and nothing left.
fn whole(graph: &Graph, counts: &Counts, name: &str) {
    let graph = recognised(graph, name);
    assert_eq!(Counts::of(&graph), *counts, "{name}");
    let left = leftovers(&graph);
    assert!(left.is_empty(), "{name}: {left:#?}");
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx").join(name)
}

/// Further exported models beside the repository.
fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("LITE3R_SHARED").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared")).join("onnx");
    if !root.is_dir() {
        eprintln!("skipped: {} is not there", root.display());
        return None;
    }
    Some(root)
}

fn load(model: &Path, bindings: &[(&str, usize)]) -> Imported {
    let bindings = bindings.iter().map(|(s, n)| (s.to_string(), *n)).collect();
    let options = ImportOptions { bindings, allow_missing_data: true, ..ImportOptions::default() };
    import_with(model, &options).unwrap_or_else(|e| panic!("{}: {e}", model.display()))
}

/// Recognises a model with its symbols free and with three views, and expects the same counts of both.
fn expect(model: &Path, counts: &Counts) {
    let name = model.display().to_string();
    let free = load(model, &[]).graph;
    whole(&free, counts, &name);
    for symbol in specialize::free_symbols(&free) {
        let bound = load(model, &[(symbol.as_str(), 3)]).graph;
        whole(&bound, counts, &format!("{name} at {symbol}=3"));
    }
}

/// The recognised graph on recorded inputs: the worst relative error of its outputs.
fn error(folder: &Path, case: &str, bindings: &[(&str, usize)]) -> f64 {
    let imported = import(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let graph = recognised(&imported.graph, &folder.display().to_string());
    let bindings: Bindings = bindings.iter().map(|(s, n)| (s.to_string(), *n)).collect();
    let graph = specialize::bind(&graph, &bindings).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let read = |name: String| npy::read(&folder.join(name)).expect("a recorded array");
    let inputs: BTreeMap<String, Tensor> = graph
        .inputs()
        .iter()
        .filter_map(|id| match graph.op(*id) {
            Op::Input(op) => Some((op.name.clone(), read(format!("in_{case}{}.npy", op.name)))),
            _ => None,
        })
        .collect();
    let param = |name: &str| imported.weights.get(name).map(|w| w.tensor());
    let outputs = interpret(&graph, &inputs, &param).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    outputs.iter().fold(0.0, |worst: f64, (name, got)| {
        let want = read(format!("out_{case}{name}.npy"));
        assert_eq!(got.shape(), want.shape());
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let (got, want) = (got.to_f64(), want.to_f64());
        let error = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        worst.max(error / norm(&mut want.iter().copied()).max(1e-30))
    })
}

/// A frame/global backbone: attentions, of them with RoPE, GELUs, LayerNorms, SiLUs.
fn backbone(attention: usize, rotated: usize, gelu: usize, layer_norm: usize, silu: usize) -> Counts {
    let (split_heads, merge_heads) = (attention, attention);
    Counts { attention, gelu, layer_norm, rope: 2 * rotated, split_heads, merge_heads, silu }
}

#[test]
fn backbones_are_recognised_whole() {
    for (name, counts) in [
        ("vggt_ts17", backbone(9, 4, 13, 37, 4)),
        ("vggt_f16_ts17", backbone(9, 4, 13, 37, 4)),
        ("vggt_s_dyn18", backbone(9, 4, 13, 37, 4)),
        // The first camera iteration depends on weights alone, and this exporter has computed it.
        ("vggt_dyn23", backbone(9, 4, 13, 37, 3)),
        ("da3_s_ts17", backbone(4, 2, 4, 17, 0)),
        ("da3_s_dyn23", backbone(4, 2, 4, 17, 0)),
    ] {
        expect(&folder(name).join("model.onnx"), &counts);
    }
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/small_backbone.onnx");
    expect(&small, &backbone(16, 12, 20, 66, 4));
}

#[test]
fn single_constructs_are_recognised() {
    let attention = |attention| Counts { attention, ..Counts::default() };
    for flavour in ["ts17", "dyn18", "dyn23"] {
        expect(&folder(&format!("op_attention_{flavour}")).join("model.onnx"), &attention(1));
        expect(&folder(&format!("op_attention_naive_{flavour}")).join("model.onnx"), &attention(2));
        let activations = Counts { gelu: 2, silu: 1, ..Counts::default() };
        expect(&folder(&format!("op_activations_{flavour}")).join("model.onnx"), &activations);
        expect(&folder(&format!("op_block_{flavour}")).join("model.onnx"), &backbone(1, 1, 1, 4, 0));
    }
    for flavour in ["ts13", "ts17", "dyn18"] {
        let norms = Counts { layer_norm: 2, ..Counts::default() };
        expect(&folder(&format!("op_layer_norm_{flavour}")).join("model.onnx"), &norms);
    }
    expect(&folder("op_attention_scale_23").join("model.onnx"), &attention(2));
}

#[test]
fn recognised_graphs_compute_what_was_recorded() {
    let mut cases =
        vec![("op_attention_scale_23", "", vec![]), ("op_rotary_23", "", vec![]), ("op_gemm_17", "", vec![])];
    for name in ["op_indexing_ts17", "op_indexing_dyn18", "op_layer_norm_ts13", "op_scatter_gather_17", "op_split_18"] {
        cases.push((name, "", vec![]));
    }
    for name in ["op_attention_ts17", "op_attention_dyn18", "op_attention_naive_ts17", "op_attention_naive_dyn23"] {
        cases.push((name, "", vec![]));
    }
    for name in ["op_activations_ts17", "op_activations_dyn18", "op_block_ts17", "op_block_dyn18", "op_block_dyn23"] {
        cases.push((name, "", vec![]));
    }
    cases.push(("vggt_ts17", "", vec![]));
    cases.push(("vggt_s_dyn18", "S2_", vec![("S", 2)]));
    cases.push(("da3_s_ts17", "S3_", vec![("S", 3)]));
    cases.push(("da3_s_dyn23", "S3_", vec![("S", 3)]));
    for (name, case, bindings) in cases {
        let error = error(&folder(name), case, &bindings);
        assert!(error < 2e-5, "{name}: relative error {error:e}");
        eprintln!("{name:<28} {error:.1e}");
    }
}

#[test]
fn larger_exports_are_recognised_whole() {
    let Some(root) = shared() else { return };
    for (name, counts) in [
        ("tiny_vggt_a_ts17", backbone(13, 8, 17, 57, 4)),
        ("tiny_vggt_a_dynS_dyn18", backbone(13, 8, 17, 57, 4)),
        ("tiny_vggt_a_dyn23", backbone(13, 8, 17, 57, 3)),
        ("tiny_da3_b_dyn18", backbone(6, 4, 6, 29, 0)),
        ("tiny_da3_b_dyn23", backbone(6, 4, 6, 29, 0)),
        ("tiny_da3_b_dynS_ts17", backbone(6, 4, 6, 29, 0)),
    ] {
        expect(&root.join(name).join("model.onnx"), &counts);
    }
}

/// Graphs of real size, without weights.
#[test]
fn graphs_of_real_size_are_recognised_whole_and_in_time() {
    let Some(root) = shared() else { return };
    for (name, counts) in [
        ("vggt1b_ts17_518x518_S2", backbone(88, 48, 92, 287, 4)),
        ("vggt1b_dyn18_392x518_S2", backbone(88, 48, 92, 290, 4)),
        ("da3l_ts17_378x504_S3", backbone(24, 16, 24, 89, 0)),
        ("da3l_dyn18_378x504_S3", backbone(24, 16, 24, 89, 0)),
    ] {
        let packed = root.join("full").join(format!("{name}.onnx.xz"));
        let unpacked = std::process::Command::new("xz").arg("-dc").arg(&packed).output();
        let Ok(unpacked) = unpacked.map(|out| out.stdout).map_err(|e| eprintln!("skipped: xz does not run: {e}"))
        else {
            return;
        };
        let dir = tempfile::tempdir().expect("a directory");
        let model = dir.path().join("model.onnx");
        std::fs::write(&model, unpacked).expect("a file");
        let graph = load(&model, &[]).graph;
        let start = std::time::Instant::now();
        whole(&graph, &counts, name);
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{name:<28} {} nodes, recognised in {seconds:.2} s", graph.len());
        assert!(seconds < 20.0, "{name}: recognised in {seconds} s");
    }
}
