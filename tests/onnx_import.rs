//! Every exported model of the fixtures, imported, bound, evaluated and held against its recorded outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use lite3r::onnx::{ImportOptions, import, import_with};
use lite3r_ir::{Bindings, DType, Graph, Op, Tensor, interpret::interpret, passes::specialize, verify};
use rayon::prelude::*;

fn read_npy(path: &Path) -> Tensor {
    lite3r::npy::read(path).unwrap_or_else(|e| panic!("{e}"))
}

/// ‖a − b‖ / ‖b‖ in f64.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64(), b.to_f64());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    error / norm(&mut b.iter().copied()).max(1e-30)
}

/// The recorded cases of a folder: "" and "S3_" …
fn cases(folder: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|n| n.strip_prefix("in_").map(str::to_string))
        .map(|n| {
            let digits = n.strip_prefix('S').map_or(0, |r| r.chars().take_while(char::is_ascii_digit).count());
            if digits > 0 && n[1 + digits..].starts_with('_') { n[..digits + 2].to_string() } else { String::new() }
        })
        .collect()
}

fn inputs(graph: &Graph, folder: &Path, case: &str) -> BTreeMap<String, Tensor> {
    let name = |id| match graph.op(id) {
        Op::Input(op) => op.name.clone(),
        _ => unreachable!(),
    };
    let names = graph.inputs().iter().map(|id| name(*id));
    names.map(|n| (n.clone(), read_npy(&folder.join(format!("in_{case}{n}.npy"))))).collect()
}

/// The values that the shapes of `given` give to the symbols of the inputs.
fn bindings(graph: &Graph, given: &BTreeMap<String, Tensor>) -> Bindings {
    let mut bindings = Bindings::new();
    for id in graph.inputs() {
        let node = graph.node(*id);
        let Op::Input(op) = &node.op else { unreachable!() };
        for (dim, size) in node.types[0].shape.iter().zip(given[&op.name].shape()) {
            if let [symbol] = dim.symbols().as_slice() {
                assert_eq!(dim.to_string(), *symbol, "a plain symbol");
                bindings.insert(symbol.to_string(), *size);
            }
        }
    }
    bindings
}

/// Imports a folder with and without symbols and compares every recorded case. The worst error.
fn check(folder: &Path) -> f64 {
    let model = folder.join("model.onnx");
    let imported = import(&model).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    verify(&imported.graph).unwrap_or_else(|e| panic!("{}: {e:?}", folder.display()));
    let mut worst = 0f64;
    for case in cases(folder) {
        let given = inputs(&imported.graph, folder, &case);
        let bindings = bindings(&imported.graph, &given);
        let bound = specialize::bind(&imported.graph, &bindings)
            .unwrap_or_else(|e| panic!("{} {bindings:?}: {e}", folder.display()));
        let early = import_with(&model, &ImportOptions { bindings: bindings.clone(), ..ImportOptions::default() })
            .unwrap_or_else(|e| panic!("{} {bindings:?}: {e}", folder.display()));
        let ways = if bindings.is_empty() { vec![bound] } else { vec![bound, early.graph] };
        for graph in ways {
            let param = |name: &str| imported.weights.get(name).or(early.weights.get(name)).map(|w| w.tensor());
            let got = interpret(&graph, &given, &param).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            for (name, tensor) in &got {
                let expected = read_npy(&folder.join(format!("out_{case}{name}.npy")));
                let error = relative_error(tensor, &expected);
                let limit = if expected.dtype() == DType::F16 { 2e-2 } else { 2e-4 };
                assert!(error <= limit, "{} {case}{name}: relative error {error:e}", folder.display());
                worst = worst.max(error);
            }
        }
    }
    worst
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|p| p.join("model.onnx").is_file()).collect();
    folders.sort();
    folders
}

