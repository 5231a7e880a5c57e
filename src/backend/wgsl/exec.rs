//! Runs plans through wgpu: one arena, weights beside it, every pipeline and binding made when a plan is loaded.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use lite3r_ir::Tensor;

use super::{
    BINDING_BYTES, Features,
    adapter::Gpu,
    bind::{Uniforms, Weights, bound, carried, missing, stand_in, within_limits},
    launch::{Base, Launch},
    lower,
    pipelines::Pipelines,
    staging::Staging,
};
use crate::{
    Error, Result,
    backend::{
        Device, Executable, Probe, STEPWISE, StepRun,
        gpu::steps::{at, lowered},
    },
    clock::Clock,
    plan::{Buffer, Entry, Place, Plan, Port, fit, weights::Bytes},
};

/// Bytes of weights that are on their way to the device at a time.
const UPLOAD: usize = 32 << 20;

/// A GPU of this machine.
pub struct WgslDevice {
    gpu: Arc<Gpu>,
}

impl WgslDevice {
    /// By name: `wgsl`, the first adapter; `wgsl:1`, the second as [`super::adapter::adapters`] lists them;
    /// `wgsl:0:f16+subgroups` uses no more of what kernels can use than is named, `wgsl:0:plain` nothing. Errors:
    /// `device.unknown`, `wgsl.adapter`, `wgsl.device`.
    pub async fn new(name: &str) -> Result<Self> {
        let (ordinal, let_through) = parsed(name)
            .map_err(|why| Error::device("device.unknown", format!("there is no device `{name}`: {why}")))?;
        Ok(Self { gpu: Arc::new(Gpu::open_async(ordinal, let_through).await?) })
    }

    /// As [`Device::load`], where nothing may wait.
    pub async fn load_async(&self, plan: Arc<Plan>) -> Result<Box<dyn Executable>> {
        Ok(Box::new(Loaded::new(self.gpu.clone(), plan).await?))
    }
}

/// The number of an adapter, and what is let through of what it offers.
fn parsed(name: &str) -> std::result::Result<(usize, Option<Features>), String> {
    let mut parts = name.splitn(3, ':').skip(1);
    let ordinal = match parts.next() {
        None => 0,
        Some(number) => number.parse::<u16>().map_err(|_| format!("`{number}` is no number of an adapter"))?.into(),
    };
    Ok((ordinal, parts.next().map(str::parse).transpose()?))
}

impl Device for WgslDevice {
    fn target(&self) -> &'static str {
        "wgsl"
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn Executable>> {
        blocking(self.load_async(plan))
    }
}

/// Waits for what a device does. Errors: `wgsl.wait` where nothing may wait.
pub fn blocking<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    #[cfg(not(target_arch = "wasm32"))]
    return pollster::block_on(future);
    #[cfg(target_arch = "wasm32")]
    {
        drop(future);
        let problem = "nothing waits in a browser: use `Session::new_async` and `Session::run_async`";
        Err(Error::unsupported("wgsl.wait", problem))
    }
}

/// A dispatch with everything bound.
pub struct Ready {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: [u32; 3],
}

impl Ready {
    /// That of a launch.
    pub fn new(pipeline: wgpu::ComputePipeline, bindings: wgpu::BindGroup, groups: [u32; 3]) -> Self {
        Self { pipeline, bindings, groups }
    }

    /// Into a pass.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.dispatch_workgroups(self.groups[0], self.groups[1], self.groups[2]);
    }
}

