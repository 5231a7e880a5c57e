//! What passes that change precision leave alone, by name and by role.
//!
//! A product is known by its own origin and by the names of all weights behind its operands: exporters lose one or the
//! other. Names are compared with dots for slashes, so `patch_embed.proj` also finds `/patch_embed/proj/Conv`.

use std::collections::{HashMap, HashSet};

use super::{Options, PassError, dce};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::Op,
};

/// Options that name what is left alone: `exclude` adds to a pass's own list, `include` overrules it.
pub const OPTIONS: [&str; 2] = ["exclude", "include"];

/// Parts of names.
pub struct Names {
    exclude: Vec<String>,
    include: Vec<String>,
}

impl Names {
    /// From the options, beside what the pass leaves alone by itself.
    pub fn read(options: &Options, own: &[&str]) -> Result<Self, PassError> {
        let mut exclude: Vec<String> = options.get_or("exclude", Vec::new())?;
        exclude.extend(own.iter().map(|s| s.to_string()));
        Ok(Self { exclude, include: options.get_or("include", Vec::new())? })
    }

    /// The entry that leaves something of these names alone.
    pub fn excluded<'a>(&'a self, names: &[String]) -> Option<&'a str> {
        let hit = |part: &&String| names.iter().any(|n| n.contains(part.as_str()));
        if self.include.iter().any(|part| hit(&part)) {
            return None;
        }
        self.exclude.iter().find(hit).map(String::as_str)
    }
}

/// What is known of weights: which values are known when the plan is made, and by what names.
pub struct Weights {
    known: HashSet<NodeId>,
    names: HashMap<NodeId, Vec<String>>,
}

impl Weights {
    /// Of a graph.
    pub fn of(graph: &Graph) -> Self {
        Self { known: dce::weight_time(graph), names: HashMap::new() }
    }

    /// Whether a value depends on weights and constants only.
    pub fn is_known(&self, value: Value) -> bool {
        self.known.contains(&value.node)
    }

    /// Origin of a node, and the names of the weights that its operands are computed from.
    pub fn names(&mut self, graph: &Graph, id: NodeId) -> Vec<String> {
        let mut names = vec![graph.node(id).origin.replace('/', ".")];
        for operand in graph.operands(id) {
            if self.known.contains(&operand.node) {
                names.extend_from_slice(self.behind(graph, operand.node));
            }
        }
        names
    }

    /// The names of the weights that a known value is computed from.
    pub fn behind(&mut self, graph: &Graph, id: NodeId) -> &[String] {
        self.names.entry(id).or_insert_with(|| {
            let mut names = Vec::new();
            let mut seen = HashSet::new();
            let mut stack = vec![id];
            while let Some(at) = stack.pop().filter(|_| seen.len() < MOST_BEHIND) {
                if !seen.insert(at) {
                    continue;
                }
                if let Op::Param(param) = graph.op(at) {
                    names.push(param.name.clone());
                }
                stack.extend(graph.operands(at).into_iter().map(|v| v.node));
            }
            names
        })
    }
}

/// How many operations behind an operand are looked at for names: weights go through a few, tables through many.
const MOST_BEHIND: usize = 64;

/// Whether a value holds patches cut from an image, [B, C, h, p, w, p] moved about: what a patch embedding reads.
pub fn holds_patches(graph: &Graph, value: Value) -> bool {
    let mut at = value;
    loop {
        match graph.op(at.node) {
            Op::Reshape(op) => match &op.shape[..] {
                [_, _, _, p, _, q] if p == q && p.size().is_some_and(|p| p > 1) => return true,
                _ => {}
            },
            Op::Transpose(_) | Op::Cast(_) => {}
            _ => return false,
        }
        at = graph.operands(at.node)[0];
    }
}
