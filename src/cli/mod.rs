//! The command lines: what `lite3r-compile` and `lite3r` understand, print and exit with.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 ok, 2 usage, 3 unsupported model, 4
//! bad file, 5 device or memory, 6 accuracy gate.

pub mod bench;
pub mod compare;
pub mod compile;
pub mod demo;
pub mod devices;
pub mod inspect;
pub mod progress;
pub mod run;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{Error, Kind, Result};

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Print results as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Parses the command line, runs `main`, prints errors and answers the exit code.
pub fn start<A: Parser>(common: impl Fn(&A) -> &Common, main: impl FnOnce(A) -> Result<()>) -> ExitCode {
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(help) => {
            let code = if help.use_stderr() { Kind::Usage as u8 } else { 0 };
            // Nobody is left to tell if the terminal is gone.
            let _ = help.print();
            return code.into();
        }
    };
    let filter = EnvFilter::try_from_env("LITE3R_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let json = common(&args).json;
    match main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, json);
            error.exit_code().into()
        }
    }
}

fn report(error: &Error, json: bool) {
    if json {
        let value = serde_json::json!({ "error": { "code": error.code, "problems": error.problems } });
        println!("{value}");
    }
    eprintln!("error{error}");
}

/// Prints a value as JSON, indented.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::usage("cli.json", format!("the result cannot be written as JSON: {e}")))?;
    println!("{text}");
    Ok(())
}

/// `1.5 GiB`, `12 KiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).take_while(|u| n >> (10 * (u + 1)) > 0).count();
    match unit {
        0 => format!("{n} B"),
        _ => format!("{:.1} {}", n as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let shown = [0, 1023, 1024, 1536, 5 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]);
    }
}
