//! Runs plans on a CUDA device: one arena, all weights in one block of memory, one graph an entry.

#![allow(unsafe_code)] // launches

use std::{collections::HashMap, sync::Arc, time::Duration};

use lite3r_ir::Tensor;

use super::{
    Arch, SM_80, SM_89, SM_90A,
    driver::{self, Code, Context, Event, Function, Graph, Memory, Ready},
    launch::{Arg, Base, Launch, Pointer},
    lower, nvrtc,
};
use crate::{
    Error, Kind, Result,
    backend::{Device, Executable, Probe, StepRun, Target, Trust},
    plan::{ALIAS, ALIGN, Buffer, Entry, Place, Plan, Step},
};

/// A device of this machine.
pub struct CudaDevice {
    context: Arc<Context>,
    trust: Trust,
}

impl CudaDevice {
    /// By number. Errors: `cuda.driver`, `cuda.device`, `cuda.arch`.
    pub fn new(ordinal: i32, trust: Trust) -> Result<Self> {
        Ok(Self { context: Context::open(ordinal)?, trust })
    }

    /// The memory of the card in bytes.
    pub fn memory(&self) -> Result<u64> {
        Ok(self.context.memory()?.1)
    }
}

impl Device for CudaDevice {
    fn target(&self) -> &'static str {
        match self.context.arch() {
            Arch::Sm90a => SM_90A.name(),
            Arch::Sm89 => SM_89.name(),
            Arch::Sm80 => SM_80.name(),
        }
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn Executable>> {
        Ok(Box::new(Loaded::new(&self.context, plan, self.trust)?))
    }
}

struct Loaded {
    plan: Arc<Plan>,
    context: Arc<Context>,
    /// By entry and step: what it launches.
    launches: Vec<Vec<Vec<Ready>>>,
    graphs: Vec<Graph>,
    arena: Memory,
    weights: Memory,
    offsets: Vec<u64>,
    /// Whether steps run one by one, each awaited, so that one that fails is named (`LITE3R_SYNC=1`).
    stepwise: bool,
    /// What the functions of the launches are of.
    _code: HashMap<String, Code>,
}

