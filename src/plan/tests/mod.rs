//! Plans from end to end: made, checked, saved, opened, run.

mod blocks;
mod containers;
mod problems;
mod random;
mod states;

use std::collections::BTreeMap;

use lite3r_ir::{Bindings, DType, Graph, Op, Tensor, ValueType, interpret::interpret, text::parse};

use super::*;
use crate::{
    backend::{Choice, Gap, Request, Target, cpu::Cpu},
    session::{Options, Session},
    weights::{Weight, Weights},
};

/// A sound graph from text.
fn graph(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    lite3r_ir::verify(&graph).unwrap_or_else(|e| panic!("{e}"));
    graph
}

fn entry(graph: Graph) -> EntrySource {
    EntrySource { bindings: Bindings::new(), graph }
}

/// A wave for every param that has no start of its own.
fn weights_for(graphs: &[&Graph]) -> Weights {
    let mut weights = Weights::default();
    let params = graphs.iter().flat_map(|graph| graph.node_ids().map(|id| graph.op(id))).filter_map(|op| match op {
        Op::Param(param) if param.init.is_empty() => Some(param),
        _ => None,
    });
    for param in params {
        let seed = param.name.bytes().map(u64::from).sum();
        let tensor = Tensor::wave(param.ty.dtype, &param.ty.dims().unwrap(), seed);
        weights.insert(param.name.clone(), Weight::owned(tensor));
    }
    weights
}

fn inputs_for(graph: &Graph) -> BTreeMap<String, Tensor> {
    let wave = |(seed, id): (usize, &lite3r_ir::NodeId)| match graph.op(*id) {
        Op::Input(input) => (input.name.clone(), Tensor::wave(input.ty.dtype, &input.ty.dims().unwrap(), seed as u64)),
        _ => unreachable!("an input"),
    };
    graph.inputs().iter().enumerate().map(wave).collect()
}

fn reference(graph: &Graph, weights: &Weights) -> BTreeMap<String, Tensor> {
    interpret(graph, &inputs_for(graph), &|name| weights.get(name).map(Weight::tensor)).unwrap()
}

fn plan(graph: &Graph, weights: &Weights) -> Plan {
    build(&[entry(graph.clone())], weights, &Cpu, Meta::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// A target whose choices do not change with the kernels of a backend: for snapshots.
struct Plain;

impl Target for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn select(&self, request: &Request<'_>) -> Result<Choice, Gap> {
        let scratch = if request.op.name() == "attention" { 5000 } else { 0 };
        Ok(Choice { kernel: "plain", scratch })
    }

    fn coverage(&self) -> Vec<(&'static str, &'static str, Vec<DType>)> {
        vec![("*", "plain", DType::ALL.to_vec())]
    }
}

fn session(plan: Plan) -> Session {
    Session::new(plan, &Options::default()).unwrap()
}

/// Relative to the largest magnitude: kernels may sum in another order than the reference.
fn assert_close(got: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>, tolerance: f64) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in expected {
        let types: (ValueType, ValueType) = (got[name].value_type(), expected.value_type());
        assert_eq!(types.0, types.1, "{name}");
        let largest = expected.to_f64().into_iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        for (i, (a, b)) in got[name].to_f64().into_iter().zip(expected.to_f64()).enumerate() {
            assert!((a - b).abs() <= tolerance * largest || (a.is_nan() && b.is_nan()), "{name}[{i}]: {a} and {b}");
        }
    }
}
