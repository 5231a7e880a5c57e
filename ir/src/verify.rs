//! The verifier: whether a graph means something, with every reason why it does not.
//!
//! A verified graph has: operands that exist, no cycle, the types that its operations infer, distinct names of inputs,
//! params and outputs, and no symbol that no input brings. With [`Options::lowerable`] it also has static shapes and no
//! f64: a backend may then rely on both. Operations and inputs that nothing reads are sound.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use crate::{
    graph::{Graph, NodeId},
    ops::Op,
    text::{Printer, Site, excerpt},
    types::{DType, ValueType},
};

/// What is asked beyond soundness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// That every shape is static and no value f64.
    pub lowerable: bool,
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyError {
    /// Where; `None` for the outputs.
    pub node: Option<NodeId>,
    /// What is wrong.
    pub problem: String,
    /// Where the node comes from; empty where that is not known.
    pub origin: String,
    /// The text of the graph around the fault, with carets.
    pub excerpt: String,
}

/// Every fault, in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyErrors(pub Vec<VerifyError>);

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "\n" })?;
            match error.origin.as_str() {
                "" => writeln!(f, "{}", error.problem)?,
                origin => writeln!(f, "{} (at `{origin}`)", error.problem)?,
            }
            f.write_str(&error.excerpt)?;
        }
        Ok(())
    }
}

impl std::error::Error for VerifyErrors {}

/// Whether a graph is sound.
pub fn verify(graph: &Graph) -> Result<(), VerifyErrors> {
    verify_with(graph, &Options::default())
}

/// Whether a graph is sound, and what else is asked.
pub fn verify_with(graph: &Graph, options: &Options) -> Result<(), VerifyErrors> {
    let mut verifier = Verifier { graph, faults: Vec::new() };
    verifier.names();
    verifier.cycles();
    for id in graph.node_ids() {
        verifier.types(id);
        verifier.sources(id);
        if options.lowerable {
            verifier.lowerable(id);
        }
    }
    verifier.symbols();
    if verifier.faults.is_empty() { Ok(()) } else { Err(verifier.errors()) }
}

struct Fault {
    at: Option<(NodeId, Site)>,
    problem: String,
}

struct Verifier<'g> {
    graph: &'g Graph,
    faults: Vec<Fault>,
}

