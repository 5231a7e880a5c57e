//! Every exported model from its file to results: imported, recognised, rewritten, planned and run, against what was
//! recorded when it was exported. The same models in bf16 and FP8 run too, and print how far they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use lite3r::{
    backend,
    compile::{self, Model, Options, options::Precision},
    npy,
    session::{self, Session},
};
use lite3r_ir::Tensor;

/// Relative Frobenius error that f32 must meet.
const LIMIT: f64 = 2e-4;

/// What f32 must meet through WGSL, whose languages below leave more to the driver.
#[cfg(feature = "wgpu")]
const WGSL_LIMIT: f64 = 5e-4;

/// What half precision must meet: 11 bits through a whole backbone.
const HALF_LIMIT: f64 = 2e-2;

/// Computes in f64 on its inputs, which no backend does: refused, not narrowed.
const REFUSED: &str = "op_einsum_17";

/// What the models are compiled for: `LITE3R_TARGET`, or the CPU. Everything here holds on every target.
fn target() -> &'static dyn backend::Target {
    let name = std::env::var("LITE3R_TARGET").unwrap_or_else(|_| "cpu".into());
    backend::target(&name).unwrap_or_else(|e| panic!("{e}"))
}

/// Where the tests run; a binary that was carried elsewhere is told by the variable.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Folders that hold a model and arrays.
fn models(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let folders = entries.map(|e| e.expect("entries can be read").path());
    let mut folders: Vec<PathBuf> = folders.filter(|p| p.join("model.onnx").is_file()).collect();
    folders.sort();
    folders
}

fn fixtures() -> Vec<PathBuf> {
    models(&root().join("tests/fixtures/onnx"))
}

/// Further exports that need not be there.
fn shared() -> Vec<PathBuf> {
    let beside = || root().join("../shared");
    let root = std::env::var_os("LITE3R_SHARED").map_or_else(beside, PathBuf::from).join("onnx");
    let found = [models(&root), models(&root.join("ops"))].concat();
    if found.is_empty() {
        eprintln!("skipped: no further exports at {}", root.display());
    }
    found
}

type Case = (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>);

/// Inputs and outputs by case: `in_S3_x.npy` is input `x` of case `S3`, `in_x.npy` that of the case without a name.
fn cases(folder: &Path) -> BTreeMap<String, Case> {
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("entries can be read").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.extension().is_none_or(|e| e != "npy") {
            continue;
        }
        let (side, rest) = stem.split_once('_').expect("in_ or out_");
        let (case, name) = match rest.split_once('_') {
            Some((s, name)) if s.starts_with('S') && s[1..].parse::<usize>().is_ok() => (s, name),
            _ => ("", rest),
        };
        let case = cases.entry(case.into()).or_default();
        let values = if side == "in" { &mut case.0 } else { &mut case.1 };
        values.insert(name.into(), npy::read(&path).expect("arrays can be read"));
    }
    cases
}

