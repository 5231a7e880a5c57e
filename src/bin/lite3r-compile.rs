//! Compiles backbones to plans.

use std::process::ExitCode;

use lite3r::cli::{self, compile};

fn main() -> ExitCode {
    cli::start(compile::Args::common, compile::main)
}
