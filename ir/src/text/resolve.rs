//! Syntax tree to graph: names are looked up, operations built, missing types inferred.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
    sync::Arc,
};

use super::{
    Problem,
    lexer::Name,
    parser::{At, Block, Call, Declared, Operand, Statement},
};
use crate::{
    attr::{Attr, AttrField, AttrMap},
    graph::{Graph, Node, Value},
    ops::{Input, Op},
};

/// The graph of a block; `None` only when a problem has been reported.
pub(crate) fn graph(block: &Block, problems: &mut Vec<Problem>) -> Option<Graph> {
    let mut resolver = Resolver { graph: Graph::new(&block.name.it), names: HashMap::new(), problems };
    if block.is_pattern {
        resolver.report(&block.name.span, "this is a pattern, and a graph is needed");
        return None;
    }
    for input in &block.inputs {
        resolver.declare(input, false);
    }
    for statement in &block.body {
        match statement {
            Statement::Param(param) => resolver.declare(param, true),
            Statement::Op(call) => resolver.call(call),
            Statement::Broken(results) => results.iter().for_each(|name| resolver.define("%", name, None)),
        }
    }
    resolver.returns(block);
    Some(resolver.graph)
}

struct Resolver<'p> {
    graph: Graph,
    /// By sigil and key. `None`: its definition has been reported, its uses are not.
    names: HashMap<String, Option<Value>>,
    problems: &'p mut Vec<Problem>,
}

