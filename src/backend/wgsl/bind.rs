//! Where the steps of a plan find what they are bound to: weights, sizes, and the rows that run on a device.

use std::{
    collections::{HashMap, HashSet},
    num::NonZero,
};

use super::{
    BINDING_BYTES, BINDINGS,
    adapter::{Gpu, padded},
    better,
    exec::Ready,
    launch::{Base, Binding, Launch},
    pipelines::Pipelines,
    shader::Shader,
};
use crate::{
    Error, Kind, Result,
    plan::{ALIAS, Entry, Plan, Step},
};

/// Whether the device offers what the plan needs. Errors: `wgsl.limit`, every limit that is too small.
pub fn within_limits(gpu: &Gpu, plan: &Plan) -> Result<()> {
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
pub struct Weights {
    /// By index: the buffer and the offset in it. Code has none.
    pub of: Vec<Option<(usize, u64)>>,
    /// Of the buffers.
    pub sizes: Vec<u64>,
}

impl Weights {
    /// In buffers of up to `most` bytes.
    pub fn new(plan: &Plan, most: u64) -> Self {
        let header = plan.header();
        let (mut of, mut sizes) = (Vec::with_capacity(header.weights.len()), Vec::<u64>::new());
        let code: HashSet<usize> = header.modules.values().map(|index| *index as usize).collect();
        for (index, weight) in header.weights.iter().enumerate() {
            if code.contains(&index) {
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

/// The sizes that launches are told, in one buffer, equal ones once.
pub struct Uniforms {
    buffer: wgpu::Buffer,
    of: HashMap<Vec<u32>, u64>,
}

impl Uniforms {
    /// Of some launches. Errors: `wgsl.memory`.
    pub fn new<'l>(gpu: &Gpu, launches: impl Iterator<Item = &'l Launch>) -> Result<Self> {
        let (mut of, mut words) = (HashMap::new(), Vec::<u32>::new());
        for launch in launches {
            of.entry(launch.sizes.clone()).or_insert_with(|| {
                let at = words.len().next_multiple_of(64);
                words.resize(at, 0);
                words.extend(&launch.sizes);
                words.resize(words.len().next_multiple_of(4).max(at + 4), 0);
                4 * at as u64
            });
        }
        Ok(Self { buffer: gpu.uniforms(&words)?, of })
    }

    fn of(&self, launch: &Launch) -> wgpu::BufferBinding<'_> {
        let size = 4 * launch.sizes.len().next_multiple_of(4).max(4) as u64;
        wgpu::BufferBinding { buffer: &self.buffer, offset: self.of[&launch.sizes], size: NonZero::new(size) }
    }
}

/// Binds a launch. Errors: `wgsl.limit` where a shader would see more of a buffer than the device allows.
pub fn bound<'b>(
    gpu: &Gpu,
    (pipelines, uniforms): (&Pipelines, &Uniforms),
    launch: &Launch,
    place: &dyn Fn(Base) -> Result<(&'b wgpu::Buffer, u64)>,
) -> Result<Ready> {
    let (pipeline, layout) = pipelines.of(launch);
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
    let storage = places.iter().map(|(buffer, offset, size)| wgpu::BufferBinding {
        buffer,
        offset: *offset,
        size: NonZero::new(*size),
    });
    let all = storage.chain([uniforms.of(launch)]).map(wgpu::BindingResource::Buffer);
    let entries: Vec<wgpu::BindGroupEntry<'_>> =
        (0..).zip(all).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
    let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
    let bindings = gpu.device().create_bind_group(&descriptor);
    Ok(Ready::new(pipeline, bindings, launch.groups))
}

/// The row that runs in place of the one that a step names, with its launches: the first whose needs the device offers,
/// whose buffers a shader may see there, and whose shaders and scratch memory the plan has.
pub fn stand_in(gpu: &Gpu, plan: &Plan, entry: &Entry, step: &Step) -> Option<(&'static str, Vec<Launch>)> {
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
pub fn carried(plan: &Plan, shader: &Shader) -> Result<()> {
    let key = shader.key();
    let lacking = || Error::bad_file("plan.kernel", format!("the plan lacks shader `{key}`: compile the model again"));
    let index = plan.header().modules.get(&key).ok_or_else(lacking)?;
    let weight = plan.weights.held[*index as usize].as_ref().ok_or_else(lacking)?;
    let same = weight.bytes() == shader.text().as_bytes();
    let other = || Error::bad_file("plan.kernel", format!("the plan's shader `{key}` is not what its name says"));
    if same { Ok(()) } else { Err(other()) }
}

/// The error of a step that asks for what it does not have.
pub fn missing(step: &Step, base: Base) -> Error {
    Error::bad_file("plan.kernel", format!("kernel `{}` asks for {base:?}, which is not there", step.kernel))
}