impl Verifier<'_> {
    fn fault(&mut self, id: NodeId, site: Site, problem: impl Into<String>) {
        self.faults.push(Fault { at: Some((id, site)), problem: problem.into() });
    }

    /// Inputs, params and outputs have names of their own.
    fn names(&mut self) {
        let (mut inputs, mut params) = (HashMap::new(), HashMap::new());
        for id in self.graph.node_ids() {
            match self.graph.op(id) {
                Op::Input(op) if inputs.insert(&op.name, ()).is_some() => {
                    self.fault(id, Site::Op, format!("a second input is named `{}`", op.name));
                }
                Op::Param(op) => match params.insert(&op.name, &op.ty) {
                    Some(ty) if *ty != op.ty => {
                        self.fault(id, Site::Op, format!("param `{}` is {ty} elsewhere, {} here", op.name, op.ty));
                    }
                    Some(_) => self.fault(id, Site::Op, format!("a second param is named `{}`", op.name)),
                    None => {}
                },
                _ => {}
            }
        }
        let mut outputs = BTreeSet::new();
        for (name, value) in self.graph.outputs() {
            if !outputs.insert(name) {
                self.faults.push(Fault { at: None, problem: format!("a second output is named `{name}`") });
            }
            if value.slot as usize >= self.graph.node(value.node).types.len() {
                let problem =
                    format!("output `{name}` is result {} of `{}`, which has fewer", value.slot, self.op(value.node));
                self.faults.push(Fault { at: None, problem });
            }
        }
    }

    fn cycles(&mut self) {
        let order: std::collections::HashSet<NodeId> = self.graph.topological().into_iter().collect();
        if let Some(id) = self.graph.node_ids().find(|id| !order.contains(id)) {
            let stuck = self.graph.len() - order.len();
            self.fault(id, Site::Op, format!("{stuck} operations depend on a cycle, `{}` first", self.op(id)));
        }
    }

    fn op(&self, id: NodeId) -> &'static str {
        self.graph.op(id).name()
    }

    /// Operands exist, and the types are those that the operation infers from them.
    fn types(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let mut operands = Vec::new();
        for (i, value) in self.graph.operands(id).into_iter().enumerate() {
            match self.graph.node(value.node).types.get(value.slot as usize) {
                Some(ty) => operands.push(ty.clone()),
                None => {
                    let problem = format!(
                        "{}: reads result {} of `{}`, which has fewer",
                        node.op.name(),
                        value.slot,
                        self.op(value.node)
                    );
                    return self.fault(id, Site::Operand(i), problem);
                }
            }
        }
        let inferred = match node.op.infer(&operands) {
            Ok(inferred) => inferred,
            Err(problem) => return self.fault(id, Site::Op, format!("{}: {problem}", node.op.name())),
        };
        if inferred.len() != node.types.len() {
            let problem = format!("{}: has {} results, not {}", node.op.name(), inferred.len(), node.types.len());
            return self.fault(id, Site::Op, problem);
        }
        for (i, (inferred, declared)) in inferred.iter().zip(&node.types).enumerate() {
            if inferred != declared {
                self.fault(id, Site::Type(i), format!("{}: result {i} is {inferred}, not {declared}", node.op.name()));
            }
        }
    }

    /// Sizes of inputs and params are positive or symbolic; params are static, for checkpoints are.
    fn sources(&mut self, id: NodeId) {
        let negative = |ty: &ValueType| ty.shape.iter().any(|d| d.constant().is_some_and(|c| c < 0));
        let node = self.graph.node(id);
        match &node.op {
            Op::Input(op) if negative(&op.ty) => self.fault(id, Site::Type(0), "a size is negative"),
            Op::Param(op) if op.ty.dims().is_none() => {
                self.fault(id, Site::Type(0), format!("param `{}` must have a static shape", op.name));
            }
            _ => {}
        }
    }

    fn lowerable(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        for (i, ty) in node.types.iter().enumerate() {
            if ty.dtype == DType::F64 {
                self.fault(id, Site::Type(i), format!("{}: no backend has f64", node.op.name()));
            }
            if ty.dims().is_none() {
                self.fault(id, Site::Type(i), format!("{}: {ty} is not static: bind its symbols", node.op.name()));
            }
        }
    }

    /// Every symbol stands in the type of an input, or nothing could ever bind it.
    fn symbols(&mut self) {
        let symbols = |ty: &ValueType| -> Vec<String> {
            ty.shape.iter().flat_map(|d| d.symbols().into_iter().map(String::from).collect::<Vec<_>>()).collect()
        };
        let types = |id: &NodeId| self.graph.node(*id).types.iter().flat_map(symbols).collect::<Vec<_>>();
        let known: BTreeSet<String> = self.graph.inputs().iter().flat_map(types).collect();
        let mut told = known.clone();
        let mut unbound = Vec::new();
        for id in self.graph.node_ids() {
            for (i, ty) in self.graph.node(id).types.iter().enumerate() {
                unbound.extend(symbols(ty).into_iter().filter(|s| told.insert(s.clone())).map(|s| (id, i, s)));
            }
        }
        for (id, i, symbol) in unbound {
            self.fault(id, Site::Type(i), format!("no input binds the symbol `{symbol}`"));
        }
    }

    fn errors(self) -> VerifyErrors {
        // Tables would drown the fault.
        let printed = Printer { elide: Some(16), ..Printer::default() }.print(self.graph);
        let returns = printed.text.rfind("return").unwrap_or(0);
        let end = printed.text.trim_end_matches(['}', '\n']).len();
        let place = |fault: &Fault| match fault.at {
            Some((id, site)) => {
                printed.sites.get(&(id, site)).or(printed.sites.get(&(id, Site::Op))).cloned().unwrap_or(0..0)
            }
            None => returns..end,
        };
        let mut faults: Vec<_> = self.faults.into_iter().map(|fault| (place(&fault), fault)).collect();
        faults.sort_by_key(|(span, _)| span.start);
        let error = |(span, fault): (std::ops::Range<usize>, Fault)| VerifyError {
            node: fault.at.map(|(id, _)| id),
            problem: fault.problem,
            origin: fault.at.map_or(String::new(), |(id, _)| self.graph.node(id).origin.to_string()),
            excerpt: excerpt(&printed.text, span, 2),
        };
        VerifyErrors(faults.into_iter().map(error).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Node, Value},
        ops::{Add, Exp, Input, Param},
        text::parse,
    };

    fn faults(graph: &Graph) -> Vec<String> {
        verify(graph).unwrap_err().0.into_iter().map(|e| e.problem).collect()
    }

    fn ty(text: &str) -> ValueType {
        text.parse().unwrap()
    }

    #[test]
    fn sound_graphs_pass() {
        let graph = parse(
            "graph @g(%x: f32[S,2], %unused: f64[]) -> (y: f32[S,2]) {
              %0 = exp(%x) : f32[S,2]
              %dead = exp(%0) : f32[S,2]
              return y=%0
            }",
        );
        verify(&graph.unwrap()).unwrap();
        verify(&Graph::new("empty")).unwrap();
    }

    #[test]
    fn every_fault_is_found_and_shown() {
        let graph = parse(
            "graph @g(%x: f32[S,2], %y: f32[3]) {
              param $w: f32[T]
              %0 = exp(%x) : f32[S,3]  // at blocks.0
              %1 = add(%0, %y) : f32[S,3]
              %2 = add(%x, %y) : f32[S,3]
              %3 = add(%x) : f32[S,2]
              %4, %5 = exp(%x) : f32[S,2], f32[S,2]
              %6 = exp(%y) : f16[U]
              return y=%0, y=%4
            }",
        );
        insta::assert_snapshot!(verify(&graph.unwrap()).unwrap_err());
    }

    #[test]
    fn names_are_distinct() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", ty("f32[2]"));
        graph.input("x", ty("f32[2]"));
        graph.param("x", ty("f32[2]"));
        graph.param("x", ty("f32[3]"));
        graph.param("x", ty("f32[3]"));
        graph.output("y", x);
        let expect = [
            "a second input is named `x`",
            "param `x` is f32[2] elsewhere, f32[3] here",
            "a second param is named `x`",
        ];
        assert_eq!(faults(&graph), expect);
    }

    #[test]
    fn lowerable_graphs_are_static_and_without_f64() {
        let graph = parse("graph @g(%x: f32[S], %y: f64[]) {\n  %a = exp(%x)\n  return a=%a\n}").unwrap();
        verify(&graph).unwrap();
        let errors = verify_with(&graph, &Options { lowerable: true }).unwrap_err();
        let problems: Vec<&str> = errors.0.iter().map(|e| e.problem.as_str()).collect();
        let expect = [
            "input: f32[S] is not static: bind its symbols",
            "input: no backend has f64",
            "exp: f32[S] is not static: bind its symbols",
        ];
        assert_eq!(problems, expect);
    }

    #[test]
    fn results_that_do_not_exist_are_faults_and_no_panic() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", ty("f32[2]"));
        let types = vec![ty("f32[2]")];
        let node = Node { op: Exp {}.into(), types, origin: "".into() };
        let y = graph.add_unchecked(node, &[Value { node: x.node, slot: 1 }]);
        graph.output("y", Value { node: y, slot: 7 });
        let expect =
            ["exp: reads result 1 of `input`, which has fewer", "output `y` is result 7 of `exp`, which has fewer"];
        assert_eq!(faults(&graph), expect);
    }

    #[test]
    fn cycles_are_faults() {
        let mut graph = Graph::new("g");
        let x = graph.input("x", ty("f32[2]"));
        let node = |op: Op| Node { op, types: vec![ty("f32[2]")], origin: "".into() };
        let a = graph.add_unchecked(node(Add {}.into()), &[x, x]);
        let b = graph.add_unchecked(node(Exp {}.into()), &[Value { node: a, slot: 0 }]);
        graph.redirect(x, Value { node: b, slot: 0 }, &[]);
        assert_eq!(faults(&graph), ["2 operations depend on a cycle, `add` first"]);
    }

    #[test]
    fn declared_types_of_sources_are_their_own() {
        let mut graph = Graph::new("g");
        let op = Input { name: "x".into(), ty: ty("f32[2]") };
        graph.add_unchecked(Node { op: op.into(), types: vec![ty("f32[3]")], origin: "x".into() }, &[]);
        let op = Param { name: "w".into(), ty: ty("f32[-1]"), init: String::new(), state: false };
        graph.add_unchecked(Node { op: op.into(), types: vec![ty("f32[-1]")], origin: "w".into() }, &[]);
        assert_eq!(faults(&graph), ["input: result 0 is f32[2], not f32[3]", "param `w` must have a static shape"]);
    }
}
