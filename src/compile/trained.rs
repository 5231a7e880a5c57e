//! Weights that training has written, in front of the model's own.

use std::{collections::BTreeMap, path::PathBuf};

use lite3r_ir::{Graph, Op, ValueType};

use crate::{
    Error, Kind, Result,
    weights::{self, Weight, Weights},
};

/// Puts the weights of `files`, later ones first, in place of those of the model. Numbers of another floating-point type
/// are converted, the model's own as well: checkpoints are often narrower than what is computed.
///
/// Errors: those of [`weights::safetensors::open`]; `compile.trained` with every weight that no graph reads, or that has
/// another shape there.
pub fn take(graphs: &[&Graph], files: &[PathBuf], own: &mut Weights) -> Result<()> {
    let params = graphs.iter().flat_map(|graph| graph.node_ids().map(|id| graph.op(id)));
    let params: BTreeMap<&str, &ValueType> = params
        .filter_map(|op| match op {
            Op::Param(op) => Some((op.name.as_str(), &op.ty)),
            _ => None,
        })
        .collect();
    let mut problems = Vec::new();
    for path in files {
        let given = weights::safetensors::open(path)?;
        for (name, weight) in given.iter() {
            match params.get(name) {
                None => problems.push(format!("{}: the rewritten model reads no weight `{name}`", path.display())),
                Some(ty) if ty.shape != weight.ty.shape => {
                    problems.push(format!("{}: `{name}` is {}, not {ty}", path.display(), weight.ty));
                }
                Some(_) => drop(own.insert(name, weight.clone())),
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error::all(Kind::BadFile, "compile.trained", problems));
    }
    let floats = |weight: &Weight, ty: &ValueType| weight.ty.dtype.is_float() && ty.dtype.is_float();
    for (name, ty) in params {
        let Some(weight) = own.get(name) else { continue };
        if weight.ty.dtype != ty.dtype && weight.ty.shape == ty.shape && floats(weight, ty) {
            let converted = Weight::owned(weight.tensor().cast(ty.dtype));
            own.insert(name, converted);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lite3r_ir::{DType, Tensor};

    use super::*;

    #[test]
    fn trained_weights_come_first_and_are_converted() {
        let graph: Graph = "graph @g(%x: f32[2]) {\n  param $a: f32[2]\n  param $b: f32[2]\n  %0 = mul(%x, $a)\n  %1 = add(%0, $b)\n  \
                            return y=%1\n}"
            .parse()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, weight: &str, tensor: Tensor| {
            let path = folder.path().join(name);
            crate::weights::safetensors::write(&path, &BTreeMap::from([(weight.to_string(), tensor)]), HashMap::new())
                .unwrap();
            path
        };
        let half = |shape: &[usize]| Tensor::wave(DType::F16, shape, 1);
        let trained = write("a.safetensors", "a", half(&[2]));
        let mut own = Weights::default();
        own.insert("a", Weight::owned(Tensor::from_f32(&[2], vec![1.0, 2.0])));
        own.insert("b", Weight::owned(half(&[2])));
        take(&[&graph], &[trained], &mut own).unwrap();
        for name in ["a", "b"] {
            assert_eq!(own.get(name).unwrap().tensor(), half(&[2]).cast(DType::F32), "{name}");
        }
        let files = [write("c.safetensors", "c", half(&[2])), write("d.safetensors", "b", half(&[3]))];
        let error = take(&[&graph], &files, &mut own).unwrap_err();
        assert_eq!((error.code, error.problems.len()), ("compile.trained", 2), "{error}");
    }
}
