//! Runs plans through wgpu: one arena, weights beside it, every pipeline and binding made when a plan is loaded.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lite3r_ir::Tensor;

use super::{
    BINDING_BYTES, BINDINGS, Features,
    adapter::{Gpu, padded},
    better,
    launch::{Base, Binding, Launch},
    lower,
    shader::Shader,
};
use crate::{
    Error, Kind, Result,
    backend::{
        Device, Executable, Probe, StepRun,
        gpu::steps::{at, lowered},
    },
    plan::{ALIAS, Buffer, Entry, Place, Plan, Step, fit, weights::Bytes},
};

/// A GPU of this machine.
pub struct WgslDevice {
    gpu: Arc<Gpu>,
}

impl WgslDevice {
    /// By name: `wgsl`, the first adapter; `wgsl:1`, the second as [`super::adapter::adapters`] lists them;
    /// `wgsl:0:f16+subgroups` uses no more of what kernels can use than is named, `wgsl:0:plain` nothing. Errors:
    /// `device.unknown`, `wgsl.adapter`, `wgsl.device`.
    pub fn new(name: &str) -> Result<Self> {
        let (ordinal, let_through) = parsed(name)
            .map_err(|why| Error::device("device.unknown", format!("there is no device `{name}`: {why}")))?;
        Ok(Self { gpu: Arc::new(Gpu::open(ordinal, let_through)?) })
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
        Ok(Box::new(Loaded::new(self.gpu.clone(), plan)?))
    }
}

/// A dispatch with everything bound.
pub(super) struct Ready {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: [u32; 3],
}

