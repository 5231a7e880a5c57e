//! Graph to canonical text. Prints whatever it is given, sound or not: the verifier shows its findings in this text.

use std::{collections::HashMap, fmt::Write, ops::Range};

use super::lexer::is_plain;
use crate::{
    attr::{Attr, AttrMap, Attributes},
    graph::{Graph, NodeId, Value},
    ops::{Constant, Op},
};

/// How to print. The default is the canonical text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Printer {
    /// Ends statements with `// at origin`.
    pub locs: bool,
    /// Constants with more elements than this show their size and a hash instead of their value. Such text is for
    /// reading: it does not parse.
    pub elide: Option<usize>,
}

/// A text, and where in it things stand.
pub(crate) struct Printed {
    pub text: String,
    pub sites: HashMap<(NodeId, Site), Range<usize>>,
}

/// A place in the statement of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Site {
    /// The operation's name; of inputs and params their own.
    Op,
    /// An operand.
    Operand(usize),
    /// The type of a result.
    Type(usize),
}

impl Printer {
    /// The text of a graph.
    pub fn text(&self, graph: &Graph) -> String {
        self.print(graph).text
    }

    pub(crate) fn print(&self, graph: &Graph) -> Printed {
        let mut writer =
            Writer { printer: *self, graph, names: HashMap::new(), text: String::new(), sites: HashMap::new() };
        writer.header();
        let mut order = graph.topological();
        if order.len() < graph.len() {
            order = graph.node_ids().collect(); // a cycle, which the verifier reports
        }
        let (params, others): (Vec<_>, Vec<_>) =
            order.into_iter().partition(|id| matches!(graph.op(*id), Op::Param(_)));
        let mut count = 0;
        for id in &others {
            for value in graph.results(*id).filter(|v| !matches!(graph.op(v.node), Op::Input(_))) {
                writer.names.insert(value, format!("%{count}"));
                count += 1;
            }
        }
        params.into_iter().for_each(|id| writer.param(id));
        others.into_iter().filter(|id| !matches!(graph.op(*id), Op::Input(_))).for_each(|id| writer.statement(id));
        writer.returns();
        Printed { text: writer.text, sites: writer.sites }
    }
}

/// Attributes with their braces; nothing where there are none.
pub(crate) fn attrs(attrs: &AttrMap) -> String {
    let items: Vec<String> = attrs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if items.is_empty() { String::new() } else { format!(" {{{}}}", items.join(",")) }
}

struct Writer<'g> {
    printer: Printer,
    graph: &'g Graph,
    names: HashMap<Value, String>,
    text: String,
    sites: HashMap<(NodeId, Site), Range<usize>>,
}

