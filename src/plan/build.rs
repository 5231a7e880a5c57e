//! From graphs and weights to a plan.
//!
//! Selection comes first and reports every gap; then the weights are looked up and every missing one is reported; only
//! then are order and memory decided. No weight is converted here: that happens when the plan is saved or loaded.

use std::collections::{BTreeMap, HashMap, HashSet};

use lite3r_ir::{
    Bindings, DType, Graph, NodeId, Op, Tensor, Value, ValueType,
    ops::Param,
    passes::dce,
    text::Printer,
    verify::{self, verify_with},
};

use super::{
    ALIAS, Buffer, Entry, Header, Meta, Place, Plan, Port, Region, Step, Update, WeightInfo, alias, memory, schedule,
    weights::{Collected, Collector},
};
use crate::{
    Error, Result,
    backend::{Choice, Request, Target},
    error::Kind,
    weights::{Weight, Weights},
};

/// Constants up to this many elements are written out in the text that a plan carries.
const SHOWN: usize = 64;

/// A graph at one bound shape.
#[derive(Clone, Debug)]
pub struct EntrySource {
    /// What the symbols of the model are here.
    pub bindings: Bindings,
    /// Without symbols and f64.
    pub graph: Graph,
}

/// Plans graphs that share weights. Errors, each with every problem: `plan.graph` for graphs that are not sound,
/// static or free of f64, `plan.gap` for operations that the target has no kernel for, `weights.missing` for weights
/// that are not given or of another type.
pub fn build(entries: &[EntrySource], weights: &Weights, target: &dyn Target, meta: Meta) -> Result<Plan> {
    let mut faults: Vec<String> = entries.iter().flat_map(|e| faults(&e.graph)).collect();
    let states = states(entries, &mut faults);
    if !faults.is_empty() {
        return Err(Error::all(Kind::Unsupported, "plan.graph", faults));
    }
    let mut gaps = Gaps::default();
    let selected: Vec<Selected<'_>> = entries.iter().map(|e| Selected::new(&e.graph, target, &mut gaps)).collect();
    gaps.finish(target)?;

    let mut collector = Collector::new(weights);
    let merged: Vec<_> = selected.iter().map(|s| collector.entry(s.graph, &s.frontier())).collect();
    let states: HashMap<&str, Value> = states.into_iter().map(|(name, op)| (name, collector.state(op))).collect();
    let mut collected = collector.finish()?;
    let states = states.into_iter().map(|(name, value)| (name, collected.index(value))).collect();
    let planned = entries
        .iter()
        .zip(selected.iter().zip(&merged))
        .map(|(source, (selected, merged))| selected.plan(source.bindings.clone(), merged, &collected, &states));
    let entries: Vec<Entry> = planned.collect();
    let mut modules = BTreeMap::new();
    for (name, code) in target.modules(&entries)? {
        let code = Tensor::from_bytes(DType::U8, &[code.len()], &code).expect("as many bytes as there are");
        modules.insert(name.clone(), collected.infos.len() as u32);
        collected.infos.push(WeightInfo { name: format!("module {name}"), ty: code.value_type(), state: false });
        collected.weights.held.push(Some(Weight::owned(code)));
    }
    let limits = target.limits(&entries);
    let header = Header {
        producer: concat!("lite3r ", env!("CARGO_PKG_VERSION")).into(),
        target: target.name().into(),
        limits,
        meta,
        entries,
        weights: collected.infos,
        modules,
    };
    Plan::new(header, collected.weights)
}

/// Why a graph cannot be planned. What is computed once, when the plan is made, may use f64 as long as no operation
/// that runs later reads it.
fn faults(graph: &Graph) -> Vec<String> {
    let Err(errors) = verify_with(graph, &verify::Options { lowerable: true }) else { return Vec::new() };
    let fixed = dce::weight_time(graph);
    let hidden = |id: NodeId| {
        let read = |value: Value| graph.users(value).iter().any(|(user, _)| !fixed.contains(user));
        let returned = |value: Value| graph.outputs().iter().any(|(_, v)| *v == value);
        fixed.contains(&id) && !graph.results(id).any(|v| graph.ty(v).dtype == DType::F64 && (read(v) || returned(v)))
    };
    let sound = verify::verify(graph).is_ok();
    let faults = errors.0.into_iter().filter(|e| !(sound && e.node.is_some_and(hidden)));
    faults.map(|e| verify::VerifyErrors(vec![e]).to_string()).collect()
}

