//! Nodes into a graph, one after the other.

use std::{collections::HashMap, sync::Arc};

use lite3r_ir::{
    Bindings, DType, Dim, Graph, Op, Tensor, Value, ValueType,
    ops::{self, Constant, Range},
};

use super::{
    ImportOptions, Imported,
    dims::LARGEST,
    external::Folder,
    known::{self, Dims, Val},
    load::{Model, describe},
    names::{self, Names, is_module_path},
    node::{Node, Problem},
    ops as converters,
    proto::{EXTERNAL, TensorProto, ValueInfoProto},
    tensor::{self, Data},
};
use crate::{
    Error, Kind, Result,
    weights::{Weight, Weights},
};

/// Up to how many elements a result is computed during the import. Shape arithmetic and small tables are; large tables
/// are left to passes and the plan maker, which compute equal ones once.
const EAGER: usize = 1 << 15;

/// Up to how many elements a nameless table is a constant and not a weight.
const SMALL: usize = 16;

/// The graph that grows.
pub struct Importer<'m> {
    graph: Graph,
    weights: Weights,
    model: &'m Model,
    initializers: HashMap<&'m str, &'m TensorProto>,
    folder: Folder,
    names: Names<'m>,
    allow_missing: bool,
    missing: usize,
    /// What ONNX values have become; `None` after a problem, which is reported once.
    values: HashMap<&'m str, Option<Val>>,
    constants: HashMap<blake3::Hash, Value>,
    symbolic: HashMap<(Vec<usize>, Vec<Dim>), Value>,
    /// Params by type and a sample of their bytes, to store identical ones once.
    params: HashMap<blake3::Hash, Vec<(Weight, Value)>>,
    origin: Arc<str>,
}

/// Converts a checked model.
pub fn build(model: &Model, options: &ImportOptions) -> Result<Imported> {
    let name = if model.graph.name.is_empty() { "main" } else { &model.graph.name };
    let mut importer = Importer {
        graph: Graph::new(name),
        weights: Weights::default(),
        model,
        initializers: model.graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect(),
        folder: Folder::new(&model.folder),
        names: Names::new(model),
        allow_missing: options.allow_missing_data,
        missing: 0,
        values: HashMap::with_capacity(model.graph.node.len()),
        constants: HashMap::new(),
        symbolic: HashMap::new(),
        params: HashMap::new(),
        origin: "".into(),
    };
    importer.inputs(&options.bindings)?;
    let mut problems = Vec::new();
    for node in model.nodes() {
        let results = importer.node(node).unwrap_or_else(|problem| {
            problems.push(problem.at(&describe(node)));
            None
        });
        let mut results = results.into_iter().flatten();
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            importer.values.insert(output, results.next());
        }
    }
    for output in model.outputs.iter().map(|i| &model.graph.output[*i]) {
        match importer.lookup(&output.name).and_then(|v| v.map(|v| importer.value(&v)).transpose()) {
            Ok(Some(value)) => importer.graph.output(output.name.clone(), value),
            Ok(None) => {}
            Err(problem) => problems.push(problem.at(&format!("output `{}`", output.name))),
        }
    }
    if !problems.is_empty() {
        return Err(error(problems));
    }
    let Importer { graph, weights, missing, .. } = importer;
    Ok(Imported { graph, weights, producer: model.producer.clone(), opset: model.opset, missing })
}

/// All problems as one error of the kind of the first.
fn error(problems: Vec<Problem>) -> Error {
    let (kind, code) = match problems[0] {
        Problem::Bad(_) => (Kind::BadFile, "onnx.node"),
        Problem::Unsupported(_) => (Kind::Unsupported, "onnx.unsupported"),
        Problem::Tensor(_) => (Kind::BadFile, "onnx.tensor"),
        Problem::External(_) => (Kind::BadFile, "onnx.external_data"),
    };
    let text = |p| match p {
        Problem::Bad(text) | Problem::Unsupported(text) | Problem::Tensor(text) | Problem::External(text) => text,
    };
    Error::all(kind, code, problems.into_iter().map(text).collect())
}

