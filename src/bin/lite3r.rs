//! Runs compiled plans: depth, cameras and point clouds from pictures.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lite3r::cli::{self, Common, bench, compare, data, demo, devices, eval, fit, inspect, run, train};

/// Depth, cameras and point clouds from pictures, by compiled plans
#[derive(Parser, Debug)]
#[command(name = "lite3r", version, after_help = "Plans are made by lite3r-compile. Start with: lite3r demo -o out/")]
struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
    Compare(compare::Args),
    Data(data::Args),
    Devices(devices::Args),
    Demo(demo::Args),
    Eval(eval::Args),
    Train(train::Args),
    Distill(train::DistillArgs),
    Fit(fit::Args),
}

fn main() -> ExitCode {
    cli::start(
        |args: &Args| &args.common,
        |Args { common, command }| match command {
            Command::Run(args) => run::main(&args, &common),
            Command::Inspect(args) => inspect::main(&args, &common),
            Command::Bench(args) => bench::main(&args, &common),
            Command::Compare(args) => compare::main(&args, &common),
            Command::Data(args) => data::main(&args, &common),
            Command::Devices(_) => devices::main(&common),
            Command::Demo(args) => demo::main(&args, &common),
            Command::Eval(args) => eval::main(&args, &common),
            Command::Train(args) => train::main(&args, &common),
            Command::Distill(args) => train::distill(&args, &common),
            Command::Fit(args) => fit::main(&args, &common),
        },
    )
}