impl Resolver<'_> {
    fn report(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.problems.push(Problem { span: span.clone(), message: message.into() });
    }

    fn define(&mut self, sigil: &str, name: &At<Name>, value: Option<Value>) {
        let key = format!("{sigil}{}", name.it.key);
        match self.names.entry(key) {
            Entry::Vacant(entry) => drop(entry.insert(value)),
            Entry::Occupied(entry) => {
                let message = format!("`{}` is defined twice", entry.key());
                self.report(&name.span, message);
            }
        }
    }

    fn declare(&mut self, declared: &Declared, in_body: bool) {
        let sigil = if declared.is_param { "$" } else { "%" };
        if declared.is_param != in_body {
            let place = if in_body {
                "an input stands in the header"
            } else {
                "a param stands in the body: `param $w: f32[2]`"
            };
            self.report(&declared.name.span, place);
        }
        let Some(ty) = &declared.ty else {
            self.report(&declared.name.span, format!("`{sigil}{}` needs a type", declared.name.it.key));
            return self.define(sigil, &declared.name, None);
        };
        let name = &declared.name.it.text;
        let origin: Arc<str> = declared.origin.as_ref().unwrap_or(name).as_str().into();
        let op = if declared.is_param {
            let mut attrs: AttrMap = vec![("name".into(), name.put()), ("ty".into(), ty.it.put())];
            attrs.extend(declared.attrs.it.iter().filter(|(n, _)| n != "name" && n != "ty").cloned());
            match Op::parse("param", &attrs) {
                Ok(op) => op,
                Err(errors) => {
                    errors.into_iter().for_each(|e| self.report(&declared.attrs.span, e));
                    return self.define(sigil, &declared.name, None);
                }
            }
        } else {
            if !declared.attrs.it.is_empty() {
                self.report(&declared.attrs.span, "an input has no attributes");
            }
            Input { name: name.clone(), ty: ty.it.clone() }.into()
        };
        let node = self.graph.add_unchecked(Node { op, types: vec![ty.it.clone()], origin }, &[]);
        self.define(sigil, &declared.name, Some(Value { node, slot: 0 }));
    }

    fn call(&mut self, call: &Call) {
        let results = self.build(call);
        for (i, name) in call.results.iter().enumerate() {
            self.define("%", name, results.as_ref().and_then(|r| r.get(i).copied()));
        }
    }

    /// Adds the operation and returns its results.
    fn build(&mut self, call: &Call) -> Option<Vec<Value>> {
        for flag in &call.flags {
            self.report(&flag.span, format!("`{}` is for patterns", flag.it));
        }
        let (op, operands) = if call.op.it == "constant" {
            (self.constant(call), Some(Vec::new()))
        } else {
            let operands: Vec<_> = call.operands.iter().map(|operand| self.operand(operand)).collect();
            (self.op(call, &call.attrs.it), operands.into_iter().collect())
        };
        let (op, operands): (Op, Vec<Value>) = (op?, operands?);
        let types = match &call.types {
            Some(types) => types.iter().map(|t| t.it.clone()).collect::<Vec<_>>(),
            None => {
                let operands: Vec<_> = operands.iter().map(|v| self.graph.ty(*v).clone()).collect();
                op.infer(&operands).map_err(|e| self.report(&call.op.span, format!("{}: {e}", call.op.it))).ok()?
            }
        };
        if types.len() != call.results.len() {
            let message = format!("{} results are named, but there are {} types", call.results.len(), types.len());
            self.report(&(call.results.first()?.span.start..call.results.last()?.span.end), message);
            return None;
        }
        let origin = call.origin.as_deref().unwrap_or_default().into();
        let node = self.graph.add_unchecked(Node { op, types, origin }, &operands);
        Some(self.graph.results(node).collect())
    }

    fn op(&mut self, call: &Call, attrs: &AttrMap) -> Option<Op> {
        let source = match call.op.it.as_str() {
            "input" => Some("inputs stand in the header: `graph @g(%x: f32[2])`"),
            "param" => Some("params are declared: `param $w: f32[2]`"),
            _ => None,
        };
        if let Some(message) = source {
            self.report(&call.op.span, message);
            return None;
        }
        let errors = match Op::parse(&call.op.it, attrs) {
            Ok(op) => return Some(op),
            Err(errors) => errors,
        };
        for error in errors {
            // A problem names the attribute first that it is about.
            let name = error.split('`').nth(1).unwrap_or_default();
            let at = call.attrs.it.iter().position(|(n, _)| n == name).map(|i| &call.attr_spans[i]);
            self.report(at.unwrap_or(&call.op.span), format!("{}: {error}", call.op.it));
        }
        None
    }

    /// `constant(0.5) : f32[]`, `constant([1,2]) : i64[2]`, `constant("0000803f") : f32[1]`.
    fn constant(&mut self, call: &Call) -> Option<Op> {
        let [At { it: Operand::Literal(value), .. }] = call.operands.as_slice() else {
            self.report(&call.op.span, "a constant takes one literal: `constant(0.5)`, `constant([1,2])`");
            return None;
        };
        let Some([ty]) = call.types.as_deref() else {
            self.report(&call.op.span, "a constant needs its type: `constant(0.5) : f32[]`");
            return None;
        };
        let (name, value) = match value {
            Attr::Text(_) => ("bytes", value.clone()),
            Attr::List(_) => ("value", value.clone()),
            _ => ("value", Attr::List(vec![value.clone()])),
        };
        let mut attrs = vec![("type".into(), ty.it.put()), (name.into(), value)];
        attrs.extend(call.attrs.it.iter().cloned());
        self.op(call, &attrs)
    }

    fn operand(&mut self, operand: &At<Operand>) -> Option<Value> {
        let (sigil, name) = match &operand.it {
            Operand::Value(name) => ("%", name),
            Operand::Param(name) => ("$", name),
            Operand::Hole(_) => {
                self.report(&operand.span, "`?` is for patterns");
                return None;
            }
            Operand::Literal(_) => {
                self.report(&operand.span, "an operand must be a value: `%c = constant(0.5) : f32[]` makes one");
                return None;
            }
        };
        let key = format!("{sigil}{}", name.key);
        match self.names.get(&key) {
            Some(value) => *value,
            None => {
                self.report(&operand.span, format!("`{key}` is not defined above"));
                None
            }
        }
    }

    fn returns(&mut self, block: &Block) {
        let Some(returns) = &block.returns else {
            return self.report(&block.end, "a graph ends with `return`");
        };
        for returned in returns {
            let value = self.operand(&returned.value);
            match (&returned.name, value) {
                (None, _) => self.report(&returned.value.span, "an output needs a name: `return y=%x`"),
                (Some(name), Some(value)) => self.graph.output(&name.it, value),
                (Some(_), None) => {}
            }
        }
        let Some(declared) = &block.outputs else { return };
        let names: Vec<_> = returns.iter().filter_map(|r| r.name.as_ref().map(|n| n.it.as_str())).collect();
        let promised: Vec<_> = declared.iter().map(|(name, _)| name.it.as_str()).collect();
        if names != promised {
            let message =
                format!("the header promises ({}), but ({}) is returned", promised.join(", "), names.join(", "));
            return self.report(&block.name.span, message);
        }
        for (name, ty) in declared {
            let value = self.graph.outputs().iter().find(|(n, _)| *n == name.it).map(|(_, v)| *v);
            if let Some(found) = value.map(|v| self.graph.ty(v).clone()).filter(|found| *found != ty.it) {
                self.report(&ty.span, format!("output `{}` is {found}", name.it));
            }
        }
    }
}
