//! Syntax tree to pattern.

use std::collections::HashMap;

use super::{AttrRule, Operand, Pattern, Statement};
use crate::{
    attr::Attr,
    ops::Op,
    text::{
        ParseErrors, Problem,
        parser::{self, At, Block, Call},
    },
};

/// Operations whose operands may be exchanged.
const COMMUTATIVE: &[&str] = &["add", "mul", "max", "min", "equal", "and", "or"];

/// Every pattern of a text.
pub(super) fn patterns(source: &str) -> Result<Vec<Pattern>, ParseErrors> {
    let mut problems = Vec::new();
    let blocks = parser::parse(source, &mut problems);
    let all: Vec<Pattern> = blocks.iter().filter_map(|block| compile(block, &mut problems)).collect();
    if problems.is_empty() { Ok(all) } else { Err(ParseErrors::new(source, problems)) }
}

fn compile(block: &Block, problems: &mut Vec<Problem>) -> Option<Pattern> {
    let mut report = |span: &std::ops::Range<usize>, message: String| {
        problems.push(Problem { span: span.clone(), message });
    };
    if !block.is_pattern {
        report(&block.name.span, "this is a graph, and a pattern is needed".into());
        return None;
    }
    let mut compiler = Compiler { names: HashMap::new(), numbers: Vec::new(), attrs: Vec::new() };
    let mut values = Vec::new();
    for input in &block.inputs {
        let operand = if input.is_param { Operand::Weight(values.len()) } else { Operand::Any(values.len()) };
        let key = format!("{}{}", if input.is_param { "$" } else { "%" }, input.name.it.key);
        compiler.names.insert(key, operand);
        values.push(input.name.it.text.clone());
    }
    let mut statements = Vec::new();
    for statement in &block.body {
        match statement {
            parser::Statement::Op(call) => {
                let compiled = compiler.statement(call, statements.len(), &mut report);
                statements.extend(compiled);
            }
            parser::Statement::Param(p) => report(&p.name.span, "in patterns `$w` stands in the header".into()),
            parser::Statement::Broken(_) => {}
        }
    }
    let returned = block.returns.as_deref().unwrap_or_default();
    let root = match returned {
        [one] => match compiler.operand(&one.value, &mut report)? {
            Operand::Result(statement, 0) => Some(statement),
            _ => None,
        },
        _ => None,
    };
    if root.is_none() {
        report(&block.end, "a pattern returns the first result of one statement: `return %y`".into());
    }
    Some(Pattern {
        name: block.name.it.clone(),
        statements,
        root: root?,
        values,
        numbers: compiler.numbers,
        attrs: compiler.attrs,
    })
}

struct Compiler {
    /// By sigil and key.
    names: HashMap<String, Operand>,
    numbers: Vec<String>,
    attrs: Vec<String>,
}

impl Compiler {
    fn statement(
        &mut self,
        call: &Call,
        index: usize,
        report: &mut impl FnMut(&std::ops::Range<usize>, String),
    ) -> Option<Statement> {
        let op = Op::NAMES.iter().find(|n| **n == call.op.it).copied();
        if op.is_none() {
            report(&call.op.span, format!("there is no operation `{}`", call.op.it));
        }
        let operands: Vec<Option<Operand>> = call.operands.iter().map(|o| self.operand(o, report)).collect();
        for (slot, result) in call.results.iter().enumerate() {
            self.names.insert(format!("%{}", result.it.key), Operand::Result(index, slot as u32));
        }
        let rule = |(name, attr): &(String, Attr)| {
            let rule = match attr {
                Attr::Word(word) => match word.strip_prefix('?') {
                    Some(capture) => AttrRule::Capture(index_of(&mut self.attrs, capture)),
                    None => AttrRule::Equals(attr.clone()),
                },
                _ => AttrRule::Equals(attr.clone()),
            };
            (name.clone(), rule)
        };
        let attrs = call.attrs.it.iter().map(rule).collect();
        let operands: Vec<Operand> = operands.into_iter().collect::<Option<_>>()?;
        Some(Statement {
            op: op?,
            commutative: operands.len() == 2 && COMMUTATIVE.contains(&op?),
            results: call.results.iter().map(|r| r.it.text.clone()).collect(),
            operands,
            attrs,
            shared: call.flags.iter().any(|f| f.it == "shared"),
            anchor: call.flags.iter().any(|f| f.it == "anchor"),
        })
    }

    fn operand(
        &mut self,
        operand: &At<parser::Operand>,
        report: &mut impl FnMut(&std::ops::Range<usize>, String),
    ) -> Option<Operand> {
        let key = match &operand.it {
            parser::Operand::Value(name) => format!("%{}", name.key),
            parser::Operand::Param(name) => format!("${}", name.key),
            parser::Operand::Hole(name) => return Some(Operand::Number(index_of(&mut self.numbers, &name.text))),
            parser::Operand::Literal(Attr::Float(number)) => return Some(Operand::Literal(*number)),
            parser::Operand::Literal(Attr::Dim(dim)) if dim.constant().is_some() => {
                return dim.constant().map(|c| Operand::Literal(c as f64));
            }
            parser::Operand::Literal(_) => {
                report(&operand.span, "an operand is a value, `?name` or a number".into());
                return None;
            }
        };
        let known = self.names.get(&key).cloned();
        if known.is_none() {
            report(&operand.span, format!("`{key}` is not defined above"));
        }
        known
    }
}

fn index_of(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|n| n == name).unwrap_or_else(|| {
        names.push(name.into());
        names.len() - 1
    })
}
