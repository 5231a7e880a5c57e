//! `fuse`: small operations are gathered into the products that make their operands.
//!
//! One file a fusion, in the order of application: activations first, because a product applies its activation before
//! it adds its residual. Only a value that nothing else reads is gathered, so nothing is computed twice.

mod activation;
mod residual;

use super::{Effect, Options, Pass, PassError, Report, dce::DCE};
use crate::graph::Graph;

/// The pass.
pub const FUSE: Pass = Pass {
    name: "fuse",
    law: "products apply activations and add residuals themselves",
    effect: Effect::Reassociates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[])?;
    let activations = activation::fuse(graph)?;
    // What is left behind still reads its operands and would pass for a second reader.
    (DCE.run)(graph, &Options::default())?;
    let residuals = residual::fuse(graph)?;
    let counts = vec![("activation".into(), activations), ("residual".into(), residuals)];
    Ok(Report { counts, notes: Vec::new() })
}