impl<'m> Importer<'m> {
    fn inputs(&mut self, bindings: &Bindings) -> Result<()> {
        let mut problems = Vec::new();
        let mut symbols: Vec<String> = Vec::new();
        for input in self.model.graph.input.iter().filter(|i| !self.initializers.contains_key(i.name.as_str())) {
            match input_type(input) {
                Ok(ty) => {
                    symbols.extend(ty.shape.iter().flat_map(Dim::symbols).map(str::to_string));
                    let value = self.graph.input(input.name.clone(), ty.bind(bindings));
                    self.values.insert(&input.name, Some(Val::Graph(value)));
                }
                Err(problem) => problems.push(format!("input `{}`: {problem}", input.name)),
            }
        }
        if !problems.is_empty() {
            return Err(Error::all(Kind::BadFile, "onnx.structure", problems));
        }
        symbols.sort_unstable();
        symbols.dedup();
        let all = if symbols.is_empty() { "none".into() } else { symbols.join(", ") };
        let strange = bindings.iter().filter(|(s, n)| !symbols.contains(s) || **n == 0);
        let problems: Vec<String> =
            strange.map(|(s, n)| format!("{s}={n}: the symbols are {all}, from 1 on")).collect();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::all(Kind::Usage, "onnx.unknown_symbol", problems)),
        }
    }

    /// Converts a node; `None` where an operand is unknown because of a problem that is reported already.
    fn node(&mut self, proto: &'m super::proto::NodeProto) -> Result<Option<Vec<Val>>, Problem> {
        self.origin = names::origin(proto);
        let mut inputs = Vec::with_capacity(proto.input.len());
        for name in &proto.input {
            inputs.push(match name.as_str() {
                "" => None,
                name => match self.lookup(name)? {
                    Some(val) => Some(val),
                    None => return Ok(None),
                },
            });
        }
        let row = converters::find(&proto.op_type, self.model.opset).ok_or("there is no converter")?;
        let node = Node::new(proto, inputs);
        let results = (row.convert)(self, &node)?;
        match proto.output.iter().rposition(|o| !o.is_empty()) {
            Some(last) if last >= results.len() => {
                Err(Problem::unsupported(format!("result {last} is not supported, only the first {}", results.len())))
            }
            _ => Ok(Some(results)),
        }
    }

    /// What an ONNX value has become; initialisers are taken up when they are first read.
    fn lookup(&mut self, name: &'m str) -> Result<Option<Val>, Problem> {
        if let Some(known) = self.values.get(name) {
            return Ok(known.clone());
        }
        let Some(proto) = self.initializers.get(name).copied() else {
            return Err(format!("`{name}` is not defined").into());
        };
        let val = self.tensor(proto, name).map_err(|p| p.at(&format!("initializer `{name}`")));
        self.values.insert(name, val.as_ref().ok().cloned());
        val.map(Some)
    }

    /// A tensor of the file, as a weight or a constant.
    pub fn tensor(&mut self, proto: &TensorProto, name: &str) -> Result<Val, Problem> {
        let weight = match tensor::data(proto, &self.model.file, &mut self.folder)
            .map_err(if proto.data_location == EXTERNAL { Problem::External } else { Problem::Tensor })?
        {
            Data::Weight(weight) => weight,
            Data::Missing { problem, .. } if !self.allow_missing => return Err(Problem::External(problem)),
            Data::Missing { ty, .. } => {
                self.missing += 1;
                let name = self.names.param(name, ty.rank());
                return Ok(Val::Graph(self.graph.param(name, ty)));
            }
        };
        let ty = &weight.ty;
        let count = ty.elements().unwrap_or(usize::MAX);
        let small = ty.rank() == 0 || count == 0 || count <= SMALL && !is_module_path(name);
        if !ty.dtype.is_float() || ty.dtype == DType::F64 || small {
            return Ok(Val::Tensor(weight.tensor()));
        }
        let key = sample(&weight);
        let equal = self.params.get(&key).into_iter().flatten().find(|(w, _)| w.bytes() == weight.bytes());
        if let Some((_, value)) = equal {
            return Ok(Val::Graph(*value));
        }
        let name = self.names.param(name, ty.rank());
        let value = self.graph.param(name.clone(), ty.clone());
        self.params.entry(key).or_default().push((weight.clone(), value));
        self.weights.insert(name, weight);
        Ok(Val::Graph(value))
    }

    /// The type of a value.
    pub fn ty(&self, val: &Val) -> ValueType {
        match val {
            Val::Graph(value) => self.graph.ty(*value).clone(),
            Val::Tensor(tensor) => tensor.value_type(),
            Val::Dims(Dims { shape, .. }) => ValueType::new(DType::I64, shape.iter().copied()),
        }
    }

    /// Whether a table holds one number everywhere; `false` where its data are not at hand.
    pub fn holds(&self, val: &Val, number: f64) -> bool {
        match val {
            Val::Tensor(tensor) => tensor.to_f64().iter().all(|v| *v == number),
            Val::Graph(value) => match self.graph.op(value.node) {
                Op::Param(param) => {
                    self.weights.get(&param.name).is_some_and(|w| w.to_f32().iter().all(|v| f64::from(*v) == number))
                }
                _ => false,
            },
            Val::Dims(_) => false,
        }
    }

    /// The value of the graph for what is known on the host. Equal ones are the same.
    pub fn value(&mut self, val: &Val) -> Result<Value, Problem> {
        match val {
            Val::Graph(value) => Ok(*value),
            Val::Tensor(tensor) => {
                let mut hash = blake3::Hasher::new();
                hash.update(tensor.value_type().to_string().as_bytes()).update(tensor.bytes());
                let hash = hash.finalize();
                if let Some(value) = self.constants.get(&hash) {
                    return Ok(*value);
                }
                let value = self.add(Constant { value: tensor.clone() }, &[])?[0];
                self.constants.insert(hash, value);
                Ok(value)
            }
            Val::Dims(Dims { shape, dims }) => {
                let key = (shape.clone(), dims.clone());
                if let Some(value) = self.symbolic.get(&key) {
                    return Ok(*value);
                }
                let mut parts = Vec::new();
                for dim in dims {
                    parts.push(match dim.constant() {
                        Some(c) => self.value(&Val::Tensor(Tensor::from_i64(DType::I64, &[1], &[c])))?,
                        None => self.add(Range { start: dim.clone(), count: Dim::from(1), step: 1 }, &[])?[0],
                    });
                }
                let mut value = match parts.as_slice() {
                    [one] => *one,
                    _ => self.add(ops::Concat { axis: 0 }, &parts)?[0],
                };
                if shape.len() != 1 {
                    let shape = shape.iter().copied().map(Dim::from).collect();
                    value = self.add(ops::Reshape { shape }, &[value])?[0];
                }
                self.symbolic.insert(key, value);
                Ok(value)
            }
        }
    }

    fn add(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<Vec<Value>, Problem> {
        let node = self.graph.add(op, operands, &self.origin).map_err(|e| format!("{}: {}", e.op, e.problem))?;
        Ok(self.graph.results(node).collect())
    }

    /// Applies an operation: on the host where everything is known, else in the graph. All results.
    pub fn emit_all(&mut self, op: impl Into<Op>, operands: &[&Val]) -> Result<Vec<Val>, Problem> {
        let op = op.into();
        if !operands.is_empty() && operands.iter().all(|v| !matches!(v, Val::Graph(_))) {
            if let Some(results) = evaluate(&op, operands)? {
                return Ok(results);
            }
            if let Some(result) = known::apply(&op, operands) {
                return Ok(vec![result]);
            }
        }
        let operands = operands.iter().map(|v| self.value(v)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.add(op, &operands)?.into_iter().map(Val::Graph).collect())
    }

    /// Applies an operation; its first result.
    pub fn emit(&mut self, op: impl Into<Op>, operands: &[&Val]) -> Result<Val, Problem> {
        Ok(self.emit_all(op, operands)?.swap_remove(0))
    }
}