impl Ready {
    /// Into a pass.
    pub(super) fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>) {
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
    times: Vec<(&'static str, Duration)>,
}

impl Loaded {
    fn new(gpu: Arc<Gpu>, plan: Arc<Plan>) -> Result<Self> {
        let mut times = Vec::new();
        let mut begun = Instant::now();
        let mut part = |name: &'static str| {
            times.push((name, begun.elapsed()));
            begun = Instant::now();
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
        let arena = gpu.buffer(plan.device_bytes() - fit::weights(plan.header()).1, "the values of a run")?;
        let weights = places.sizes.iter().map(|bytes| gpu.buffer(*bytes, "weights")).collect::<Result<Vec<_>>>()?;
        part("memory");
        plan.weights.stream(&mut |index, bytes| {
            let Some((buffer, offset)) = places.of[index] else { return Ok(()) };
            let bytes = match &bytes {
                Bytes::Held(weight) => weight.bytes(),
                Bytes::Computed(bytes) => bytes.as_slice(),
            };
            gpu.write(&weights[buffer], offset, bytes)
        })?;
        part("weights");
        let mut pipelines: HashMap<Shader, wgpu::ComputePipeline> = HashMap::new();
        let mut layouts: HashMap<usize, wgpu::BindGroupLayout> = HashMap::new();
        let mut launches = Vec::with_capacity(lowered.len());
        for (entry, steps) in plan.entries().iter().zip(lowered) {
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
                let calls: Vec<Launch> = calls.into_iter().filter(|l| l.groups.iter().all(|n| *n > 0)).collect();
                let calls = calls.iter().map(|launch| {
                    let tensors = launch.bindings.len();
                    let layout = layouts.entry(tensors).or_insert_with(|| gpu.layout(tensors));
                    let pipeline = match pipelines.get(&launch.shader) {
                        Some(pipeline) => pipeline.clone(),
                        None => {
                            carried(&plan, &launch.shader)?;
                            let pipeline = gpu.pipeline(&launch.shader, layout)?;
                            pipelines.insert(launch.shader.clone(), pipeline.clone());
                            pipeline
                        }
                    };
                    bound(&gpu, (pipeline, layout), launch, &place)
                });
                ready.push(calls.collect::<Result<Vec<_>>>().map_err(|e| at(step, e))?);
            }
            launches.push(ready);
        }
        part("pipelines");
        Ok(Self { gpu, plan, arena, weights, places, launches, stand_ins, times })
    }

    fn write(&self, entry: &Entry, inputs: &[&Tensor]) -> Result<()> {
        for (port, tensor) in entry.inputs.iter().zip(inputs) {
            if let Place::Arena(offset) = entry.buffers[port.buffer as usize].place {
                self.gpu.write(&self.arena, offset, tensor.bytes())?;
            }
        }
        Ok(())
    }

    fn tensors(&self, entry: &Entry, buffers: &[u32]) -> Result<Vec<Tensor>> {
        let parts: Vec<(&wgpu::Buffer, u64, u64)> = buffers
            .iter()
            .map(|n| {
                let Buffer { ty, place } = &entry.buffers[*n as usize];
                let bytes = ty.bytes().unwrap_or(0) as u64;
                match place {
                    Place::Arena(offset) => Ok((&self.arena, *offset, bytes)),
                    Place::Weight(index) => self.places.of[*index as usize]
                        .map(|(buffer, offset)| (&self.weights[buffer], offset, bytes))
                        .ok_or_else(|| Error::bad_file("plan.kernel", "an output is code")),
                }
            })
            .collect::<Result<_>>()?;
        let bytes = self.gpu.read(&parts)?;
        let tensor = |(n, bytes): (&u32, Vec<u8>)| {
            let ty = &entry.buffers[*n as usize].ty;
            let shape = ty.dims().unwrap_or_default();
            Tensor::from_bytes(ty.dtype, &shape, &bytes).expect("a checked plan gives every value its size")
        };
        Ok(buffers.iter().zip(bytes).map(tensor).collect())
    }

    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, index: usize, steps: std::ops::Range<usize>) {
        self.launches[index][steps].iter().flatten().for_each(|ready| ready.dispatch(pass));
    }

    /// Submits some steps of an entry.
    fn submit(&self, index: usize, steps: std::ops::Range<usize>) {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
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
            let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
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
            let begun = Instant::now();
            self.submit(index, i..i + 1);
            self.gpu.wait().map_err(|e| at(step, e))?;
            after(StepRun { index: i, step, time: begun.elapsed() })?;
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
            Probe::Nothing => self.submit(index, 0..entry.steps.len()),
            Probe::Times(seen) if self.gpu.has_timestamps() => self.run_timed(index, seen)?,
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

    fn time(&mut self, index: usize, inputs: &[&Tensor], runs: usize) -> Result<Vec<Duration>> {
        let plan = self.plan.clone();
        let entry = &plan.entries()[index];
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            self.write(entry, inputs)?;
            self.gpu.wait()?;
            let begun = Instant::now();
            self.submit(index, 0..entry.steps.len());
            self.gpu.wait()?;
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

/// Whether the device offers what the plan needs. Errors: `wgsl.limit`, every limit that is too small.
fn within_limits(gpu: &Gpu, plan: &Plan) -> Result<()> {
    let limits = gpu.limits();
    let offered = [
        (BINDING_BYTES, limits.max_storage_buffer_binding_size, "bytes of a buffer that a shader sees at once"),
        (BINDINGS, u64::from(limits.max_storage_buffers_per_shader_stage), "tensors that a shader is bound to"),
    ];
    let problem = |(name, has, what): &(&str, u64, &str)| {
        let needs = *plan.header().limits.get(*name)?;
        (needs > *has).then(|| format!("`{}` offers {has} {what}; the plan needs {needs}", gpu.name()))
    };
    let problems: Vec<String> = offered.iter().filter_map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::all(Kind::Unsupported, "wgsl.limit", problems)) }
}

/// Where weights lie: several buffers where one would be larger than the device allows.
struct Weights {
    /// By index: the buffer and the offset in it. Code has none.
    of: Vec<Option<(usize, u64)>>,
    sizes: Vec<u64>,
}

impl Weights {
    fn new(plan: &Plan, most: u64) -> Self {
        let header = plan.header();
        let (mut of, mut sizes) = (Vec::with_capacity(header.weights.len()), Vec::<u64>::new());
        for (index, weight) in header.weights.iter().enumerate() {
            if header.modules.values().any(|m| *m as usize == index) {
                of.push(None);
                continue;
            }
            let bytes = padded(weight.ty.bytes().map_or(0, |b| b as u64));
            match sizes.last_mut() {
                Some(end) if *end + bytes <= most => *end += bytes,
                _ => sizes.push(bytes),
            }
            let last = sizes.len() - 1;
            of.push(Some((last, sizes[last] - bytes)));
        }
        Self { of, sizes }
    }
}

