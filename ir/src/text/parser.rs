//! Tokens to a syntax tree, which graphs and patterns share. After a mistake, reading goes on at the next statement.

use std::ops::Range;

use super::{
    Problem,
    lexer::{Kind, Name, Token, lex},
};
use crate::{
    attr::{Attr, AttrMap},
    types::ValueType,
};

/// Something with its place in the source.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub it: T,
    pub span: Range<usize>,
}

/// `graph ... { ... }` or `pattern ... { ... }`.
pub(crate) struct Block {
    pub is_pattern: bool,
    pub name: At<String>,
    pub inputs: Vec<Declared>,
    /// What is written after `->`.
    pub outputs: Option<Vec<(At<String>, At<ValueType>)>>,
    pub body: Vec<Statement>,
    pub returns: Option<Vec<Returned>>,
    /// The closing brace.
    pub end: Range<usize>,
}

/// `%x: f32[2]`, `$w: f32[2] {init="identity"}`; patterns leave the type out.
pub(crate) struct Declared {
    pub is_param: bool,
    pub name: At<Name>,
    pub ty: Option<At<ValueType>>,
    pub attrs: At<AttrMap>,
    pub origin: Option<String>,
}

pub(crate) enum Statement {
    Param(Declared),
    Op(Call),
    /// A mistake has been reported; these are the results that it would have defined.
    Broken(Vec<At<Name>>),
}

/// `%a, %b = op(%x, $w) {k=v} : f32[2], f32[2]`
pub(crate) struct Call {
    /// `shared` or `anchor` before it, in patterns.
    pub flags: Vec<At<String>>,
    pub results: Vec<At<Name>>,
    pub op: At<String>,
    pub operands: Vec<At<Operand>>,
    pub attrs: At<AttrMap>,
    /// The places of the attributes' names.
    pub attr_spans: Vec<Range<usize>>,
    pub types: Option<Vec<At<ValueType>>>,
    pub origin: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Value(Name),
    Param(Name),
    Hole(Name),
    Literal(Attr),
}

/// `name=%x`; patterns leave the name out.
pub(crate) struct Returned {
    pub name: Option<At<String>>,
    pub value: At<Operand>,
}

/// Lists of attributes may nest this deep.
const DEEPEST: usize = 8;

/// Every block of a source.
pub(crate) fn parse(source: &str, problems: &mut Vec<Problem>) -> Vec<Block> {
    let tokens = lex(source, problems);
    let mut parser = Parser { source, tokens, at: 0, in_pattern: false, problems };
    let mut blocks = Vec::new();
    while parser.peek() != &Kind::End {
        match parser.block() {
            Some(block) => blocks.push(block),
            None => parser.recover(&["graph", "pattern"]),
        }
    }
    blocks
}

/// `name{attr=value,…}` in sequence, separated by commas or semicolons: how passes are chosen on a command line.
pub(crate) fn calls(source: &str, problems: &mut Vec<Problem>) -> Vec<(String, AttrMap)> {
    let tokens = lex(source, problems);
    let mut parser = Parser { source, tokens, at: 0, in_pattern: false, problems };
    let mut calls = Vec::new();
    while parser.peek() != &Kind::End {
        let Some(name) = parser.take("the name of a pass", word) else { break };
        let Some((attrs, _)) = parser.attrs() else { break };
        calls.push((name.it, attrs.it));
        match parser.peek() {
            Kind::Mark(',' | ';') => drop(parser.next()),
            Kind::End => {}
            _ => {
                parser.expected::<()>("`,`");
                break;
            }
        }
    }
    calls
}

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Token>,
    at: usize,
    in_pattern: bool,
    problems: &'s mut Vec<Problem>,
}