/// The states of all entries by name. A state is the same in every entry; what an output named `$…` updates is one, and
/// the new value is computed in the run.
fn states<'e>(entries: &'e [EntrySource], faults: &mut Vec<String>) -> BTreeMap<&'e str, &'e Param> {
    let mut known: BTreeMap<&str, &Param> = BTreeMap::new();
    let ops = entries.iter().flat_map(|e| e.graph.node_ids().map(|id| e.graph.op(id)));
    let params: Vec<&Param> = ops.filter_map(|op| if let Op::Param(op) = op { Some(op) } else { None }).collect();
    for op in &params {
        known.entry(&op.name).or_insert(op);
    }
    faults.extend(
        params
            .iter()
            .filter(|op| known[op.name.as_str()] != **op)
            .map(|op| format!("weight `{}` is not the same in all entries: {} or state={}", op.name, op.ty, op.state)),
    );
    known.retain(|_, op| op.state);
    for graph in entries.iter().map(|e| &e.graph) {
        let fixed = dce::weight_time(graph);
        for (name, value) in graph.outputs() {
            let Some(name) = name.strip_prefix('$') else { continue };
            match known.get(name) {
                None => faults.push(format!("output `${name}`: there is no state of that name")),
                Some(op) if op.ty != *graph.ty(*value) => {
                    faults.push(format!("output `${name}` is {}, the state {}", graph.ty(*value), op.ty));
                }
                Some(_) if fixed.contains(&value.node) || state_of(graph, *value).is_some() => {
                    faults.push(format!(
                        "output `${name}` is a weight or a state as it stands, nothing that is computed"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    known
}

/// The state that a value is, seen through operations that move nothing.
fn state_of(graph: &Graph, value: Value) -> Option<Value> {
    match graph.op(value.node) {
        Op::Param(op) if op.state => Some(value),
        Op::Param(_) | Op::Constant(_) | Op::Input(_) => None,
        op => {
            let operands = graph.operands(value.node);
            let types: Vec<ValueType> = operands.iter().map(|v| graph.ty(*v).clone()).collect();
            let whole = alias::offsets(op, &types, &graph.node(value.node).types).is_some_and(|o| o == [0]);
            let whole = whole && types[0].bytes() == graph.ty(value).bytes();
            if whole { state_of(graph, operands[0]) } else { None }
        }
    }
}

/// Operations without a kernel, each kind once.
#[derive(Default)]
struct Gaps(BTreeMap<String, (String, usize)>);

impl Gaps {
    fn add(&mut self, graph: &Graph, id: NodeId, operands: &[ValueType], gap: crate::backend::Gap) {
        let types: Vec<String> = operands.iter().map(ToString::to_string).collect();
        let results: Vec<String> = graph.node(id).types.iter().map(ToString::to_string).collect();
        let reason = match gap.nearest {
            Some(row) => format!("nearest kernel {row}: {}", gap.clause),
            None => gap.clause,
        };
        let what = format!("{}({}) : {}: {reason}", graph.op(id).name(), types.join(", "), results.join(", "));
        self.0.entry(what).or_insert_with(|| (graph.node(id).origin.to_string(), 0)).1 += 1;
    }

    fn finish(self, target: &dyn Target) -> Result<()> {
        let name = target.name();
        let problem = |(what, (origin, count)): (String, (String, usize))| match (origin.as_str(), count) {
            ("", n) => format!("{name}: {what} ({n}×)"),
            (origin, n) => format!("{name}: {what} ({n}×, first at `{origin}`)"),
        };
        let problems: Vec<String> = self.0.into_iter().map(problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Unsupported, "plan.gap", problems)) }
    }
}

/// The run-time part of a graph with a kernel for each operation.
struct Selected<'g> {
    graph: &'g Graph,
    /// In topological order.
    calls: Vec<Call>,
    fixed: HashSet<NodeId>,
}

struct Call {
    id: NodeId,
    operands: Vec<Value>,
    how: How,
}

enum How {
    Kernel(Choice),
    Alias(Vec<u64>),
}

impl<'g> Selected<'g> {
    fn new(graph: &'g Graph, target: &dyn Target, gaps: &mut Gaps) -> Self {
        let (fixed, live) = (dce::weight_time(graph), dce::live(graph));
        let mut calls = Vec::new();
        for id in graph.topological() {
            let node = graph.node(id);
            if !live.contains(&id) || fixed.contains(&id) || matches!(node.op, Op::Input(_)) {
                continue;
            }
            let operands = graph.operands(id);
            let types: Vec<ValueType> = operands.iter().map(|v| graph.ty(*v).clone()).collect();
            // A view of a whole state lies where the state does; a part of one is moved.
            let states: Vec<bool> = operands.iter().map(|v| state_of(graph, *v).is_some()).collect();
            if states.contains(&true) && graph.results(id).any(|v| state_of(graph, v).is_some()) {
                continue;
            }
            let how = match alias::offsets(&node.op, &types, &node.types).filter(|_| !states.contains(&true)) {
                Some(offsets) => How::Alias(offsets),
                None => match target.select(&Request { op: &node.op, operands: &types, results: &node.types }) {
                    Ok(choice) => How::Kernel(choice),
                    Err(gap) => {
                        gaps.add(graph, id, &types, gap);
                        continue;
                    }
                },
            };
            calls.push(Call { id, operands, how });
        }
        Self { graph, calls, fixed }
    }

    /// What the run-time part reads of weight-time values and views of states, each once.
    fn read(&self) -> Vec<(Value, Value)> {
        let read = self.calls.iter().flat_map(|c| &c.operands).chain(self.graph.outputs().iter().map(|(_, v)| v));
        let mut seen = HashSet::new();
        let source = |v: Value| if self.fixed.contains(&v.node) { Some(v) } else { state_of(self.graph, v) };
        read.copied().filter_map(|v| Some((v, source(v)?))).filter(|(v, _)| seen.insert(*v)).collect()
    }

    /// The weight-time values among them.
    fn frontier(&self) -> Vec<Value> {
        let mut seen = HashSet::new();
        self.read().into_iter().map(|(_, source)| source).filter(|v| seen.insert(*v)).collect()
    }

    /// Decides order and memory.
    fn plan(
        &self,
        bindings: Bindings,
        merged: &HashMap<Value, Value>,
        weights: &Collected,
        states: &HashMap<&str, u32>,
    ) -> Entry {
        let graph = self.graph;
        // Values, and the storage that each lies in: (storage, offset within).
        let mut values: Vec<Value> = Vec::new();
        let mut lies: HashMap<Value, (usize, u64)> = HashMap::new();
        let mut storages: Vec<schedule::Storage> = Vec::new();
        let mut fresh = |value: Value, lies: &mut HashMap<Value, (usize, u64)>| {
            lies.insert(value, (storages.len(), 0));
            storages.push(schedule::Storage { bytes: size(graph, value), kept: false });
            storages.len() - 1
        };
        for id in graph.inputs() {
            let value = Value { node: *id, slot: 0 };
            values.push(value);
            fresh(value, &mut lies);
        }
        let mut tasks: Vec<schedule::Task> = Vec::new();
        let mut calls: Vec<&Call> = Vec::new(); // of each task
        let mut views: HashMap<usize, Vec<&Call>> = HashMap::new(); // of each storage, in topological order
        for call in &self.calls {
            values.extend(graph.results(call.id));
            match &call.how {
                How::Alias(offsets) => {
                    let (storage, start) = lies[&call.operands[0]];
                    lies.extend(graph.results(call.id).zip(offsets).map(|(v, o)| (v, (storage, start + o))));
                    views.entry(storage).or_default().push(call);
                }
                How::Kernel(choice) => {
                    let mut reads: Vec<usize> =
                        call.operands.iter().filter_map(|v| lies.get(v).map(|(storage, _)| *storage)).collect();
                    reads.sort_unstable();
                    reads.dedup();
                    let writes = graph.results(call.id).map(|v| fresh(v, &mut lies)).collect();
                    let late = call.operands.iter().any(|v| matches!(graph.op(v.node), Op::Again(_)));
                    tasks.push(schedule::Task { reads, writes, scratch: choice.scratch as u64, late });
                    calls.push(call);
                }
            }
        }
        for (_, value) in graph.outputs() {
            if let Some((storage, _)) = lies.get(value) {
                storages[*storage].kept = true;
            }
        }

        let order = schedule::order(&tasks, &storages);
        let lives = schedule::lifetimes(&order, &tasks, &storages);
        let scratch = order.iter().enumerate().map(|(at, task)| memory::Request {
            life: schedule::Lifetime { first: at, last: at },
            bytes: tasks[*task].scratch,
        });
        let requests: Vec<memory::Request> = lives
            .iter()
            .zip(&storages)
            .map(|(life, storage)| memory::Request { life: *life, bytes: storage.bytes })
            .chain(scratch)
            .collect();
        let arena = memory::assign(&requests);

        let mut buffers = Vec::with_capacity(values.len());
        let mut numbers: HashMap<Value, u32> = HashMap::new();
        let mut buffer = |value: Value, place: Place| {
            *numbers.entry(value).or_insert_with(|| {
                buffers.push(Buffer { ty: graph.ty(value).clone(), place });
                buffers.len() as u32 - 1
            })
        };
        for value in values {
            let (storage, start) = lies[&value];
            buffer(value, Place::Arena(arena.offsets[storage] + start));
        }
        for (value, source) in self.read() {
            buffer(value, Place::Weight(weights.index(merged[&source])));
        }
        let step = |call: &Call, kernel: &str, scratch: Option<Region>| Step {
            kernel: kernel.into(),
            op: graph.op(call.id).clone(),
            operands: call.operands.iter().map(|v| numbers[v]).collect(),
            results: graph.results(call.id).map(|v| numbers[&v]).collect(),
            scratch,
            origin: graph.node(call.id).origin.to_string(),
        };
        let mut steps = Vec::with_capacity(self.calls.len());
        let mut view = |storage: usize, steps: &mut Vec<Step>| {
            steps.extend(views.remove(&storage).unwrap_or_default().into_iter().map(|call| step(call, ALIAS, None)));
        };
        (0..graph.inputs().len()).for_each(|storage| view(storage, &mut steps));
        for (at, task) in order.iter().enumerate() {
            let How::Kernel(choice) = &calls[*task].how else { continue };
            let offset = arena.offsets[storages.len() + at];
            let scratch = (choice.scratch > 0).then_some(Region { offset, bytes: choice.scratch as u64 });
            steps.push(step(calls[*task], choice.kernel, scratch));
            tasks[*task].writes.iter().for_each(|storage| view(*storage, &mut steps));
        }
        let port = |name: &str, value: Value| Port { name: name.into(), buffer: numbers[&value] };
        let (updates, outputs): (Vec<_>, Vec<_>) = graph.outputs().iter().partition(|(name, _)| name.starts_with('$'));
        let updates =
            updates.into_iter().map(|(name, value)| Update { buffer: numbers[value], state: states[&name[1..]] });
        let updates = updates.collect();
        let inputs = graph.inputs().iter().filter_map(|id| match graph.op(*id) {
            Op::Input(input) => Some(port(&input.name, Value { node: *id, slot: 0 })),
            _ => None,
        });
        Entry {
            bindings,
            inputs: inputs.collect(),
            outputs: outputs.into_iter().map(|(name, value)| port(name, *value)).collect(),
            updates,
            steps,
            arena_bytes: arena.bytes,
            ir: Printer { locs: true, elide: Some(SHOWN) }.text(graph),
            buffers,
        }
    }
}

fn size(graph: &Graph, value: Value) -> u64 {
    graph.ty(value).bytes().map_or(0, |b| b as u64)
}
