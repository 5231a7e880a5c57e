//! Gradients against central differences in f64.
//!
//! Every case of every operation is put into a graph y = f(x), L = Σ w·y with fixed weights w; for some directions d,
//! ⟨∂L/∂x, d⟩ must be (L(x + h d) − L(x − h d)) / 2h.

use std::collections::{BTreeMap, BTreeSet};

use lite3r_ir::{
    Builder, DType, Graph, Op, Tensor, Value,
    interpret::interpret,
    ops::{Add, Case, Mul, ReduceSum},
    passes::grad::grad,
};
use rayon::prelude::*;

/// Half the distance of two points; the smaller one where a function of many values has a kink between them.
const STEPS: [f64; 2] = [1e-5, 1e-8];
const RELATIVE: f64 = 1e-4;
const DIRECTIONS: u64 = 2;

/// Operations whose cases are moved to where they are smooth: x becomes |x| + 1/2.
const POSITIVE: &[&str] = &["log", "sqrt", "pow", "remainder", "reduce_prod"];

/// Operations without a gradient, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("input", "is a source"),
    ("param", "is a source"),
    ("constant", "is a source"),
    ("range", "makes integers"),
    ("not", "makes truth values"),
    ("equal", "makes truth values"),
    ("less", "makes truth values"),
    ("less_equal", "makes truth values"),
    ("and", "makes truth values"),
    ("or", "makes truth values"),
    ("arg_max", "makes integers"),
    ("arg_min", "makes integers"),
    ("cast", "rounds: see below"),
    ("block_route", "chooses; its mass counts as given"),
    ("stop_gradient", "stops it"),
    ("fake_quantize", "is straight through: not the derivative of what it computes"),
    ("pointwise", "stands for a chain that is differentiated before `fuse_pointwise`"),
    ("attention_grad", "is a gradient"),
    ("block_attention_grad", "is a gradient"),
    ("block_transpose", "makes integers"),
    ("qkv_heads", "is made by `fuse_heads`"),
    ("qkv_linear", "is made by `fuse_qkv`"),
    ("self_attention", "is made by `fuse_self_attention`"),
    ("quantize", "makes codes"),
    ("quantize_items", "makes codes"),
    ("dequantize", "reads codes"),
    ("scaled_linear", "reads codes"),
    ("scaled_conv2d", "reads codes"),
    ("weight_scaled_linear", "reads codes"),
    ("layer_norm_quantize", "makes codes"),
    ("scatter_add", "is a gradient"),
    ("layer_norm_grad", "is a gradient"),
    ("conv2d_weight_grad", "is a gradient"),
    ("resize_grad", "is a gradient"),
];

/// A case as a graph of f64 with its inputs; none where the operation does not take f64.
fn graph_of(case: &Case) -> Option<(Graph, BTreeMap<String, Tensor>, Vec<Value>)> {
    let mut graph = Graph::new("case");
    let (mut inputs, mut operands, mut sources) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (i, tensor) in case.inputs.iter().enumerate() {
        if !tensor.dtype().is_float() {
            operands.push(Builder::new(&mut graph, "").constant(tensor.clone()));
            continue;
        }
        let name = format!("x{i}");
        // Numbers of few bits like to lie where functions have steps.
        let moved = |x: &f64| if POSITIVE.contains(&case.op.name()) { x.abs() + 0.5 } else { x + 0.0123 };
        let wide: Vec<f64> = tensor.to_f64().iter().map(moved).collect();
        let wide = Tensor::from_f64(DType::F64, tensor.shape(), &wide);
        let value = graph.input(&name, wide.value_type());
        inputs.insert(name, wide);
        operands.push(value);
        sources.push(value);
    }
    let mut build = Builder::new(&mut graph, "case");
    let results = build.ops(case.op.clone(), &operands).ok()?;
    let mut loss: Option<Value> = None;
    for (slot, y) in results.into_iter().enumerate() {
        let ty = build.graph.ty(y).clone();
        if ty.dtype != DType::F64 {
            continue;
        }
        let weights = build.constant(Tensor::wave(DType::F64, &ty.dims()?, 77 + slot as u64));
        let product = build.op(Mul {}, &[y, weights]).ok()?;
        let sum = build.op(ReduceSum { axes: (0..ty.rank()).collect(), keep: false }, &[product]).ok()?;
        loss = Some(match loss {
            Some(loss) => build.op(Add {}, &[loss, sum]).ok()?,
            None => sum,
        });
    }
    graph.output("loss", loss?);
    Some((graph, inputs, sources))
}

fn run(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    interpret(graph, inputs, &|_| None).expect("evaluates")
}

