//! `fuse`: small operations are gathered into the products that make their operands.
//!
//! One file a fusion, in the order of application: activations first, because a product applies its activation before
//! it adds its residual; resizes last, because they add first. Only a value that nothing else reads is gathered, so
//! nothing is computed twice.

mod activation;
mod constants;
mod residual;
mod resize;

use super::{Effect, Options, Pass, PassError, Report, dce::DCE};
use crate::graph::Graph;

/// The pass.
pub const FUSE: Pass = Pass {
    name: "fuse",
    law: "products and resizes apply activations and add what is added to them",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let activations = activation::fuse(graph)?;
    // What is left behind still reads its operands and would pass for a second reader.
    (DCE.run)(graph, &Options::default())?;
    let constants = constants::fuse(graph)?;
    let residuals = residual::fuse(graph)?;
    (DCE.run)(graph, &Options::default())?;
    let resizes = resize::fuse(graph)?;
    let counts = [("activation", activations), ("constant", constants), ("residual", residuals), ("resize", resizes)];
    let counts = counts.map(|(what, n)| (what.to_string(), n)).into();
    Ok(Report { counts, notes: Vec::new() })
}