fn check_all(folders: &[PathBuf]) {
    folders.par_iter().for_each(|folder| {
        let start = std::time::Instant::now();
        let worst = check(folder);
        eprintln!("{:<60} {worst:.1e} {:.1} s", folder.display(), start.elapsed().as_secs_f64());
    });
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx")
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

#[test]
fn single_constructs_agree_with_their_records() {
    let ops: Vec<PathBuf> = folders(&fixtures())
        .into_iter()
        .filter(|f| f.file_name().unwrap().to_str().unwrap().starts_with("op_"))
        .collect();
    assert!(ops.len() > 30);
    check_all(&ops);
}

#[test]
fn backbones_agree_with_their_records() {
    let all = folders(&fixtures()).into_iter();
    let backbones: Vec<PathBuf> =
        all.filter(|f| !f.file_name().unwrap().to_str().unwrap().starts_with("op_")).collect();
    assert!(backbones.len() >= 6);
    check_all(&backbones);
}

#[test]
fn further_constructs_agree_with_their_records() {
    if let Some(root) = shared() {
        check_all(&folders(&root.join("ops")));
    }
}

#[test]
fn further_backbones_agree_with_their_records() {
    if let Some(root) = shared() {
        check_all(&folders(&root));
    }
}

#[test]
fn no_size_becomes_data_in_a_vggt() {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/small_backbone.onnx");
    let exported = ["vggt_s_dyn18", "vggt_ts17"].map(|folder| fixtures().join(folder).join("model.onnx"));
    for path in exported.iter().chain([&small]) {
        let graph = import(path).unwrap().graph;
        let sizes = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::Range(_))).count();
        assert_eq!(sizes, 0, "{}", path.display());
    }
}

#[test]
fn the_small_backbone_keeps_its_names() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/small_backbone.onnx");
    let imported = import(&model).unwrap();
    verify(&imported.graph).unwrap();
    assert_eq!(imported.graph.ty(imported.graph.outputs()[0].1).to_string(), "f32[1,S,9]");
    let names: Vec<&str> = imported.weights.iter().map(|(name, _)| name).collect();
    for part in
        ["aggregator.frame_blocks.0.attn.qkv.", "aggregator.global_blocks.5.mlp.fc2.", "camera_head.trunk.0.attn."]
    {
        let weight = names.iter().any(|n| n.starts_with(part) && n.contains("weight"));
        assert!(weight && names.iter().any(|n| n.starts_with(part) && n.contains("bias")), "{part}: {names:?}");
    }
    assert!(names.iter().all(|n| !n.contains("onnx::")), "{names:?}");
}

#[test]
fn real_size_graphs_import_quickly() {
    let Some(root) = shared() else { return };
    let scratch = tempfile::tempdir().unwrap();
    for (name, attentions) in [
        ("vggt1b_ts17_518x518_S2", 88),
        ("vggt1b_dyn18_392x518_S2", 88),
        ("da3l_ts17_378x504_S3", 24),
        ("da3l_dyn18_378x504_S3", 24),
    ] {
        let packed = root.join(format!("full/{name}.onnx.xz"));
        let unpacked = match std::process::Command::new("xz").arg("-dc").arg(&packed).output() {
            Ok(output) if output.status.success() => output.stdout,
            other => return eprintln!("skipped: {} cannot be unpacked: {other:?}", packed.display()),
        };
        let path = scratch.path().join(format!("{name}.onnx"));
        std::fs::write(&path, unpacked).unwrap();
        assert_eq!(import(&path).unwrap_err().code, "onnx.external_data");
        let start = std::time::Instant::now();
        let options = ImportOptions { allow_missing_data: true, ..ImportOptions::default() };
        let imported = import_with(&path, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let time = start.elapsed();
        verify(&imported.graph).unwrap();
        let softmax = imported.graph.node_ids().filter(|id| matches!(imported.graph.op(*id), Op::Softmax(_))).count();
        eprintln!("{name}: {} nodes, {} missing, {time:.1?}", imported.graph.len(), imported.missing);
        assert_eq!(softmax, attentions, "{name}");
        assert!(time.as_secs() < 10, "{name}: {time:?}");
        let random = lite3r::weights::random(&imported.graph, 1);
        assert!(random.bytes() > 1_400_000_000, "{name}: {} bytes", random.bytes());
    }
}
