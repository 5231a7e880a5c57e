//! `frame_tiles{frames=8,bytes=0}`: dense heads take a few frames at a time, so that their memory does not grow with
//! the views.
//!
//! ```text
//! head(x[S, …])   →   concat(head(x[0..8]), head(x[8..16]), …)
//! ```
//!
//! A head is what convolutions and resizes of S frames (that give so many `bytes` a frame) lead to, as far as frames do
//! not mix: the first dimension of
//! every value is that of the frames, and no operation looks across it. Upwards it begins where least has to be kept
//! of all frames: what enlarges a value belongs to it, what shrinks one does not. Tiles differ by one frame at most.
//! Frames are computed as before, bit for bit.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    Effect, Options, Pass, PassError, Report,
    dce::{DCE, weight_time},
    uses::is_output,
};
use crate::{
    dim::Dim,
    graph::{Graph, NodeId, Value},
    ops::{Concat, Conv2d, Op, Reshape, Slice},
    patch::Patch,
};

/// The pass.
pub const FRAME_TILES: Pass =
    Pass { name: "frame_tiles", law: "dense heads take a few frames at a time", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["frames", "bytes"])?;
    let most = options.get_or("frames", 8usize)?;
    if most == 0 {
        return Err(PassError::Option("`frames` must be at least 1".into()));
    }
    let least = options.get_or("bytes", 0usize)?;
    (DCE.run)(graph, &Options::default())?;
    let fixed = weight_time(graph);
    let seeds: HashMap<NodeId, usize> = graph
        .node_ids()
        .filter(|id| !fixed.contains(id) && looks_around(graph, *id))
        .filter_map(|id| {
            let y = &graph.node(id).types[0];
            let frames = y.shape.first()?.size().filter(|frames| *frames > most)?;
            (y.bytes()? / frames >= least).then_some((id, frames))
        })
        .collect();
    let sizes: BTreeSet<usize> = seeds.values().copied().collect();
    let (mut tiles, mut operations) = (0, 0);
    for frames in sizes {
        let own = seeds.iter().filter(|(_, of)| **of == frames).map(|(id, _)| *id).collect();
        let head = Head::find(graph, &fixed, &own, frames);
        let count = frames.div_ceil(most);
        let mut parts: HashMap<Value, Vec<Value>> = HashMap::new();
        for i in 0..count {
            let tile = head.tile(graph, i * frames / count, (i + 1) * frames / count)?;
            for exit in &head.exits {
                parts.entry(*exit).or_default().push(tile[exit]);
            }
        }
        for exit in &head.exits {
            let mut patch = Patch::new(graph, "frame_tiles", *exit);
            let whole = patch.wire(Concat { axis: 0 }, &parts[exit])?;
            patch.shunt(*exit, whole)?;
            patch.apply();
        }
        tiles += count;
        operations += head.nodes.len();
    }
    let counts = vec![("tiles".into(), tiles), ("operations tiled".into(), operations)];
    Ok(Report { counts, notes: Vec::new() })
}

/// Whether an operation reads the neighbours of a pixel: what makes a head dense.
fn looks_around(graph: &Graph, id: NodeId) -> bool {
    match graph.op(id) {
        Op::Conv2d(op) => overlaps(graph, id, 1, op),
        Op::ScaledConv2d(op) => overlaps(graph, id, 2, &op.wide()),
        Op::Resize(_) => true,
        _ => false,
    }
}

/// Whether the windows of a convolution overlap; `weights` is its operand that has their size.
fn overlaps(graph: &Graph, id: NodeId, weights: usize, op: &Conv2d) -> bool {
    let kernel = op.layout.planes(&graph.ty(graph.operands(id)[weights]).shape).map(|[_, _, h, w]| [h, w]);
    kernel.is_some_and(|kernel| !kernel.iter().zip(&op.strides).all(|(k, s)| k.size() == Some(*s)))
}

struct Head {
    /// In topological order.
    nodes: Vec<NodeId>,
    /// What it reads of all frames.
    entries: HashSet<Value>,
    /// What others read of it.
    exits: Vec<Value>,
}

