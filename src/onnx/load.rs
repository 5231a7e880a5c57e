//! From a path to a decoded model of sound structure.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;

use super::proto::{GraphProto, ModelProto, NodeProto};
use crate::{Error, Result, weights::MappedFile};

/// The oldest and the newest version of the default operator set that is understood.
pub const OPSETS: std::ops::RangeInclusive<i64> = 13..=24;

/// A decoded model, checked for structure.
pub struct Model {
    /// The mapped file; initialisers point into it.
    pub file: Arc<MappedFile>,
    /// The folder that holds the model and its external data.
    pub folder: PathBuf,
    /// The main graph.
    pub graph: GraphProto,
    /// Who wrote it.
    pub producer: String,
    /// The version of the default operator set.
    pub opset: i64,
    /// Names of model-local functions.
    pub functions: HashSet<String>,
    /// Indices into `graph.node` of the nodes that the outputs need, producers before readers.
    pub order: Vec<usize>,
    /// Indices into `graph.output` of the outputs that are wanted.
    pub outputs: Vec<usize>,
}

impl Model {
    /// The nodes that the outputs need, producers before readers.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeProto> {
        self.order.iter().map(|i| &self.graph.node[*i])
    }
}

/// Maps, decodes and checks a file; keeps the outputs named in `wanted`, or all.
pub fn load(path: &Path, wanted: &[String]) -> Result<Model> {
    let file = Arc::new(MappedFile::open(path)?);
    let model = ModelProto::decode(file.bytes().clone())
        .map_err(|e| Error::bad_file("onnx.decode", format!("{}: not a complete ONNX model: {e}", path.display())))?;
    let graph = model
        .graph
        .ok_or_else(|| Error::bad_file("onnx.decode", format!("{}: holds no ONNX graph", path.display())))?;
    if graph.output.is_empty() {
        return Err(Error::bad_file("onnx.structure", format!("{}: the graph has no outputs", path.display())));
    }
    let default = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let opset = default.map_or(0, |o| o.version);
    if !OPSETS.contains(&opset) {
        return Err(Error::unsupported(
            "onnx.unsupported_opset",
            format!("{}: operator set {opset}; {} to {} are supported", path.display(), OPSETS.start(), OPSETS.end()),
        ));
    }
    let outputs = outputs(&graph, wanted)?;
    let order = order(&graph, &outputs)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Model {
        folder: folder.into(),
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().into(),
        opset,
        functions: model.functions.into_iter().map(|f| f.name).collect(),
        order,
        outputs,
        graph,
        file,
    })
}

fn outputs(graph: &GraphProto, wanted: &[String]) -> Result<Vec<usize>> {
    let names: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let unknown: Vec<String> = wanted
        .iter()
        .filter(|w| !names.contains(&w.as_str()))
        .map(|w| format!("there is no output `{w}`; there are {}", names.join(", ")))
        .collect();
    if !unknown.is_empty() {
        return Err(Error::all(crate::Kind::Usage, "onnx.unknown_output", unknown));
    }
    Ok((0..names.len()).filter(|i| wanted.is_empty() || wanted.iter().any(|w| w == names[*i])).collect())
}

/// Nodes that `outputs` need, producers before readers (depth first, without recursion). Reports values with two
/// producers, values without any, and cycles.
fn order(graph: &GraphProto, outputs: &[usize]) -> Result<Vec<usize>> {
    let mut problems = Vec::new();
    let mut sources: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    sources.extend(graph.input.iter().map(|i| i.name.as_str()));
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if sources.contains(name.as_str()) || producer.contains_key(name.as_str()) {
                problems.push(format!("value `{name}` is defined twice, again by {}", describe(node)));
            } else {
                producer.insert(name, index);
            }
        }
    }
    let mut order = Vec::with_capacity(graph.node.len());
    let mut state = vec![State::New; graph.node.len()];
    for output in outputs.iter().map(|i| &graph.output[*i]) {
        match producer.get(output.name.as_str()) {
            Some(index) => visit(graph, &producer, &sources, *index, &mut state, &mut order, &mut problems),
            None if sources.contains(output.name.as_str()) => {}
            None => problems.push(format!("output `{}` is computed nowhere", output.name)),
        }
    }
    match problems.is_empty() {
        true => Ok(order),
        false => Err(Error::all(crate::Kind::BadFile, "onnx.structure", problems)),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Open,
    Done,
}

fn visit<'g>(
    graph: &'g GraphProto,
    producer: &HashMap<&'g str, usize>,
    sources: &HashSet<&'g str>,
    root: usize,
    state: &mut [State],
    order: &mut Vec<usize>,
    problems: &mut Vec<String>,
) {
    // (node, how many of its inputs have been looked at)
    let mut stack = vec![(root, 0)];
    while let Some((index, next)) = stack.last_mut() {
        let (index, node) = (*index, &graph.node[*index]);
        if state[index] == State::Done {
            stack.pop();
            continue;
        }
        state[index] = State::Open;
        let Some(name) = node.input.get(*next) else {
            state[index] = State::Done;
            order.push(index);
            stack.pop();
            continue;
        };
        *next += 1;
        match producer.get(name.as_str()) {
            Some(from) if state[*from] == State::New => stack.push((*from, 0)),
            Some(from) if state[*from] == State::Open => {
                problems.push(format!("{} and {} depend on each other", describe(node), describe(&graph.node[*from])));
            }
            Some(_) => {}
            None if name.is_empty() || sources.contains(name.as_str()) => {}
            None => problems.push(format!("{} reads `{name}`, which is defined nowhere", describe(node))),
        }
    }
}

/// `Add at '/head/Add_3'`, or by its output where it has no name.
pub fn describe(node: &NodeProto) -> String {
    let name = match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => output,
        (name, _) => name,
    };
    format!("{} `{name}`", node.op_type)
}
