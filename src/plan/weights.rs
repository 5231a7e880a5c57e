//! Weight-time values: what depends on params and constants alone is computed once, group by group.
//!
//! The weight-time parts of all entries are merged into one graph in which equal expressions are one node (hash
//! consing), so entries share what they have in common. Values that the run-time parts read become weights of the
//! plan: params and constants as they are, everything else by evaluation on the CPU. Expressions that share a node
//! form a group; groups are evaluated in parallel within a budget of memory, and their results handed out one by one.

use std::collections::{BTreeMap, HashMap, HashSet};

use lite3r_ir::{Graph, NodeId, Op, Tensor, Value, ValueType, passes::dce};
use rayon::prelude::*;

use super::{WeightInfo, init};
use crate::{
    Error, Result,
    backend::{
        Request,
        cpu::{self, AlignedBytes, Arg, ArgMut},
    },
    error::Kind,
    weights::{Weight, Weights},
};

/// Bytes of results that may wait to be taken.
const BUDGET: usize = 256 << 20;

/// The weights of a plan: some at hand, some still to be computed.
pub struct PlanWeights {
    /// By index of [`super::Header::weights`]; `None` is computed.
    pub held: Vec<Option<Weight>>,
    derived: Derived,
}

/// What [`PlanWeights::stream`] hands out.
pub enum Bytes<'a> {
    /// As it was given: mapped or in memory.
    Held(&'a Weight),
    /// Just computed.
    Computed(AlignedBytes),
}

impl Bytes<'_> {
    /// Little-endian and row-major.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Held(weight) => weight.bytes(),
            Self::Computed(bytes) => bytes.as_slice(),
        }
    }
}

impl PlanWeights {
    /// Weights that are all at hand.
    pub fn held(weights: Vec<Weight>) -> Self {
        Self { held: weights.into_iter().map(Some).collect(), derived: Derived::default() }
    }

    /// Hands out every weight once, in order of the index. Errors: `plan.weights` where an evaluation fails, and those
    /// of `take`.
    pub fn stream(&self, take: &mut dyn FnMut(usize, Bytes<'_>) -> Result<()>) -> Result<()> {
        let at_hand = self.held.iter().take_while(|w| w.is_some()).flatten().enumerate();
        at_hand.into_iter().try_for_each(|(index, weight)| take(index, Bytes::Held(weight)))?;
        self.derived.stream(&mut |index, bytes| take(index, Bytes::Computed(bytes)))?;
        // Machine code stands behind what is computed.
        let behind = self.held.iter().rposition(Option::is_none).map_or(self.held.len(), |last| last + 1);
        let behind = self.held.iter().enumerate().skip(behind);
        behind.filter_map(|(index, w)| Some((index, w.as_ref()?))).try_for_each(|(i, w)| take(i, Bytes::Held(w)))
    }
}

#[derive(Default)]
struct Derived {
    graph: Graph,
    params: HashMap<NodeId, Weight>,
    groups: Vec<Group>,
}

/// Nodes that hang together, in topological order, and the results that are wanted.
struct Group {
    nodes: Vec<NodeId>,
    wanted: Vec<(Value, usize)>,
    bytes: usize,
}

/// Merges the weight-time parts of entries.
pub struct Collector<'w> {
    given: &'w Weights,
    graph: Graph,
    keys: HashMap<[u8; 32], NodeId>,
    key_of: HashMap<NodeId, [u8; 32]>,
    params: HashMap<NodeId, Weight>,
    wanted: Vec<Value>,
    seen: HashSet<Value>,
    problems: BTreeMap<String, String>,
}

/// The index of each wanted value, once all entries have been merged.
pub struct Collected {
    /// What the header says of each weight.
    pub infos: Vec<WeightInfo>,
    /// How to get at them.
    pub weights: PlanWeights,
    index: HashMap<Value, u32>,
}

impl Collected {
    /// The weight that holds a value which [`Collector::entry`] has returned.
    pub fn index(&self, value: Value) -> u32 {
        self.index[&value]
    }
}

