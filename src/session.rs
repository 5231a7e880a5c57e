//! Running: a plan on a device.
//!
//! ```no_run
//! # use std::collections::BTreeMap;
//! # fn main() -> lite3r::Result<()> {
//! use lite3r::session::{Options, Session};
//! let mut session = Session::open("model.l3r".as_ref(), &Options::default())?;
//! let inputs = BTreeMap::from([("x".to_string(), lite3r_ir::Tensor::from_f32(&[2], vec![1.0, 2.0]))]);
//! let entry = session.entry_for(&inputs)?;
//! let outputs = session.run(entry, &inputs)?;
//! # Ok(())
//! # }
//! ```

use std::{collections::BTreeMap, path::Path, sync::Arc};

use lite3r_ir::Tensor;

use crate::{
    Error, Kind, Result,
    backend::{Device, Executable, Probe, Trust, cpu::exec::CpuDevice},
    plan::{Entry, OpenOptions, Plan},
};

/// Which device, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// By name, as `lite3r devices` lists them; none: the first that runs the plan's target.
    pub device: Option<String>,
    /// Whose machine code is run, where plans carry some.
    pub trust: Trust,
    /// Threads of the CPU; none: one per core.
    pub threads: Option<usize>,
    /// How plans are opened.
    pub plan: OpenOptions,
}

/// A plan that is ready to run.
pub struct Session {
    plan: Arc<Plan>,
    executable: Box<dyn Executable>,
}

/// Results by name.
pub type Outputs = BTreeMap<String, Tensor>;

impl Session {
    /// Opens a file. Errors: those of [`Plan::open`] and [`Session::new`].
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        Self::new(Plan::open(path, &options.plan)?, options)
    }

    /// Brings a plan to a device. Errors: `device.unknown`, `plan.target` for a plan that was made for another target,
    /// `plan.kernel`, `device.memory`.
    pub fn new(plan: Plan, options: &Options) -> Result<Self> {
        let device = device(options, &plan.header().target)?;
        let (target, own) = (&plan.header().target, device.target());
        if target != own {
            return Err(Error::bad_file("plan.target", format!("the plan is for `{target}`, the device runs `{own}`")));
        }
        let plan = Arc::new(plan);
        Ok(Self { executable: device.load(plan.clone())?, plan })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The entry whose inputs have these names and types. Errors: `run.inputs`; with one entry every problem is told,
    /// with several what each of them takes.
    pub fn entry_for(&self, inputs: &BTreeMap<String, Tensor>) -> Result<usize> {
        let entries = self.plan.entries();
        if let Some(index) = entries.iter().position(|entry| problems(entry, inputs).is_empty()) {
            return Ok(index);
        }
        let problems = match entries {
            [entry] => problems(entry, inputs),
            _ => {
                let given = inputs.iter().map(|(name, tensor)| format!("{name}: {}", tensor.value_type()));
                let given = format!("no entry takes ({})", given.collect::<Vec<_>>().join(", "));
                std::iter::once(given).chain(entries.iter().map(|e| format!("one takes {}", signature(e)))).collect()
            }
        };
        Err(Error::all(Kind::Usage, "run.inputs", problems))
    }

    /// Runs an entry. Errors: `run.entry`, `run.inputs` with every problem, `device.kernel`, `device.memory`.
    pub fn run(&mut self, entry: usize, inputs: &BTreeMap<String, Tensor>) -> Result<Outputs> {
        self.run_with(entry, inputs, Probe::Nothing)
    }

    /// As [`Session::run`], and shows every step to `probe`.
    pub fn run_with(&mut self, entry: usize, inputs: &BTreeMap<String, Tensor>, probe: Probe<'_>) -> Result<Outputs> {
        let tensors = self.checked(entry, inputs)?;
        let results = self.executable.run(entry, &tensors, probe)?;
        Ok(self.plan.entries()[entry].outputs.iter().map(|port| port.name.clone()).zip(results).collect())
    }

    /// The inputs in the order of an entry that is there and takes them.
    fn checked<'t>(&self, entry: usize, inputs: &'t BTreeMap<String, Tensor>) -> Result<Vec<&'t Tensor>> {
        let entries = self.plan.entries();
        let chosen = entries.get(entry).ok_or_else(|| {
            Error::usage("run.entry", format!("there is no entry {entry}: the plan has {}", entries.len()))
        })?;
        let problems = problems(chosen, inputs);
        if !problems.is_empty() {
            return Err(Error::all(Kind::Usage, "run.inputs", problems));
        }
        Ok(chosen.inputs.iter().filter_map(|port| inputs.get(&port.name)).collect())
    }

    /// How long runs of an entry take on the device, without transfers. Errors: as [`Session::run`].
    pub fn time(
        &mut self,
        entry: usize,
        inputs: &BTreeMap<String, Tensor>,
        runs: usize,
    ) -> Result<Vec<std::time::Duration>> {
        let tensors: Vec<&Tensor> = self.checked(entry, inputs)?;
        self.executable.time(entry, &tensors, runs)
    }

    /// Memory that the device has allocated so far, in bytes: arena and copied weights.
    pub fn allocated_bytes(&self) -> u64 {
        self.executable.allocated_bytes()
    }
}

/// The device of that name, or the first for a target: `cpu`, `cuda:0`.
fn device(options: &Options, target: &str) -> Result<Box<dyn Device>> {
    let name = match options.device.as_deref() {
        Some(name) => name,
        None if target.starts_with("cuda") => "cuda:0",
        None => "cpu",
    };
    match name {
        "cpu" => Ok(Box::new(CpuDevice::new(options.threads)?)),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Box::new(crate::backend::cuda::exec::CudaDevice::new(0, options.trust)?)),
        #[cfg(feature = "cuda")]
        name if name.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok()) => {
            let ordinal = name["cuda:".len()..].parse().unwrap_or(0);
            Ok(Box::new(crate::backend::cuda::exec::CudaDevice::new(ordinal, options.trust)?))
        }
        name => {
            let has = if cfg!(feature = "cuda") { "cpu, cuda:0, cuda:1, …" } else { "cpu" };
            Err(Error::device(
                "device.unknown",
                format!("there is no device `{name}`; this build of lite3r has: {has}"),
            ))
        }
    }
}

/// What an entry takes: `(x: f32[2], y: f32[])`.
fn signature(entry: &Entry) -> String {
    let ports = entry.inputs.iter().map(|p| format!("{}: {}", p.name, entry.buffers[p.buffer as usize].ty));
    format!("({})", ports.collect::<Vec<_>>().join(", "))
}

/// Why these are not the inputs of an entry.
fn problems(entry: &Entry, inputs: &BTreeMap<String, Tensor>) -> Vec<String> {
    let mut problems = Vec::new();
    for port in &entry.inputs {
        let wanted = &entry.buffers[port.buffer as usize].ty;
        match inputs.get(&port.name) {
            None => problems.push(format!("input `{}` of type {wanted} is missing", port.name)),
            Some(tensor) if tensor.value_type() != *wanted => {
                problems.push(format!("input `{}` must be {wanted}, not {}", port.name, tensor.value_type()));
            }
            Some(_) => {}
        }
    }
    let unknown = inputs.keys().filter(|name| entry.inputs.iter().all(|port| port.name != **name));
    problems.extend(unknown.map(|name| format!("there is no input `{name}`; the model takes {}", signature(entry))));
    problems
}
