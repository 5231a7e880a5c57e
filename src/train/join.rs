//! Two graphs as one: a teacher beside its student, over the same images and the same frozen weights.

use std::collections::{BTreeMap, HashMap, HashSet};

use lite3r_ir::{Graph, NodeId, Op, OpError, Value, ops::Param};

/// What the weight of a teacher is called where the student trains its own.
pub fn teacher_name(weight: &str) -> String {
    format!("teacher.{weight}")
}

/// Adds the operations of `other` to a graph and answers the outputs of `other` there. Inputs of one name are one
/// input, and weights of one name one weight, unless the graph has it as a state: then that of `other` is another weight
/// with a name of its own ([`teacher_name`]). Errors: an input or a weight that the two graphs have of different types.
pub fn join(graph: &mut Graph, other: &Graph) -> Result<BTreeMap<String, Value>, OpError> {
    let (mut inputs, mut params, mut states) = (HashMap::new(), HashMap::new(), HashSet::new());
    for id in graph.node_ids() {
        match graph.op(id) {
            Op::Input(op) => drop(inputs.insert(op.name.clone(), id)),
            Op::Param(op) if op.state => drop(states.insert(op.name.clone())),
            Op::Param(op) => drop(params.insert(op.name.clone(), id)),
            _ => {}
        }
    }
    let mut moved: HashMap<NodeId, NodeId> = HashMap::new();
    for id in other.topological() {
        let node = other.node(id);
        let own = match &node.op {
            Op::Input(op) => inputs.get(&op.name).copied(),
            Op::Param(op) => params.get(&op.name).copied(),
            _ => None,
        };
        let new = match own {
            Some(own) if graph.node(own).types == node.types => own,
            Some(_) => {
                let problem = "the two graphs have one of that name and another type".to_string();
                return Err(OpError { op: node.op.name(), origin: node.origin.clone(), problem });
            }
            None => {
                let op = match &node.op {
                    Op::Param(op) if states.contains(&op.name) => {
                        Op::Param(Param { name: teacher_name(&op.name), ..op.clone() })
                    }
                    op => op.clone(),
                };
                let operands: Vec<Value> =
                    other.operands(id).iter().map(|v| Value { node: moved[&v.node], slot: v.slot }).collect();
                graph.add(op, &operands, &node.origin)?
            }
        };
        moved.insert(id, new);
    }
    let place = |v: &Value| Value { node: moved[&v.node], slot: v.slot };
    Ok(other.outputs().iter().map(|(name, value)| (name.clone(), place(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_weights_are_shared_and_trained_ones_are_not() {
        let source = |state: &str| {
            format!(
                "graph @g(%x: f32[3]) {{\n  param $a: f32[3]\n  param $b: f32[3]{state}\n  %0 = mul(%x, $a)\n  %1 = add(%0, $b)\n  \
                 return y=%1\n}}"
            )
        };
        let mut student: Graph = source(" {state=true}").parse().unwrap();
        let teacher: Graph = source("").parse().unwrap();
        let before = student.len();
        let outputs = join(&mut student, &teacher).unwrap();
        student.output("teacher", outputs["y"]);
        lite3r_ir::verify(&student).unwrap();
        let names: Vec<String> = student
            .node_ids()
            .filter_map(|id| match student.op(id) {
                Op::Param(op) => Some(op.name.clone()),
                _ => None,
            })
            .collect();
        assert_eq!((student.inputs().len(), student.len() - before), (1, 3));
        assert_eq!(names.iter().filter(|n| *n == "a").count(), 1);
        assert!(names.contains(&"b".to_string()) && names.contains(&"teacher.b".to_string()), "{names:?}");
        let other: Graph = "graph @h(%x: f32[4]) {\n  %0 = neg(%x)\n  return y=%0\n}".parse().unwrap();
        assert!(join(&mut student, &other).unwrap_err().to_string().contains("another type"));
    }
}
