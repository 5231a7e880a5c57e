//! Text to tokens. Never fails: what is no token is reported and skipped.

use std::ops::Range;

use super::Problem;

/// A name after `%`, `$` or `@`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Name {
    /// What it names, without quotes.
    pub text: String,
    /// How it is written canonically: two names are one when their keys are. `%"0"` is not `%0`, but `%"x"` is `%x`.
    pub key: String,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `%x`
    Value(Name),
    /// `$x`
    Param(Name),
    /// `@x`
    Label(Name),
    /// `?x`
    Hole(Name),
    /// `layer_norm`
    Word(String),
    /// `12`, `1e-6`; without sign.
    Number,
    /// `"..."`, unescaped.
    Text(String),
    /// `// at ...`: where the statement before it comes from.
    Origin(String),
    /// `->`
    Arrow,
    /// Any other mark.
    Mark(char),
    /// What is no token; reported already.
    Bad,
    /// The end of the text.
    End,
}

/// A token in its place.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub kind: Kind,
    /// Bytes of the source.
    pub span: Range<usize>,
    /// Whether it is the first on its line.
    pub first: bool,
}

/// Whether a name needs no quotes.
pub(crate) fn is_plain(name: &str) -> bool {
    name.starts_with(starts_word) && name.chars().all(continues_word)
}

fn starts_word(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn continues_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.'
}

/// All tokens, an [`Kind::End`] last.
pub(crate) fn lex(source: &str, problems: &mut Vec<Problem>) -> Vec<Token> {
    let mut lexer = Lexer { source, at: 0, problems };
    let mut tokens = Vec::new();
    let mut first = true;
    loop {
        let before = lexer.at;
        lexer.skip(char::is_whitespace);
        first |= source[before..lexer.at].contains('\n');
        let start = lexer.at;
        let Some(kind) = lexer.token() else { continue };
        let end = kind == Kind::End;
        tokens.push(Token { kind, span: start..lexer.at, first });
        first = false;
        if end {
            return tokens;
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    problems: &'s mut Vec<Problem>,
}

impl Lexer<'_> {
    /// The next token; `None` for a comment.
    fn token(&mut self) -> Option<Kind> {
        let start = self.at;
        let rest = &self.source[start..];
        let Some(c) = rest.chars().next() else { return Some(Kind::End) };
        if rest.starts_with("//") {
            self.skip(|c| c != '\n');
            let origin = self.source[start + 2..self.at].trim().strip_prefix("at ")?;
            return match unquote(origin.trim()) {
                Some((text, "")) => Some(Kind::Origin(text)),
                _ => Some(Kind::Origin(origin.trim().into())),
            };
        }
        if rest.starts_with("->") {
            self.at += 2;
            return Some(Kind::Arrow);
        }
        if c == '"' {
            return Some(self.quoted().map_or(Kind::Bad, Kind::Text));
        }
        if starts_word(c) {
            self.skip(continues_word);
            return Some(Kind::Word(self.source[start..self.at].into()));
        }
        if c.is_ascii_digit() {
            self.number();
            return Some(Kind::Number);
        }
        self.at += c.len_utf8();
        match c {
            '%' => Some(self.name().map_or(Kind::Bad, Kind::Value)),
            '$' => Some(self.name().map_or(Kind::Bad, Kind::Param)),
            '@' => Some(self.name().map_or(Kind::Bad, Kind::Label)),
            '?' => Some(self.name().map_or(Kind::Bad, Kind::Hole)),
            '(' | ')' | '{' | '}' | '[' | ']' | ',' | ':' | ';' | '=' | '+' | '-' | '*' => Some(Kind::Mark(c)),
            _ => {
                self.fail::<()>(start, format!("`{}` means nothing here", c.escape_debug()));
                Some(Kind::Bad)
            }
        }
    }

    fn skip(&mut self, accept: impl Fn(char) -> bool) {
        let rest = &self.source[self.at..];
        self.at += rest.find(|c| !accept(c)).unwrap_or(rest.len());
    }

    fn number(&mut self) {
        let digit = |c: char| c.is_ascii_digit();
        self.skip(digit);
        if self.source[self.at..].starts_with('.') {
            self.at += 1;
            self.skip(digit);
        }
        let rest = &self.source[self.at..];
        let exponent = rest.strip_prefix(['e', 'E']).map(|r| r.strip_prefix(['+', '-']).unwrap_or(r));
        if let Some(digits) = exponent.filter(|r| r.starts_with(digit)) {
            self.at += rest.len() - digits.len();
            self.skip(digit);
        }
    }

    fn name(&mut self) -> Option<Name> {
        let start = self.at;
        if self.source[start..].starts_with('"') {
            let text = self.quoted()?;
            let key = if is_plain(&text) { text.clone() } else { format!("{text:?}") };
            return Some(Name { text, key });
        }
        self.skip(continues_word);
        let text = self.source[start..self.at].to_string();
        match text.is_empty() {
            true => self.fail(start - 1, "a name must follow".into()),
            false => Some(Name { key: text.clone(), text }),
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let start = self.at;
        match unquote(&self.source[start..]) {
            Some((text, rest)) => {
                self.at = self.source.len() - rest.len();
                Some(text)
            }
            None => {
                self.skip(|c| c != '\n');
                self.fail(start, "this string has no end on its line, or an escape that is not Rust's".into())
            }
        }
    }

    fn fail<T>(&mut self, start: usize, message: String) -> Option<T> {
        self.problems.push(Problem { span: start..self.at.max(start + 1), message });
        None
    }
}

/// A string literal at the start of `text`, escaped as Rust's `Debug` does, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut out = String::new();
    loop {
        match chars.next()? {
            '"' => return Some((out, chars.as_str())),
            '\n' => return None,
            '\\' => out.push(match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let (code, rest) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                    chars = rest.chars();
                    char::from_u32(u32::from_str_radix(code, 16).ok()?)?
                }
                c @ ('"' | '\'' | '\\') => c,
                _ => return None,
            }),
            c => out.push(c),
        }
    }
}