struct Loaded {
    gpu: Arc<Gpu>,
    plan: Arc<Plan>,
    arena: wgpu::Buffer,
    weights: Vec<wgpu::Buffer>,
    /// Where weights lie in these buffers.
    places: Weights,
    /// By entry and step.
    launches: Vec<Vec<Vec<Ready>>>,
    /// By entry and step: what runs in place of the row that the plan names.
    stand_ins: Vec<Vec<Option<&'static str>>>,
    /// By entry, from its first run on.
    ways: HashMap<usize, Ways>,
    /// Whether steps run one by one, each awaited, so that one that fails is named.
    stepwise: bool,
    times: Vec<(&'static str, Duration)>,
}

/// How an entry's inputs go in and its outputs come out.
struct Ways {
    up: Staging,
    down: Staging,
    /// Bytes of the outputs.
    sizes: Vec<u64>,
}

impl Ways {
    fn new(gpu: &Gpu, entry: &Entry) -> Result<Self> {
        let sizes = |ports: &[Port]| ports.iter().map(|p| entry.buffers[p.buffer as usize].bytes()).collect::<Vec<_>>();
        let (inputs, outputs) = (sizes(&entry.inputs), sizes(&entry.outputs));
        Ok(Self { up: Staging::up(gpu, &inputs)?, down: Staging::down(gpu, &outputs)?, sizes: outputs })
    }
}

impl Loaded {
    async fn new(gpu: Arc<Gpu>, plan: Arc<Plan>) -> Result<Self> {
        let mut times = Vec::new();
        let mut begun = Clock::start();
        let mut part = |name: &'static str| {
            times.push((name, begun.elapsed()));
            begun = Clock::start();
        };
        within_limits(&gpu, &plan)?;
        // Under its own limit a plan is lowered as it was when it was made.
        let most = plan.header().limits.get(BINDING_BYTES).copied().unwrap_or(u64::MAX);
        let mut lowered = lowered(&plan, &|entry, step| lower(entry, step, most).map(|l| (l.launches, l.scratch)))?;
        let mut stand_ins = Vec::with_capacity(lowered.len());
        for (entry, steps) in plan.entries().iter().zip(&mut lowered) {
            let each = entry.steps.iter().zip(steps).map(|(step, launches)| {
                let (name, better) = stand_in(&gpu, &plan, entry, step)?;
                *launches = better;
                Some(name)
            });
            stand_ins.push(each.collect());
        }
        part("lowering");
        let places = Weights::new(&plan, gpu.limits().max_buffer_size);
        let values = gpu.buffer(plan.device_bytes() - fit::weights(plan.header()).1, "the values of a run").await;
        let arena = values.map_err(|e| with_largest(&plan, e))?;
        let mut weights = Vec::with_capacity(places.sizes.len());
        for bytes in &places.sizes {
            weights.push(gpu.buffer(*bytes, "weights").await?);
        }
        part("memory");
        let mut on_their_way = 0;
        plan.weights.stream(&mut |index, bytes| {
            let Some((buffer, offset)) = places.of[index] else { return Ok(()) };
            let bytes = match &bytes {
                Bytes::Held(weight) => weight.bytes(),
                Bytes::Computed(bytes) => bytes.as_slice(),
            };
            for (chunk, at) in bytes.chunks(UPLOAD).zip((offset..).step_by(UPLOAD)) {
                gpu.write(&weights[buffer], at, chunk);
                on_their_way += chunk.len();
                if on_their_way >= UPLOAD {
                    gpu.flush()?;
                    on_their_way = 0;
                }
            }
            Ok(())
        })?;
        gpu.flush()?;
        part("weights");
        let all = || lowered.iter().flatten().flatten().filter(|l| l.groups.iter().all(|n| *n > 0));
        let foreign = all().try_for_each(|launch| carried(&plan, &launch.shader));
        foreign?;
        let pipelines = Pipelines::new(&gpu, all()).await?;
        gpu.keep_pipelines();
        part("pipelines");
        let uniforms = Uniforms::new(&gpu, all())?;
        let mut launches = Vec::with_capacity(lowered.len());
        for (entry, steps) in plan.entries().iter().zip(&lowered) {
            let mut ready = Vec::with_capacity(steps.len());
            for (step, calls) in entry.steps.iter().zip(steps) {
                let place = |base: Base| {
                    let buffer = |all: &[u32], index: usize| Some(entry.buffers[*all.get(index)? as usize].place);
                    let place = match base {
                        Base::Operand(index) => buffer(&step.operands, index),
                        Base::Result(index) => buffer(&step.results, index),
                        Base::Scratch => step.scratch.map(|region| Place::Arena(region.offset)),
                    };
                    match place {
                        Some(Place::Arena(offset)) => Ok((&arena, offset)),
                        Some(Place::Weight(index)) => match places.of[index as usize] {
                            Some((buffer, offset)) => Ok((&weights[buffer], offset)),
                            None => Err(missing(step, base)),
                        },
                        None => Err(missing(step, base)),
                    }
                };
                let calls = calls.iter().filter(|l| l.groups.iter().all(|n| *n > 0));
                let calls = calls.map(|launch: &Launch| bound(&gpu, (&pipelines, &uniforms), launch, &place));
                ready.push(calls.collect::<Result<Vec<_>>>().map_err(|e| at(step, e))?);
            }
            launches.push(ready);
        }
        part("bindings");
        let stepwise = std::env::var_os(STEPWISE).is_some_and(|v| v == "1");
        let ways = HashMap::new();
        Ok(Self { gpu, plan, arena, weights, places, launches, stand_ins, ways, stepwise, times })
    }

