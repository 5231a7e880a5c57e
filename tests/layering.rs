//! The direction of dependence between the modules of `lite3r`: `ir <- {onnx, plan, backend} <- session <- {recon,
//! eval, cli} <- bin`. A module may use what stands in its row, and nothing else.

use std::{collections::BTreeSet, fs, path::Path};

/// Modules that every module may use.
const COMMON: &[&str] = &["error", "Error", "Kind", "Result", "atomic", "geometry", "rng", "npy", "clock"];

const ALLOWED: &[(&str, &[&str])] = &[
    ("weights", &[]),
    ("onnx", &["weights"]),
    ("backbones", &["weights"]),
    // A device sees plans; a plan asks a target for kernels.
    ("plan", &["weights", "backend"]),
    ("backend", &["plan", "weights"]),
    ("session", &["plan", "backend"]),
    ("compile", &["onnx", "backbones", "weights", "plan", "backend", "recon"]),
    ("recon", &[]),
    ("scenes", &[]),
    ("data", &["recon", "scenes"]),
    ("eval", &[]),
    ("predict", &["plan", "recon"]),
    ("benchmark", &["plan", "session", "predict", "recon", "scenes", "data", "eval"]),
    ("demo", &["compile", "plan", "backend", "session", "recon", "scenes", "eval"]),
    ("train", &["compile", "backbones", "weights", "plan", "backend", "session", "recon", "scenes", "data"]),
    (
        "cli",
        &[
            "compile",
            "plan",
            "backend",
            "session",
            "recon",
            "scenes",
            "data",
            "eval",
            "demo",
            "onnx",
            "weights",
            "predict",
            "benchmark",
            "train",
        ],
    ),
];

/// The first path segments behind `crate::` in a source; comments do not count.
fn uses(source: &str) -> BTreeSet<String> {
    let code = source.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let source = code.as_str();
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            // A use list: names at its own level.
            Some(inner) => {
                let (mut depth, mut names, mut name) = (0, Vec::new(), String::new());
                for c in inner.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                        c if depth == 0 => name.push(c),
                        _ => {}
                    }
                }
                names.push(name);
                names
            }
            None => vec![rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()],
        };
        for name in list {
            let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() && name != "self" {
                found.insert(name);
            }
        }
    }
    found
}

fn sources(path: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(path).expect("src can be read") {
        let path = entry.expect("entries can be read").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn modules_depend_downwards() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut problems = Vec::new();
    for file in &files {
        let inside = file.strip_prefix(&src).expect("below src");
        let module = inside.components().next().expect("a name").as_os_str().to_string_lossy().replace(".rs", "");
        // Tests of a module may run it through what stands above.
        let tests = inside.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "tests.rs");
        if tests || ["lib", "bin"].contains(&module.as_str()) || COMMON.contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(m, _)| *m == module) else {
            problems.push(format!("module `{module}` has no row"));
            continue;
        };
        let source = fs::read_to_string(file).expect("sources are text");
        for used in uses(&source) {
            let fine = used == module || COMMON.contains(&used.as_str()) || allowed.contains(&used.as_str());
            if !fine {
                problems.push(format!("{} uses `{used}`", inside.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn petgraph_is_named_in_one_file() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("ir/src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let naming: Vec<_> = files
        .iter()
        .filter(|f| fs::read_to_string(f).expect("sources are text").contains("petgraph::"))
        .map(|f| f.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(naming, ["graph.rs"]);
}

#[test]
fn use_lists_are_read() {
    let found = uses("use crate::{\n  Error,\n  plan::{self, build},\n  recon::points,\n}; crate::weights::x");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["Error", "plan", "recon", "weights"]);
}
