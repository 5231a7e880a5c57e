//! The inventory of attentions: what a user reads to see that the compiler understood the model.

use std::{collections::HashMap, fmt};

use crate::{
    dim::Dim,
    graph::Graph,
    ops::{Op, attention::AttentionKind},
    passes::dce::{live, weight_time},
};

/// One attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it comes from: its ONNX name or module.
    pub origin: String,
    /// Counts the attentions of its kind in the order of computation, from 0.
    pub layer: usize,
    /// What it looks over.
    pub kind: AttentionKind,
    /// Sequences.
    pub batch: Dim,
    /// Queries a sequence.
    pub tokens: Dim,
    /// Keys a sequence.
    pub keys: Dim,
    /// Heads.
    pub heads: Dim,
    /// Width of a query.
    pub head_dim: Dim,
    /// Views that a sequence joins.
    pub views: Dim,
    /// Floating-point operations of q kᵀ and p v; zero while symbols are unbound.
    pub flops: f64,
    /// `flops` over those of all operations that run per inference, from 0 to 1; zero while symbols are unbound.
    pub share: f64,
}

/// All attentions of a graph, in the order of computation. Shown as a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// One entry an attention.
    pub rows: Vec<Row>,
    /// Floating-point operations of the whole graph, without what depends on weights alone.
    pub flops: f64,
}

impl Inventory {
    /// How many attentions are of that kind.
    pub fn count(&self, kind: AttentionKind) -> usize {
        self.rows.iter().filter(|r| r.kind == kind).count()
    }

    /// How many there are of every kind that occurs.
    pub fn counts(&self) -> Vec<(AttentionKind, usize)> {
        let all = AttentionKind::WORDS.iter().map(|(_, kind)| (*kind, self.count(*kind)));
        all.filter(|(_, n)| *n > 0).collect()
    }
}

/// Lists the attentions of a graph on which the pass [`super::ATTENTION_KINDS`] has run.
pub fn inventory(graph: &Graph) -> Inventory {
    let fixed = weight_time(graph);
    let mut layers: HashMap<AttentionKind, usize> = HashMap::new();
    let mut inventory = Inventory::default();
    let live = live(graph);
    for id in graph.topological() {
        if fixed.contains(&id) || !live.contains(&id) {
            continue;
        }
        let node = graph.node(id);
        let inputs: Vec<_> = graph.operands(id).iter().map(|v| graph.ty(*v).clone()).collect();
        let flops = node.op.cost(&inputs, &node.types).flops;
        inventory.flops += flops;
        if let (Op::Attention(op), [q, k, _]) = (&node.op, inputs.as_slice()) {
            let next = layers.entry(op.kind).or_default();
            inventory.rows.push(Row {
                origin: node.origin.to_string(),
                layer: *next,
                kind: op.kind,
                batch: q.shape[0].clone(),
                heads: q.shape[1].clone(),
                tokens: q.shape[2].clone(),
                head_dim: q.shape[3].clone(),
                keys: k.shape[2].clone(),
                views: op.views.clone(),
                flops,
                share: 0.0,
            });
            *next += 1;
        }
    }
    let total = inventory.flops.max(f64::MIN_POSITIVE);
    inventory.rows.iter_mut().for_each(|row| row.share = row.flops / total);
    inventory
}

impl fmt::Display for Inventory {
    /// One line for each run of neighbouring layers that differ in nothing but their number; then the sums.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["kind", "layers", "batch", "tokens", "keys", "heads", "head dim", "views", "FLOPs", "share"];
        let mut lines = vec![head.map(String::from)];
        for (kind, _) in self.counts() {
            let rows: Vec<&Row> = self.rows.iter().filter(|r| r.kind == kind).collect();
            for run in rows.chunk_by(|a, b| alike(a, b)) {
                let (first, last) = (run[0], run[run.len() - 1]);
                let layers = match run.len() {
                    1 => first.layer.to_string(),
                    _ => format!("{}-{}", first.layer, last.layer),
                };
                let flops: f64 = run.iter().map(|r| r.flops).sum();
                let share: f64 = run.iter().map(|r| r.share).sum();
                let sizes = [&first.batch, &first.tokens, &first.keys, &first.heads, &first.head_dim, &first.views];
                let [batch, tokens, keys, heads, head_dim, views] = sizes.map(Dim::to_string);
                lines.push([
                    kind.word().into(),
                    layers,
                    batch,
                    tokens,
                    keys,
                    heads,
                    head_dim,
                    views,
                    scaled(flops),
                    format!("{:.1} %", 100.0 * share),
                ]);
            }
        }
        let widths: Vec<usize> = (0..head.len()).map(|c| lines.iter().map(|l| l[c].len()).max().unwrap_or(0)).collect();
        for line in &lines {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, w))| if i < 2 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        let kinds: Vec<String> = self.counts().iter().map(|(kind, n)| format!("{n} {}", kind.word())).collect();
        write!(f, "{} attentions: {}; {} FLOPs in all", self.rows.len(), kinds.join(", "), scaled(self.flops))
    }
}

fn alike(a: &Row, b: &Row) -> bool {
    let sizes = |r: &Row| [&r.batch, &r.tokens, &r.keys, &r.heads, &r.head_dim, &r.views].map(Dim::clone);
    sizes(a) == sizes(b)
}

/// With three digits and a decimal prefix.
fn scaled(flops: f64) -> String {
    let prefixes = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match prefixes.iter().find(|(unit, _)| flops >= *unit) {
        Some((unit, prefix)) => {
            let value = flops / unit;
            let digits = if value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            format!("{value:.digits$} {prefix}")
        }
        None => format!("{flops:.0}"),
    }
}