/// Methods answer `None` after they have reported a mistake.
impl Parser<'_> {
    fn block(&mut self) -> Option<Block> {
        let is_pattern = match self.peek() {
            Kind::Word(w) if w == "graph" => false,
            Kind::Word(w) if w == "pattern" => true,
            _ => return self.expected("`graph` or `pattern`"),
        };
        self.next();
        self.in_pattern = is_pattern;
        let name = self.take("a name such as `@block`", |kind| match kind {
            Kind::Label(name) => Some(name.text),
            _ => None,
        })?;
        self.mark('(')?;
        let inputs = self.list(')', Self::declared)?;
        let outputs = match self.peek() {
            Kind::Arrow => {
                self.next();
                self.mark('(')?;
                Some(self.list(')', |p| {
                    let name = p.take("the name of an output", word_or_text)?;
                    p.mark(':')?;
                    Some((name, p.ty()?))
                })?)
            }
            _ => None,
        };
        self.mark('{')?;
        let (mut body, mut returns) = (Vec::new(), None);
        loop {
            match self.peek() {
                Kind::Mark('}') => {
                    let end = self.next().span;
                    return Some(Block { is_pattern, name, inputs, outputs, body, returns, end });
                }
                Kind::Mark(';') => drop(self.next()),
                Kind::End => {
                    self.expected::<()>("`}`");
                    let end = self.token().span.clone();
                    return Some(Block { is_pattern, name, inputs, outputs, body, returns, end });
                }
                Kind::Word(w) if w == "return" => {
                    let again = returns.is_some();
                    match self.returns() {
                        Some(_) if again => self.report(self.last_span(), "a second `return`".into()),
                        Some(all) => returns = Some(all),
                        None => {
                            returns.get_or_insert_default();
                            self.recover(STATEMENTS);
                        }
                    }
                }
                _ => self.statement(&mut body),
            }
        }
    }

    fn statement(&mut self, body: &mut Vec<Statement>) {
        if *self.peek() == Kind::Word("param".into()) {
            self.next();
            loop {
                match self.declared() {
                    Some(param) => body.push(Statement::Param(param)),
                    None => return self.recover(STATEMENTS),
                }
                match self.peek() {
                    Kind::Mark(',') => drop(self.next()),
                    _ => break,
                }
            }
        } else {
            let mut results = Vec::new();
            match self.call(&mut results) {
                Some(call) => body.push(Statement::Op(call)),
                None => {
                    body.push(Statement::Broken(results));
                    return self.recover(STATEMENTS);
                }
            }
        }
        self.end_of_statement();
    }

    fn end_of_statement(&mut self) {
        let token = self.token();
        if !(token.first || matches!(token.kind, Kind::Mark(';' | '}') | Kind::End)) {
            self.expected::<()>("the end of the statement");
            self.recover(STATEMENTS);
        }
    }

    fn call(&mut self, results: &mut Vec<At<Name>>) -> Option<Call> {
        let mut flags = Vec::new();
        while let Kind::Word(w) = self.peek() {
            match w.as_str() {
                "shared" | "anchor" => flags.push(At { it: w.clone(), span: self.next().span }),
                _ => break,
            }
        }
        loop {
            results.push(self.take("a statement: `%x = op(...)`, `param` or `return`", |kind| match kind {
                Kind::Value(name) => Some(name),
                _ => None,
            })?);
            let more = self.take("`=`", |kind| match kind {
                Kind::Mark(c @ (',' | '=')) => Some(c == ','),
                _ => None,
            })?;
            if !more.it {
                break;
            }
        }
        let op = self.take("the name of an operation", word)?;
        self.mark('(')?;
        if op.it == "constant" && matches!(self.peek(), Kind::Word(w) if w == "elided") {
            let message =
                "this constant was left out when the graph was printed: print it without eliding to read it back";
            self.report(self.token().span.clone(), message.into());
            return None;
        }
        let operands = self.list(')', Self::operand)?;
        let (attrs, attr_spans) = self.attrs()?;
        let types = match self.peek() {
            Kind::Mark(':') => {
                self.next();
                let mut types = vec![self.ty()?];
                while *self.peek() == Kind::Mark(',') {
                    self.next();
                    types.push(self.ty()?);
                }
                Some(types)
            }
            _ => None,
        };
        let origin = self.origin();
        Some(Call { flags, results: results.clone(), op, operands, attrs, attr_spans, types, origin })
    }

    fn returns(&mut self) -> Option<Vec<Returned>> {
        self.next();
        let mut all = Vec::new();
        while !self.token().first && !matches!(self.peek(), Kind::Mark(';' | '}') | Kind::End) {
            let name = match self.peek() {
                Kind::Word(_) | Kind::Text(_) => {
                    let name = self.take("the name of an output", word_or_text)?;
                    self.mark('=')?;
                    Some(name)
                }
                _ => None,
            };
            all.push(Returned { name, value: self.operand()? });
            match self.peek() {
                Kind::Mark(',') => drop(self.next()),
                _ => break,
            }
        }
        self.end_of_statement();
        Some(all)
    }

    fn declared(&mut self) -> Option<Declared> {
        let At { it: (is_param, it), span } = self.take("a name such as `%x` or `$w`", |kind| match kind {
            Kind::Value(name) => Some((false, name)),
            Kind::Param(name) => Some((true, name)),
            _ => None,
        })?;
        let name = At { it, span };
        let ty = match self.peek() {
            Kind::Mark(':') => {
                self.next();
                Some(self.ty()?)
            }
            _ => None,
        };
        let (attrs, _) = self.attrs()?;
        // In a header the comma comes first: `%x: f32[2], // at images`.
        let comma = *self.peek() == Kind::Mark(',') && matches!(self.tokens[self.at + 1].kind, Kind::Origin(_));
        if comma {
            self.tokens.swap(self.at, self.at + 1);
        }
        let origin = self.origin();
        Some(Declared { is_param, name, ty, attrs, origin })
    }

    fn operand(&mut self) -> Option<At<Operand>> {
        let Token { kind, span, .. } = self.token().clone();
        let it = match kind {
            Kind::Value(name) => Operand::Value(name),
            Kind::Param(name) => Operand::Param(name),
            Kind::Hole(name) => Operand::Hole(name),
            _ => {
                let it = Operand::Literal(self.value(0)?);
                return Some(At { it, span: span.start..self.last_span().end });
            }
        };
        self.next();
        Some(At { it, span })
    }

    fn attrs(&mut self) -> Option<(At<AttrMap>, Vec<Range<usize>>)> {
        let start = self.token().span.clone();
        if *self.peek() != Kind::Mark('{') {
            return Some((At { it: AttrMap::new(), span: start }, Vec::new()));
        }
        self.next();
        let all = self.list('}', |p| {
            let name = p.take("the name of an attribute", word)?;
            p.mark('=')?;
            Some((name, p.value(0)?))
        })?;
        for (i, (name, _)) in all.iter().enumerate() {
            if all[..i].iter().any(|(n, _)| n.it == name.it) {
                self.report(name.span.clone(), format!("attribute `{}` stands twice", name.it));
            }
        }
        let span = start.start..self.last_span().end;
        let (spans, it) = all.into_iter().map(|(name, value)| (name.span, (name.it, value))).unzip();
        Some((At { it, span }, spans))
    }

    fn value(&mut self, depth: usize) -> Option<Attr> {
        let start = self.token().span.start;
        match self.token().kind.clone() {
            Kind::Text(text) => {
                self.next();
                return Some(Attr::Text(text));
            }
            // A word that no graph can hold; the patterns know it as a capture.
            Kind::Hole(name) if self.in_pattern => {
                self.next();
                return Some(Attr::Word(format!("?{}", name.text)));
            }
            Kind::Mark('[') if depth == DEEPEST => return self.expected("lists that are not nested so deeply"),
            Kind::Mark('[') => {
                self.next();
                return Some(Attr::List(self.list(']', |p| p.value(depth + 1))?));
            }
            _ => {}
        }
        self.sum("a value: a number, a word, a string or a list")?;
        let text = &self.source[start..self.last_span().end];
        let attr = if let Ok(integer) = text.parse::<i64>() {
            Attr::Dim(integer.into())
        } else if let Some(real) = special(text) {
            Attr::Float(real)
        } else if super::lexer::is_plain(text) {
            Attr::Word(text.into())
        } else if let Ok(real) = text.parse() {
            Attr::Float(real)
        } else if let Ok(dim) = text.parse() {
            Attr::Dim(dim)
        } else {
            self.report(start..start + text.len(), format!("`{text}` is neither a number nor a dimension"));
            return None;
        };
        Some(attr)
    }

    fn ty(&mut self) -> Option<At<ValueType>> {
        let At { it: name, span: start } = self.take("a type such as `f16[2,64]`", word)?;
        let dtype = name.parse().map_err(|e| self.report(start.clone(), e)).ok();
        self.mark('[')?;
        let shape = self.list(']', |p| {
            let start = p.token().span.start;
            p.sum("a dimension")?;
            let span = start..p.last_span().end;
            p.source[span.clone()].parse().map_err(|e| p.report(span, e)).ok()
        })?;
        Some(At { it: ValueType { dtype: dtype?, shape }, span: start.start..self.last_span().end })
    }

    /// Passes over `[-] term ([+-*] term)*`, a term being a number or a word.
    fn sum(&mut self, what: &str) -> Option<()> {
        if *self.peek() == Kind::Mark('-') {
            self.next();
        }
        loop {
            match self.peek() {
                Kind::Number | Kind::Word(_) => drop(self.next()),
                _ => return self.expected(what),
            }
            match self.peek() {
                Kind::Mark('+' | '-' | '*') => drop(self.next()),
                _ => return Some(()),
            }
        }
    }

    /// Items between commas up to the closing mark, which is consumed.
    fn list<T>(&mut self, close: char, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        loop {
            if *self.peek() == Kind::Mark(close) {
                self.next();
                return Some(items);
            }
            items.push(item(self)?);
            match self.peek() {
                Kind::Mark(',') => drop(self.next()),
                Kind::Mark(c) if *c == close => {}
                _ => return self.expected(&format!("`,` or `{close}`")),
            }
        }
    }

    fn origin(&mut self) -> Option<String> {
        match self.tokens[self.at].kind.clone() {
            Kind::Origin(origin) => {
                self.at += 1;
                Some(origin)
            }
            _ => None,
        }
    }

    fn mark(&mut self, c: char) -> Option<()> {
        self.take(&format!("`{c}`"), |kind| (kind == Kind::Mark(c)).then_some(())).map(|_| ())
    }

    /// The next token; origins elsewhere than behind a statement are comments like any other.
    fn token(&self) -> &Token {
        self.tokens[self.at..].iter().find(|t| !matches!(t.kind, Kind::Origin(_))).expect("`End` is last")
    }

    fn peek(&self) -> &Kind {
        &self.token().kind
    }

    /// Consumes a token; stays at the end.
    fn next(&mut self) -> Token {
        while matches!(self.tokens[self.at].kind, Kind::Origin(_)) {
            self.at += 1;
        }
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    /// Consumes the next token if `accept` makes something of it, and otherwise reports what was expected.
    fn take<T>(&mut self, what: &str, accept: impl Fn(Kind) -> Option<T>) -> Option<At<T>> {
        match accept(self.peek().clone()) {
            Some(it) => Some(At { it, span: self.next().span }),
            None => self.expected(what),
        }
    }

    /// Where the token consumed last stands.
    fn last_span(&self) -> Range<usize> {
        self.tokens[..self.at]
            .iter()
            .rev()
            .find(|t| !matches!(t.kind, Kind::Origin(_)))
            .map_or(0..0, |t| t.span.clone())
    }

    /// Reports that the next token is not what must stand there.
    fn expected<T>(&mut self, what: &str) -> Option<T> {
        let Token { kind, span, .. } = self.token().clone();
        let found = match kind {
            Kind::Bad => return None,
            Kind::End => "the end of the text".into(),
            _ => format!("`{}`", &self.source[span.clone()]),
        };
        self.report(span, format!("expected {what}, found {found}"));
        None
    }

    fn report(&mut self, span: Range<usize>, message: String) {
        self.problems.push(Problem { span, message });
    }

    /// Goes on at the next line that starts like a statement (a `%`, a closing brace, or one of the words), or after
    /// `;`.
    fn recover(&mut self, words: &[&str]) {
        let in_body = words == STATEMENTS;
        loop {
            let token = self.token();
            match &token.kind {
                Kind::End => return,
                Kind::Mark(';') if in_body => return,
                Kind::Mark('}') | Kind::Value(_) if token.first && in_body => return,
                Kind::Word(w) if token.first && words.contains(&w.as_str()) => return,
                _ => drop(self.next()),
            }
        }
    }
}

/// The real numbers that are written as words.
fn special(text: &str) -> Option<f64> {
    match text {
        "inf" => Some(f64::INFINITY),
        "-inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => None,
    }
}

fn word(kind: Kind) -> Option<String> {
    match kind {
        Kind::Word(it) => Some(it),
        _ => None,
    }
}

fn word_or_text(kind: Kind) -> Option<String> {
    match kind {
        Kind::Word(it) | Kind::Text(it) => Some(it),
        _ => None,
    }
}

/// The words that statements start with.
const STATEMENTS: &[&str] = &["param", "return", "shared", "anchor"];
