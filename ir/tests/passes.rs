//! Every pass on the graphs of its folder: `tests/passes/<pass>/*.ir`.
//!
//! A file is one graph. A first line `// pass sla{keep=0.3}` gives options; a line `// bind S=3` gives symbols values
//! for evaluation (3 by default). The pass runs, the result is verified, swept by `dce` and kept as a snapshot
//! together with the report. Where the pass promises equal results (see [`Effect`]), the reference evaluator holds it
//! to that on reproducible inputs.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use lite3r_ir::{
    Bindings, DType, Graph, Tensor, ValueType,
    interpret::interpret,
    ops::Op,
    passes::{self, Effect, Options, Pass, Report, dce::DCE, pipeline, specialize},
    text, verify,
};

#[test]
fn every_pass_on_its_graphs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes");
    let mut failures = Vec::new();
    for folder in sorted(&root) {
        let name = folder.file_name().and_then(|n| n.to_str()).expect("a folder of a pass").to_string();
        for file in sorted(&folder).into_iter().filter(|f| f.extension().is_some_and(|e| e == "ir")) {
            let case = file.file_stem().and_then(|n| n.to_str()).expect("a name").to_string();
            let source = fs::read_to_string(&file).expect("a readable file");
            match run(&name, &source) {
                Ok(shown) => insta::with_settings!({
                    snapshot_path => folder.join("snapshots"),
                    prepend_module_to_snapshot => false,
                    omit_expression => true,
                }, { insta::assert_snapshot!(case, shown) }),
                Err(problem) => failures.push(format!("{name}/{case}: {problem}")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    all
}

/// The result and the report as the snapshot shows them. A refusal is a result too.
fn run(pass: &str, source: &str) -> Result<String, String> {
    let header = |key: &str| source.lines().find_map(|line| line.strip_prefix("// ")?.strip_prefix(key));
    let chosen = header("pass ").unwrap_or(pass);
    let selected = pipeline::select(chosen, passes::ALL).map_err(|e| e.to_string())?;
    let bindings = bindings(header("bind ").unwrap_or_default());
    let before: Graph = text::parse(source).map_err(|e| e.to_string())?;
    verify(&before).map_err(|e| e.to_string())?;
    let mut after = before.clone();
    let mut shown = String::new();
    for chosen in &selected {
        let report = match (chosen.pass.run)(&mut after, &chosen.options) {
            Ok(report) => report,
            Err(error) => return Ok(format!("error: {error}\n")),
        };
        verify(&after).map_err(|e| format!("after `{}`: {e}", chosen.pass.name))?;
        agree(&before, &after, chosen.pass, &bindings)?;
        show(&mut shown, chosen.pass, &report);
    }
    (DCE.run)(&mut after, &Options::default()).map_err(|e| e.to_string())?;
    Ok(format!("{}{shown}", text::print(&after)))
}

fn show(out: &mut String, pass: &Pass, report: &Report) {
    for (what, n) in &report.counts {
        let _ = writeln!(out, "// {}: {n} {what}", pass.name);
    }
    for note in &report.notes {
        let _ = writeln!(out, "// {}: {note}", pass.name);
    }
}

fn bindings(text: &str) -> Bindings {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_string(), value.trim().parse().expect("a number"))).collect()
}

/// Whether both graphs compute the same, as far as the pass promises it. Both are evaluated in any case.
fn agree(before: &Graph, after: &Graph, pass: &Pass, given: &Bindings) -> Result<(), String> {
    let mut bindings: Bindings = specialize::free_symbols(before).into_iter().map(|s| (s, 3)).collect();
    bindings.extend(given.clone());
    let [want, got] = [before, after].map(|graph| {
        let graph = specialize::bind(graph, &bindings).map_err(|e| e.to_string())?;
        let inputs: BTreeMap<String, Tensor> = graph
            .inputs()
            .iter()
            .filter_map(|id| match graph.op(*id) {
                Op::Input(op) => Some((op.name.clone(), wave(&op.name, &op.ty))),
                _ => None,
            })
            .collect();
        let params: BTreeMap<String, Tensor> = graph
            .node_ids()
            .filter_map(|id| match graph.op(id) {
                Op::Param(op) => Some((op.name.clone(), wave(&op.name, &op.ty))),
                _ => None,
            })
            .collect();
        interpret(&graph, &inputs, &|name| params.get(name).cloned()).map_err(|e| e.to_string())
    });
    let (want, got) = (want?, got?);
    for (name, got) in &got {
        let Some(want) = want.get(name) else { continue };
        let tolerance = match pass.effect {
            Effect::Exact => 0.0,
            Effect::Reassociates => 64.0 * want.dtype().epsilon(),
            Effect::Approximates => continue,
        };
        let (got, want) = (got.to_f64(), want.to_f64());
        let scale = want.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
        let near = |(g, w): (&f64, &f64)| g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= tolerance * scale;
        if got.len() != want.len() || !got.iter().zip(&want).all(near) {
            let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0f64, f64::max);
            return Err(format!("after `{}` output `{name}` differs by {worst:e} (scale {scale:e})", pass.name));
        }
    }
    Ok(())
}

/// A value that depends on the name alone, so that a graph and its rewriting see the same. Integers are zero.
fn wave(name: &str, ty: &ValueType) -> Tensor {
    let shape = ty.dims().expect("symbols are bound");
    let seed = name.bytes().fold(7u64, |h, b| (h * 31 + b as u64) % 0xffff_ffff);
    match ty.dtype.is_float() {
        true => Tensor::wave(ty.dtype, &shape, seed),
        false => Tensor::wave(DType::F32, &shape, seed).cast(ty.dtype),
    }
}
