//! `reference_view{view=N}`: a model that chooses its reference view by an argmin over its views (Depth Anything 3,
//! three views or more) takes view N instead. The choice is discontinuous: forcing it makes two precisions comparable.

use super::{Effect, Options, Pass, PassError, Report};
use crate::{
    graph::{Graph, Value},
    ops::{Constant, Op},
    patch::Patch,
    tensor::Tensor,
};

/// The pass.
pub const REFERENCE_VIEW: Pass = Pass {
    name: "reference_view",
    law: "arg_min over the scores of all views becomes a constant",
    effect: Effect::Approximates,
    run,
};

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["view"])?;
    let view: usize = options.get("view")?.ok_or_else(|| PassError::Option("`view` must be given".into()))?;
    let choices: Vec<_> = graph.node_ids().filter(|id| matches!(graph.op(*id), Op::ArgMin(_))).collect();
    let [choice] = choices[..] else {
        let n = choices.len();
        return Err(PassError::Refused(vec![format!("{n} argmins: the model does not choose one reference view")]));
    };
    let scores = graph.operands(choice)[0];
    let count = graph.ty(scores).shape.iter().filter_map(|d| d.size()).max().unwrap_or(0);
    if view >= count {
        return Err(PassError::Refused(vec![format!("view {view} is not among the {count} views")]));
    }
    let chosen = Value { node: choice, slot: 0 };
    let ty = graph.ty(chosen).clone();
    let dims = ty.dims().ok_or_else(|| PassError::Refused(vec!["bind the number of views first".into()]))?;
    let values = vec![view as i64; dims.iter().product()];
    let mut patch = Patch::new(graph, "reference_view", chosen);
    let constant = patch.wire(Constant { value: Tensor::from_i64(ty.dtype, &dims, &values) }, &[])?;
    patch.shunt(chosen, constant)?;
    patch.apply();
    Ok(Report::count("reference_view", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Graph {
        let text = "graph @g(%x: f32[1,3]) -> (y: i64[1]) {\n  %0 = arg_min(%x) {axis=1,keep=false}\n  return y=%0\n}";
        text.parse().unwrap()
    }

    #[test]
    fn forces_the_choice() {
        let mut graph = model();
        run(&mut graph, &Options::default().with("view", 2usize)).unwrap();
        assert!(matches!(graph.op(graph.outputs()[0].1.node), Op::Constant(c) if c.value.to_i64() == [2]));
    }

    #[test]
    fn refuses_what_is_not_there() {
        let error = run(&mut model(), &Options::default().with("view", 3usize)).unwrap_err();
        assert_eq!(error.to_string(), "view 3 is not among the 3 views");
        let error = run(&mut Graph::new("g"), &Options::default().with("view", 0usize)).unwrap_err();
        assert_eq!(error.to_string(), "0 argmins: the model does not choose one reference view");
    }
}