/// Binds a launch.
pub(super) fn bound<'b>(
    gpu: &Gpu,
    (pipeline, layout): (wgpu::ComputePipeline, &wgpu::BindGroupLayout),
    launch: &Launch,
    place: &dyn Fn(Base) -> Result<(&'b wgpu::Buffer, u64)>,
) -> Result<Ready> {
    let most = gpu.limits().max_storage_buffer_binding_size;
    let mut places = Vec::with_capacity(launch.bindings.len());
    for Binding { base, offset, bytes } in &launch.bindings {
        let (buffer, start) = place(*base)?;
        let size = padded(*bytes);
        if size > most {
            return Err(Error::unsupported(
                "wgsl.limit",
                format!("{base:?} has {bytes} bytes; `{}` lets a shader see {most} of a buffer at once", gpu.name()),
            ));
        }
        places.push((buffer, start + offset, size));
    }
    let sizes = gpu.uniform(&launch.sizes);
    let storage = places.iter().map(|(buffer, offset, size)| wgpu::BufferBinding {
        buffer,
        offset: *offset,
        size: std::num::NonZero::new(*size),
    });
    let all = storage.chain([sizes.as_entire_buffer_binding()]).map(wgpu::BindingResource::Buffer);
    let entries: Vec<wgpu::BindGroupEntry<'_>> =
        (0..).zip(all).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
    let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
    let bindings = gpu.device().create_bind_group(&descriptor);
    Ok(Ready { pipeline, bindings, groups: launch.groups })
}

/// The row that runs in place of the one that a step names, with its launches: the first whose needs the device offers,
/// whose buffers a shader may see there, and whose shaders and scratch memory the plan has.
fn stand_in(gpu: &Gpu, plan: &Plan, entry: &Entry, step: &Step) -> Option<(&'static str, Vec<Launch>)> {
    if step.kernel == ALIAS {
        return None;
    }
    let (limits, scratch) = (gpu.limits(), step.scratch.map_or(0, |s| s.bytes));
    let (most, bytes) = (limits.max_storage_buffers_per_shader_stage, limits.max_storage_buffer_binding_size);
    let seen = |launch: &Launch| {
        launch.bindings.len() <= most as usize && launch.bindings.iter().all(|b| padded(b.bytes) <= bytes)
    };
    let runs = |launch: &Launch| seen(launch) && carried(plan, &launch.shader).is_ok();
    let mut better = better(entry, step, gpu.offered()).into_iter();
    let (kernel, lowered) = better.find(|(_, l)| l.scratch as u64 <= scratch && l.launches.iter().all(runs))?;
    Some((kernel.name, lowered.launches))
}

/// Whether the plan carries a shader as this library makes it. Errors: `plan.kernel`.
fn carried(plan: &Plan, shader: &Shader) -> Result<()> {
    let key = shader.key();
    let lacking = || Error::bad_file("plan.kernel", format!("the plan lacks shader `{key}`: compile the model again"));
    let index = plan.header().modules.get(&key).ok_or_else(lacking)?;
    let weight = plan.weights.held[*index as usize].as_ref().ok_or_else(lacking)?;
    let same = weight.bytes() == shader.text().as_bytes();
    let other = || Error::bad_file("plan.kernel", format!("the plan's shader `{key}` is not what its name says"));
    if same { Ok(()) } else { Err(other()) }
}

fn missing(step: &Step, base: Base) -> Error {
    Error::bad_file("plan.kernel", format!("kernel `{}` asks for {base:?}, which is not there", step.kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_adapter_and_what_it_may_use() {
        assert_eq!(parsed("wgsl"), Ok((0, None)));
        assert_eq!(parsed("wgsl:2"), Ok((2, None)));
        assert_eq!(parsed("wgsl:0:plain"), Ok((0, Some(Features::NONE))));
        assert_eq!(parsed("wgsl:1:f16+matrices"), Ok((1, Some(Features::MATRICES))));
        assert!(parsed("wgsl:").is_err() && parsed("wgsl:0:f64").unwrap_err().contains("subgroups"));
    }
}
