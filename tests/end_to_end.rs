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

/// What is computed of every recorded case: the results by case, then by name.
type Results = BTreeMap<String, session::Outputs>;

/// Compiles for every recorded case at once and runs each.
fn results(folder: &Path, options: Options, target: &dyn backend::Target) -> Results {
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
    let heads = target.dense_heads();
    let options = Options { bind, precision: options.precision.clone().for_target(target), heads, ..options };
    let compiled = compile::compile(&model, &options, &mut |_, _, _| true).unwrap_or_else(|e| panic!("{name}: {e}"));
    let plan = compile::plan(&compiled, target).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut session = Session::new(plan, &session::Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut run = |(case, (inputs, _)): (&String, &Case)| {
        let entry = session.entry_for(inputs).unwrap_or_else(|e| panic!("{name} {case}: {e}"));
        (case.clone(), session.run(entry, inputs).unwrap_or_else(|e| panic!("{name} {case}: {e}")))
    };
    cases.iter().map(&mut run).collect()
}

/// The worst relative error over all cases and what is wanted of each.
fn error<'w>(got: &Results, wanted: impl IntoIterator<Item = (&'w String, &'w BTreeMap<String, Tensor>)>) -> f64 {
    let mut worst = 0.0;
    for (case, outputs) in wanted {
        assert!(!outputs.is_empty(), "{case}: nothing was recorded");
        for (output, want) in outputs {
            let (got, want) = (got[case][output].to_f64(), want.to_f64());
            assert_eq!(got.len(), want.len(), "{case} {output}");
            let difference: f64 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
            let norm: f64 = want.iter().map(|b| b * b).sum();
            worst = f64::max(worst, (difference / norm.max(1e-30)).sqrt());
        }
    }
    worst
}

/// The worst error against what was recorded.
fn worst(folder: &Path, precision: Precision, target: &dyn backend::Target) -> f64 {
    let got = results(folder, Options { precision, ..Options::default() }, target);
    error(&got, cases(folder).iter().map(|(case, (_, outputs))| (case, outputs)))
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

/// Sparse attention of every form, weights of 8 bits, and everything in small parts: as the CPU computes it.
#[cfg(feature = "wgpu")]
#[test]
fn variants_through_wgsl_meet_the_cpu() {
    if backend::wgsl::adapter::adapters().is_empty() {
        assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "an adapter was asked for and is not there");
        return eprintln!("skipped: no adapter");
    }
    let sla = |form: &str| {
        let rule = format!("global=sla{{keep=0.5,block_q=16,block_k=16,{form}}}");
        Options { attention: vec![rule.parse().unwrap()], ..Options::default() }
    };
    // All else in f32, as the CPU has it where nobody says.
    let fp8w = Options { precision: "fp8w{rest=f32}".parse().unwrap(), ..Options::default() };
    let portable = &backend::wgsl::PORTABLE;
    let variants = [
        ("sparse", sla("form=sparse"), portable),
        ("add", sla("form=add"), portable),
        ("mix", sla("form=mix"), portable),
        ("centroid", sla("router=sub16,form=centroid"), portable),
        ("fp8w", fp8w, portable),
        ("in parts", Options::default(), &backend::wgsl::Wgsl { binding: 1 << 17 }),
    ];
    let backbones = ["vggt_ts17", "da3_s_dyn23"];
    let mut problems = Vec::new();
    for folder in fixtures().iter().filter(|f| backbones.iter().any(|b| f.ends_with(b))) {
        for (what, options, target) in &variants {
            let label = format!("{} {what}", folder.file_name().expect("a name").to_string_lossy());
            let wanted = results(folder, options.clone(), &backend::cpu::Cpu);
            let error = error(&results(folder, options.clone(), *target), &wanted);
            eprintln!("{label}: {error:.1e}");
            if error.is_nan() || error > WGSL_LIMIT {
                problems.push(format!("{label}: {error:e} is over {WGSL_LIMIT:e}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
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
        for (precision, limit) in [
            (Precision::Bf16, 0.1),
            (Precision::F16, 0.02),
            (Precision::Fp8w(Vec::new()), 0.5),
            (Precision::Fp8(Vec::new()), 0.5),
        ] {
            lower(folder, precision, target(), limit);
        }
    }
}

/// In f16, with weights of 32 and of 8 bits, on whatever adapter there is.
#[cfg(feature = "wgpu")]
#[test]
fn lower_precisions_run_through_wgsl() {
    if backend::wgsl::adapter::adapters().is_empty() {
        assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "an adapter was asked for and is not there");
        return eprintln!("skipped: no adapter");
    }
    for folder in fixtures().iter().filter(|f| f.ends_with("vggt_dyn23") || f.ends_with("da3_s_dyn23")) {
        lower(folder, Precision::F16, &backend::wgsl::PORTABLE, 0.02);
        lower(folder, Precision::Fp8w(Vec::new()), &backend::wgsl::PORTABLE, 0.5);
    }
}

fn lower(folder: &Path, precision: Precision, target: &dyn backend::Target, limit: f64) {
    let label = format!("{} {precision}", folder.file_name().expect("a name").to_string_lossy());
    let error = worst(folder, precision, target);
    eprintln!("{label}: {error:.1e}");
    assert!(error > 0.0 && error < limit, "{label}: {error:e} is over {limit:e}");
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
