//! From a checkpoint to the params of a graph.

use lite3r_ir::{Graph, Op, ValueType};

use crate::{
    Error, Kind, Result,
    weights::{Weight, Weights},
};

/// What the checkpoints of DA3 put before every name.
const PREFIX: &str = "model.";
/// The LayerNorm that all ray levels of DA3 share, which writers that store shared tensors once may keep under any
/// level.
const SHARED: &str = ".output_conv2_aux.3.2.";

/// The weights that a graph reads, under the names of its params. They stay where they lie; only those of another
/// element type than the param are converted.
///
/// Errors: `weights.mismatch` with every param that is missing or has another shape.
pub fn adopt(graph: &Graph, weights: &Weights) -> Result<Weights> {
    let mut adopted = Weights::default();
    let mut problems = Vec::new();
    for id in graph.node_ids() {
        let Op::Param(param) = graph.op(id) else { continue };
        match spellings(&param.name).iter().find_map(|name| weights.get(name)) {
            None => problems.push(format!("`{}` {} is missing", param.name, param.ty)),
            Some(weight) if weight.ty.shape != param.ty.shape || !weight.ty.dtype.is_float() => {
                problems.push(format!("`{}` is {}, not {}", param.name, weight.ty, param.ty));
            }
            Some(weight) => drop(adopted.insert(param.name.clone(), converted(weight, &param.ty))),
        }
    }
    match problems.is_empty() {
        true => Ok(adopted),
        false => Err(Error::all(Kind::BadFile, "weights.mismatch", problems)),
    }
}

fn converted(weight: &Weight, ty: &ValueType) -> Weight {
    if weight.ty == *ty { weight.clone() } else { Weight::owned(weight.tensor().cast(ty.dtype)) }
}

/// The names under which a checkpoint may hold a param.
fn spellings(name: &str) -> Vec<String> {
    let mut names = vec![name.to_string()];
    if name.contains(SHARED) {
        names.extend((0..3).map(|level| name.replace(SHARED, &format!(".output_conv2_aux.{level}.2."))));
    }
    let prefixed: Vec<String> = names.iter().map(|name| format!("{PREFIX}{name}")).collect();
    names.extend(prefixed);
    names
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{DType, Tensor};

    use super::*;

    fn graph() -> Graph {
        let mut graph = Graph::new("g");
        for name in ["a.weight", "head.output_conv2_aux.3.2.bias"] {
            let value = graph.param(name, ValueType::new(DType::F32, [2]));
            graph.output(name, value);
        }
        graph
    }

    #[test]
    fn prefixes_shared_names_and_other_precisions_are_found() {
        let mut stored = Weights::default();
        let tensor = Tensor::from_f64(DType::F16, &[2], &[0.5, -2.0]);
        stored.insert("model.a.weight", Weight::owned(tensor.clone()));
        stored.insert("model.head.output_conv2_aux.0.2.bias", Weight::owned(tensor.cast(DType::F32)));
        let adopted = adopt(&graph(), &stored).unwrap();
        assert_eq!(adopted.get("a.weight").unwrap().tensor(), tensor.cast(DType::F32));
        assert_eq!(adopted.len(), 2);
    }

    #[test]
    fn everything_that_is_missing_or_odd_is_named() {
        let mut stored = Weights::default();
        stored.insert("a.weight", Weight::owned(Tensor::from_f32(&[3], vec![0.0; 3])));
        let error = adopt(&graph(), &stored).unwrap_err();
        assert_eq!(error.code, "weights.mismatch");
        assert_eq!(
            error.problems,
            ["`a.weight` is f32[3], not f32[2]", "`head.output_conv2_aux.3.2.bias` f32[2] is missing"]
        );
    }
}
