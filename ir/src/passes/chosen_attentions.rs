//! Choosing attentions by kind and by layer, for the passes that rewrite some of them.
//!
//! `kind=global` names a kind. `layers=[0,"blocks.7."]` keeps those of them with that number, counted from 0 in
//! execution order, or with that text in their origin; `except=[…]` drops some in the same way. Numbers do not move
//! when other attentions are rewritten: sparse ones are counted too.

use super::{Options, PassError};
use crate::{
    attr::Attr,
    graph::{Graph, NodeId},
    ops::{Op, attention::AttentionKind},
};

/// The options that choose.
pub const OPTIONS: [&str; 3] = ["kind", "layers", "except"];

/// One entry of `layers`.
#[derive(Clone, Debug, PartialEq)]
enum Layer {
    Index(usize),
    Name(String),
}

impl Layer {
    fn matches(&self, index: usize, origin: &str) -> bool {
        match self {
            Self::Index(i) => *i == index,
            Self::Name(name) => origin.contains(name.as_str()),
        }
    }

    fn list(options: &Options, name: &str) -> Result<Option<Vec<Self>>, PassError> {
        let Some((_, attr)) = options.0.iter().find(|(n, _)| n == name) else { return Ok(None) };
        let entry = |attr: &Attr| match attr {
            Attr::Dim(dim) => dim.size().map(Self::Index),
            Attr::Text(text) | Attr::Word(text) => Some(Self::Name(text.clone())),
            _ => None,
        };
        let items = match attr {
            Attr::List(items) => items.iter().map(entry).collect(),
            one => entry(one).map(|e| vec![e]),
        };
        items.map(Some).ok_or_else(|| {
            PassError::Option(format!("`{name}` must be a list of numbers from 0 and parts of names, not `{attr}`"))
        })
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(i) => write!(f, "{i}"),
            Self::Name(name) => write!(f, "{name:?}"),
        }
    }
}

/// The dense attentions that the options choose, in execution order. It is refused if there is none, or if an entry of
/// `layers` or `except` names none.
pub fn choose(graph: &Graph, options: &Options) -> Result<Vec<NodeId>, PassError> {
    let kind = options.get_or("kind", AttentionKind::Global)?;
    let layers = Layer::list(options, "layers")?;
    let except = Layer::list(options, "except")?.unwrap_or_default();
    let mut counts = AttentionKind::WORDS.iter().map(|(word, kind)| (*word, *kind, 0usize)).collect::<Vec<_>>();
    let mut used = vec![false; layers.iter().flatten().count() + except.len()];
    let mut chosen = Vec::new();
    for id in graph.topological() {
        let node = graph.node(id);
        let (of, dense) = match &node.op {
            Op::Attention(op) => (op.kind, true),
            Op::BlockAttention(op) => (op.kind, false),
            Op::SelfAttention(op) => (op.kind, false),
            _ => continue,
        };
        let Some((_, _, count)) = counts.iter_mut().find(|(_, k, _)| *k == of) else { continue };
        let index = *count;
        *count += 1;
        if of != kind {
            continue;
        }
        let hits: Vec<bool> =
            layers.iter().flatten().chain(&except).map(|layer| layer.matches(index, &node.origin)).collect();
        used.iter_mut().zip(&hits).for_each(|(used, hit)| *used |= hit);
        let (kept, dropped) = hits.split_at(hits.len() - except.len());
        if dense && (layers.is_none() || kept.contains(&true)) && !dropped.contains(&true) {
            chosen.push(id);
        }
    }
    let found = counts.iter().find(|(_, k, _)| *k == kind).map_or(0, |(_, _, n)| *n);
    let mut problems: Vec<String> = Vec::new();
    if found == 0 {
        let others: Vec<String> =
            counts.iter().filter(|(_, _, n)| *n > 0).map(|(word, _, n)| format!("{n} {word}")).collect();
        let others = if others.is_empty() { "none at all".into() } else { others.join(", ") };
        problems.push(format!("there is no attention of kind {}; there are {others}", kind.word()));
    } else {
        let entries = layers.iter().flatten().chain(&except).zip(&used);
        let unused = entries.filter(|(_, used)| !**used).map(|(layer, _)| layer);
        problems.extend(unused.map(|layer| format!("{layer} names none of the {found} {} attentions", kind.word())));
    }
    if problems.is_empty() { Ok(chosen) } else { Err(PassError::Refused(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAPH: &str = "graph @g(%q: f32[1,1,4,2]) {
        %0 = attention(%q, %q, %q) {scale=1.0,kind=frame} // at blocks.0.attn
        %1 = attention(%0, %q, %q) {scale=1.0,kind=global} // at blocks.1.attn
        %2 = attention(%1, %q, %q) {scale=1.0,kind=global} // at blocks.10.attn
        %3 = attention(%2, %q, %q) {scale=1.0,kind=global} // at blocks.2.attn
        return y=%3
    }";

    fn chosen(options: &str) -> Result<Vec<String>, PassError> {
        let graph: Graph = GRAPH.parse().unwrap();
        let call = crate::text::parse_calls(&format!("x{options}")).unwrap().remove(0);
        let ids = choose(&graph, &Options(call.1))?;
        Ok(ids.into_iter().map(|id| graph.node(id).origin.to_string()).collect())
    }

    #[test]
    fn by_kind_number_and_name() {
        assert_eq!(chosen("").unwrap(), ["blocks.1.attn", "blocks.10.attn", "blocks.2.attn"]);
        assert_eq!(chosen("{kind=frame}").unwrap(), ["blocks.0.attn"]);
        assert_eq!(chosen("{layers=[0,\"s.2.\"]}").unwrap(), ["blocks.1.attn", "blocks.2.attn"]);
        assert_eq!(chosen("{except=[1]}").unwrap(), ["blocks.1.attn", "blocks.2.attn"]);
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let error = chosen("{kind=camera}").unwrap_err().to_string();
        assert_eq!(error, "there is no attention of kind camera; there are 1 frame, 3 global");
        let error = chosen("{layers=[3,\"head\"],except=[7]}").unwrap_err().to_string();
        assert_eq!(error.matches("names none of the 3 global attentions").count(), 3, "{error}");
        assert!(chosen("{layers=[0.5]}").is_err());
    }
}
