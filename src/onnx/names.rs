//! What params and operations are called: by module paths, so that people can choose layers by name.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    load::Model,
    proto::{AttributeProto, NodeProto},
};

/// The metadata key under which `torch.export` keeps module paths: `['', 'head', 'head.fc1', 'linear_3']`.
const SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// Names of params, each given once.
pub struct Names<'m> {
    nodes: &'m [NodeProto],
    /// The first reader of a value: node and operand.
    readers: HashMap<&'m str, (usize, usize)>,
    used: HashSet<String>,
}

impl<'m> Names<'m> {
    /// Names for the params of a model. Those that come with the file are reserved.
    pub fn new(model: &'m Model) -> Self {
        let mut readers = HashMap::new();
        for index in &model.order {
            for (slot, name) in model.graph.node[*index].input.iter().enumerate() {
                readers.entry(name.as_str()).or_insert((*index, slot));
            }
        }
        let used = model.graph.initializer.iter().map(|t| &t.name).filter(|n| is_module_path(n)).cloned().collect();
        Self { nodes: &model.graph.node, readers, used }
    }

    /// The name of the param that `tensor` becomes.
    pub fn param(&mut self, tensor: &str, rank: usize) -> String {
        if is_module_path(tensor) {
            return tensor.into();
        }
        let derived = self.derive(tensor, rank).unwrap_or_else(|| tensor.trim_matches('/').replace('/', "."));
        let mut name = derived.clone();
        for n in 2.. {
            if self.used.insert(name.clone()) {
                break;
            }
            name = format!("{derived}_{n}");
        }
        name
    }

    /// From the module and the operator of its first reader, seen through operations that only move or convert.
    fn derive(&self, tensor: &str, rank: usize) -> Option<String> {
        let mut name = tensor;
        let mut transposed = false;
        for _ in 0..8 {
            let (index, slot) = *self.readers.get(name)?;
            let node = &self.nodes[index];
            match node.op_type.as_str() {
                "Cast" | "Identity" | "Reshape" | "Unsqueeze" | "Squeeze" | "Expand" | "Slice" | "Concat"
                | "Transpose" => {
                    transposed ^= node.op_type == "Transpose";
                    name = node.output.first()?;
                }
                op => {
                    let scope = scopes(node).pop().filter(|s| !s.is_empty())?;
                    let flag = |name: &str| node.attribute.iter().any(|a: &AttributeProto| a.name == name && a.i == 1);
                    let stored = if transposed { "weight" } else { "weight_t" };
                    let role = match (op, slot) {
                        ("MatMul", 1) => stored,
                        ("Gemm", 1) if flag("transB") => "weight",
                        ("Gemm", 1) => stored,
                        ("Conv" | "ConvTranspose" | "LayerNormalization" | "MatMul", 0 | 1) => "weight",
                        ("Conv" | "ConvTranspose" | "LayerNormalization" | "Gemm", _) => "bias",
                        ("Add", _) if rank == 1 => "bias",
                        ("Add" | "Sub", _) => "offset",
                        ("Mul" | "Div", _) => "scale",
                        ("Gather" | "GatherND" | "GatherElements", _) => "table",
                        _ => "constant",
                    };
                    return Some(format!("{scope}.{role}"));
                }
            }
        }
        None
    }
}

/// Whether a name is a path of modules, `head.fc1.weight`, and not one that an exporter made up.
pub fn is_module_path(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.contains('.') && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(plain)
}

/// The paths of the modules around a node, outermost first: `head`, `head.fc1`.
fn scopes(node: &NodeProto) -> Vec<String> {
    if let Some(list) = node.metadata_props.iter().find(|p| p.key == SCOPES) {
        let mut scopes: Vec<String> =
            list.value.trim_matches(['[', ']']).split(", ").map(|s| s.trim_matches('\'').to_string()).collect();
        // The last entry is the operation itself.
        scopes.pop();
        scopes.retain(|s| !s.is_empty());
        return scopes;
    }
    // A member of a sequence stands behind the sequence itself: `trunk/trunk.0` is `trunk.0`.
    let mut parts: Vec<&str> = Vec::new();
    if let Some((path, _)) = node.name.strip_prefix('/').and_then(|n| n.rsplit_once('/')) {
        for part in path.split('/') {
            if parts.last().is_some_and(|list| part.strip_prefix(list).is_some_and(|rest| rest.starts_with('.'))) {
                parts.pop();
            }
            parts.push(part);
        }
    }
    (1..=parts.len()).map(|n| parts[..n].join(".")).collect()
}

/// The origin of the operations that a node becomes: `/head/fc1/MatMul`.
pub fn origin(node: &NodeProto) -> Arc<str> {
    let name = match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => output,
        (name, _) => name,
    };
    if name.starts_with('/') {
        return name.into();
    }
    let mut path = String::new();
    let mut outer = "";
    let scopes = scopes(node);
    for scope in &scopes {
        let part = scope.strip_prefix(outer).map_or(scope.as_str(), |s| s.trim_start_matches('.'));
        path.push('/');
        path.push_str(part);
        outer = scope;
    }
    if path.is_empty() { name.into() } else { format!("{path}/{name}").into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::StringStringEntryProto;

    #[test]
    fn origins_of_both_exporters_read_alike() {
        let script = NodeProto { name: "/head/blocks.0/fc1/MatMul".into(), ..NodeProto::default() };
        assert_eq!(&*origin(&script), "/head/blocks.0/fc1/MatMul");
        assert_eq!(scopes(&script), ["head", "head.blocks.0", "head.blocks.0.fc1"]);
        let listed = NodeProto { name: "/head/trunk/trunk.0/fc1/MatMul".into(), ..NodeProto::default() };
        assert_eq!(scopes(&listed).pop().as_deref(), Some("head.trunk.0.fc1"));
        let value = "['', 'head', 'head.blocks.0', 'head.blocks.0.fc1', 'linear_3']".into();
        let export = NodeProto {
            name: "node_MatMul_7".into(),
            metadata_props: vec![StringStringEntryProto { key: SCOPES.into(), value }],
            ..NodeProto::default()
        };
        assert_eq!(&*origin(&export), "/head/blocks.0/fc1/node_MatMul_7");
        assert_eq!(scopes(&export), scopes(&script));
    }

    #[test]
    fn module_paths_are_told_from_made_up_names() {
        assert!(is_module_path("aggregator.blocks.0.attn.qkv.bias"));
        for made_up in ["onnx::MatMul_31", "val_7", "/head/Constant_output_0", "0.5"] {
            assert!(!is_module_path(made_up), "{made_up}");
        }
    }
}
