//! Runs plans on a CUDA device: one arena, all weights in one block of memory, one graph an entry.

#![allow(unsafe_code)] // launches

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lite3r_ir::Tensor;

use super::{
    Arch, DRIVER, SM_80, SM_89, SM_90A,
    driver::{self, Code, Context, Event, Function, Graph, Memory, Ready},
    launch::{Arg, Base, Launch, Pointer},
    lower, nvrtc,
    staging::Staging,
    tallies, tally,
};
use crate::{
    Error, Kind, Result,
    backend::{
        Device, Executable, Probe, STEPWISE, StepRun, Tally, Target, Trust,
        gpu::steps::{at, lowered},
    },
    plan::{Buffer, Entry, Place, Plan, Step, fit, weights::Bytes},
    weights::Weight,
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
    staging: Staging,
    /// Whether steps run one by one, each awaited, so that one that fails is named.
    stepwise: bool,
    /// What the functions of the launches are of.
    code: HashMap<String, Code>,
    times: Vec<(&'static str, Duration)>,
}

impl Loaded {
    fn new(context: &Arc<Context>, plan: Arc<Plan>, trust: Trust) -> Result<Self> {
        let mut times = Vec::new();
        let mut begun = Instant::now();
        let mut part = |name: &'static str| {
            times.push((name, begun.elapsed()));
            begun = Instant::now();
        };
        if let (Some(needed), true) = (plan.header().limits.get(DRIVER), trust != Trust::Nobody) {
            driver::new_enough(context.driver()?, *needed)?;
        }
        let lowered =
            lowered(&plan, &|entry, step| lower(entry, step, context.arch()).map(|l| (l.launches, l.scratch)))?;
        part("lowering");
        let code = load_code(context, &plan, &lowered, trust)?;
        part("code");
        let (offsets, end) = fit::weights(plan.header());
        let (free, total) = context.memory()?;
        plan.check_memory(free).map_err(|mut e| {
            e.problems.iter_mut().for_each(|p| *p = format!("{} ({total} bytes): {p}", context.name()));
            e
        })?;
        let arena = Memory::new(context, plan.device_bytes() - end, "the values of a run")?;
        let weights = Memory::new(context, end, "the weights")?;
        // What a kernel reads before anyone wrote it shows as NaN.
        arena.fill(0xff)?;
        let mut staging = Staging::new(context)?;
        part("memory");
        upload(&mut staging, &plan, &weights, &offsets)?;
        part("weights");

        // Entries share functions, and the largest of them says how much shared memory one may have.
        let key = |launch: &Launch| (launch.module.key(), launch.function);
        let mut shared: HashMap<(String, &'static str), u32> = HashMap::new();
        for launch in lowered.iter().flatten().flatten() {
            let most = shared.entry(key(launch)).or_default();
            *most = launch.shared.max(*most);
        }
        let mut functions: HashMap<(String, &'static str), Function> = HashMap::new();
        let mut launches = Vec::with_capacity(lowered.len());
        for (entry, steps) in plan.entries().iter().zip(&lowered) {
            let mut ready = Vec::with_capacity(steps.len());
            for (step, calls) in entry.steps.iter().zip(steps) {
                let places =
                    Places { entry, step, arena: arena.address(), weights: weights.address(), offsets: &offsets };
                let calls = calls.iter().filter(|l| l.grid.iter().all(|n| *n > 0)).map(|launch| {
                    let key = key(launch);
                    let function = match functions.get(&key) {
                        Some(function) => *function,
                        None => {
                            let function = code[&key.0].function(launch.function, shared[&key])?;
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
        let stepwise = std::env::var_os(STEPWISE).is_some_and(|v| v == "1");
        // Off by default: measured on whole models it costs time, see `benches/README.md`.
        let overlap = std::env::var_os("LITE3R_OVERLAP").is_some_and(|v| v == "1");
        let mut graphs = Vec::with_capacity(launches.len());
        for (entry, steps) in plan.entries().iter().zip(&launches) {
            graphs.push(Graph::capture(context, || {
                entry.steps.iter().zip(steps).try_for_each(|(step, calls)| launch(context, step, calls, overlap))?;
                update(entry, &arena, &weights, &offsets)
            })?);
        }
        part("graphs");
        context.wait()?;
        part("waiting");
        let context = context.clone();
        Ok(Self { plan, context, launches, graphs, arena, weights, offsets, staging, stepwise, code, times })
    }

    fn write(&mut self, entry: &Entry, inputs: &[&Tensor]) -> Result<()> {
        for (port, tensor) in entry.inputs.iter().zip(inputs) {
            if let Place::Arena(offset) = entry.buffers[port.buffer as usize].place {
                self.staging.upload(&self.arena, [(offset, tensor.bytes())])?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, entry: &Entry, buffer: u32) -> Result<Tensor> {
        self.value(&entry.buffers[buffer as usize])
    }

    fn value(&mut self, Buffer { ty, place }: &Buffer) -> Result<Tensor> {
        let mut bytes = vec![0; ty.bytes().unwrap_or(0)];
        let (memory, offset) = match place {
            Place::Weight(index) => (&self.weights, self.offsets[*index as usize]),
            Place::Arena(offset) => (&self.arena, *offset),
        };
        self.staging.download(memory, offset, &mut bytes)?;
        let shape = ty.dims().unwrap_or_default();
        Ok(Tensor::from_bytes(ty.dtype, &shape, &bytes).expect("a checked plan gives every value its size"))
    }

    fn tensors(&mut self, entry: &Entry, buffers: &[u32]) -> Result<Vec<Tensor>> {
        buffers.iter().map(|n| self.tensor(entry, *n)).collect()
    }

    /// Runs every step by itself and waits for it; `after` may put more on the stream, and its time counts.
    fn run_stepwise(
        &mut self,
        index: usize,
        after: &mut dyn FnMut(&mut Self, StepRun<'_>) -> Result<()>,
    ) -> Result<()> {
        let plan = self.plan.clone();
        let (begin, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        for (i, step) in plan.entries()[index].steps.iter().enumerate() {
            begin.record()?;
            launch(&self.context, step, &self.launches[index][i], false)?;
            end.record()?;
            let time = Duration::from_secs_f64(end.since(&begin).map_err(|e| at(step, e))?);
            after(self, StepRun { index: i, step, time })?;
        }
        update(&plan.entries()[index], &self.arena, &self.weights, &self.offsets)
    }

    /// Runs steps one after the other with an event between any two, without waiting: the device does not idle while
    /// the host prepares the next launch.
    fn run_timed(&mut self, index: usize, seen: &mut dyn FnMut(StepRun<'_>)) -> Result<()> {
        let plan = self.plan.clone();
        let steps = &plan.entries()[index].steps;
        let events = (0..=steps.len()).map(|_| Event::new(&self.context)).collect::<Result<Vec<_>>>()?;
        events[0].record()?;
        for ((step, calls), event) in steps.iter().zip(&self.launches[index]).zip(&events[1..]) {
            launch(&self.context, step, calls, false)?;
            event.record()?;
        }
        update(&plan.entries()[index], &self.arena, &self.weights, &self.offsets)?;
        self.context.wait()?;
        for (i, (step, pair)) in steps.iter().zip(events.windows(2)).enumerate() {
            let time = Duration::from_secs_f64(pair[1].since(&pair[0])?);
            seen(StepRun { index: i, step, time });
        }
        Ok(())
    }
}

impl Executable for Loaded {
    fn run(&mut self, index: usize, inputs: &[&Tensor], probe: Probe<'_>) -> Result<Vec<Tensor>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        self.write(entry, inputs)?;
        match probe {
            Probe::Nothing if !self.stepwise => {
                self.graphs[index].launch()?;
                self.context.wait().map_err(|mut e| {
                    e.problems.push(format!("`{STEPWISE}=1` runs kernels one by one and names the one that fails"));
                    e
                })?;
            }
            Probe::Nothing => self.run_stepwise(index, &mut |_, _| Ok(()))?,
            Probe::Times(seen) if !self.stepwise => self.run_timed(index, seen)?,
            Probe::Times(seen) => self.run_stepwise(index, &mut |_, step| {
                seen(step);
                Ok(())
            })?,
            Probe::Values(seen) => self.run_stepwise(index, &mut |own, run| {
                let operands = own.tensors(entry, &run.step.operands)?;
                seen(run, &operands, &own.tensors(entry, &run.step.results)?);
                Ok(())
            })?,
        }
        self.tensors(entry, &entry.outputs.iter().map(|port| port.buffer).collect::<Vec<_>>())
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

    fn check(
        &mut self,
        index: usize,
        inputs: &[&Tensor],
        seen: &mut (dyn FnMut(StepRun<'_>, &[Tally]) + Send),
    ) -> Result<Vec<Tensor>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let mut kernels = HashMap::new();
        for dtype in tallies(entry) {
            let key = tally(dtype).key();
            let code = self.code.get(&key).ok_or_else(|| {
                Error::bad_file("plan.kernel", format!("the plan lacks module `{key}`: compile the model again"))
            })?;
            kernels.insert(dtype, code.function("tally", 0)?);
        }
        let counts = Memory::new(&self.context, 3 * size_of::<u64>() as u64, "counts of what is not finite")?;
        self.write(entry, inputs)?;
        self.run_stepwise(index, &mut |own, run| {
            let count = |n: &u32| {
                let Buffer { ty, place } = &entry.buffers[*n as usize];
                let elements = ty.elements().unwrap_or(0) as u64;
                let (Some(function), Place::Arena(offset)) = (kernels.get(&ty.dtype), *place) else {
                    return Ok(Tally { elements, ..Tally::default() });
                };
                counts.fill(0)?;
                let mut launch = Launch::over(tally(ty.dtype), "tally", elements, Vec::new());
                launch.grid[0] = launch.grid[0].max(1);
                let params =
                    [own.arena.address() + offset, counts.address(), elements].map(|v| v.to_le_bytes().to_vec());
                // SAFETY: the parameters are those of `tally`: a tensor of its element type where the checked plan puts
                // it, three counts, and how many elements there are.
                unsafe { Ready::new(*function, &launch, &params).launch(&own.context, false) }?;
                let mut found = [0u64; 3];
                counts.read(0, bytemuck::bytes_of_mut(&mut found))?;
                let [nan, infinite, saturated] = found;
                Ok(Tally { elements, nan, infinite, saturated })
            };
            let found = run.step.results.iter().map(count).collect::<Result<Vec<_>>>()?;
            seen(run, &found);
            Ok(())
        })?;
        self.tensors(entry, &entry.outputs.iter().map(|port| port.buffer).collect::<Vec<_>>())
    }

    fn load_times(&self) -> &[(&'static str, Duration)] {
        &self.times
    }

    fn state(&mut self, index: u32) -> Result<Tensor> {
        let ty = self.plan.header().weights[index as usize].ty.clone();
        self.value(&Buffer { ty, place: Place::Weight(index) })
    }

    fn set_state(&mut self, index: u32, value: &Tensor) -> Result<()> {
        self.staging.upload(&self.weights, [(self.offsets[index as usize], value.bytes())])
    }

    fn allocated_bytes(&self) -> u64 {
        self.arena.bytes() + self.weights.bytes()
    }
}

/// Puts a step on the stream; with `overlap`, it may begin while the one in front still runs.
fn launch(context: &Context, step: &Step, calls: &[Ready], overlap: bool) -> Result<()> {
    for ready in calls {
        // SAFETY: the parameters come from the row that names the kernel; operands, results and scratch are where the
        // checked plan puts them, in memory that lives as long as the launches, and so does the code.
        unsafe { ready.launch(context, overlap) }.map_err(|e| at(step, e))?;
    }
    Ok(())
}

/// Puts on the stream what gives states their new values.
fn update(entry: &Entry, arena: &Memory, weights: &Memory, offsets: &[u64]) -> Result<()> {
    for update in &entry.updates {
        let own = &entry.buffers[update.buffer as usize];
        if let Place::Arena(offset) = own.place {
            weights.copy(offsets[update.state as usize], arena, offset, own.bytes())?;
        }
    }
    Ok(())
}

/// Brings the weights to the device.
fn upload(staging: &mut Staging, plan: &Plan, weights: &Memory, offsets: &[u64]) -> Result<()> {
    let is_code = |index: usize| plan.header().modules.values().any(|m| *m as usize == index);
    // What lies in a file goes in one sweep; what is computed follows, value by value.
    let held = plan.weights.held.iter().enumerate();
    let held = held.filter_map(|(index, weight)| Some((index, weight.as_ref()?)));
    let held: Vec<_> = held.filter(|(index, _)| !is_code(*index)).collect();
    staging.upload(weights, held.iter().map(|(index, weight)| (offsets[*index], weight.bytes())))?;
    if held.len() + plan.header().modules.len() == plan.weights.held.len() {
        return Ok(());
    }
    plan.weights.stream(&mut |index, bytes| match bytes {
        Bytes::Held(_) => Ok(()),
        Bytes::Computed(bytes) => staging.upload(weights, [(offsets[index], bytes.as_slice())]),
    })
}

/// Loads the machine code of all launches, and of tallies as far as the plan carries it.
fn load_code(
    context: &Arc<Context>,
    plan: &Plan,
    lowered: &[Vec<Vec<Launch>>],
    trust: Trust,
) -> Result<HashMap<String, Code>> {
    let launched = lowered.iter().flatten().flatten().map(|launch| (launch.module.clone(), true));
    let tallied = plan.entries().iter().flat_map(tallies).map(|dtype| (tally(dtype), false));
    let (mut code, mut problems) = (HashMap::new(), Vec::new());
    for (module, needed) in launched.chain(tallied) {
        let key = module.key();
        if code.contains_key(&key) {
            continue;
        }
        let index = plan.header().modules.get(&key);
        let carried = index.and_then(|index| plan.weights.held[*index as usize].as_ref()).map(Weight::bytes);
        let compiled;
        let cubin = match (trust, carried) {
            (Trust::Nobody, _) => {
                compiled = nvrtc::cubin(&module, context.arch())?;
                &compiled
            }
            (_, None) if needed => {
                problems.push(format!("the plan lacks module `{key}`: compile the model again"));
                continue;
            }
            (_, None) => continue,
            (Trust::Own, Some(cubin)) if !nvrtc::is_own(cubin) => {
                return Err(Error::bad_file(
                    "plan.trust",
                    "the plan carries machine code that this machine has not compiled; `--trust` runs it, `--rebuild` \
                     compiles this program's own sources instead",
                ));
            }
            (_, Some(cubin)) => cubin,
        };
        code.insert(key.clone(), Code::new(context, cubin, &key)?);
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
            Arg::PixelMap(map) => driver::pixel_map(map, self.address(&map.base)?)?,
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
