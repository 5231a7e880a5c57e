//! The text form: round trips of hand-written and of random graphs, and the wording of errors.

use std::fs;

use lite3r_ir::{
    Builder, DType, Graph, Op, Tensor, ValueType,
    ops::{Add, Exp, MatMul, Reshape},
    text::{self, Printer},
};
use proptest::prelude::*;

fn read(name: &str) -> String {
    let path = format!("{}/tests/text/{name}.ir", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every mistake of a text, as a user sees it.
fn mistakes(name: &str) -> String {
    text::parse(&read(name)).expect_err("the text has mistakes").to_string()
}

#[test]
fn canonical_text_is_a_fixed_point() {
    let graph = text::parse(&read("canonical")).unwrap();
    let locs = Printer { locs: true, ..Printer::default() };
    assert_eq!(locs.text(&graph), read("canonical"));
    assert_eq!(text::print(&text::parse(&text::print(&graph)).unwrap()), text::print(&graph));
}

#[test]
fn free_text_becomes_canonical() {
    insta::assert_snapshot!(text::print(&text::parse(&read("free")).unwrap()));
}

#[test]
fn all_mistakes_are_reported_at_once() {
    insta::assert_snapshot!("lexical", mistakes("lexical"));
    insta::assert_snapshot!("syntax", mistakes("syntax"));
    insta::assert_snapshot!("names", mistakes("names"));
    insta::assert_snapshot!("attributes", mistakes("attributes"));
}

#[test]
fn elided_constants_show_a_hash_and_do_not_parse() {
    let mut graph = Graph::new("g");
    let table = Builder::new(&mut graph, "").constant(Tensor::wave(DType::F32, &[64], 1));
    graph.output("y", table);
    let text = Printer { elide: Some(16), ..Printer::default() }.text(&graph);
    insta::assert_snapshot!("elided", format!("{text}\n{}", text::parse(&text).unwrap_err()));
    assert!(text::same(&text::parse(&text::print(&graph)).unwrap(), &graph));
}

#[test]
fn special_numbers_survive() {
    let special = [f64::INFINITY, f64::NEG_INFINITY, -0.0, 5e-324, 1e300, 0.1, f64::MAX];
    let nan = [f64::NAN, 1.0];
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        for values in [special.as_slice(), nan.as_slice(), &[]] {
            let mut graph = Graph::new("g");
            let c = Builder::new(&mut graph, "").constant(Tensor::from_f64(dtype, &[values.len()], values));
            graph.output("y", c);
            let back = text::parse(&text::print(&graph)).unwrap();
            assert_eq!(text::difference(&graph, &back), None, "{graph}");
        }
    }
    let limits = Tensor::from_i64(DType::I64, &[2], &[i64::MIN, i64::MAX]);
    let mut graph = Graph::new("g");
    let c = Builder::new(&mut graph, "").constant(limits);
    graph.output("y", c);
    assert!(text::same(&text::parse(&text::print(&graph)).unwrap(), &graph));
}

/// A random graph over the operations that accept anything; every value so far may be an operand.
fn graphs() -> impl Strategy<Value = Graph> {
    let name = prop_oneof!["[a-z][a-z0-9_.]{0,6}", "[0-9]{1,3}", "\\PC{0,6}", Just("onnx::MatMul_12".into())];
    let steps = prop::collection::vec((0usize..5, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..24);
    let names = prop::collection::btree_set(name.clone(), 4..8);
    (names, name, steps, prop::collection::vec(any::<f32>(), 1..40)).prop_map(|(names, origin, steps, values)| {
        let names: Vec<String> = names.into_iter().collect();
        let square = |d: &str| ValueType::new(DType::F32, [d.parse::<lite3r_ir::Dim>().unwrap(), 4.into(), 4.into()]);
        let mut graph = Graph::new(names[0].as_str());
        let mut all: Vec<_> = names[1..3].iter().map(|n| graph.input(n.as_str(), square("2*S-1"))).collect();
        all.extend(names[2..].iter().map(|n| graph.param(n.as_str(), square("1"))));
        let mut builder = Builder::new(&mut graph, origin.as_str());
        for (kind, a, b) in steps {
            let (a, b) = (*a.get(&all), *b.get(&all));
            let new = match kind {
                0 => builder.op(Exp {}, &[a]),
                1 => builder.op(Add {}, &[a, b]),
                2 => builder.op(MatMul { transpose_b: a.node < b.node }, &[a, b]),
                3 => {
                    let shape = builder.graph.ty(a).shape.clone();
                    builder.op(Reshape { shape }, &[a])
                }
                _ => Ok(builder
                    .constant(Tensor::from_f32(&[values.len()], values.clone()).reshaped(&[values.len()]).unwrap())),
            };
            match new {
                Ok(value) => all.push(value),
                Err(e) => assert!(
                    e.problem.contains("broadcast") || e.problem.contains("rank") || e.problem.contains("inner"),
                    "{e}"
                ),
            }
        }
        for (i, value) in all.iter().rev().take(3).enumerate() {
            graph.output(format!("{}{i}", names[3]), *value);
        }
        graph
    })
}

proptest! {
    #[test]
    fn random_graphs_round_trip(graph in graphs()) {
        let locs = Printer { locs: true, ..Printer::default() };
        let printed = locs.text(&graph);
        let back = text::parse(&printed).map_err(|e| TestCaseError::fail(format!("{e}\n{printed}")))?;
        prop_assert_eq!(text::difference(&graph, &back), None);
        prop_assert_eq!(locs.text(&back), printed);
        prop_assert_eq!(graph.len(), back.len());
    }

    #[test]
    fn no_text_panics(noise in "\\PC{0,60}", cut in 0usize..2000) {
        let _ = text::parse(&noise);
        let text = read("canonical");
        let cut = (0..=cut.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let _ = text::parse(&text[..cut]);
        let _ = text::parse(&format!("{}{noise}{}", &text[..cut], &text[cut..]));
    }
}

#[test]
fn every_case_of_every_operation_round_trips() {
    for case in Op::all_cases() {
        let mut graph = Graph::new("case");
        let mut builder = Builder::new(&mut graph, "");
        let operands: Vec<_> = case.inputs.iter().map(|t| builder.constant(t.clone())).collect();
        let results = builder.ops(case.op.clone(), &operands).unwrap();
        for (i, value) in results.into_iter().enumerate() {
            graph.output(format!("y{i}"), value);
        }
        let back =
            text::parse(&text::print(&graph)).unwrap_or_else(|e| panic!("{} {}: {e}", case.op.name(), case.name));
        assert_eq!(text::difference(&graph, &back), None, "{} {}", case.op.name(), case.name);
    }
}