    /// Where a value lies.
    fn place(&self, buffer: &Buffer) -> Result<(&wgpu::Buffer, u64)> {
        match buffer.place {
            Place::Arena(offset) => Ok((&self.arena, offset)),
            Place::Weight(index) => self.places.of[index as usize]
                .map(|(buffer, offset)| (&self.weights[buffer], offset))
                .ok_or_else(|| Error::bad_file("plan.kernel", "an output is code")),
        }
    }

    /// Takes the way of the inputs, which is made for the first run.
    fn ways(&mut self, index: usize) -> Result<Ways> {
        match self.ways.remove(&index) {
            Some(ways) => Ok(ways),
            None => Ways::new(&self.gpu, &self.plan.entries()[index]),
        }
    }

    /// From there to where an entry reads its inputs.
    fn copy_in(&self, encoder: &mut wgpu::CommandEncoder, entry: &Entry, ways: &Ways) -> Result<()> {
        for (i, port) in entry.inputs.iter().enumerate() {
            let own = &entry.buffers[port.buffer as usize];
            let ((from, start), (to, offset)) = (ways.up.part(i), self.place(own)?);
            if own.bytes() > 0 {
                encoder.copy_buffer_to_buffer(from, start, to, offset, own.bytes().next_multiple_of(4));
            }
        }
        Ok(())
    }

    /// Outputs to where they are read from.
    fn copy_out(&self, encoder: &mut wgpu::CommandEncoder, entry: &Entry, ways: &Ways) -> Result<()> {
        for (i, port) in entry.outputs.iter().enumerate() {
            let own = &entry.buffers[port.buffer as usize];
            let ((from, offset), (to, start)) = (self.place(own)?, ways.down.part(i));
            if own.bytes() > 0 {
                encoder.copy_buffer_to_buffer(from, offset, to, start, own.bytes().next_multiple_of(4));
            }
        }
        Ok(())
    }

    /// What comes out of a run that has been submitted.
    async fn come_out(&mut self, index: usize, ways: Ways) -> Result<Vec<Tensor>> {
        let (up, down) = (ways.up.map(), ways.down.map());
        let settled = self.gpu.settle();
        let mapped = match &settled {
            Ok(()) => up.await.and(down.await),
            Err(_) => Ok(()),
        };
        settled.map_err(with_advice)?;
        mapped.map_err(|e| self.gpu.failed(&format!("a run: {e}")))?;
        let bytes = ways.down.take(&self.gpu, &ways.sizes)?;
        self.ways.insert(index, ways);
        let entry = &self.plan.entries()[index];
        Ok(entry
            .outputs
            .iter()
            .zip(bytes)
            .map(|(port, bytes)| tensor(&entry.buffers[port.buffer as usize], &bytes))
            .collect())
    }

