//! Which attentions the compiler finds in exported backbones, and that rewriting them changes no result.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use lite3r::{
    onnx::{ImportOptions, import_with},
    weights::Weights,
};
use lite3r_ir::{
    Bindings, Graph, Op, Tensor,
    interpret::interpret,
    ops::attention::AttentionKind,
    passes::{
        self, Options,
        attention_kinds::{ATTENTION_KINDS, inventory},
        pipeline,
        recognize::recognize,
        specialize::{self, free_symbols},
    },
    verify,
};

/// Encoder, frame, global and camera attentions.
type Counts = [usize; 4];

/// What runs once sizes are numbers: every recognition of convolutions, every exact rewrite, fusion.
const REWRITES: &str = "fold,canonicalize,cse,dce,dpt_resize,resize_after_conv1x1,patch_conv,conv1x1,transposed_conv,layout,dce,\
    layer_scale,residual,fold_layer_norm,dce,fold_layer_scale,dce,fuse,layout,cse,dce";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Exports that are too large for the repository, where they are.
fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("LITE3R_SHARED").map_or_else(|| repository().join("../shared"), PathBuf::from);
    let folder = folder.join("onnx");
    if !folder.is_dir() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

/// The graph with kinds told, before symbols are bound.
fn recognised(model: &Path) -> (Graph, Weights) {
    let options = ImportOptions { allow_missing_data: true, ..ImportOptions::default() };
    let imported = import_with(model, &options).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    let mut graph = imported.graph;
    recognize(&mut graph).unwrap();
    let step = passes::run(&ATTENTION_KINDS, &mut graph, &Options::default())
        .unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    assert!(step.report.notes.is_empty(), "{}: {:?}", model.display(), step.report.notes);
    passes::run(&passes::dce::DCE, &mut graph, &Options::default()).unwrap();
    verify(&graph).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    (graph, imported.weights)
}

fn counts(graph: &Graph) -> Counts {
    let found = inventory(graph);
    let of = [AttentionKind::Encoder, AttentionKind::Frame, AttentionKind::Global, AttentionKind::Camera];
    let counts = of.map(|kind| found.count(kind));
    assert_eq!(counts.iter().sum::<usize>(), found.rows.len(), "none is unknown");
    counts
}

/// All symbols bound to `views`, and every rewrite done.
fn rewritten(graph: &Graph, views: usize) -> (Graph, Graph) {
    let bindings: Bindings = free_symbols(graph).into_iter().map(|s| (s, views)).collect();
    let bound = specialize::bind(graph, &bindings).unwrap();
    let mut rewritten = bound.clone();
    let passes = pipeline::select(REWRITES, passes::ALL).unwrap();
    pipeline::execute(&mut rewritten, &passes, true, &mut |step, _| {
        eprintln!(
            "  {:<22} {:>7.1} ms {:>6} nodes {:?} {:?}",
            step.pass,
            step.time.as_secs_f64() * 1e3,
            step.nodes,
            step.report.counts,
            step.report.notes
        );
        true
    })
    .unwrap();
    (bound, rewritten)
}

fn check(model: &Path, expected: Counts, views: usize) {
    eprintln!("{}", model.display());
    let (graph, _) = recognised(model);
    assert_eq!(counts(&graph), expected, "{}", model.display());
    let (bound, rewritten) = rewritten(&graph, views);
    eprintln!("{}\n", inventory(&bound));
    assert_eq!(counts(&rewritten), expected, "{} rewritten", model.display());
    for row in inventory(&rewritten).rows {
        let joined = row.views.size().unwrap();
        match row.kind {
            AttentionKind::Global => assert!(joined > 1 && row.tokens.size().unwrap() % joined == 0),
            AttentionKind::Camera => assert_eq!(row.tokens, row.views),
            _ => assert_eq!(joined, 1),
        }
    }
}

#[test]
fn the_small_backbone() {
    check(&repository().join("src/demo/small_backbone.onnx"), [0, 6, 6, 4], 3);
}

#[test]
fn exported_fixtures() {
    let folder = repository().join("tests/fixtures/onnx");
    for (name, expected, views) in [
        ("vggt_ts17", [1, 2, 2, 4], 2),
        ("vggt_s_dyn18", [1, 2, 2, 4], 3),
        ("vggt_dyn23", [1, 2, 2, 4], 2),
        ("vggt_f16_ts17", [1, 2, 2, 4], 2),
        ("da3_s_ts17", [2, 1, 1, 0], 4),
        ("da3_s_dyn23", [2, 1, 1, 0], 4),
    ] {
        check(&folder.join(name).join("model.onnx"), expected, views);
    }
}

#[test]
fn tiny_exports_of_the_official_code() {
    let Some(folder) = shared() else { return };
    let (vggt, da3) = ([1, 4, 4, 4], [2, 2, 2, 0]);
    for (name, expected, views) in [
        ("tiny_vggt_a_ts17", vggt, 2),
        ("tiny_vggt_a_dyn23", vggt, 2),
        ("tiny_vggt_a_dynS_dyn18", vggt, 3),
        ("tiny_da3_b_dyn18", da3, 4),
        ("tiny_da3_b_dyn23", da3, 4),
        ("tiny_da3_b_dynS_ts17", da3, 4),
    ] {
        check(&folder.join(name).join("model.onnx"), expected, views);
    }
}

#[test]
fn full_size_graphs() {
    let Some(folder) = shared() else { return };
    let (vggt, da3) = ([24, 24, 24, 16], [8, 8, 8, 0]);
    for (name, expected, views) in [
        ("vggt1b_ts17_518x518_S2", vggt, 2),
        ("vggt1b_dyn18_392x518_S2", vggt, 2),
        ("da3l_ts17_378x504_S3", da3, 3),
        ("da3l_dyn18_378x504_S3", da3, 3),
    ] {
        let packed = folder.join("full").join(format!("{name}.onnx.xz"));
        let unpacked = match Command::new("xz").arg("-dc").arg(&packed).output() {
            Ok(out) if out.status.success() => out.stdout,
            _ => return eprintln!("skipped: xz cannot unpack {}", packed.display()),
        };
        let model = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.onnx"));
        std::fs::write(&model, unpacked).unwrap();
        let start = Instant::now();
        check(&model, expected, views);
        eprintln!("  {:.2} s in all", start.elapsed().as_secs_f64());
        std::fs::remove_file(&model).unwrap();
    }
}

/// Rewriting reassociates sums and nothing else: on random images the outputs stay within a few roundings.
#[test]
fn rewriting_changes_no_result() {
    let folder = repository().join("tests/fixtures/onnx");
    for (name, views) in [("vggt_ts17", 2), ("vggt_s_dyn18", 3), ("da3_s_dyn23", 4)] {
        let (graph, weights) = recognised(&folder.join(name).join("model.onnx"));
        let (bound, rewritten) = rewritten(&graph, views);
        let [want, got] = [bound, rewritten].map(|graph| {
            let inputs: BTreeMap<String, Tensor> = graph
                .inputs()
                .iter()
                .filter_map(|id| match graph.op(*id) {
                    Op::Input(op) => Some((op.name.clone(), Tensor::wave(op.ty.dtype, &op.ty.dims()?, 5))),
                    _ => None,
                })
                .collect();
            interpret(&graph, &inputs, &|name| weights.get(name).map(|w| w.tensor())).unwrap()
        });
        for (output, want) in &want {
            let (got, want) = (got[output].to_f64(), want.to_f64());
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
            eprintln!("{name} {output}: {error:.1e}");
            assert!(error < 2e-5, "{name} {output}: {error:e}");
        }
    }
}
