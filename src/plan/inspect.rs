//! What `lite3r inspect` shows of a plan: steps, kernels, cost, memory over time, weights.

use std::{collections::BTreeMap, fmt};

use lite3r_ir::ValueType;
use serde::Serialize;

use super::{ALIAS, Entry, Place, Plan, Port, Step};
use crate::backend::{Target, target};

/// A plan, for reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Which lite3r made it.
    pub producer: String,
    /// What it runs on.
    pub target: String,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Name and type of every weight.
    pub weights: Vec<(String, String)>,
    /// One per bound shape.
    pub entries: Vec<EntryView>,
}

/// An entry, for reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EntryView {
    /// What the symbols of the model are here.
    pub bindings: BTreeMap<String, usize>,
    /// Names and types.
    pub inputs: Vec<(String, String)>,
    /// Names and types.
    pub outputs: Vec<(String, String)>,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// What one run allocates, in bytes.
    pub peak_bytes: u64,
    /// The sum over all steps.
    pub flops: f64,
    /// Bytes that the steps read and write, each value once a step.
    pub traffic_bytes: f64,
    /// Steps and floating-point operations by kernel.
    pub kernels: BTreeMap<String, (usize, f64)>,
    /// By kernel: those that stand in for it on devices which offer what they need, and what that is.
    pub stand_ins: BTreeMap<String, BTreeMap<String, String>>,
    /// In the order of execution.
    pub steps: Vec<StepView>,
}

/// A step, for reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepView {
    /// The row of the kernel table.
    pub kernel: String,
    /// The operation with its attributes.
    pub op: String,
    /// Types of the operands.
    pub operands: Vec<String>,
    /// Types of the results.
    pub results: Vec<String>,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Bytes of the arena in use during the step.
    pub live_bytes: u64,
    /// The ONNX node or the module that it comes from.
    pub origin: String,
}

/// Everything about a plan.
pub fn inspect(plan: &Plan) -> Inspection {
    let header = plan.header();
    Inspection {
        producer: header.producer.clone(),
        target: header.target.clone(),
        weight_bytes: plan.weight_bytes(),
        weights: header.weights.iter().map(|w| (w.name.clone(), w.ty.to_string())).collect(),
        entries: plan.entries().iter().map(|entry| view(entry, target(&header.target).ok())).collect(),
    }
}

fn view(entry: &Entry, target: Option<&dyn Target>) -> EntryView {
    let live = live_bytes(entry);
    let steps: Vec<StepView> = entry.steps.iter().zip(live).map(|(step, live)| step_view(entry, step, live)).collect();
    let mut kernels: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for step in &steps {
        let row = kernels.entry(step.kernel.clone()).or_default();
        *row = (row.0 + 1, row.1 + step.flops);
    }
    let mut stand_ins: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for step in entry.steps.iter().filter(|step| step.kernel != ALIAS) {
        for (name, needs) in target.map_or_else(Vec::new, |target| target.stands_in(entry, step)) {
            stand_ins.entry(step.kernel.clone()).or_default().insert(name.into(), needs);
        }
    }
    let ports =
        |all: &[Port]| all.iter().map(|p| (p.name.clone(), entry.buffers[p.buffer as usize].ty.to_string())).collect();
    EntryView {
        bindings: entry.bindings.clone(),
        inputs: ports(&entry.inputs),
        outputs: ports(&entry.outputs),
        arena_bytes: entry.arena_bytes,
        peak_bytes: entry.peak_bytes(),
        flops: steps.iter().map(|s| s.flops).sum(),
        traffic_bytes: steps.iter().map(|s| s.bytes).sum(),
        kernels,
        stand_ins,
        steps,
    }
}

fn step_view(entry: &Entry, step: &Step, live_bytes: u64) -> StepView {
    let types = |all: &[u32]| -> Vec<ValueType> { all.iter().map(|n| entry.buffers[*n as usize].ty.clone()).collect() };
    let (operands, results) = (types(&step.operands), types(&step.results));
    let cost = if step.kernel == ALIAS { Default::default() } else { step.op.cost(&operands, &results) };
    let text = |all: &[ValueType]| all.iter().map(ToString::to_string).collect();
    StepView {
        kernel: step.kernel.clone(),
        op: lite3r_ir::text::print_op(&step.op),
        operands: text(&operands),
        results: text(&results),
        flops: cost.flops,
        bytes: cost.bytes,
        live_bytes,
        origin: step.origin.clone(),
    }
}

