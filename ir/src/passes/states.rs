//! `states{names=["proj_lin"]}`: weights that training changes become states.
//!
//! What was computed from such a weight when the plan was made is computed in every run from then on, so this stands
//! before whatever folds weights into each other. Names are patterns as [`super::glob`] reads them.

use super::{Effect, Options, Pass, PassError, Report, glob};
use crate::{
    graph::{Graph, Value},
    ops::{Op, Param},
    patch::Patch,
};

/// The pass.
pub const STATES: Pass =
    Pass { name: "states", law: "chosen weights may change from run to run", effect: Effect::Exact, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["names"])?;
    let patterns: Vec<String> = options.get_or("names", vec!["*".to_string()])?;
    let params: Vec<(Value, Param)> = graph
        .node_ids()
        .filter_map(|id| match graph.op(id) {
            Op::Param(op) => Some((Value { node: id, slot: 0 }, op.clone())),
            _ => None,
        })
        .collect();
    let unused = patterns.iter().filter(|pattern| !params.iter().any(|(_, op)| glob::matches(pattern, &op.name)));
    let problems: Vec<String> = unused.map(|pattern| format!("no weight is called `{pattern}`")).collect();
    if !problems.is_empty() {
        return Err(PassError::Refused(problems));
    }
    let mut count = 0;
    for (old, op) in params {
        if op.state || !op.ty.dtype.is_float() || !patterns.iter().any(|pattern| glob::matches(pattern, &op.name)) {
            continue;
        }
        let mut patch = Patch::new(graph, "states", old);
        let new = patch.wire(Param { state: true, ..op }, &[])?;
        patch.shunt(old, new)?;
        patch.apply();
        count += 1;
    }
    super::run(&super::dce::DCE, graph, &Options::default())?;
    Ok(Report::count("states", count))
}
