//! Patterns: fragments of graphs, written as IR text and found in canonical graphs.
//!
//! ```text
//! pattern @gelu_erf(%x) {
//!   %d = div(%x, 1.4142135)
//!   anchor %e = erf(%d)
//!   %a = add(%e, 1)
//!   %m = mul(%x, %a)
//!   %y = mul(%m, 0.5)
//!   return %y
//! }
//! ```
//!
//! `%x` of the header stands for any value, `$w` for a value that is known when the plan is made, `?c` for a number: a
//! constant whose elements are all equal. A literal is such a constant with that value, within the rounding of its
//! type. A name that stands twice means the same value or number. An attribute that is written must agree, `axis=?a`
//! captures it, and what is not written may be anything. Operands of commutative operations match in either order.
//!
//! Matching starts at the operation that `return` names and goes backwards. Whatever lies between must be read by the
//! matched operations alone, unless its statement says `shared`. A construct has as many patterns as it has forms. If
//! none matches, the deepest partial match that contains the `anchor` operation of its pattern is the [`NearMiss`].

mod compile;
mod solve;

use std::collections::{HashMap, HashSet};

use crate::{
    attr::Attr,
    graph::{Graph, NodeId, Value},
    ops::Op,
    text::ParseErrors,
};

/// One operation of a pattern.
#[derive(Debug)]
struct Statement {
    op: &'static str,
    commutative: bool,
    results: Vec<String>,
    operands: Vec<Operand>,
    attrs: Vec<(String, AttrRule)>,
    shared: bool,
    anchor: bool,
}

/// What must stand at an operand.
#[derive(Clone, Debug)]
enum Operand {
    /// Any value; the same one wherever the name stands.
    Any(usize),
    /// A value known when the plan is made.
    Weight(usize),
    /// A number; the same one wherever the name stands.
    Number(usize),
    /// This number.
    Literal(f64),
    /// A result of another statement: (statement, slot).
    Result(usize, u32),
}

/// What must hold for an attribute.
#[derive(Debug)]
enum AttrRule {
    Equals(Attr),
    Capture(usize),
}

/// A fragment to look for.
#[derive(Debug)]
struct Pattern {
    name: String,
    statements: Vec<Statement>,
    /// The statement whose first result is returned.
    root: usize,
    values: Vec<String>,
    numbers: Vec<String>,
    attrs: Vec<String>,
}

/// All forms of one construct.
#[derive(Debug)]
pub struct Patterns {
    all: Vec<Pattern>,
    by_root: HashMap<&'static str, Vec<usize>>,
}

/// A pattern found.
#[derive(Clone, Debug)]
pub struct Match {
    /// The name of the pattern.
    pub pattern: String,
    /// The value that the pattern returns.
    pub root: Value,
    /// With whether others may read it too.
    nodes: Vec<(NodeId, bool)>,
    values: HashMap<String, Value>,
    numbers: HashMap<String, f64>,
    attrs: HashMap<String, Attr>,
}

impl Match {
    /// The operations that were matched.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().map(|(node, _)| *node)
    }

    /// Those of them that nothing else reads: without what is `shared`.
    pub fn own_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, shared)| !shared).map(|(node, _)| *node)
    }

    /// What a name of the pattern's header or of one of its results stands for.
    ///
    /// # Panics
    /// If the pattern has no such name: pattern and pass do not fit each other.
    pub fn value(&self, name: &str) -> Value {
        self.values[name]
    }

    /// The number behind `?name`, if this form of the construct has one.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied()
    }

    /// The attribute captured as `?name`. `None` where the operation has the default, or the pattern no such capture.
    pub fn attr(&self, name: &str) -> Option<&Attr> {
        self.attrs.get(name)
    }
}

/// The deepest partial match where nothing matched.
#[derive(Clone, Debug, PartialEq)]
pub struct NearMiss {
    /// The name of the pattern that came nearest.
    pub pattern: String,
    /// How many of its operations were found.
    pub matched: usize,
    /// How many it has.
    pub of: usize,
    /// The operation that says that the pattern was meant.
    pub anchor: NodeId,
    /// Where the operation comes from that stands in the way.
    pub origin: String,
    /// What was expected and what is there.
    pub why: String,
}