impl<'w> Collector<'w> {
    /// Nothing yet.
    pub fn new(given: &'w Weights) -> Self {
        Self {
            given,
            graph: Graph::new("weights"),
            keys: HashMap::new(),
            key_of: HashMap::new(),
            params: HashMap::new(),
            wanted: Vec::new(),
            seen: HashSet::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Merges the weight-time part of a graph and answers, for each of its values that `wanted` names, the value of the
    /// merged graph that holds the same bytes.
    pub fn entry(&mut self, graph: &Graph, wanted: &[Value]) -> HashMap<Value, Value> {
        let (fixed, live) = (dce::weight_time(graph), dce::live(graph));
        let mut moved: HashMap<NodeId, NodeId> = HashMap::new();
        for id in graph.topological().into_iter().filter(|id| fixed.contains(id) && live.contains(id)) {
            let operands: Vec<Value> =
                graph.operands(id).iter().map(|v| Value { node: moved[&v.node], slot: v.slot }).collect();
            let key = self.key(graph.op(id), &operands);
            let node = match self.keys.get(&key) {
                Some(node) => *node,
                None => {
                    let node = graph.node(id);
                    let new = self.graph.add(node.op.clone(), &operands, &node.origin);
                    let new = new.expect("the graph was verified, and its types stay as they were");
                    self.keys.insert(key, new);
                    self.key_of.insert(new, key);
                    if let Op::Param(param) = &node.op {
                        self.param(new, param);
                    }
                    new
                }
            };
            moved.insert(id, node);
        }
        let mut answer = HashMap::new();
        for value in wanted {
            let base = base(&self.graph, Value { node: moved[&value.node], slot: value.slot });
            answer.insert(*value, base);
            if self.seen.insert(base) {
                self.wanted.push(base);
            }
        }
        answer
    }

    /// Equal expressions have equal keys.
    fn key(&self, op: &Op, operands: &[Value]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        match op {
            Op::Constant(constant) => {
                hasher.update(format!("constant {}", constant.value.value_type()).as_bytes());
                hasher.update(constant.value.bytes());
            }
            Op::Param(param) if param.state => {
                hasher.update(format!("state {}", param.name).as_bytes());
            }
            Op::Param(param) => {
                // Exporters write one tensor under several names: what lies at the same place is the same.
                let place = match self.given.get(&param.name).and_then(Weight::location) {
                    Some((file, range)) => format!("mapped {range:?} {}", file.path().display()),
                    None => format!("named {:?} {}", param.init, param.name),
                };
                hasher.update(format!("param {} {place}", param.ty).as_bytes());
            }
            op => {
                hasher.update(lite3r_ir::text::print_op(op).as_bytes());
            }
        }
        for value in operands {
            hasher.update(&self.key_of[&value.node]).update(&value.slot.to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// A state, whether or not an entry reads it.
    pub fn state(&mut self, param: &lite3r_ir::ops::Param) -> Value {
        let mut graph = Graph::new("state");
        let id = graph.add(param.clone(), &[], &param.name.as_str().into()).expect("a param always has its type");
        let value = Value { node: id, slot: 0 };
        graph.output("state", value);
        self.entry(&graph, &[value])[&value]
    }

    fn param(&mut self, node: NodeId, param: &lite3r_ir::ops::Param) {
        let problem = match self.given.get(&param.name) {
            Some(weight) if weight.ty == param.ty => {
                self.params.insert(node, weight.clone());
                return;
            }
            Some(weight) => format!("weight `{}` is {}, the model wants {}", param.name, weight.ty, param.ty),
            None if param.init.is_empty() => format!("weight `{}` of type {} is missing", param.name, param.ty),
            None => match init::value(param) {
                Ok(tensor) => {
                    self.params.insert(node, Weight::owned(tensor));
                    return;
                }
                Err(problem) => format!("param `{}`: {problem}", param.name),
            },
        };
        self.problems.insert(param.name.clone(), problem);
    }

    /// Numbers the weights: those at hand first, then group by group. Errors: `weights.missing`, with every problem.
    pub fn finish(self) -> Result<Collected> {
        if !self.problems.is_empty() {
            return Err(Error::all(Kind::BadFile, "weights.missing", self.problems.into_values().collect()));
        }
        let Self { graph, params, wanted, .. } = self;
        let is_source = |node: NodeId| matches!(graph.op(node), Op::Param(_) | Op::Constant(_));
        let (given, computed): (Vec<Value>, Vec<Value>) = wanted.into_iter().partition(|v| is_source(v.node));
        let mut infos = Vec::new();
        let mut index = HashMap::new();
        let mut held = Vec::new();
        let mut number = |value: Value, infos: &mut Vec<WeightInfo>| {
            index.insert(value, infos.len() as u32);
            let state = matches!(graph.op(value.node), Op::Param(param) if param.state);
            infos.push(WeightInfo { name: describe(&graph, value), ty: graph.ty(value).clone(), state });
            infos.len() - 1
        };
        for value in given {
            number(value, &mut infos);
            held.push(Some(match graph.op(value.node) {
                Op::Constant(constant) => Weight::owned(constant.value.clone()),
                _ => params[&value.node].clone(),
            }));
        }
        let mut groups = groups(&graph, &computed);
        for group in &mut groups {
            for (value, at) in &mut group.wanted {
                *at = number(*value, &mut infos);
                held.push(None);
            }
        }
        Ok(Collected { infos, index, weights: PlanWeights { held, derived: Derived { graph, params, groups } } })
    }
}

/// The value whose bytes a value has: what stands before its reshapes.
fn base(graph: &Graph, mut value: Value) -> Value {
    while let Op::Reshape(_) = graph.op(value.node) {
        value = graph.operands(value.node)[0];
    }
    value
}

/// What a weight is called: its own name, or its expression, cut where it grows long.
fn describe(graph: &Graph, value: Value) -> String {
    const LONGEST: usize = 100;
    fn write(graph: &Graph, value: Value, out: &mut String) {
        match graph.op(value.node) {
            Op::Param(param) => out.push_str(&param.name),
            Op::Constant(_) => out.push_str(&format!("constant {}", graph.ty(value))),
            _ if out.len() > LONGEST => out.push('…'),
            op => {
                out.push_str(op.name());
                out.push('(');
                for (i, operand) in graph.operands(value.node).into_iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    write(graph, operand, out);
                }
                out.push(')');
                if graph.node(value.node).types.len() > 1 {
                    out.push_str(&format!(".{}", value.slot));
                }
            }
        }
    }
    let mut out = String::new();
    write(graph, value, &mut out);
    out
}

/// Ancestors of the wanted values, cut into sets that share nothing but params and constants; in the order of the first
/// wanted value.
fn groups(graph: &Graph, wanted: &[Value]) -> Vec<Group> {
    let mut leader: HashMap<NodeId, NodeId> = HashMap::new();
    fn find(leader: &mut HashMap<NodeId, NodeId>, mut id: NodeId) -> NodeId {
        while leader[&id] != id {
            let next = leader[&leader[&id]];
            leader.insert(id, next);
            id = next;
        }
        id
    }
    let mut open: Vec<NodeId> = wanted.iter().map(|v| v.node).collect();
    leader.extend(open.iter().map(|id| (*id, *id)));
    let mut seen: HashSet<NodeId> = HashSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        for operand in graph.operands(id) {
            if matches!(graph.op(operand.node), Op::Param(_) | Op::Constant(_)) {
                continue;
            }
            leader.entry(operand.node).or_insert(operand.node);
            let (a, b) = (find(&mut leader, id), find(&mut leader, operand.node));
            leader.insert(a, b);
            open.push(operand.node);
        }
    }
    let mut number: HashMap<NodeId, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for value in wanted {
        let at = *number.entry(find(&mut leader, value.node)).or_insert_with(|| {
            groups.push(Group { nodes: Vec::new(), wanted: Vec::new(), bytes: 0 });
            groups.len() - 1
        });
        groups[at].wanted.push((*value, 0));
        groups[at].bytes += graph.ty(*value).bytes().unwrap_or(0);
    }
    for id in graph.topological().into_iter().filter(|id| seen.contains(id)) {
        let at = number[&find(&mut leader, id)];
        groups[at].nodes.push(id);
    }
    groups
}

impl Derived {
    fn stream(&self, take: &mut dyn FnMut(usize, AlignedBytes) -> Result<()>) -> Result<()> {
        let mut rest = self.groups.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let over = rest.iter().position(|group| {
                bytes += group.bytes;
                bytes > BUDGET
            });
            let (batch, later) = rest.split_at(over.unwrap_or(rest.len()).max(1));
            let results: Vec<_> = batch.par_iter().map(|group| self.evaluate(group)).collect();
            for result in results {
                result?.into_iter().try_for_each(|(index, bytes)| take(index, bytes))?;
            }
            rest = later;
        }
        Ok(())
    }

    /// The wanted values of a group, in order.
    fn evaluate(&self, group: &Group) -> Result<Vec<(usize, AlignedBytes)>> {
        let mut left: HashMap<Value, usize> = group.wanted.iter().map(|(value, _)| (*value, 1)).collect();
        for id in &group.nodes {
            for operand in self.graph.operands(*id) {
                *left.entry(base(&self.graph, operand)).or_default() += 1;
            }
        }
        let mut known: HashMap<Value, AlignedBytes> = HashMap::new();
        for id in &group.nodes {
            let operands = self.graph.operands(*id);
            if !matches!(self.graph.op(*id), Op::Reshape(_)) {
                let results = self.call(*id, &operands, &known)?;
                let wanted = self.graph.results(*id).zip(results).filter(|(value, _)| left.contains_key(value));
                known.extend(wanted);
            }
            for operand in operands {
                let value = base(&self.graph, operand);
                let reads = left.get_mut(&value).expect("every operand was counted");
                *reads -= 1;
                if *reads == 0 {
                    known.remove(&value);
                }
            }
        }
        let taken = group
            .wanted
            .iter()
            .map(|(value, index)| (*index, known.remove(value).expect("a wanted value counts as read until the end")));
        Ok(taken.collect())
    }

    /// Runs the first CPU kernel that takes a node.
    fn call(&self, id: NodeId, operands: &[Value], known: &HashMap<Value, AlignedBytes>) -> Result<Vec<AlignedBytes>> {
        let node = self.graph.node(id);
        let failed = |problem: String| {
            Error::new(Kind::BadFile, "plan.weights", format!("{} at `{}`: {problem}", node.op.name(), node.origin))
        };
        let types: Vec<ValueType> = operands.iter().map(|v| self.graph.ty(*v).clone()).collect();
        let request = Request { op: &node.op, operands: &types, results: &node.types };
        let kernel = cpu::kernel(&request).map_err(|gap| failed(gap.clause))?;
        let dims = |ty: &ValueType| ty.dims().ok_or_else(|| failed(format!("{ty} is not static")));
        // Mapped files keep no alignment.
        let mut copies: Vec<Option<AlignedBytes>> = Vec::new();
        for value in operands {
            let source = self.source(base(&self.graph, *value));
            copies.push(match source {
                Some(bytes) if !cpu::is_aligned(bytes) => Some(AlignedBytes::copy(bytes)?),
                _ => None,
            });
        }
        let shapes = types.iter().map(dims).collect::<Result<Vec<_>>>()?;
        let args = operands.iter().zip(&types).zip(shapes.iter().zip(&copies)).map(|((value, ty), (shape, copy))| {
            let value = base(&self.graph, *value);
            let bytes = match copy {
                Some(copy) => copy.as_slice(),
                None => self.source(value).unwrap_or_else(|| known[&value].as_slice()),
            };
            Arg { dtype: ty.dtype, shape, bytes }
        });
        let args: Vec<Arg<'_>> = args.collect();
        let sizes = node.types.iter().map(|ty| ty.bytes().ok_or_else(|| failed(format!("{ty} is too large"))));
        let buffers = sizes.map(|bytes| AlignedBytes::zeroed(bytes?)).collect::<Result<Vec<_>>>();
        let mut buffers = buffers?;
        let shapes = node.types.iter().map(dims).collect::<Result<Vec<_>>>()?;
        let results = node.types.iter().zip(&shapes).zip(&mut buffers);
        let mut results: Vec<ArgMut<'_>> = results
            .map(|((ty, shape), buffer)| ArgMut { dtype: ty.dtype, shape, bytes: buffer.as_mut_slice() })
            .collect();
        let mut scratch = AlignedBytes::zeroed(cpu::lanes::scratch((kernel.lane)(&request)))?;
        (kernel.run)(&node.op, &args, &mut results, scratch.as_mut_slice()).map_err(failed)?;
        Ok(buffers)
    }

    /// The bytes of a param or a constant.
    fn source(&self, value: Value) -> Option<&[u8]> {
        match self.graph.op(value.node) {
            Op::Constant(constant) => Some(Tensor::bytes(&constant.value)),
            Op::Param(_) => self.params.get(&value.node).map(Weight::bytes),
            _ => None,
        }
    }
}
