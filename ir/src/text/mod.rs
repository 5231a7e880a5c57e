//! The textual IR: flat, typed, one statement a line; made for snapshots, tests and reading aloud.
//!
//! ```text
//! graph @block(%x: f16[2,1374,1024]) -> (y: f16[2,1374,3072]) {
//!   param $norm.g: f16[1024]
//!   param $qkv.w: f16[3072,1024] {init="normal:1e-3"}
//!   %0 = layer_norm(%x, $norm.g, $norm.b) {eps=1e-6} : f16[2,1374,1024]  // at blocks.0.norm1
//!   %1 = constant(0.125) : f16[]
//!   %2, %3 = split(%0) {axis=2,sizes=[512,512]} : f16[2,1374,512], f16[2,1374,512]
//!   return y=%2
//! }
//! ```
//!
//! ```text
//! document  = (graph | pattern)*                                  patterns: see [`crate::pattern`]
//! graph     = "graph" @name "(" (%name ":" type),* ")" ["->" "(" (name ":" type),* ")"] "{" statement* "}"
//! statement = "param" ($name ":" type [attrs]),*
//!           | (%name),+ "=" op "(" (%name | $name),* ")" [attrs] [":" type,+]
//!           | "return" (name "=" (%name | $name)),*
//! attrs     = "{" (name "=" value),* "}"
//! value     = integer | dimension (`261*S+5`) | real | word | "string" | "[" value,* "]"
//! ```
//!
//! Statements end with their line or with `;`. Names that are not words are quoted (`$"onnx::MatMul_12"`), strings are
//! escaped as in Rust. `//` starts a comment; `// at ...` after a statement is its origin. A constant writes its value
//! in place of operands: numbers, or its little-endian bytes in hexadecimal. Types that are left out are inferred;
//! types that are written are believed, and [`crate::verify`] judges them.
//!
//! The printed form is canonical: inputs keep their names, all other values are numbered in topological order, params
//! stand first, attributes in declared order without defaults. Printing what was parsed gives the canonical text
//! again, and parsing what was printed gives the same graph.

mod lexer;
pub(crate) mod parser;
mod printer;
mod resolve;

use std::{collections::HashMap, fmt, ops::Range};

pub use printer::Printer;
pub(crate) use printer::Site;

use crate::{
    attr::AttrMap,
    graph::{Graph, NodeId, Value},
    ops::Op,
};

/// Something wrong at some bytes of a source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub span: Range<usize>,
    pub message: String,
}

/// One mistake in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The line, and carets below what is meant.
    pub excerpt: String,
}

/// Every mistake in a text, in reading order.
#[derive(Clone, Debug, PartialEq)]
pub struct ParseErrors(pub Vec<ParseError>);

impl ParseErrors {
    pub(crate) fn new(source: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.span.start);
        problems.dedup();
        let at = |p: Problem| {
            let before = &source[..p.span.start.min(source.len())];
            let line_start = before.rfind('\n').map_or(0, |i| i + 1);
            ParseError {
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                message: p.message,
                excerpt: excerpt(source, p.span, 0),
            }
        };
        Self(problems.into_iter().map(at).collect())
    }
}

impl fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            write!(f, "{}{}:{}: {}\n{}", if i == 0 { "" } else { "\n" }, e.line, e.column, e.message, e.excerpt)?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseErrors {}

/// The graph that a text describes. Written types are taken as they stand: run [`crate::verify`] on text from
/// elsewhere.
pub fn parse(source: &str) -> Result<Graph, ParseErrors> {
    let mut problems = Vec::new();
    let blocks = parser::parse(source, &mut problems);
    let graph = blocks.first().and_then(|block| resolve::graph(block, &mut problems));
    if blocks.len() > 1 || (blocks.is_empty() && problems.is_empty()) {
        let span = blocks.get(1).map_or(0..0, |b| b.name.span.clone());
        problems.push(Problem { span, message: format!("a text must hold one graph, not {}", blocks.len()) });
    }
    match graph {
        Some(graph) if problems.is_empty() => Ok(graph),
        _ => Err(ParseErrors::new(source, problems)),
    }
}

