//! Runs plans through wgpu: one arena, weights beside it, every pipeline and binding made when a plan is loaded.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use super::{
    BINDING_BYTES, Features,
    adapter::Gpu,
    bind::{Uniforms, Weights, bound, carried, missing, stand_in, within_limits},
    launch::{Base, Launch},
    lower,
    pipelines::Pipelines,
    run::Ways,
};
use crate::{
    Error, Result,
    backend::{
        Device, Executable, STEPWISE,
        gpu::steps::{at, lowered},
    },
    clock::Clock,
    plan::{Place, Plan, fit, weights::Bytes},
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

/// A plan with everything made that its runs use.
pub(super) struct Loaded {
    pub(super) gpu: Arc<Gpu>,
    pub(super) plan: Arc<Plan>,
    pub(super) arena: wgpu::Buffer,
    pub(super) weights: Vec<wgpu::Buffer>,
    /// Where weights lie in these buffers.
    pub(super) places: Weights,
    /// By entry and step.
    pub(super) launches: Vec<Vec<Vec<Ready>>>,
    /// By entry and step: what runs in place of the row that the plan names.
    pub(super) stand_ins: Vec<Vec<Option<&'static str>>>,
    /// By entry, from its first run on.
    pub(super) ways: HashMap<usize, Ways>,
    /// Whether steps run one by one, each awaited, so that one that fails is named.
    pub(super) stepwise: bool,
    pub(super) times: Vec<(&'static str, Duration)>,
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
    use lite3r_ir::{Bindings, Tensor, text::parse};

    use super::*;
    use crate::{
        backend::{Probe, wgsl::PORTABLE},
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
