//! `lite3r demo`: everything once, on a rendered scene whose depth and cameras are known.

use std::path::PathBuf;

use super::{Common, progress, run::DeviceArgs};
use crate::{
    Result, atomic,
    demo::{DENSE, Models, Outcome, SIZE, Shot, Variant, lite, measure, session},
    recon::{
        Formats,
        html::{Report, Run, Table},
        write_all,
    },
};

/// Render a scene, reconstruct it dense and as SLA + FP8, write every format and a report
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where everything goes
    #[arg(short, long, value_name = "FOLDER", default_value = "out")]
    output: PathBuf,
    /// How many views
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    views: u64,
    /// Which scene
    #[arg(long, value_name = "N", default_value_t = 0)]
    scene: u64,
    /// The seed of all scenes
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// The target to compile for
    #[arg(long, value_name = "TARGET", default_value = "cpu")]
    target: String,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Carries the command out.
pub fn main(args: &Args, common: &Common) -> Result<()> {
    let target = crate::backend::target(&args.target)?;
    let views = args.views as usize;
    let bar = progress::bar(common.quiet, 7, "rendering");
    let shot = Shot::render(args.seed, args.scene, views)?;
    bar.inc(1);
    let truth = shot.reconstruction()?;
    for (picture, view) in shot.pictures()?.iter().zip(&truth.views) {
        let path = args.output.join("images").join(&view.name);
        atomic::write(&path, |out| picture.rgb.write_to(out, image::ImageFormat::Png).map_err(std::io::Error::other))?;
    }
    let models = Models::write(&args.output)?;
    let mut outcomes = Vec::new();
    for (variant, folder) in [(&DENSE, "dense"), (lite(target), "lite")] {
        bar.set_message(format!("compiling {}", variant.name));
        let mut session = session(variant, &models, views, target, &args.device.options())?;
        bar.inc(1);
        bar.set_message(format!("running {}", variant.name));
        let outcome = measure(&mut session, &shot)?;
        bar.inc(1);
        write_all(&outcome.reconstruction, &args.output.join(folder), &Formats::all())?;
        outcomes.push((variant, outcome, session.allocated_bytes(), session.plan().weight_bytes()));
    }
    bar.set_message("writing the report");
    write_all(&truth, &args.output.join("truth"), &Formats::parse("cameras,depth-color,glb")?)?;
    let table = accuracy(&outcomes);
    let report_path = args.output.join("report.html");
    report(args, &outcomes, &truth, table.clone()).write(&report_path)?;
    bar.finish_and_clear();
    if common.json {
        let rows: Vec<serde_json::Value> = outcomes
            .iter()
            .map(|(variant, outcome, allocated, weights)| {
                serde_json::json!({
                    "variant": variant.name, "depth": outcome.depth, "pose": outcome.pose, "seconds": outcome.seconds,
                    "allocated_bytes": allocated, "weight_bytes": weights,
                })
            })
            .collect();
        return super::print_json(&serde_json::json!({ "report": report_path, "runs": rows }));
    }
    print(&table);
    super::say!("\n{}", report_path.display());
    Ok(())
}

type Row<'v> = (&'v Variant, Outcome, u64, u64);

fn accuracy(outcomes: &[Row<'_>]) -> Table {
    let columns = ["", "AbsRel", "δ < 1.25", "rotation", "translation", "AUC@30", "seconds", "weights", "memory"];
    let row = |(variant, outcome, allocated, weights): &Row<'_>| {
        vec![
            variant.name.to_string(),
            format!("{:.4}", outcome.depth.abs_rel),
            format!("{:.3}", outcome.depth.delta1),
            format!("{:.2}°", outcome.pose.rotation.0),
            format!("{:.2}°", outcome.pose.translation.0),
            format!("{:.3}", outcome.pose.auc[3].1),
            format!("{:.2}", outcome.seconds),
            super::bytes(*weights),
            super::bytes(*allocated),
        ]
    };
    Table {
        title: "Accuracy against the rendered truth".into(),
        note: "One scene. Depth without alignment, poses over all pairs of views; time of one run on this machine."
            .into(),
        columns: columns.map(String::from).to_vec(),
        rows: outcomes.iter().map(row).collect(),
    }
}

fn report<'a>(
    args: &Args,
    outcomes: &'a [Row<'_>],
    truth: &'a crate::recon::Reconstruction,
    table: Table,
) -> Report<'a> {
    let runs = outcomes
        .iter()
        .map(|(variant, outcome, ..)| Run { name: variant.name.into(), reconstruction: &outcome.reconstruction })
        .collect();
    let lead = format!(
        "{} views of {SIZE}x{SIZE} pixels of a rendered scene, reconstructed in one pass by a backbone of 8.3 million \
         parameters: as trained, and with sparse attention and FP8 linear layers.",
        args.views
    );
    let mut report = Report::new("lite3r: one scene, dense and lite", lead, runs);
    for (variant, outcome, ..) in outcomes {
        report.facts.push((format!("{}: AbsRel", variant.name), format!("{:.3}", outcome.depth.abs_rel)));
        report.facts.push((format!("{}: rotation", variant.name), format!("{:.1}°", outcome.pose.rotation.0)));
    }
    report.truth = Some(truth);
    report.tables.push(table);
    report
}

fn print(table: &Table) {
    let width = |i: usize| {
        let cells = table.rows.iter().map(|r| r[i].chars().count());
        cells.chain([table.columns[i].chars().count()]).max().unwrap_or(0)
    };
    for row in std::iter::once(&table.columns).chain(&table.rows) {
        let cells: Vec<String> = row.iter().enumerate().map(|(i, cell)| format!("{cell:<w$}", w = width(i))).collect();
        super::say!("{}", cells.join("  ").trim_end());
    }
}
