//! `prune_outputs{outputs=["depth","pose_enc"]}`: only these outputs stay, in their declared order, and what they need.
//!
//! A name that the graph does not have is refused, with the names that it has.

use super::{Effect, Options, Pass, PassError, Report, dce::DCE};
use crate::graph::Graph;

/// The pass.
pub const PRUNE_OUTPUTS: Pass = Pass {
    name: "prune_outputs",
    law: "outputs that nobody asked for go, and what only they need",
    effect: Effect::Exact,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["outputs"])?;
    let Some(wanted) = options.get::<Vec<String>>("outputs")?.filter(|names| !names.is_empty()) else {
        return Err(PassError::Option("`outputs` must name at least one output".into()));
    };
    let known: Vec<&str> = graph.outputs().iter().map(|(name, _)| name.as_str()).collect();
    let unknown: Vec<String> = wanted
        .iter()
        .filter(|name| !known.contains(&name.as_str()))
        .map(|name| format!("there is no output `{name}`; there are {}", known.join(", ")))
        .collect();
    if !unknown.is_empty() {
        return Err(PassError::Refused(unknown));
    }
    let before = (graph.outputs().len(), graph.len());
    graph.retain_outputs(|name| wanted.iter().any(|w| w == name));
    (DCE.run)(graph, &Options::default())?;
    let counts = vec![("outputs".into(), before.0 - graph.outputs().len()), ("nodes".into(), before.1 - graph.len())];
    Ok(Report { counts, notes: Vec::new() })
}
