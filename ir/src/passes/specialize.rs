//! `specialize{S=4}`: symbols get their values; every type is inferred anew. A symbol that is left is an error, a value
//! below one too.

use std::collections::HashMap;

use super::{Effect, Options, Pass, PassError, Report};
use crate::{
    attr::{Attr, AttrMap},
    dim::{Bindings, Dim},
    graph::{Graph, Value},
    ops::Op,
};

/// The pass.
pub const SPECIALIZE: Pass = Pass { name: "specialize", law: "symbols become numbers", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    let mut bindings = Bindings::new();
    for (name, attr) in &options.0 {
        match attr {
            Attr::Dim(dim) if dim.constant().is_some_and(|c| c >= 1) => {
                bindings.insert(name.clone(), dim.size().unwrap_or(1));
            }
            _ => return Err(PassError::Option(format!("`{name}` must be bound to a number from 1, not `{attr}`"))),
        }
    }
    let missing: Vec<String> = free_symbols(graph).into_iter().filter(|s| !bindings.contains_key(s)).collect();
    if !missing.is_empty() {
        let problem = |s| format!("symbol `{s}` is not bound; bind it with `--bind {s}=N`");
        return Err(PassError::Refused(missing.into_iter().map(problem).collect()));
    }
    *graph = bind(graph, &bindings)?;
    Ok(Report::count("bound", bindings.len()))
}

/// The symbols of inputs, sorted, each once.
pub fn free_symbols(graph: &Graph) -> Vec<String> {
    let types = graph.inputs().iter().map(|id| &graph.node(*id).types[0]);
    let mut symbols: Vec<String> =
        types.flat_map(|t| t.shape.iter().flat_map(Dim::symbols)).map(str::to_string).collect();
    symbols.sort_unstable();
    symbols.dedup();
    symbols
}

/// The graph with `bindings` in every type and attribute.
pub fn bind(graph: &Graph, bindings: &Bindings) -> Result<Graph, PassError> {
    let mut bound = Graph::new(graph.name());
    let mut moved: HashMap<Value, Value> = HashMap::with_capacity(graph.len());
    // Inputs first and in declared order: they are the interface.
    let mut order = graph.inputs().to_vec();
    order.extend(graph.topological().into_iter().filter(|id| !matches!(graph.op(*id), Op::Input(_))));
    for id in order {
        let node = graph.node(id);
        let op = match &node.op {
            Op::Input(input) => Op::Input(crate::ops::Input { ty: input.ty.bind(bindings), ..input.clone() }),
            Op::Param(_) | Op::Constant(_) => node.op.clone(),
            op => {
                let attrs: AttrMap = op.attrs().into_iter().map(|(n, a)| (n, bind_attr(a, bindings))).collect();
                Op::parse(op.name(), &attrs).map_err(PassError::Refused)?
            }
        };
        let operands: Vec<Value> = graph.operands(id).iter().map(|v| moved[v]).collect();
        let new = bound.add(op, &operands, &node.origin)?;
        moved.extend(graph.results(id).zip(bound.results(new)));
    }
    for (name, value) in graph.outputs() {
        bound.output(name.clone(), moved[value]);
    }
    Ok(bound)
}

fn bind_attr(attr: Attr, bindings: &Bindings) -> Attr {
    match attr {
        Attr::Dim(dim) => Attr::Dim(dim.bind(bindings)),
        Attr::List(items) => Attr::List(items.into_iter().map(|a| bind_attr(a, bindings)).collect()),
        other => other,
    }
}