impl Head {
    fn find(graph: &Graph, fixed: &HashSet<NodeId>, seeds: &HashSet<NodeId>, frames: usize) -> Self {
        let batch = Batch { graph, fixed, frames };
        let order = graph.topological();
        let mut inside: HashSet<NodeId> = HashSet::new();
        for id in order.iter().filter(|id| !fixed.contains(id)) {
            let reached = seeds.contains(id) || graph.operands(*id).iter().any(|v| inside.contains(&v.node));
            if reached && batch.apart(*id) {
                inside.insert(*id);
            }
        }
        // Upwards, from the last operation to the first: a value's readers are decided before it is.
        for id in order.iter().rev().filter(|id| !fixed.contains(id)) {
            let read_inside = |v: Value| {
                let users = graph.users(v);
                !is_output(graph, v) && users.iter().all(|(user, _)| inside.contains(user))
            };
            let results: Vec<Value> = graph.results(*id).collect();
            let read = results.iter().any(|v| graph.use_count(*v) > 0) && results.iter().all(|v| read_inside(*v));
            let bytes = |values: &[Value]| -> usize { values.iter().filter_map(|v| graph.ty(*v).bytes()).sum() };
            if !inside.contains(id) && read && batch.apart(*id) && bytes(&batch.operands(*id)) <= bytes(&results) {
                inside.insert(*id);
            }
        }
        let nodes: Vec<NodeId> = order.into_iter().filter(|id| inside.contains(id)).collect();
        let entries = nodes.iter().flat_map(|id| batch.operands(*id)).filter(|v| !inside.contains(&v.node)).collect();
        let leaves = |v: &Value| is_output(graph, *v) || graph.users(*v).iter().any(|(user, _)| !inside.contains(user));
        let exits = nodes.iter().flat_map(|id| graph.results(*id)).filter(leaves).collect();
        Self { nodes, entries, exits }
    }

    /// The head of the frames from `start` to `end`: what becomes of each of its values.
    fn tile(&self, graph: &mut Graph, start: usize, end: usize) -> Result<HashMap<Value, Value>, PassError> {
        let mut part: HashMap<Value, Value> = HashMap::new();
        for id in &self.nodes {
            let operands = graph.operands(*id);
            let op = match graph.op(*id).clone() {
                Op::Reshape(mut op) => {
                    op.shape[0] = Dim::from(end - start);
                    Op::from(Reshape { shape: op.shape })
                }
                other => other,
            };
            let old: Vec<Value> = graph.results(*id).collect();
            let mut patch = Patch::new(graph, "frame_tiles", old[0]);
            let mut inputs = Vec::with_capacity(operands.len());
            for operand in operands {
                let known = part.get(&operand).copied();
                inputs.push(match known {
                    None if self.entries.contains(&operand) => {
                        let slice = Slice { axis: 0, start: start.into(), end: end.into(), step: 1 };
                        let cut = patch.wire(slice, &[operand])?;
                        part.insert(operand, cut);
                        cut
                    }
                    known => known.unwrap_or(operand),
                });
            }
            let new = patch.wire_all(op, &inputs)?;
            part.extend(old.into_iter().zip(new));
            patch.apply();
        }
        Ok(part)
    }
}

/// What is known of frames.
struct Batch<'g> {
    graph: &'g Graph,
    fixed: &'g HashSet<NodeId>,
    frames: usize,
}

impl Batch<'_> {
    fn has_frames(&self, value: Value) -> bool {
        self.graph.ty(value).shape.first().and_then(Dim::size) == Some(self.frames)
    }

    /// The operands that are not known when the plan is made.
    fn operands(&self, id: NodeId) -> Vec<Value> {
        self.graph.operands(id).into_iter().filter(|v| !self.fixed.contains(&v.node)).collect()
    }

    /// Whether an operation computes every frame from the same frame of its operands. What is known when the plan is
    /// made must be the same for all frames.
    fn apart(&self, id: NodeId) -> bool {
        let operands = self.operands(id);
        let rank = self.graph.node(id).types[0].shape.len();
        let framed = !operands.is_empty()
            && operands.iter().all(|v| self.has_frames(*v))
            && self.graph.results(id).all(|v| self.has_frames(v));
        let same = |v: &Value| {
            let shape = &self.graph.ty(*v).shape;
            !self.fixed.contains(&v.node) && shape.len() == rank
                || self.fixed.contains(&v.node) && (shape.len() < rank || shape.first().is_some_and(Dim::is_one))
        };
        framed
            && rank > 1
            && match self.graph.op(id) {
                Op::Conv2d(_) | Op::Linear(_) | Op::WeightScaledLinear(_) | Op::LayerNorm(_) => true,
                Op::ScaledConv2d(_) | Op::QuantizeItems(_) => true,
                Op::Transpose(op) => op.perm[0] == 0,
                Op::Slice(op) => op.axis != 0,
                Op::Split(op) => op.axis != 0,
                Op::Concat(op) => op.axis != 0,
                Op::Reshape(_) => true,
                Op::Resize(_) | Op::Pointwise(_) | Op::Cast(_) | Op::Relu(_) | Op::Gelu(_) | Op::Silu(_) => {
                    self.graph.operands(id).iter().all(same)
                }
                Op::Exp(_) | Op::Sigmoid(_) | Op::Abs(_) | Op::Sign(_) | Op::Clip(_) => true,
                Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) => self.graph.operands(id).iter().all(same),
                _ => false,
            }
    }
}
