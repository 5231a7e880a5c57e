//! The reference evaluator: every operation by its own [`crate::ops::OpDef::eval`], one after the other.
//!
//! Slow and exact; what executors, passes and importers are held against.

use std::collections::{BTreeMap, HashMap};

use crate::{
    graph::{Graph, Value},
    ops::Op,
    tensor::Tensor,
};

/// Why a graph could not be evaluated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InterpretError {
    /// No tensor of that name was given, or one of another type.
    #[error("`{name}` must be given as {expected}{}", .got.as_ref().map_or(String::new(), |g| format!(", not {g}")))]
    Missing {
        /// The input or param.
        name: String,
        /// Its type.
        expected: String,
        /// What was given instead.
        got: Option<String>,
    },
    /// An operation refused its operands.
    #[error("{op} at `{origin}`: {problem}")]
    Op {
        /// The operation.
        op: &'static str,
        /// Where it comes from.
        origin: String,
        /// What it said.
        problem: String,
    },
}

/// Evaluates the outputs of a graph without symbols. `inputs` by name, params through `param`.
pub fn interpret(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    param: &dyn Fn(&str) -> Option<Tensor>,
) -> Result<BTreeMap<String, Tensor>, InterpretError> {
    interpret_with(graph, inputs, param, &mut |_, _| {})
}

/// As [`interpret`], and shows every value to `probe` as soon as it is known.
pub fn interpret_with(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    param: &dyn Fn(&str) -> Option<Tensor>,
    probe: &mut dyn FnMut(Value, &Tensor),
) -> Result<BTreeMap<String, Tensor>, InterpretError> {
    let mut reads: HashMap<Value, usize> = HashMap::new();
    for id in graph.node_ids() {
        graph.operands(id).into_iter().for_each(|v| *reads.entry(v).or_default() += 1);
    }
    graph.outputs().iter().for_each(|(_, v)| *reads.entry(*v).or_default() += 1);
    let mut known: HashMap<Value, Tensor> = HashMap::new();
    for id in graph.topological() {
        let node = graph.node(id);
        let operands = graph.operands(id);
        let results = match &node.op {
            Op::Input(op) => vec![given(&op.name, &op.ty.to_string(), inputs.get(&op.name).cloned())?],
            Op::Param(op) => vec![given(&op.name, &op.ty.to_string(), param(&op.name))?],
            op => {
                let tensors: Vec<&Tensor> = operands.iter().map(|v| &known[v]).collect();
                op.eval(&tensors, &node.types).map_err(|problem| InterpretError::Op {
                    op: op.name(),
                    origin: node.origin.to_string(),
                    problem,
                })?
            }
        };
        for (value, tensor) in graph.results(id).zip(results) {
            probe(value, &tensor);
            if reads.contains_key(&value) {
                known.insert(value, tensor);
            }
        }
        for value in operands {
            let left = reads.get_mut(&value).expect("every operand was counted");
            *left -= 1;
            if *left == 0 {
                known.remove(&value);
            }
        }
    }
    Ok(graph.outputs().iter().map(|(name, value)| (name.clone(), known[value].clone())).collect())
}

fn given(name: &str, expected: &str, tensor: Option<Tensor>) -> Result<Tensor, InterpretError> {
    let got = tensor.as_ref().map(|t| t.value_type().to_string());
    match tensor {
        Some(tensor) if got.as_deref() == Some(expected) => Ok(tensor),
        _ => Err(InterpretError::Missing { name: name.into(), expected: expected.into(), got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{text::parse, types::DType};

    #[test]
    fn evaluates_and_names_what_is_missing() {
        let graph =
            parse("graph @g(%x: f32[2]) {\n  param $w: f32[2]\n  %0 = mul(%x, $w)\n  return y=%0, z=%x\n}").unwrap();
        let tensor = |a: f32, b: f32| Tensor::from_f32(&[2], vec![a, b]);
        let inputs = BTreeMap::from([("x".to_string(), tensor(2.0, 3.0))]);
        let outputs = interpret(&graph, &inputs, &|name| (name == "w").then(|| tensor(5.0, 7.0))).unwrap();
        assert_eq!(outputs["y"], tensor(10.0, 21.0));
        assert_eq!(outputs["z"], inputs["x"]);
        let error = interpret(&graph, &inputs, &|_| Some(Tensor::scalar(DType::F32, 1.0))).unwrap_err();
        assert_eq!(error.to_string(), "`w` must be given as f32[2], not f32[]");
    }
}