/// Bytes of the arena that are in use during each step: filled before or in it, and read in it or later.
pub fn live_bytes(entry: &Entry) -> Vec<u64> {
    let steps = entry.steps.len();
    // Views count as the buffer that they look into.
    let mut root: Vec<usize> = (0..entry.buffers.len()).collect();
    let mut first = vec![0usize; entry.buffers.len()];
    let mut last = vec![None; entry.buffers.len()];
    for port in &entry.inputs {
        last[port.buffer as usize] = Some(0);
    }
    for (at, step) in entry.steps.iter().enumerate() {
        step.operands.iter().for_each(|n| last[root[*n as usize]] = Some(at));
        for result in step.results.iter().map(|n| *n as usize) {
            match step.kernel == ALIAS {
                true => root[result] = root[step.operands[0] as usize],
                false => (first[result], last[result]) = (at, Some(at)),
            }
        }
    }
    for port in &entry.outputs {
        last[root[port.buffer as usize]] = Some(steps.saturating_sub(1));
    }
    let mut change = vec![0i128; steps + 1];
    for (i, buffer) in entry.buffers.iter().enumerate() {
        if let (Place::Arena(_), Some(last), true) = (buffer.place, last[i], steps > 0) {
            change[first[i]] += i128::from(buffer.bytes());
            change[last + 1] -= i128::from(buffer.bytes());
        }
    }
    let mut live = 0i128;
    let scratch = entry.steps.iter().map(|s| s.scratch.map_or(0, |s| s.bytes));
    let at = |(scratch, change): (u64, &i128)| {
        live += change;
        live as u64 + scratch
    };
    scratch.zip(&change).map(at).collect()
}

impl Inspection {
    /// The text of `lite3r inspect`; with a line a step where `cost` is asked for.
    pub fn text(&self, cost: bool) -> String {
        let mut out = String::new();
        self.write(&mut out, cost).expect("writing to a string cannot fail");
        out
    }

    fn write(&self, out: &mut dyn fmt::Write, cost: bool) -> fmt::Result {
        writeln!(out, "made by {}, runs on {}", self.producer, self.target)?;
        writeln!(out, "{} weights, {}", self.weights.len(), bytes(self.weight_bytes as f64))?;
        for entry in &self.entries {
            let bound: Vec<String> = entry.bindings.iter().map(|(name, size)| format!("{name}={size}")).collect();
            let ports = |all: &[(String, String)]| {
                all.iter().map(|(name, ty)| format!("{name}: {ty}")).collect::<Vec<_>>().join(", ")
            };
            writeln!(out, "\nentry {}", if bound.is_empty() { "without symbols".into() } else { bound.join(", ") })?;
            writeln!(out, "  takes {}", ports(&entry.inputs))?;
            writeln!(out, "  gives {}", ports(&entry.outputs))?;
            writeln!(
                out,
                "  {} steps, {:.3} GFLOP, {} moved; arena {}, a run allocates {}",
                entry.steps.len(),
                entry.flops / 1e9,
                bytes(entry.traffic_bytes),
                bytes(entry.arena_bytes as f64),
                bytes(entry.peak_bytes as f64)
            )?;
            for (kernel, (count, flops)) in &entry.kernels {
                writeln!(out, "  {count:>6} {kernel:<28} {:>12.3} GFLOP", flops / 1e9)?;
            }
            for (i, step) in entry.steps.iter().enumerate().filter(|_| cost) {
                writeln!(
                    out,
                    "  {i:>5} {:<24} {:>10.4} GFLOP {:>10} live {:>10}  {}({}) : {}  {}",
                    step.kernel,
                    step.flops / 1e9,
                    bytes(step.bytes),
                    bytes(step.live_bytes as f64),
                    step.op,
                    step.operands.join(", "),
                    step.results.join(", "),
                    step.origin
                )?;
            }
        }
        Ok(())
    }
}

/// `12.3 MB`: decimal units.
fn bytes(count: f64) -> String {
    let units = [("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)];
    let (unit, scale) = units.iter().rev().find(|(_, scale)| count >= *scale).unwrap_or(&units[0]);
    if *scale == 1.0 { format!("{count:.0} B") } else { format!("{:.1} {unit}", count / scale) }
}
