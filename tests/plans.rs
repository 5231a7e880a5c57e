//! Exported models as plans: every recorded number of views is an entry of one plan, saved, opened and run on the CPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use lite3r::{
    backend::cpu::Cpu,
    npy,
    onnx::import,
    plan::{EntrySource, Meta, OpenOptions, Plan, Storage, build},
    session::{Options, Session},
};
use lite3r_ir::{
    Bindings, Graph, Op, Tensor,
    passes::{Options as PassOptions, dce, fold, run, specialize},
};

/// The recorded cases of a folder: "" and "S3_" …
fn cases(folder: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let case = |name: String| {
        let rest = name.strip_prefix("in_")?;
        let digits = rest.strip_prefix('S')?.find('_')?;
        Some(if rest[1..=digits].parse::<usize>().is_ok() { rest[..digits + 2].to_string() } else { String::new() })
    };
    names.filter_map(case).chain([String::new()]).collect()
}

fn inputs(graph: &Graph, folder: &Path, case: &str) -> BTreeMap<String, Tensor> {
    let names = graph.inputs().iter().filter_map(|id| match graph.op(*id) {
        Op::Input(op) => Some(op.name.clone()),
        _ => None,
    });
    names.map(|n| (n.clone(), npy::read(&folder.join(format!("in_{case}{n}.npy"))).unwrap())).collect()
}

/// The values that the shapes of `given` give to the symbols of the inputs.
fn bindings(graph: &Graph, given: &BTreeMap<String, Tensor>) -> Bindings {
    let inputs = graph.inputs().iter().filter_map(|id| match graph.op(*id) {
        Op::Input(op) => Some(op),
        _ => None,
    });
    let sizes = inputs.flat_map(|op| op.ty.shape.iter().zip(given[&op.name].shape()));
    sizes.filter_map(|(dim, size)| Some((dim.symbols().first()?.to_string(), *size))).collect()
}

/// ‖a − b‖ / ‖b‖ in f64.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64(), b.to_f64());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    error / norm(&mut b.iter().copied()).max(1e-30)
}

/// Plans every case of a model with symbols and compares what it computes with what ONNX Runtime has recorded.
fn holds(name: &str, tolerance: f64) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx").join(name);
    let imported = import(&folder.join("model.onnx")).unwrap();
    let cases: Vec<String> = cases(&folder).into_iter().collect();
    let sources = cases.iter().map(|case| {
        let bindings = bindings(&imported.graph, &inputs(&imported.graph, &folder, case));
        let mut graph = specialize::bind(&imported.graph, &bindings).unwrap();
        for pass in [&fold::FOLD, &dce::DCE] {
            run(pass, &mut graph, &PassOptions::default()).unwrap();
        }
        EntrySource { bindings, graph }
    });
    let sources: Vec<EntrySource> = sources.collect();
    let plan = build(&sources, &imported.weights, &Cpu, Meta::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let one = build(&sources[..1], &imported.weights, &Cpu, Meta::default()).unwrap();
    // Entries share what the model itself brings; what depends on their shapes, such as position tables, is small.
    assert!(plan.weight_bytes() < one.weight_bytes() * 3 / 2, "{} and {}", plan.weight_bytes(), one.weight_bytes());
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.l3r");
    plan.save(&path, Storage::Embedded).unwrap();
    let mut session = Session::new(Plan::open(&path, &OpenOptions::default()).unwrap(), &Options::default()).unwrap();
    for case in &cases {
        let given = inputs(&imported.graph, &folder, case);
        let entry = session.entry_for(&given).unwrap();
        for (output, tensor) in session.run(entry, &given).unwrap() {
            let recorded = npy::read(&folder.join(format!("out_{case}{output}.npy"))).unwrap();
            let error = relative_error(&tensor, &recorded);
            assert!(error <= tolerance, "{name} {case}{output}: {error}");
        }
    }
}

#[test]
fn da3_from_torchscript() {
    holds("da3_s_ts17", 2e-4);
}

#[test]
fn da3_from_torch_export() {
    holds("da3_s_dyn23", 2e-4);
}

#[test]
fn vggt_from_torch_export() {
    holds("vggt_s_dyn18", 2e-4);
}