    /// Runs an entry: one submission.
    async fn run_at_once(&mut self, index: usize, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let ways = self.ways(index)?;
        ways.up.fill(&self.gpu, &inputs.iter().map(|t| t.bytes()).collect::<Vec<_>>())?;
        let mut encoder = self.gpu.encoder();
        self.copy_in(&mut encoder, entry, &ways)?;
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, index, 0..entry.steps.len());
        }
        self.copy_out(&mut encoder, entry, &ways)?;
        self.gpu.queue().submit([encoder.finish()]);
        self.come_out(index, ways).await
    }

    /// Brings inputs to where an entry reads them, for runs in several submissions.
    fn write(&self, entry: &Entry, inputs: &[&Tensor]) -> Result<()> {
        for (port, tensor) in entry.inputs.iter().zip(inputs) {
            let (buffer, offset) = self.place(&entry.buffers[port.buffer as usize])?;
            self.gpu.write(buffer, offset, tensor.bytes());
        }
        Ok(())
    }

    /// Values after a run in several submissions.
    fn tensors(&self, entry: &Entry, buffers: &[u32]) -> Result<Vec<Tensor>> {
        let each = || buffers.iter().map(|n| &entry.buffers[*n as usize]);
        let parts = each().map(|own| self.place(own).map(|(buffer, offset)| (buffer, offset, own.bytes())));
        let bytes = self.gpu.read(&parts.collect::<Result<Vec<_>>>()?)?;
        Ok(each().zip(bytes).map(|(own, bytes)| tensor(own, &bytes)).collect())
    }

    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, index: usize, steps: std::ops::Range<usize>) {
        self.launches[index][steps].iter().flatten().for_each(|ready| ready.dispatch(pass));
    }

    /// Submits some steps of an entry.
    fn submit(&self, index: usize, steps: std::ops::Range<usize>) {
        let mut encoder = self.gpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatch(&mut pass, index, steps);
        }
        self.gpu.queue().submit([encoder.finish()]);
    }

    /// Runs all steps without waiting in between, the device's own time taken around each.
    fn run_timed(&self, index: usize, seen: &mut dyn FnMut(StepRun<'_>)) -> Result<()> {
        let steps = &self.plan.entries()[index].steps;
        let most = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let period = f64::from(self.gpu.queue().get_timestamp_period());
        for first in (0..steps.len()).step_by(most) {
            let count = most.min(steps.len() - first);
            let (queries, bytes) = (2 * count as u32, 16 * count as u64);
            let query_set = self.gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: queries,
            });
            let resolved = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("times"),
                size: bytes,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut encoder = self.gpu.encoder();
            for (i, step) in (0..).zip(first..first + count) {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &query_set,
                        beginning_of_pass_write_index: Some(2 * i),
                        end_of_pass_write_index: Some(2 * i + 1),
                    }),
                });
                self.dispatch(&mut pass, index, step..step + 1);
            }
            encoder.resolve_query_set(&query_set, 0..queries, &resolved, 0);
            self.gpu.queue().submit([encoder.finish()]);
            let ticks = self.gpu.read(&[(&resolved, 0, bytes)])?.remove(0);
            let ticks: Vec<u64> = ticks.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            for (pair, index) in ticks.chunks_exact(2).zip(first..) {
                let time = Duration::from_secs_f64(pair[1].saturating_sub(pair[0]) as f64 * period * 1e-9);
                seen(StepRun { index, step: &steps[index], time });
            }
        }
        Ok(())
    }

    /// Runs every step by itself and waits for it.
    fn run_stepwise(&self, index: usize, after: &mut dyn FnMut(StepRun<'_>) -> Result<()>) -> Result<()> {
        for (i, step) in self.plan.entries()[index].steps.iter().enumerate() {
            let begun = Clock::start();
            self.submit(index, i..i + 1);
            self.gpu.wait().map_err(|e| at(step, e))?;
            after(StepRun { index: i, step, time: begun.elapsed() })?;
        }
        Ok(())
    }
}

impl Executable for Loaded {
    fn run(&mut self, index: usize, inputs: &[&Tensor], probe: Probe<'_>) -> Result<Vec<Tensor>> {
        if matches!(probe, Probe::Nothing) && !self.stepwise {
            return blocking(self.run_at_once(index, inputs));
        }
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        self.write(entry, inputs)?;
        match probe {
            Probe::Nothing => self.run_stepwise(index, &mut |_| Ok(()))?,
            Probe::Times(seen) if self.gpu.has_timestamps() && !self.stepwise => self.run_timed(index, seen)?,
            Probe::Times(seen) => self.run_stepwise(index, &mut |step| {
                seen(step);
                Ok(())
            })?,
            Probe::Values(seen) => self.run_stepwise(index, &mut |run| {
                let operands = self.tensors(entry, &run.step.operands)?;
                seen(run, &operands, &self.tensors(entry, &run.step.results)?);
                Ok(())
            })?,
        }
        self.tensors(entry, &entry.outputs.iter().map(|port| port.buffer).collect::<Vec<_>>())
    }

