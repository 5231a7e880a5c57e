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

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use lite3r_ir::Tensor;

use crate::{
    Error, Kind, Result,
    backend::{Device, Executable, Probe, StepRun, Tally, Trust, cpu::exec::CpuDevice},
    clock::Clock,
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
    times: Vec<(&'static str, Duration)>,
}

/// Results by name.
pub type Outputs = BTreeMap<String, Tensor>;

/// A step that gives FP8 codes of the largest magnitude, where what was larger is cut off.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Saturated {
    /// Its position in the entry.
    pub step: usize,
    /// The operation.
    pub op: &'static str,
    /// The node that it comes from.
    pub origin: String,
    /// Such codes.
    pub codes: u64,
    /// All codes of the result.
    pub of: u64,
}

impl Session {
    /// Opens a file. Errors: those of [`Plan::open`] and [`Session::new`].
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let start = Clock::start();
        let (plan, hashes) = Plan::open_unverified(path, &options.plan)?;
        let mut times = vec![("plan", start.elapsed())];
        // Damage is found while the device gets ready; nothing runs before.
        let verify = options.plan.verify;
        let damage = std::thread::spawn(move || if verify { hashes.verify() } else { Ok(()) });
        let session = Self::new(plan, options);
        let waiting = Clock::start();
        damage.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let mut session = session?;
        times.append(&mut session.times);
        times.push(("hashes", waiting.elapsed()));
        Ok(Self { times, ..session })
    }

    /// Brings a plan to a device. Errors: `device.unknown`, `plan.target` for a plan that was made for another target,
    /// `plan.kernel`, `memory.predicted` with the number of views that would fit, `device.memory`.
    pub fn new(plan: Plan, options: &Options) -> Result<Self> {
        let start = Clock::start();
        let device = device(options, &plan.header().target)?;
        let mut times = vec![("device", start.elapsed())];
        runs(device.target(), &plan)?;
        let plan = Arc::new(plan);
        let executable = device.load(plan.clone())?;
        times.extend_from_slice(executable.load_times());
        Ok(Self { plan, executable, times })
    }

    /// As [`Session::new`], where nothing may wait: in a browser.
    pub async fn new_async(plan: Plan, options: &Options) -> Result<Self> {
        #[cfg(feature = "wgpu")]
        if plan.header().target == "wgsl" {
            let start = Clock::start();
            let name = options.device.as_deref().unwrap_or("wgsl:0");
            let device = crate::backend::wgsl::exec::WgslDevice::new(name).await?;
            let mut times = vec![("device", start.elapsed())];
            let plan = Arc::new(plan);
            let executable = device.load_async(plan.clone()).await?;
            times.extend_from_slice(executable.load_times());
            return Ok(Self { plan, executable, times });
        }
        Self::new(plan, options)
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

    /// Runs an entry. Errors: `run.entry`, `run.inputs` with every problem, `device.kernel` or `cuda.kernel`,
    /// `device.memory`.
    pub fn run(&mut self, entry: usize, inputs: &BTreeMap<String, Tensor>) -> Result<Outputs> {
        self.run_with(entry, inputs, Probe::Nothing)
    }

    /// As [`Session::run`], where nothing may wait: in a browser.
    pub async fn run_async(&mut self, entry: usize, inputs: &BTreeMap<String, Tensor>) -> Result<Outputs> {
        let tensors = self.checked(entry, inputs)?;
        let results = self.executable.run_async(entry, &tensors).await?;
        Ok(self.named(entry, results))
    }

    /// As [`Session::run`], and shows every step to `probe`.
    pub fn run_with(&mut self, entry: usize, inputs: &BTreeMap<String, Tensor>, probe: Probe<'_>) -> Result<Outputs> {
        let tensors = self.checked(entry, inputs)?;
        let results = self.executable.run(entry, &tensors, probe)?;
        Ok(self.named(entry, results))
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
    pub fn time(&mut self, entry: usize, inputs: &BTreeMap<String, Tensor>, runs: usize) -> Result<Vec<Duration>> {
        let tensors: Vec<&Tensor> = self.checked(entry, inputs)?;
        self.executable.time(entry, &tensors, runs)
    }

    /// Runs an entry step by step and looks at every result. Answers the outputs and which steps give FP8 codes of the
    /// largest magnitude. Errors: `run.not_finite`, which names the input or the first step that gives a NaN or an
    /// infinity; as [`Session::run`].
    pub fn check_finite(
        &mut self,
        entry: usize,
        inputs: &BTreeMap<String, Tensor>,
    ) -> Result<(Outputs, Vec<Saturated>)> {
        let tensors = self.checked(entry, inputs)?;
        let (mut saturated, mut first) = (Vec::new(), None);
        for (port, tensor) in self.plan.entries()[entry].inputs.iter().zip(&tensors) {
            let fault = fault(&Tally::of(tensor)).map(|fault| format!("input `{}`: {fault}", port.name));
            first = first.or(fault);
        }
        let mut seen = |run: StepRun<'_>, tallies: &[Tally]| {
            let step = run.step;
            for (index, tally) in tallies.iter().enumerate() {
                if let (Some(fault), None) = (fault(tally), &first) {
                    let place =
                        format!("step {}, {} at `{}` ({})", run.index, step.op.name(), step.origin, step.kernel);
                    first = Some(format!("{place}: result {index}: {fault}"));
                }
                if tally.saturated > 0 {
                    let (op, origin) = (step.op.name(), step.origin.clone());
                    saturated.push(Saturated {
                        step: run.index,
                        op,
                        origin,
                        codes: tally.saturated,
                        of: tally.elements,
                    });
                }
            }
        };
        let results = self.executable.check(entry, &tensors, &mut seen)?;
        match first {
            Some(problem) => Err(Error::new(Kind::NotFinite, "run.not_finite", problem)),
            None => Ok((self.named(entry, results), saturated)),
        }
    }

    /// The names of the plan's states, which runs change.
    pub fn states(&self) -> impl Iterator<Item = &str> {
        self.plan.header().weights.iter().filter(|w| w.state).map(|w| w.name.as_str())
    }

    /// The value of a state. Errors: `run.state` where there is none of that name; `device.memory`.
    pub fn state(&mut self, name: &str) -> Result<Tensor> {
        let index = self.state_index(name)?;
        self.executable.state(index)
    }

    /// Gives a state another value. Errors: `run.state` where there is none of that name or it has another type.
    pub fn set_state(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let index = self.state_index(name)?;
        let ty = &self.plan.header().weights[index as usize].ty;
        if *ty != value.value_type() {
            return Err(Error::usage("run.state", format!("state `{name}` is {ty}, not {}", value.value_type())));
        }
        self.executable.set_state(index, value)
    }

    fn state_index(&self, name: &str) -> Result<u32> {
        let index = self.plan.header().weights.iter().position(|w| w.state && w.name == name);
        let missing = || Error::usage("run.state", format!("the plan has no state `{name}`"));
        index.map(|index| index as u32).ok_or_else(missing)
    }

    fn named(&self, entry: usize, results: Vec<Tensor>) -> Outputs {
        self.plan.entries()[entry].outputs.iter().map(|port| port.name.clone()).zip(results).collect()
    }

    /// The row that computes a step on this device: that which the plan names, or one that stands in for it.
    pub fn kernel(&self, entry: usize, step: usize) -> &str {
        let named = &self.plan.entries()[entry].steps[step].kernel;
        self.executable.stand_in(entry, step).unwrap_or(named)
    }

    /// The parts of opening and loading with the time that each took. Hashes are compared meanwhile; their part is what
    /// was left to wait for.
    pub fn load_times(&self) -> &[(&'static str, Duration)] {
        &self.times
    }

    /// Memory that the device has allocated so far, in bytes: arena and copied weights.
    pub fn allocated_bytes(&self) -> u64 {
        self.executable.allocated_bytes()
    }
}

/// Whether a device for a target runs a plan. Errors: `plan.target`.
fn runs(own: &str, plan: &Plan) -> Result<()> {
    let target = &plan.header().target;
    if target == own {
        return Ok(());
    }
    let problem =
        format!("the plan is for `{target}`, the device runs `{own}`: compile the model again with `--target {own}`");
    let both_cuda = [target.as_str(), own].iter().all(|name| name.starts_with("cuda"));
    Err(Error::new(if both_cuda { Kind::Architecture } else { Kind::BadFile }, "plan.target", problem))
}

/// The device of that name, or the first for a target: `cpu`, `cuda:0`.
fn device(options: &Options, target: &str) -> Result<Box<dyn Device>> {
    let name = match options.device.as_deref() {
        Some(name) => name,
        None if target.starts_with("cuda") => "cuda:0",
        None if target == "wgsl" => "wgsl:0",
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
        #[cfg(feature = "wgpu")]
        name if name == "wgsl" || name.starts_with("wgsl:") => {
            use crate::backend::wgsl::exec::{WgslDevice, blocking};
            Ok(Box::new(blocking(WgslDevice::new(name))?))
        }
        name => {
            let cuda = if cfg!(feature = "cuda") { ", cuda:0, cuda:1, …" } else { "" };
            let wgsl = if cfg!(feature = "wgpu") { ", wgsl:0, wgsl:1, …" } else { "" };
            let has = format!("cpu{cuda}{wgsl}");
            Err(Error::device(
                "device.unknown",
                format!("there is no device `{name}`; this build of lite3r has: {has}"),
            ))
        }
    }
}

/// What is not finite, if anything.
fn fault(tally: &Tally) -> Option<String> {
    let Tally { elements, nan, infinite, .. } = tally;
    (nan + infinite > 0).then(|| format!("{nan} NaN and {infinite} infinities in {elements} elements"))
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