/// `name{attr=value,…}` in sequence, separated by commas or semicolons: `canonicalize,sla{keep=0.1,block_k=16}`.
pub fn parse_calls(source: &str) -> Result<Vec<(String, AttrMap)>, ParseErrors> {
    let mut problems = Vec::new();
    let calls = parser::calls(source, &mut problems);
    if problems.is_empty() { Ok(calls) } else { Err(ParseErrors::new(source, problems)) }
}

/// The canonical text of a graph.
pub fn print(graph: &Graph) -> String {
    Printer::default().print(graph).text
}

/// An operation with its attributes on one line: `softmax {axis=1}`.
pub fn print_op(op: &Op) -> String {
    format!("{}{}", op.name(), printer::attrs(&op.attrs()))
}

/// The operation that [`print_op`] wrote.
pub fn parse_op(source: &str) -> Result<Op, ParseErrors> {
    let whole = |message: String| ParseErrors::new(source, vec![Problem { span: 0..source.len(), message }]);
    match parse_calls(source)?.as_slice() {
        [(name, attrs)] => Op::parse(name, attrs).map_err(|problems| whole(problems.join("; "))),
        calls => Err(whole(format!("one operation is needed, not {}", calls.len()))),
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

impl std::str::FromStr for Graph {
    type Err = ParseErrors;
    fn from_str(text: &str) -> Result<Self, ParseErrors> {
        parse(text)
    }
}

/// Whether two graphs are the same but for creation order, origins and operations that nothing reads.
pub fn same(a: &Graph, b: &Graph) -> bool {
    difference(a, b).is_none()
}

/// Where two graphs first differ, walking up from the outputs; see [`same`].
pub fn difference(a: &Graph, b: &Graph) -> Option<String> {
    let pair = |what: &str, a: &dyn fmt::Display, b: &dyn fmt::Display| Some(format!("{what}: {a} and {b}"));
    if a.name() != b.name() {
        return pair("names", &a.name(), &b.name());
    }
    let header = |g: &Graph| {
        let declared = |id: NodeId| match g.op(id) {
            Op::Input(op) => Some(format!("{}: {}", op.name, op.ty)),
            Op::Param(op) => Some(format!("{}: {} = {:?}", op.name, op.ty, op.init)),
            _ => None,
        };
        let inputs: Vec<String> = g.inputs().iter().filter_map(|id| declared(*id)).collect();
        let mut params: Vec<String> =
            g.node_ids().filter(|id| matches!(g.op(*id), Op::Param(_))).filter_map(declared).collect();
        params.sort_unstable();
        let outputs: Vec<&str> = g.outputs().iter().map(|(name, _)| name.as_str()).collect();
        format!("({}) -> ({}) with {}", inputs.join(", "), outputs.join(", "), params.join(", "))
    };
    if header(a) != header(b) {
        return pair("interfaces", &header(a), &header(b));
    }
    let mut open: Vec<(Value, Value)> = a.outputs().iter().zip(b.outputs()).map(|(x, y)| (x.1, y.1)).rev().collect();
    let (mut there, mut back) = (HashMap::new(), HashMap::new());
    while let Some((x, y)) = open.pop() {
        let (m, n) = (a.node(x.node), b.node(y.node));
        if x.slot == y.slot && there.get(&x.node) == Some(&y.node) {
            continue;
        }
        let (operands, others) = (a.operands(x.node), b.operands(y.node));
        if x.slot != y.slot || m.types != n.types || operands.len() != others.len() || !same_op(&m.op, &n.op) {
            return pair("operations", &describe(a, x), &describe(b, y));
        }
        if there.insert(x.node, y.node).is_some() || back.insert(y.node, x.node).is_some() {
            return pair("sharing", &describe(a, x), &describe(b, y));
        }
        open.extend(operands.into_iter().zip(others).rev());
    }
    None
}

/// Equality that holds for NaN too, and sees the sign of zero.
fn same_op(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::Constant(a), Op::Constant(b)) => {
            a.value.value_type() == b.value.value_type() && a.value.bytes() == b.value.bytes()
        }
        _ => a == b || (a.name() == b.name() && format!("{:?}", a.attrs()) == format!("{:?}", b.attrs())),
    }
}