/// The results of an operation on tensors, unless they are large.
fn evaluate(op: &Op, operands: &[&Val]) -> Result<Option<Vec<Val>>, Problem> {
    let mut tensors = Vec::with_capacity(operands.len());
    for operand in operands {
        let Val::Tensor(tensor) = operand else { return Ok(None) };
        tensors.push(tensor);
    }
    let types: Vec<ValueType> = tensors.iter().map(|t| t.value_type()).collect();
    let results = op.infer(&types).map_err(|p| format!("{}: {p}", op.name()))?;
    if results.iter().any(|t| t.elements().is_none_or(|n| n > EAGER)) {
        return Ok(None);
    }
    let results = op.eval(&tensors, &results).map_err(|p| format!("{}: {p}", op.name()))?;
    Ok(Some(results.into_iter().map(Val::Tensor).collect()))
}

/// A hash of the type and of both ends of the bytes: cheap for weights that are mapped and never read otherwise.
fn sample(weight: &Weight) -> blake3::Hash {
    const END: usize = 4096;
    let bytes = weight.bytes();
    let mut hash = blake3::Hasher::new();
    hash.update(weight.ty.to_string().as_bytes());
    hash.update(&bytes[..bytes.len().min(END)]).update(&bytes[bytes.len().saturating_sub(END)..]);
    hash.finalize()
}

/// The type of an input. Sizes may be numbers, names, or expressions of names (`14*h`).
fn input_type(input: &ValueInfoProto) -> Result<ValueType, String> {
    let tensor = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).ok_or("not a tensor")?;
    let dtype = tensor::dtype(tensor.elem_type)?;
    let shape = tensor.shape.as_ref().ok_or("its rank is not declared")?;
    let mut dims = Vec::with_capacity(shape.dim.len());
    for (i, dim) in shape.dim.iter().enumerate() {
        dims.push(match (dim.dim_value, dim.dim_param.as_deref()) {
            (Some(size), _) if !(1..=LARGEST).contains(&size) => return Err(format!("size {size} of dimension {i}")),
            (Some(size), _) => Dim::from(size),
            (None, Some(name)) if !name.is_empty() => name.parse().unwrap_or_else(|_| Dim::symbol(&identifier(name))),
            _ => Dim::symbol(&identifier(&format!("{}_{i}", input.name))),
        });
    }
    Ok(ValueType { dtype, shape: dims })
}

/// A name that the text form takes as a symbol.
fn identifier(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    if plain.starts_with(|c: char| c.is_ascii_digit()) { format!("_{plain}") } else { plain }
}
