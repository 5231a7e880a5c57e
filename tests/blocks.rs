//! What every pass makes of the parts of a backbone: a frame block, a global block, a camera block and a DPT stage of
//! an exported model, followed through the whole pipeline down to sparse attention and FP8.

use std::{fmt::Write, path::Path};

use lite3r::compile::{self, Model, Options};
use lite3r_ir::{Graph, text::Printer};

/// The operations of a module, with values numbered by their first appearance.
fn excerpt(graph: &Graph, module: &str) -> String {
    let text = Printer { elide: Some(4), locs: true }.text(graph);
    let mut names: Vec<String> = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        let Some((statement, _)) = line.split_once("  // at ").filter(|(_, origin)| origin.contains(module)) else {
            continue;
        };
        let mut rest = statement.trim();
        while let Some(at) = rest.find('%') {
            let end = at + 1 + rest[at + 1..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').count();
            let name = &rest[at + 1..end];
            let number = names.iter().position(|n| n == name).unwrap_or_else(|| {
                names.push(name.into());
                names.len() - 1
            });
            write!(out, "{}%{number}", &rest[..at]).unwrap();
            rest = &rest[end..];
        }
        writeln!(out, "{rest}").unwrap();
    }
    out
}

/// The module after every pass that changes what it looks like.
fn history(module: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/vggt_ts17/model.onnx");
    let sla = "global=sla{keep=0.5,block_q=4,block_k=2,router=sub2,form=centroid}";
    let options = Options {
        attention: vec![sla.parse().unwrap()],
        precision: "fp8{exclude=[]}".parse().unwrap(),
        ..Options::default()
    };
    let (mut shown, mut last) = (String::new(), String::new());
    compile::compile(&Model::Onnx { path, random_weights: None }, &options, &mut |_, step, graph| {
        let now = excerpt(graph, module);
        if now != last {
            write!(shown, "## {}{}\n{now}\n", step.pass, step.options).unwrap();
            last = now;
        }
        true
    })
    .unwrap();
    assert!(shown.matches("## ").count() > 3, "{module}: nothing happens to it:\n{shown}");
    shown
}

#[test]
fn frame_block() {
    insta::assert_snapshot!(history("frame_blocks.0/"));
}

#[test]
fn global_block() {
    insta::assert_snapshot!(history("global_blocks.0/"));
}

#[test]
fn camera_block() {
    insta::assert_snapshot!(history("camera_head/trunk.0/"));
}

#[test]
fn dpt_stage() {
    insta::assert_snapshot!(history("depth_head/refinenet2"));
}