fn describe(graph: &Graph, value: Value) -> String {
    let node = graph.node(value.node);
    let attrs = printer::attrs(&node.op.attrs());
    format!("{}{attrs} : {} (at `{}`)", node.op.name(), graph.ty(value), node.origin)
}

/// The lines around some bytes of a source, numbered, with carets below those bytes. Long lines are cut around them.
pub(crate) fn excerpt(source: &str, span: Range<usize>, around: usize) -> String {
    const WIDTH: usize = 140;
    let start = span.start.min(source.len());
    let number = source[..start].matches('\n').count();
    let line_start = source[..start].rfind('\n').map_or(0, |i| i + 1);
    let column = source[line_start..start].chars().count();
    let mut lines: Vec<&str> = source.split('\n').collect();
    if lines.len() > number + 1 && lines.last() == Some(&"") {
        lines.pop();
    }
    let line_length = lines[number].chars().count();
    let carets = source[start..span.end.clamp(start, source.len())].chars().take_while(|c| *c != '\n').count();
    let cut = if line_length > WIDTH { column.saturating_sub(WIDTH / 3) } else { 0 };
    let carets = carets.clamp(1, (cut + WIDTH).saturating_sub(column).max(1));

    let end = (number + around + 1).min(lines.len());
    let digits = end.to_string().len() + 1;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate().take(end).skip(number.saturating_sub(around)) {
        let shown: String = line.chars().skip(cut).take(WIDTH).map(|c| if c == '\t' { ' ' } else { c }).collect();
        let left = if cut > 0 { "…" } else { "" };
        let right = if line.chars().count() > cut + WIDTH { "…" } else { "" };
        out += format!("{:>digits$} | {left}{shown}{right}", i + 1).trim_end();
        out.push('\n');
        if i == number {
            let margin = column - cut + left.chars().count();
            out += &format!("{:digits$} | {:margin$}{}\n", "", "", "^".repeat(carets));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_point_at_characters_and_cut_long_lines() {
        assert_eq!(excerpt("a é b\nc", 5..6, 1), " 1 | a é b\n   |     ^\n 2 | c\n");
        let long = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let cut = excerpt(&long, 500..501, 0);
        let (line, carets) = cut.split_once('\n').unwrap();
        assert_eq!(line.find('X').map(|i| line[..i].chars().count()), carets.find('^'));
        assert!(line.chars().count() < 150, "{line}");
    }

    #[test]
    fn operations_round_trip_by_themselves() {
        for case in Op::all_cases() {
            let text = print_op(&case.op);
            assert_eq!(parse_op(&text).as_ref(), Ok(&case.op), "{text}");
        }
        for wrong in ["", "softmax {axis=1} x", "soft_max", "softmax {axis=", "split {axis=1}", "\u{0}"] {
            assert!(parse_op(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn same_sees_sharing_and_order_of_operands_alone() {
        let parse = |body: &str| parse(&format!("graph @g(%x: f32[2]) -> (y: f32[2]) {{\n{body}\n}}")).unwrap();
        let a = parse("%a = exp(%x)\n%b = exp(%x)\n%c = add(%a, %b)\nreturn y=%c");
        let b = parse("%b = exp(%x)\n%z = exp(%b)\n%a = exp(%x)\n%c = add(%a, %b)\nreturn y=%c");
        assert_eq!(difference(&a, &b), None);
        let shared = parse("%a = exp(%x)\n%c = add(%a, %a)\nreturn y=%c");
        assert!(difference(&a, &shared).unwrap().starts_with("sharing"));
        assert!(difference(&shared, &a).unwrap().starts_with("sharing"));
        let other = parse("%a = exp(%x)\n%c = add(%a, %x)\nreturn y=%c");
        assert!(difference(&a, &other).unwrap().starts_with("operations: exp : f32[2]"));
    }
}
