//! `fp8w{weight=row}`: weights of linear layers are stored as e4m3 codes, and the arithmetic stays wide (W8A16).
//!
//! ```text
//! linear(x, w, …)   →   weight_scaled_linear(x, quantize(w), …)             mode=real
//!                   →   linear(x, fake_quantize(w), …)                      mode=fake, for training
//! ```
//!
//! Options `weight`, `exclude`, `include`, and what stays wide, are those of [`super::fp8`].

use std::collections::HashMap;

use super::{
    Effect, Options, Pass, PassError, Report,
    fp8::{Mode, linears, quantized, weight_scale},
};
use crate::{
    graph::{Graph, Value},
    ops::{Linear, Op, WeightScaledLinear},
    patch::Patch,
};

/// The pass.
pub const FP8W: Pass =
    Pass { name: "fp8w", law: "linear layers read their weights as e4m3 codes", effect: Effect::Approximates, run };

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&["mode", "weight", "exclude", "include"])?;
    let mode = options.get_or("mode", Mode::Real)?;
    let w_scale = weight_scale(options)?;
    let (chosen, mut report) = linears(graph, options)?;
    let mut done = HashMap::new();
    for id in chosen {
        let Op::Linear(op) = graph.op(id).clone() else { continue };
        let operands = graph.operands(id);
        let old = Value { node: id, slot: 0 };
        let mut patch = Patch::new(graph, "fp8w", old);
        let w = quantized(&mut patch, mode, operands[1], w_scale, &mut done)?;
        let inputs = [&operands[..1], &w, &operands[2..]].concat();
        let new = match mode {
            Mode::Fake => patch.wire(op, &inputs)?,
            Mode::Real => {
                let Linear { activation, bias, residual, out, .. } = op;
                patch.wire(WeightScaledLinear { activation, bias, residual, w_scale, out }, &inputs)?
            }
        };
        patch.shunt(old, new)?;
        patch.apply();
        report.counts[0].1 += 1;
    }
    Ok(report)
}