impl std::fmt::Display for NearMiss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pattern, matched, of, origin, why, .. } = self;
        write!(f, "nearest pattern `{pattern}` ({matched} of {of} operations); at `{origin}`: {why}")
    }
}

impl Patterns {
    /// From texts that hold any number of patterns each; all mistakes of the first text that has some.
    pub fn parse(sources: &[&str]) -> Result<Self, ParseErrors> {
        let mut all = Vec::new();
        for source in sources {
            all.extend(compile::patterns(source)?);
        }
        let mut by_root: HashMap<&'static str, Vec<usize>> = HashMap::new();
        for (i, pattern) in all.iter().enumerate() {
            by_root.entry(pattern.statements[pattern.root].op).or_default().push(i);
        }
        Ok(Self { all, by_root })
    }

    /// The names of all patterns, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|p| p.name.as_str())
    }

    /// The nodes at which a pattern may end, in topological order.
    pub fn roots(&self, graph: &Graph) -> Vec<NodeId> {
        let may_end = |id: &NodeId| self.by_root.contains_key(graph.op(*id).name());
        graph.topological().into_iter().filter(may_end).collect()
    }

    /// The first pattern that ends at `root`, or the nearest miss among those whose anchor was found. `weights` are the
    /// nodes known when the plan is made ([`crate::passes::dce::weight_time`]).
    pub fn find(&self, graph: &Graph, weights: &HashSet<NodeId>, root: NodeId) -> Result<Match, Option<NearMiss>> {
        let mut nearest: Option<NearMiss> = None;
        for i in self.by_root.get(graph.op(root).name()).into_iter().flatten() {
            match solve::solve(&self.all[*i], graph, weights, root) {
                Ok(found) => return Ok(found),
                Err(Some(miss)) if nearest.as_ref().is_none_or(|n| n.matched < miss.matched) => nearest = Some(miss),
                Err(_) => {}
            }
        }
        Err(nearest)
    }
}