    fn run_async<'a>(
        &'a mut self,
        index: usize,
        inputs: &'a [&'a Tensor],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Tensor>>> + 'a>> {
        Box::pin(self.run_at_once(index, inputs))
    }

    fn time(&mut self, index: usize, inputs: &[&Tensor], runs: usize) -> Result<Vec<Duration>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            self.write(entry, inputs)?;
            self.gpu.wait()?;
            let begun = Clock::start();
            self.submit(index, 0..entry.steps.len());
            self.gpu.wait().map_err(with_advice)?;
            times.push(begun.elapsed());
        }
        Ok(times)
    }

    fn load_times(&self) -> &[(&'static str, Duration)] {
        &self.times
    }

    fn stand_in(&self, entry: usize, step: usize) -> Option<&'static str> {
        self.stand_ins[entry][step]
    }

    fn allocated_bytes(&self) -> u64 {
        self.weights.iter().chain([&self.arena]).map(wgpu::Buffer::size).sum()
    }
}

/// A value of these bytes.
fn tensor(own: &Buffer, bytes: &[u8]) -> Tensor {
    let shape = own.ty.dims().unwrap_or_default();
    Tensor::from_bytes(own.ty.dtype, &shape, bytes).expect("a checked plan gives every value its size")
}

/// An error of a run with how to learn more.
fn with_advice(mut error: Error) -> Error {
    error.problems.push(format!("`{STEPWISE}=1` runs steps one by one and names the one that fails"));
    error
}

/// An error of the arena with the value that takes most of it.
fn with_largest(plan: &Plan, mut error: Error) -> Error {
    let entry = plan.entries().iter().max_by_key(|e| e.arena_bytes);
    let steps = entry.into_iter().flat_map(|entry| entry.steps.iter().map(move |step| (entry, step)));
    let results = steps.flat_map(|(entry, step)| step.results.iter().map(move |n| (step, &entry.buffers[*n as usize])));
    if let Some((step, own)) = results.max_by_key(|(_, own)| own.bytes()) {
        let (op, origin, bytes) = (step.op.name(), &step.origin, own.bytes());
        error.problems.push(format!("its largest value is {} of {op} at `{origin}`: {bytes} bytes", own.ty));
    }
    error
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{Bindings, text::parse};

    use super::*;
    use crate::{
        backend::wgsl::PORTABLE,
        plan::{EntrySource, Meta, build},
        weights::Weights,
    };

    #[test]
    fn a_lost_device_is_told() {
        let Ok(gpu) = Gpu::open(0, None) else { return eprintln!("skipped: no adapter") };
        let text = "graph @g(%x: f32[64]) -> (y: f32[64]) {\n  %y = exp(%x)\n  return y=%y\n}";
        let source = EntrySource { bindings: Bindings::new(), graph: parse(text).unwrap() };
        let plan = build(&[source], &Weights::default(), &PORTABLE, Meta::default()).unwrap();
        let mut loaded = blocking(Loaded::new(Arc::new(gpu), Arc::new(plan))).unwrap();
        let x = Tensor::from_f32(&[64], vec![1.0; 64]);
        assert_eq!(loaded.run(0, &[&x], Probe::Nothing).unwrap()[0].to_f64().len(), 64);
        loaded.gpu.device().destroy();
        let error = loaded.run(0, &[&x], Probe::Nothing).unwrap_err();
        assert_eq!(error.code, "wgsl.lost");
        assert!(error.to_string().contains("LITE3R_SYNC=1"), "{error}");
        loaded.stepwise = true;
        let error = loaded.run(0, &[&x], Probe::Nothing).unwrap_err();
        assert!(error.code == "wgsl.lost" && error.to_string().contains("exp at"), "{error}");
    }

    #[test]
    fn names_say_which_adapter_and_what_it_may_use() {
        assert_eq!(parsed("wgsl"), Ok((0, None)));
        assert_eq!(parsed("wgsl:2"), Ok((2, None)));
        assert_eq!(parsed("wgsl:0:plain"), Ok((0, Some(Features::NONE))));
        assert_eq!(parsed("wgsl:1:f16+matrices"), Ok((1, Some(Features::MATRICES))));
        assert!(parsed("wgsl:").is_err() && parsed("wgsl:0:f64").unwrap_err().contains("subgroups"));
    }
}
