//! Every node before the first is converted: all unsupported operators in one error.

use std::collections::BTreeMap;

use super::{
    load::{Model, describe},
    ops,
};
use crate::{Error, Kind, Result};

/// What people can do about operators that do not fit into a static graph.
const ADVICE: &[(&str, &str)] = &[
    ("If", "export without data-dependent branches (torch.jit.trace or torch.export decide them)"),
    ("Loop", "export an unrolled graph"),
    ("Scan", "export an unrolled graph"),
    ("NonZero", "its shape depends on data; replace boolean indexing by Where before exporting"),
    ("Unique", "its shape depends on data"),
    ("NonMaxSuppression", "its shape depends on data; cut the graph before it"),
    ("GridSample", "point tracking is not supported; export without the track head"),
    ("BatchNormalization", "fold it into the convolution before exporting (model.eval() does)"),
    ("QuantizeLinear", "import the float model and choose a precision when compiling"),
    ("DequantizeLinear", "import the float model and choose a precision when compiling"),
    ("CumSum", "precompute the positions before exporting"),
];

/// Fails with `onnx.unsupported_op` if a node that the outputs need has no converter.
pub fn check(model: &Model) -> Result<()> {
    let mut unsupported: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for node in model.nodes() {
        let own = matches!(node.domain.as_str(), "" | "ai.onnx");
        if !own || ops::find(&node.op_type, model.opset).is_none() {
            unsupported.entry((&node.domain, &node.op_type)).or_default().push(describe(node));
        }
    }
    if unsupported.is_empty() {
        return Ok(());
    }
    let mut problems: Vec<String> = unsupported
        .iter()
        .map(|((domain, op), nodes)| {
            let domain = if domain.is_empty() { "ai.onnx" } else { domain };
            let more = if nodes.len() > 3 { ", …" } else { "" };
            let first: Vec<&str> = nodes.iter().take(3).map(|n| n.split_once(' ').map_or(&**n, |(_, n)| n)).collect();
            let reason = ADVICE.iter().find(|(name, _)| name == op).map(|(_, advice)| *advice);
            let reason =
                reason.or_else(|| model.functions.contains(*op).then_some("model-local functions: inline them"));
            let reason = reason.map_or(String::new(), |r| format!("; {r}"));
            format!(
                "{} x {op} (domain {domain}, opset {}) at {}{more}{reason}",
                nodes.len(),
                model.opset,
                first.join(", ")
            )
        })
        .collect();
    problems.push(format!("supported at opset {}: {}", model.opset, ops::supported(model.opset).join(" ")));
    Err(Error::all(Kind::Unsupported, "onnx.unsupported_op", problems))
}