/// The number that a constant holds everywhere; `None` for other values.
pub fn number(graph: &Graph, value: Value) -> Option<f64> {
    /// A larger constant is a table, whatever it holds.
    const LARGEST: usize = 1 << 16;
    let Op::Constant(constant) = graph.op(value.node) else { return None };
    let tensor = &constant.value;
    if tensor.len() == 1 {
        return tensor.item();
    }
    if tensor.is_empty() || tensor.len() > LARGEST {
        return None;
    }
    let width = tensor.dtype().size();
    let first = &tensor.bytes()[..width];
    let all = tensor.bytes().chunks_exact(width).all(|bytes| bytes == first);
    all.then(|| tensor.to_f64()[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{passes::dce::weight_time, text::parse};

    const GELU: &str = "pattern @gelu(%x) {
      %d = div(%x, 1.4142135)
      anchor %e = erf(%d)
      %a = add(%e, ?one)
      %m = mul(%x, %a)
      %y = mul(%m, 0.5)
      return %y
    }";

    fn search(patterns: &str, graph: &str) -> Result<Match, Option<NearMiss>> {
        let patterns = Patterns::parse(&[patterns]).unwrap();
        let graph = parse(graph).unwrap();
        let root = graph.outputs()[0].1.node;
        patterns.find(&graph, &weight_time(&graph), root)
    }

    fn gelu(first: &str, last: &str) -> String {
        format!(
            "graph @g(%x: f32[3]) -> (y: f32[3]) {{
               %r = constant(1.4142135) : f32[]
               %1 = constant([1,1,1]) : f32[3]
               %h = constant(0.5) : f32[1]
               %d = div(%x, %r)
               %e = erf(%d)
               %a = add(%1, %e)
               %m = mul({first})
               %y = mul({last})
               return y=%y
             }}"
        )
    }

    #[test]
    fn commutative_operations_match_in_either_order() {
        for (first, last) in [("%x, %a", "%m, %h"), ("%a, %x", "%h, %m")] {
            let found = search(GELU, &gelu(first, last)).unwrap();
            assert_eq!((found.pattern.as_str(), found.number("one")), ("gelu", Some(1.0)));
            assert_ne!(found.value("x"), found.value("m"));
        }
    }

    #[test]
    fn the_nearest_miss_names_the_operation_in_the_way() {
        let miss = search(GELU, &gelu("%a, %a", "%m, %h")).unwrap_err().unwrap();
        assert_eq!((miss.matched, miss.of), (5, 5));
        assert!(miss.why.contains("`%x`"), "{miss}");
        let miss = search(GELU, &gelu("%x, %a", "%m, %r")).unwrap_err().unwrap();
        assert!(miss.why.contains("the number 0.5"), "{miss}");
        let miss = search(GELU, &gelu("%x, %x", "%m, %h")).unwrap_err();
        assert_eq!(miss, None, "without its anchor a pattern was not meant");
    }

    #[test]
    fn what_lies_between_must_not_be_read_elsewhere_unless_shared() {
        let graph = "graph @g(%x: f32[3]) -> (y: f32[3], a: f32[3]) {
            %a = exp(%x)
            %b = neg(%a)
            %c = mul(%b, %a)
            return y=%c, a=%a
        }";
        let pattern = |flag: &str| {
            format!("pattern @p(%x) {{ anchor {flag} %a = exp(%x); %b = neg(%a); %c = mul(%a, %b); return %c }}")
        };
        let miss = search(&pattern(""), graph).unwrap_err().unwrap();
        assert!(miss.why.contains("output `a`"), "{miss}");
        assert!(search(&pattern("shared"), graph).is_ok());
    }

    #[test]
    fn attributes_agree_or_are_captured() {
        let graph = "graph @g(%x: f32[3,4]) -> (y: f32[4,3]) {
            %0 = softmax(%x)
            %1 = transpose(%0) {perm=[1,0]}
            return y=%1
        }";
        let pattern = |axis: &str, perm: &str| {
            format!(
                "pattern @p(%x) {{ %s = softmax(%x) {{axis={axis}}}; %t = transpose(%s) {{perm={perm}}}; return %t }}"
            )
        };
        let found = search(&pattern("-1", "?p"), graph).unwrap();
        assert_eq!(found.attr("p").unwrap().to_string(), "[1,0]");
        assert!(search(&pattern("?a", "[1,0]"), graph).unwrap().attr("a").is_none());
        assert!(search(&pattern("0", "?p"), graph).is_err());
        assert!(search(&pattern("-1", "[0,1]"), graph).is_err());
    }

    #[test]
    fn weights_and_results_are_told_apart() {
        let graph = |operand: &str| {
            format!(
                "graph @g(%x: f32[2,2]) -> (y: f32[2,2]) {{
                   param $w: f32[2,2]
                   %w = transpose($w) {{perm=[1,0]}}
                   %a, %b = split(%x) {{axis=0,sizes=[1,1]}}
                   %c = concat(%b, %a) {{axis=0}}
                   %y = matmul(%c, {operand})
                   return y=%y
                 }}"
            )
        };
        let pattern = |first: &str, second: &str| {
            format!(
                "pattern @p(%x, $w) {{ %a, %b = split(%x); %c = concat({first}, {second}); %y = matmul(%c, $w); return %y }}"
            )
        };
        assert!(search(&pattern("%b", "%a"), &graph("%w")).is_ok());
        assert!(search(&pattern("%a", "%b"), &graph("%w")).is_err());
        assert!(search(&pattern("%b", "%a"), &graph("%x")).is_err());
    }

    #[test]
    fn mistakes_in_patterns_are_reported() {
        let error = Patterns::parse(&["pattern @p(%x) { %a = nope(%x); %b = exp(%z); return %q }"]).unwrap_err();
        let text = error.to_string();
        for part in ["`nope`", "`%z`", "`%q`"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(Patterns::parse(&["graph @g() -> () { return }"]).is_err());
    }
}