impl Writer<'_> {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Writes text that errors may point at.
    fn mark(&mut self, id: NodeId, site: Site, text: &str) {
        let start = self.text.len();
        self.put(text);
        self.sites.insert((id, site), start..self.text.len());
    }

    fn header(&mut self) {
        let graph = self.graph;
        let _ = write!(self.text, "graph @{}(", quoted(graph.name()));
        // One line, unless origins must stand behind the inputs.
        let tall = graph.inputs().iter().any(|id| self.shows_origin(*id));
        for (i, id) in graph.inputs().iter().enumerate() {
            let Op::Input(op) = graph.op(*id) else { continue };
            let name = format!("%{}", quoted(&op.name));
            self.names.insert(Value { node: *id, slot: 0 }, name.clone());
            self.put(if tall { "\n    " } else { "" });
            self.mark(*id, Site::Op, &name);
            self.put(": ");
            self.types(*id);
            let last = i + 1 == graph.inputs().len();
            self.put(if last {
                ""
            } else if tall {
                ","
            } else {
                ", "
            });
            self.origin(*id);
        }
        self.put(if tall { "\n) -> (" } else { ") -> (" });
        for (i, (name, value)) in graph.outputs().iter().enumerate() {
            let ty = graph.node(value.node).types.get(value.slot as usize).map_or("?".into(), ToString::to_string);
            let _ = write!(self.text, "{}{}: {ty}", if i == 0 { "" } else { ", " }, quoted(name));
        }
        self.put(") {\n");
    }

    fn param(&mut self, id: NodeId) {
        let Op::Param(op) = self.graph.op(id) else { return };
        let name = format!("${}", quoted(&op.name));
        self.names.insert(Value { node: id, slot: 0 }, name.clone());
        self.put("  param ");
        self.mark(id, Site::Op, &name);
        self.put(": ");
        self.types(id);
        let other = self.graph.op(id).attrs().into_iter().filter(|(n, _)| n != "name" && n != "ty").collect();
        self.put(&attrs(&other));
        self.origin(id);
        self.put("\n");
    }

    fn statement(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        self.put("  ");
        let results: Vec<_> = self.graph.results(id).map(|v| self.names[&v].clone()).collect();
        self.put(&results.join(", "));
        self.put(" = ");
        self.mark(id, Site::Op, node.op.name());
        self.put("(");
        match &node.op {
            Op::Constant(op) => self.constant(op),
            op => {
                for (i, operand) in self.graph.operands(id).into_iter().enumerate() {
                    self.put(if i == 0 { "" } else { ", " });
                    let name = self.name(operand);
                    self.mark(id, Site::Operand(i), &name);
                }
                self.put(")");
                self.put(&attrs(&op.attrs()));
            }
        }
        self.put(" : ");
        self.types(id);
        self.origin(id);
        self.put("\n");
    }

    /// The value in place of operands, with the closing parenthesis.
    fn constant(&mut self, op: &Constant) {
        let value = &op.value;
        if self.printer.elide.is_some_and(|most| value.len() > most) {
            let bytes = value.bytes();
            // FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
            let hash =
                bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3));
            let _ = write!(self.text, "elided: {} bytes, hash {hash:016x})", bytes.len());
            return;
        }
        for (_, attr) in op.attrs().into_iter().filter(|(name, _)| name != "type") {
            let _ = match attr {
                Attr::List(items) if value.shape().is_empty() && items.len() == 1 => write!(self.text, "{}", items[0]),
                attr => write!(self.text, "{attr}"),
            };
        }
        self.put(")");
    }

    fn types(&mut self, id: NodeId) {
        for (i, ty) in self.graph.node(id).types.iter().enumerate() {
            self.put(if i == 0 { "" } else { ", " });
            self.mark(id, Site::Type(i), &ty.to_string());
        }
    }

    fn returns(&mut self) {
        self.put("  return");
        for (i, (name, value)) in self.graph.outputs().iter().enumerate() {
            let value = self.name(*value);
            let _ = write!(self.text, "{} {}={value}", if i == 0 { "" } else { "," }, quoted(name));
        }
        self.put("\n}\n");
    }

    fn name(&self, value: Value) -> String {
        // Only a graph that the verifier refuses reads a result that does not exist.
        self.names.get(&value).cloned().unwrap_or_else(|| "%?".into())
    }

    fn shows_origin(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        self.printer.locs
            && match &node.op {
                Op::Input(op) => *op.name != *node.origin,
                Op::Param(op) => *op.name != *node.origin,
                _ => !node.origin.is_empty(),
            }
    }

    fn origin(&mut self, id: NodeId) {
        if self.shows_origin(id) {
            let origin = &*self.graph.node(id).origin;
            let simple = !origin.is_empty()
                && origin.trim() == origin
                && !origin.starts_with('"')
                && !origin.contains(char::is_control);
            let _ = match simple {
                true => write!(self.text, "  // at {origin}"),
                false => write!(self.text, "  // at {origin:?}"),
            };
        }
    }
}

fn quoted(name: &str) -> String {
    if is_plain(name) { name.into() } else { format!("{name:?}") }
}