/// Compiles for every recorded case at once and returns the worst error over all of them.
fn worst(folder: &Path, precision: Precision, target: &dyn backend::Target) -> f64 {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let cases = cases(folder);
    let model = Model::Onnx { path: folder.join("model.onnx"), random_weights: None };
    let symbolic = lite3r::onnx::import(&folder.join("model.onnx"))
        .map(|m| lite3r_ir::passes::specialize::free_symbols(&m.graph))
        .unwrap_or_else(|_| vec!["S".into()]);
    let views: BTreeSet<usize> =
        cases.values().flat_map(|c| c.0.values()).filter(|t| t.shape().len() == 5).map(|t| t.shape()[1]).collect();
    let bind = match symbolic.as_slice() {
        [] => Vec::new(),
        [one] => vec![compile::options::Bind { symbol: one.clone(), values: views.into_iter().collect() }],
        many => panic!("{name}: symbols {many:?}"),
    };
    let options = Options { bind, precision: precision.for_target(target), ..Options::default() };
    let compiled = compile::compile(&model, &options, &mut |_, _, _| true).unwrap_or_else(|e| panic!("{name}: {e}"));
    let plan = compile::plan(&compiled, target).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut session = Session::new(plan, &session::Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut worst = 0.0;
    for (case, (inputs, outputs)) in &cases {
        let entry = session.entry_for(inputs).unwrap_or_else(|e| panic!("{name} {case}: {e}"));
        let got = session.run(entry, inputs).unwrap_or_else(|e| panic!("{name} {case}: {e}"));
        assert!(!outputs.is_empty(), "{name} {case}: nothing was recorded");
        for (output, want) in outputs {
            let (got, want) = (got[output].to_f64(), want.to_f64());
            assert_eq!(got.len(), want.len(), "{name} {case} {output}");
            let difference: f64 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
            let norm: f64 = want.iter().map(|b| b * b).sum();
            worst = f64::max(worst, (difference / norm.max(1e-30)).sqrt());
        }
    }
    worst
}

fn check(folders: &[PathBuf], target: &dyn backend::Target, limit: f64) {
    let mut problems = Vec::new();
    for folder in folders.iter().filter(|f| !f.ends_with(REFUSED)) {
        let name = folder.file_name().expect("a name").to_string_lossy();
        let limit = if name.contains("f16") { HALF_LIMIT } else { limit };
        let error = worst(folder, Precision::F32, target);
        eprintln!("{name}: {error:.1e}");
        if error.is_nan() || error > limit {
            problems.push(format!("{name}: {error:e} is over {limit:e}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn fixtures_meet_their_recorded_outputs() {
    let folders = fixtures();
    assert!(folders.len() >= 40, "{} fixtures", folders.len());
    check(&folders, target(), LIMIT);
}

/// The same on whatever adapter there is, a software one too.
#[cfg(feature = "wgpu")]
#[test]
fn fixtures_meet_their_recorded_outputs_through_wgsl() {
    if backend::wgsl::adapter::adapters().is_empty() {
        assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "an adapter was asked for and is not there");
        return eprintln!("skipped: no adapter");
    }
    check(&fixtures(), &backend::wgsl::PORTABLE, WGSL_LIMIT);
}

#[test]
fn double_precision_at_run_time_is_refused() {
    let path = root().join("tests/fixtures/onnx").join(REFUSED).join("model.onnx");
    let model = Model::Onnx { path, random_weights: None };
    let compiled = compile::compile(&model, &Options::default(), &mut |_, _, _| true).unwrap();
    let error = compile::plan(&compiled, target()).unwrap_err();
    assert_eq!(error.code, "plan.graph");
    assert!(error.problems.iter().all(|p| p.contains("no backend has f64")), "{error}");
}

#[test]
fn further_exports_meet_their_recorded_outputs() {
    check(&shared(), target(), LIMIT);
}

/// Random weights exaggerate what rounding does; still nothing may be lost.
#[test]
fn lower_precisions_run() {
    let backbones = ["vggt_ts17", "vggt_dyn23", "da3_s_dyn23"];
    for folder in fixtures().iter().filter(|f| backbones.iter().any(|b| f.ends_with(b))) {
        for (precision, limit) in
            [(Precision::Bf16, 0.1), (Precision::Fp8w(Vec::new()), 0.5), (Precision::Fp8(Vec::new()), 0.5)]
        {
            let label = format!("{} {precision}", folder.file_name().expect("a name").to_string_lossy());
            let error = worst(folder, precision, target());
            eprintln!("{label}: {error:.1e}");
            assert!(error > 0.0 && error < limit, "{label}: {error:e} is over {limit:e}");
        }
    }
}

/// What is printed parses to the same graph, as it was imported and after the whole pipeline.
#[test]
fn text_round_trips() {
    for folder in fixtures().into_iter().chain(shared()) {
        let path = folder.join("model.onnx");
        let bound = lite3r::onnx::import(&path).expect("fixtures import").graph;
        let symbolic = lite3r_ir::passes::specialize::free_symbols(&bound);
        let bind = symbolic.into_iter().map(|symbol| compile::options::Bind { symbol, values: vec![3] }).collect();
        let options = Options { bind, ..Options::default() };
        let model = Model::Onnx { path, random_weights: None };
        let compiled = compile::compile(&model, &options, &mut |_, _, _| true).expect("fixtures compile");
        for graph in [&bound, &compiled.entries[0].graph] {
            let text = lite3r_ir::text::print(graph);
            let parsed = lite3r_ir::text::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            assert_eq!(lite3r_ir::text::difference(graph, &parsed), None, "{}", folder.display());
        }
    }
}
