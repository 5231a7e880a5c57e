//! A report as one HTML page that loads nothing: input views, depth and error maps, tables, and point clouds that one
//! turns with the mouse.
//!
//! The page is `html/report.html` with `report.css`, `report.js` and the data put in. Every cloud is shown in the
//! frame of its first camera and divided by its median depth, so that runs with different scales lie on top of each
//! other.

mod cloud;
mod sheet;

use std::path::Path;

use super::{points::PointOptions, reconstruction::Reconstruction};
use crate::{Error, Kind, Result, atomic};

const PAGE: &str = include_str!("html/report.html");
const CSS: &str = include_str!("html/report.css");
const JS: &str = include_str!("html/report.js");

/// What the page shows, from top to bottom.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The heading.
    pub title: String,
    /// A sentence or two under it.
    pub lead: String,
    /// Short figures with their names, shown large.
    pub facts: Vec<(String, String)>,
    /// What is compared; all over the same pictures. The first cloud is the one shown first.
    pub runs: Vec<Run<'a>>,
    /// True depth and cameras of the same pictures. Error maps need it.
    pub truth: Option<&'a Reconstruction>,
    /// Tables of figures.
    pub tables: Vec<Table>,
    /// Which pixels become points of the clouds, each of them.
    pub points: PointOptions,
}

/// A result with its name.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// As the page calls it.
    pub name: String,
    /// The result.
    pub reconstruction: &'a Reconstruction,
}

/// A table of words.
#[derive(Clone, Debug)]
pub struct Table {
    /// The heading.
    pub title: String,
    /// A sentence under it; may be empty.
    pub note: String,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The cells, row by row.
    pub rows: Vec<Vec<String>>,
}

impl<'a> Report<'a> {
    /// A report of `runs` without figures: 100 000 points a cloud, the least sure fifth of the pixels left out.
    pub fn new(title: impl Into<String>, lead: impl Into<String>, runs: Vec<Run<'a>>) -> Self {
        Self {
            title: title.into(),
            lead: lead.into(),
            facts: Vec::new(),
            runs,
            truth: None,
            tables: Vec::new(),
            points: PointOptions { confidence_percentile: 20.0, max_points: 100_000 },
        }
    }

    /// The page.
    ///
    /// # Errors
    /// `recon.report` if there is no run, or runs and truth do not show the same views.
    pub fn html(&self) -> Result<String> {
        self.check()?;
        let data = cloud::json(self)?;
        Ok(fill(
            PAGE,
            &[
                ("title", &escape(&self.title)),
                ("lead", &escape(&self.lead)),
                ("css", CSS),
                ("js", JS),
                ("facts", &facts(&self.facts)),
                ("views", &sheet::html(self)?),
                ("tables", &self.tables.iter().map(table).collect::<String>()),
                // Within a script element only `<` could end the data early.
                ("data", &data.replace('<', "\\u003c")),
            ],
        ))
    }

    /// Writes the page.
    ///
    /// # Errors
    /// As [`Self::html`] and [`atomic::write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write_bytes(path, self.html()?.as_bytes())
    }

    fn check(&self) -> Result<()> {
        let Some(first) = self.runs.first() else { return Err(Error::usage("recon.report", "a report needs a run")) };
        let sizes = |r: &Reconstruction| r.views.iter().map(|v| v.size()).collect::<Vec<_>>();
        let expected = sizes(first.reconstruction);
        let truth = self.truth.map(|t| ("the truth", t));
        let others = self.runs[1..].iter().map(|r| (r.name.as_str(), r.reconstruction)).chain(truth);
        let problems: Vec<String> = others
            .filter(|(_, r)| sizes(r) != expected)
            .map(|(name, _)| format!("{name} does not show the same views as {}", first.name))
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Usage, "recon.report", problems)) }
    }
}

/// `page` with every `{{name}}` replaced, in one pass, so that values are never searched.
fn fill(page: &str, values: &[(&str, &str)]) -> String {
    let mut parts = page.split("{{");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("the page closes its placeholders");
        let value = values.iter().find(|(n, _)| *n == name).expect("the page names known placeholders").1;
        out.push_str(value);
        out.push_str(rest);
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn facts(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let card =
        |(name, value): &(String, String)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    format!("<dl class=\"facts\">{}</dl>", facts.iter().map(card).collect::<String>())
}

fn table(table: &Table) -> String {
    let cells = |tag: &str, row: &[String]| {
        let cells: String = row.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
        format!("<tr>{cells}</tr>")
    };
    let note = match table.note.is_empty() {
        true => String::new(),
        false => format!("<p class=\"note\">{}</p>", escape(&table.note)),
    };
    let rows: String = table.rows.iter().map(|r| cells("td", r)).collect();
    format!(
        "<section><h2>{}</h2>{note}<div class=\"scroll\"><table class=\"data\"><thead>{}</thead><tbody>{rows}</tbody></table></div></section>",
        escape(&table.title),
        cells("th", &table.columns),
    )
}

/// Standard base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |w, i| w << 8 | *chunk.get(i).unwrap_or(&0) as u32);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests;