fn moved(inputs: &BTreeMap<String, Tensor>, by: f64, seed: u64) -> BTreeMap<String, Tensor> {
    let shift = |(i, (name, x)): (usize, (&String, &Tensor))| {
        let d = Tensor::wave(DType::F64, x.shape(), seed * 1000 + i as u64).to_f64();
        let values: Vec<f64> = x.to_f64().iter().zip(d).map(|(x, d)| x + by * d).collect();
        (name.clone(), Tensor::from_f64(DType::F64, x.shape(), &values))
    };
    inputs.iter().enumerate().map(shift).collect()
}

/// The gradient of a case against differences. Answers whether there was anything to differentiate.
fn check(case: &Case) -> Result<bool, String> {
    let Some((graph, inputs, sources)) = graph_of(case) else { return Ok(false) };
    let elements: usize = inputs.values().map(Tensor::len).sum();
    if sources.is_empty() || elements == 0 {
        return Ok(false);
    }
    let name = format!("{} {}", case.op.name(), case.name);
    let mut reverse = graph.clone();
    let loss = graph.outputs()[0].1;
    let gradients = grad(&mut reverse, loss, &sources).map_err(|e| format!("{name}: {e}"))?;
    for ((key, source), gradient) in inputs.keys().zip(&sources).zip(gradients) {
        let Some(gradient) = gradient else { continue };
        assert_eq!(reverse.ty(gradient), reverse.ty(*source), "{name}: {key}");
        reverse.output(format!("grad.{key}"), gradient);
    }
    let outputs = run(&reverse, &inputs);
    for seed in 1..=DIRECTIONS {
        let at = |by: f64| run(&graph, &moved(&inputs, by, seed))["loss"].item().expect("a scalar");
        let (mut got, mut size) = (0.0, 0.0);
        for (i, (key, x)) in inputs.iter().enumerate() {
            let Some(gradient) = outputs.get(&format!("grad.{key}")) else { continue };
            let d = Tensor::wave(DType::F64, x.shape(), seed * 1000 + i as u64).to_f64();
            let products = gradient.to_f64().into_iter().zip(d).map(|(g, d)| g * d);
            for product in products {
                got += product;
                size += product * product;
            }
        }
        let difference = |step: f64| (at(step) - at(-step)) / (2.0 * step);
        // Relative to what the sum would be if its terms did not cancel by chance.
        let near = |expect: f64| (got - expect).abs() <= RELATIVE * expect.abs().max(f64::sqrt(size)).max(1e-6);
        if !STEPS.into_iter().any(|step| near(difference(step))) {
            return Err(format!("{name}: {got} for {}, direction {seed}", difference(STEPS[0])));
        }
    }
    Ok(true)
}

#[test]
fn gradients_of_all_operations_meet_differences() {
    let without: BTreeSet<&str> = WITHOUT.iter().map(|(name, _)| *name).collect();
    // Closed forms like to stand where a function has a kink, and codes are steps.
    let smooth = |c: &Case| !without.contains(c.op.name()) && c.expect.is_none() && !c.name.starts_with("codes_");
    let cases: Vec<Case> = Op::all_cases().into_iter().filter(smooth).collect();
    let outcomes: Vec<(&str, Result<bool, String>)> = cases.par_iter().map(|c| (c.op.name(), check(c))).collect();
    let wrong: Vec<&String> = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let done: BTreeSet<&str> = outcomes.iter().filter(|(_, o)| *o == Ok(true)).map(|(name, _)| *name).collect();
    let missing: Vec<&&str> = Op::NAMES.iter().filter(|n| !without.contains(**n) && !done.contains(**n)).collect();
    assert!(missing.is_empty(), "no case of these was differentiated: {missing:?}");
}

#[test]
fn casts_pass_cotangents_on_in_the_type_of_their_operand() {
    let source = "graph @g(%x: f16[2], %w: f32[2]) -> (loss: f32[]) {\n  %0 = cast(%x) {to=f32}\n  %1 = mul(%0, %w)\n  \
                  %2 = reduce_sum(%1) {axes=[0],keep=false}\n  return loss=%2\n}";
    let mut graph: Graph = source.parse().unwrap();
    let (x, loss) = (Value { node: graph.inputs()[0], slot: 0 }, graph.outputs()[0].1);
    let gradient = grad(&mut graph, loss, &[x]).unwrap()[0].expect("the loss depends on x");
    graph.output("g", gradient);
    let w = Tensor::from_f32(&[2], vec![0.5, -3.0]);
    let inputs = BTreeMap::from([("x".into(), Tensor::wave(DType::F16, &[2], 1)), ("w".into(), w.clone())]);
    assert_eq!(run(&graph, &inputs)["g"], w.cast(DType::F16));
}
