//! The tables of README.md are generated; here they are held against the code. `UPDATE_README=1` writes them anew.

use std::{fmt::Write, fs, path::PathBuf};

use lite3r::backend::{TARGETS, coverage_table};
use lite3r_ir::passes;

fn passes_table() -> String {
    let mut table = String::from("| pass | what it does | effect |\n| --- | --- | --- |\n");
    for pass in passes::ALL {
        writeln!(table, "| `{}` | {} | {:?} |", pass.name, pass.law.replace('|', "\\|"), pass.effect).unwrap();
    }
    table
}

/// The text with what stands between `<!-- name -->` and `<!-- /name -->` replaced.
fn with_table(text: &str, name: &str, table: &str) -> String {
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let start = text.find(&open).expect("the table has its opening mark") + open.len();
    let end = start + text[start..].find(&close).expect("the table has its closing mark");
    format!("{}{table}{}", &text[..start], &text[end..])
}

#[test]
fn tables_are_up_to_date() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    // The architectures of CUDA share their rows.
    let targets: Vec<_> =
        TARGETS.iter().copied().filter(|t| !["cuda:sm_89", "cuda:sm_80"].contains(&t.name())).collect();
    let fresh = with_table(&with_table(&text, "operations", &coverage_table(&targets)), "passes", &passes_table());
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let now = fs::read_to_string(&path).unwrap();
    assert!(now == fresh, "the tables of README.md are old: run this test with UPDATE_README=1 and commit the result");
}