impl Loaded {
    fn new(context: &Arc<Context>, plan: Arc<Plan>, trust: Trust) -> Result<Self> {
        let lowered = lowered(&plan, context.arch())?;
        let is_code = |index: usize| plan.header().modules.values().any(|m| *m as usize == index);
        let mut offsets = Vec::with_capacity(plan.header().weights.len());
        let mut end = 0u64;
        for (index, weight) in plan.header().weights.iter().enumerate() {
            offsets.push(end);
            let bytes = if is_code(index) { 0 } else { weight.ty.bytes().map_or(0, |b| b as u64) };
            end += bytes.next_multiple_of(ALIGN);
        }
        let arena = plan.entries().iter().map(|e| e.arena_bytes).max().unwrap_or(0);
        let arena = Memory::new(context, arena, "the values of a run")?;
        let weights = Memory::new(context, end, "the weights")?;
        // What a kernel reads before anyone wrote it shows as NaN.
        arena.fill(0xff)?;
        let mut cubins: HashMap<u32, Vec<u8>> = HashMap::new();
        plan.weights.stream(&mut |index, bytes| {
            if is_code(index) {
                cubins.insert(index as u32, bytes.as_slice().to_vec());
                return Ok(());
            }
            weights.write(offsets[index], bytes.as_slice())
        })?;
        context.wait()?;
        let code = load_code(context, &plan, &lowered, &cubins, trust)?;

        let mut functions: HashMap<(String, &'static str), Function> = HashMap::new();
        let mut launches = Vec::with_capacity(lowered.len());
        for (entry, steps) in plan.entries().iter().zip(&lowered) {
            let mut ready = Vec::with_capacity(steps.len());
            for (step, calls) in entry.steps.iter().zip(steps) {
                let places =
                    Places { entry, step, arena: arena.address(), weights: weights.address(), offsets: &offsets };
                let calls = calls.iter().filter(|l| l.grid.iter().all(|n| *n > 0)).map(|launch| {
                    let key = (launch.module.key(), launch.function);
                    let function = match functions.get(&key) {
                        Some(function) => *function,
                        None => {
                            let function = code[&key.0].function(launch.function, launch.shared)?;
                            functions.insert(key, function);
                            function
                        }
                    };
                    let params = launch.args.iter().map(|a| places.bytes(a)).collect::<Result<Vec<_>>>()?;
                    Ok(Ready::new(function, launch, &params))
                });
                ready.push(calls.collect::<Result<Vec<_>>>().map_err(|e| at(step, e))?);
            }
            launches.push(ready);
        }
        let stepwise = std::env::var_os("LITE3R_SYNC").is_some_and(|v| v == "1");
        let mut loaded = Self {
            plan,
            context: context.clone(),
            launches,
            graphs: Vec::new(),
            arena,
            weights,
            offsets,
            stepwise,
            _code: code,
        };
        let overlap = std::env::var_os("LITE3R_OVERLAP").is_none_or(|v| v != "0");
        for entry in 0..loaded.launches.len() {
            let graph = Graph::capture(context, || {
                (0..loaded.launches[entry].len()).try_for_each(|step| loaded.launch(entry, step, overlap))
            })?;
            loaded.graphs.push(graph);
        }
        Ok(loaded)
    }

    /// Puts a step on the stream; with `overlap`, it may begin while the one in front still runs.
    fn launch(&self, entry: usize, step: usize, overlap: bool) -> Result<()> {
        for ready in &self.launches[entry][step] {
            // SAFETY: the parameters come from the row that names the kernel; operands, results and scratch are where
            // the checked plan puts them, in memory that lives as long as `self`, and so does the code.
            unsafe { ready.launch(&self.context, overlap) }
                .map_err(|e| at(&self.plan.entries()[entry].steps[step], e))?;
        }
        Ok(())
    }

    fn write(&self, entry: &Entry, inputs: &[&Tensor]) -> Result<()> {
        for (port, tensor) in entry.inputs.iter().zip(inputs) {
            if let Place::Arena(offset) = entry.buffers[port.buffer as usize].place {
                self.arena.write(offset, tensor.bytes())?;
            }
        }
        Ok(())
    }

    fn tensor(&self, entry: &Entry, buffer: u32) -> Result<Tensor> {
        let Buffer { ty, place } = &entry.buffers[buffer as usize];
        let mut bytes = vec![0; ty.bytes().unwrap_or(0)];
        match place {
            Place::Weight(index) => self.weights.read(self.offsets[*index as usize], &mut bytes)?,
            Place::Arena(offset) => self.arena.read(*offset, &mut bytes)?,
        }
        let shape = ty.dims().unwrap_or_default();
        Ok(Tensor::from_bytes(ty.dtype, &shape, &bytes).expect("a checked plan gives every value its size"))
    }
}

impl Executable for Loaded {
    fn run(&mut self, index: usize, inputs: &[&Tensor], mut probe: Probe<'_>) -> Result<Vec<Tensor>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        self.write(entry, inputs)?;
        if matches!(probe, Probe::Nothing) && !self.stepwise {
            self.graphs[index].launch()?;
            self.context.wait().map_err(|mut e| {
                e.problems.push("`LITE3R_SYNC=1` runs kernels one by one and names the one that fails".into());
                e
            })?;
        } else {
            let (begin, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
            for (i, step) in entry.steps.iter().enumerate() {
                begin.record()?;
                self.launch(index, i, false)?;
                end.record()?;
                let time = end.since(&begin).map_err(|e| at(step, e))?;
                let seen_step = StepRun { index: i, step, time: Duration::from_secs_f64(time) };
                match &mut probe {
                    Probe::Nothing => {}
                    Probe::Times(seen) => seen(seen_step),
                    Probe::Values(seen) => {
                        let tensors =
                            |all: &[u32]| all.iter().map(|n| self.tensor(entry, *n)).collect::<Result<Vec<_>>>();
                        seen(seen_step, &tensors(&step.operands)?, &tensors(&step.results)?);
                    }
                }
            }
        }
        entry.outputs.iter().map(|port| self.tensor(entry, port.buffer)).collect()
    }

    fn time(&mut self, index: usize, inputs: &[&Tensor], runs: usize) -> Result<Vec<Duration>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let (begin, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            // The planner may put other values where the inputs lay.
            self.write(entry, inputs)?;
            begin.record()?;
            self.graphs[index].launch()?;
            end.record()?;
            times.push(Duration::from_secs_f64(end.since(&begin)?));
        }
        Ok(times)
    }

