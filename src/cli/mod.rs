//! The command lines: what `lite3r-compile` and `lite3r` understand, print and exit with.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 ok, 2 usage, 3 unsupported model, 4
//! bad file, 5 device, 6 accuracy gate, 10 no driver, 11 old driver, 12 other architecture, 13 compiler of kernels, 14
//! out of memory, 15 failed kernel, 16 result that is not finite. A reader that goes away early is no error.

pub mod bench;
pub mod compare;
pub mod compile;
pub mod data;
pub mod demo;
pub mod devices;
pub mod eval;
pub mod fit;
pub mod inspect;
pub mod progress;
pub mod run;
pub mod train;

use std::process::{Command, ExitCode};

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{Error, Kind, Result};

/// A line of results. A reader that has gone (`lite3r bench PLAN | head`) wants no more, so nothing is said about it.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use say;

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
            if let Some(code) = (error.code == "cuda.kernel").then(run_step_by_step).flatten() {
                return code.into();
            }
            report(&error, json);
            error.exit_code().into()
        }
    }
}

fn report(error: &Error, json: bool) {
    if json {
        let value = serde_json::json!({ "error": { "code": error.code, "problems": error.problems } });
        say!("{value}");
    }
    warn(format_args!("error{error}"));
}

/// A line on standard error, if anyone reads it.
fn warn(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A graph does not tell which of its kernels has failed, and after that the process can use the device no more. So the
/// same command runs once more, step by step, to name the operation and the node; its exit code if that fails too.
fn run_step_by_step() -> Option<u8> {
    let stepwise = crate::backend::STEPWISE;
    if std::env::var_os(stepwise).is_some() {
        return None;
    }
    warn(format_args!("a kernel has failed; running step by step to name it ({stepwise}=1)"));
    let program = std::env::current_exe().ok()?;
    let status = Command::new(program).args(std::env::args_os().skip(1)).env(stepwise, "1").status().ok()?;
    status.code().filter(|code| *code != 0).map(|code| code as u8)
}

/// Prints a value as JSON, indented.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::usage("cli.json", format!("the result cannot be written as JSON: {e}")))?;
    say!("{text}");
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
