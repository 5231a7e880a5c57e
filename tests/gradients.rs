//! Gradients as plans: what a device computes of a case and its gradient against the evaluation in f64, and a
//! kernel of every backend for every operation on the way.

use std::collections::BTreeMap;

use lite3r::{
    backend::{Request, TARGETS, Target, cpu::Cpu},
    plan::{EntrySource, Meta, build},
    session::{Options, Session},
    weights::Weights,
};
use lite3r_ir::{
    Bindings, Builder, DType, Graph, Op, Tensor, Value,
    interpret::interpret,
    ops::{Case, Cast, Mul, ReduceSum},
    passes::{Options as PassOptions, dce, grad::grad},
};

/// What is differentiated here.
const FAMILY: &[&str] = &[
    "attention",
    "block_attention",
    "block_mean",
    "linear_attention",
    "layer_norm",
    "conv2d",
    "conv_transpose2d",
    "resize",
    "gather",
    "gather_nd",
    "gather_elements",
    "scatter_elements",
    "scatter_nd",
];

/// A case with Σ w·y as its loss and the gradients of all floating-point operands as outputs, and the operands.
fn graph_of(case: &Case) -> (Graph, BTreeMap<String, Tensor>) {
    let mut graph = Graph::new("case");
    let (mut inputs, mut operands, mut sources) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (i, tensor) in case.inputs.iter().enumerate() {
        let name = format!("x{i}");
        let value = graph.input(&name, tensor.value_type());
        inputs.insert(name, tensor.clone());
        operands.push(value);
        sources.extend(tensor.dtype().is_float().then_some((i, value)));
    }
    let mut build = Builder::new(&mut graph, "case");
    let y = build.op(case.op.clone(), &operands).unwrap();
    let shape = build.graph.ty(y).dims().unwrap();
    let wide = build.op(Cast { to: DType::F32 }, &[y]).unwrap();
    let weights = build.constant(Tensor::wave(DType::F32, &shape, 77));
    let product = build.op(Mul {}, &[wide, weights]).unwrap();
    let loss = build.op(ReduceSum { axes: (0..shape.len()).collect(), keep: false }, &[product]).unwrap();
    let values: Vec<Value> = sources.iter().map(|(_, value)| *value).collect();
    let gradients = grad(&mut graph, loss, &values).unwrap();
    for ((i, _), gradient) in sources.iter().zip(gradients) {
        graph.output(format!("grad.x{i}"), gradient.expect("a loss depends on all operands"));
    }
    (dce::DCE.run)(&mut graph, &PassOptions::default()).unwrap();
    (graph, inputs)
}

/// Cases without codes that are not too large for an evaluation in f64.
fn cases() -> Vec<Case> {
    let fits = |c: &Case| FAMILY.contains(&c.op.name()) && !c.name.starts_with("codes_") && c.inputs[0].len() < 50_000;
    Op::all_cases().into_iter().filter(fits).collect()
}

/// ‖a − b‖ / ‖b‖, and at most what is left of b where that is nothing.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let (a, b) = (a.to_f64(), b.to_f64());
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-2)
}

/// Holds plans for a target against the evaluation.
fn hold(target: &dyn Target) {
    for case in cases() {
        let (graph, inputs) = graph_of(&case);
        let wanted = interpret(&graph, &inputs, &|_| None).unwrap();
        let source = EntrySource { bindings: Bindings::new(), graph };
        let plan = build(&[source], &Weights::default(), target, Meta::default()).unwrap();
        let found = Session::new(plan, &Options::default()).unwrap().run(0, &inputs).unwrap();
        for (name, got) in found {
            let tolerance = if got.dtype() == DType::F32 { 1e-4 } else { 3e-2 };
            let error = relative_error(&got, &wanted[&name]);
            assert!(error < tolerance, "{} {} {name}: {error}", case.op.name(), case.name);
        }
    }
}

#[test]
fn plans_for_the_cpu_give_gradients() {
    hold(&Cpu);
}

#[test]
#[cfg(feature = "wgpu")]
fn plans_for_other_devices_give_gradients() {
    use lite3r::backend::wgsl;
    if wgsl::adapter::adapters().is_empty() {
        assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "an adapter was asked for and is not there");
        return eprintln!("skipped: no adapter");
    }
    hold(&wgsl::PORTABLE);
}

#[test]
fn every_backend_has_the_kernels_of_gradients() {
    for case in cases() {
        let (graph, _) = graph_of(&case);
        for id in graph.node_ids().filter(|id| !matches!(graph.op(*id), Op::Input(_) | Op::Constant(_))) {
            let types = |values: Vec<Value>| values.into_iter().map(|v| graph.ty(v).clone()).collect::<Vec<_>>();
            let (operands, results) = (types(graph.operands(id)), types(graph.results(id).collect()));
            let request = Request { op: graph.op(id), operands: &operands, results: &results };
            for target in TARGETS {
                let gap = target.select(&request).err().map(|gap| gap.clause);
                assert_eq!(gap, None, "{} {}: {} on {}", case.op.name(), case.name, graph.op(id).name(), target.name());
            }
        }
    }
}