    fn allocated_bytes(&self) -> u64 {
        self.arena.bytes() + self.weights.bytes()
    }
}

/// An error of a step with the operation and where it comes from.
fn at(step: &Step, mut error: Error) -> Error {
    error
        .problems
        .iter_mut()
        .for_each(|p| *p = format!("{} at `{}` ({}): {p}", step.op.name(), step.origin, step.kernel));
    error
}

/// What every step launches. All that cannot be launched are reported.
fn lowered(plan: &Plan, arch: Arch) -> Result<Vec<Vec<Vec<Launch>>>> {
    let mut problems = Vec::new();
    let mut entries = Vec::new();
    for entry in plan.entries() {
        let mut steps = Vec::with_capacity(entry.steps.len());
        for step in &entry.steps {
            if step.kernel == ALIAS {
                steps.push(Vec::new());
                continue;
            }
            let lowered = lower(entry, step, arch).and_then(|lowered| {
                let given = step.scratch.map_or(0, |s| s.bytes);
                match lowered.scratch as u64 {
                    needs if needs > given => Err(format!("needs {needs} bytes of scratch, not {given}")),
                    _ => Ok(lowered.launches),
                }
            });
            match lowered {
                Ok(launches) => steps.push(launches),
                Err(problem) => problems.push(format!("{} at `{}`: {problem}", step.op.name(), step.origin)),
            }
        }
        entries.push(steps);
    }
    match problems.is_empty() {
        true => Ok(entries),
        false => Err(Error::all(Kind::BadFile, "plan.kernel", problems)),
    }
}

/// Loads the machine code of all launches.
fn load_code(
    context: &Arc<Context>,
    plan: &Plan,
    lowered: &[Vec<Vec<Launch>>],
    cubins: &HashMap<u32, Vec<u8>>,
    trust: Trust,
) -> Result<HashMap<String, Code>> {
    let (mut code, mut problems) = (HashMap::new(), Vec::new());
    for launch in lowered.iter().flatten().flatten() {
        let key = launch.module.key();
        if code.contains_key(&key) {
            continue;
        }
        let carried = plan.header().modules.get(&key).and_then(|index| cubins.get(index));
        let cubin = match (trust, carried) {
            (Trust::Nobody, _) => nvrtc::cubin(&launch.module, context.arch())?,
            (_, None) => {
                problems.push(format!("the plan lacks module `{key}`: compile the model again"));
                continue;
            }
            (Trust::Own, Some(cubin)) if !nvrtc::is_own(cubin) => {
                return Err(Error::bad_file(
                    "plan.trust",
                    "the plan carries machine code that this machine has not compiled; `--trust` runs it, `--rebuild` \
                     compiles this program's own sources instead",
                ));
            }
            (_, Some(cubin)) => cubin.clone(),
        };
        code.insert(key.clone(), Code::new(context, &cubin, &key)?);
    }
    match problems.is_empty() {
        true => Ok(code),
        false => {
            problems.sort();
            problems.dedup();
            Err(Error::all(Kind::BadFile, "plan.kernel", problems))
        }
    }
}

/// Where the values of a step are on the device.
struct Places<'p> {
    entry: &'p Entry,
    step: &'p Step,
    arena: u64,
    weights: u64,
    offsets: &'p [u64],
}

impl Places<'_> {
    /// The bytes of a parameter.
    fn bytes(&self, arg: &Arg) -> Result<Vec<u8>> {
        Ok(match arg {
            Arg::Null => 0u64.to_le_bytes().to_vec(),
            Arg::Pointer(pointer) => self.address(pointer)?.to_le_bytes().to_vec(),
            Arg::Value(bytes) => bytes.clone(),
            Arg::TensorMap(map) => driver::tensor_map(map, self.address(&map.base)?)?,
        })
    }

    fn address(&self, pointer: &Pointer) -> Result<u64> {
        let place = |all: &[u32], index: usize| {
            let number = *all.get(index)?;
            Some(match self.entry.buffers[number as usize].place {
                Place::Arena(offset) => self.arena + offset,
                Place::Weight(index) => self.weights + self.offsets[index as usize],
            })
        };
        let base = match pointer.base {
            Base::Operand(index) => place(&self.step.operands, index),
            Base::Result(index) => place(&self.step.results, index),
            Base::Scratch => self.step.scratch.map(|region| self.arena + region.offset),
        };
        let base = base.ok_or_else(|| {
            Error::bad_file(
                "plan.kernel",
                format!("kernel `{}` asks for {:?}, which is not there", self.step.kernel, pointer.base),
            )
        })?;
        Ok(base + pointer.offset)
    }
}
