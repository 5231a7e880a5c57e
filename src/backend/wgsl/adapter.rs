//! GPUs of this machine as wgpu sees them, and what is done with one: buffers, pipelines, transfers.

#![allow(unsafe_code)] // what wgpu trusts shaders of this library with

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Features, exec::blocking, pipelines::Kept, shader::Shader};
use crate::{Error, Result};

/// An adapter, described.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// As the driver calls it.
    pub name: String,
    /// `Vulkan`, `Metal`, `Dx12`.
    pub api: String,
    /// Whether it computes on the CPU.
    pub software: bool,
    /// What it lacks of what some kernels use.
    pub lacks: Vec<&'static str>,
}

/// What some kernels use where it is.
const WANTED: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::SUBGROUP).union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// What an adapter offers to kernels.
fn offered(adapter: &wgpu::Adapter) -> Features {
    let (features, info) = (adapter.features(), adapter.get_info());
    let (half, wide) = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
    let squares = adapter
        .cooperative_matrix_properties()
        .into_iter()
        .any(|m| [m.m_size, m.n_size, m.k_size] == [16; 3] && (m.ab_type, m.cr_type) == (half, wide));
    let threads = (info.subgroup_min_size, info.subgroup_max_size) == (32, 32);
    Features {
        f16: features.contains(wgpu::Features::SHADER_F16),
        subgroups: features.contains(wgpu::Features::SUBGROUP),
        matrices: features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) && squares && threads,
        workgroup_bytes: adapter.limits().max_compute_workgroup_storage_size,
    }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
}

/// Real GPUs first, then software. In a browser: the one that it offers.
async fn found(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    #[cfg(target_arch = "wasm32")]
    let mut all: Vec<wgpu::Adapter> = {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        instance.request_adapter(&options).await.into_iter().collect()
    };
    #[cfg(not(target_arch = "wasm32"))]
    let mut all = instance.enumerate_adapters(wgpu::Backends::all()).await;
    all.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => 1,
        wgpu::DeviceType::Cpu => 2,
    });
    all
}

/// The adapters of this machine, in the order of their numbers.
pub fn adapters() -> Vec<Adapter> {
    let describe = |adapter: &wgpu::Adapter| {
        let (info, offered) = (adapter.get_info(), offered(adapter));
        let lacking =
            [(offered.f16, "f16"), (offered.subgroups, "subgroups"), (offered.matrices, "cooperative matrices")];
        Adapter {
            name: info.name,
            api: format!("{:?}", info.backend),
            software: info.device_type == wgpu::DeviceType::Cpu,
            lacks: lacking.into_iter().filter(|(is, _)| !is).map(|(_, name)| name).collect(),
        }
    };
    blocking(async { Ok(found(&instance()).await) }).unwrap_or_default().iter().map(describe).collect()
}

/// An opened adapter.
pub struct Gpu {
    name: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    offered: Features,
    kept: Option<Kept>,
    faults: Arc<Mutex<Faults>>,
}

/// What a device has told beside the answers to what it was asked.
#[derive(Default)]
struct Faults {
    /// Why it was lost, once it is.
    lost: Option<String>,
    /// The first thing that went wrong since someone looked.
    first: Option<(&'static str, String)>,
}

fn locked(faults: &Mutex<Faults>) -> MutexGuard<'_, Faults> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that a buffer or binding of so many takes: offsets of bindings are multiples of 256.
pub const fn padded(bytes: u64) -> u64 {
    if bytes == 0 { 256 } else { bytes.div_ceil(256) * 256 }
}

impl Gpu {
    /// By number, with what is let through of what kernels use. Errors: `wgsl.adapter` if there is none, `wgsl.device` if
    /// it cannot be opened.
    pub fn open(ordinal: usize, let_through: Option<Features>) -> Result<Self> {
        blocking(Self::open_async(ordinal, let_through))
    }

    /// As [`Gpu::open`], where nothing may wait.
    pub async fn open_async(ordinal: usize, let_through: Option<Features>) -> Result<Self> {
        let all = found(&instance()).await;
        let adapter = all.get(ordinal).ok_or_else(|| {
            let why = match all.len() {
                0 => "no Vulkan, Metal or DirectX 12 driver offers an adapter".to_string(),
                n => format!("there is no adapter {ordinal}; this machine has {n}"),
            };
            Error::device("wgsl.adapter", why)
        })?;
        let (info, limits) = (adapter.get_info(), adapter.limits());
        if info.device_type == wgpu::DeviceType::Cpu {
            tracing::warn!("`{}` is a software adapter: it computes on the CPU", info.name);
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lite3r"),
            // Those that runs are timed and pipelines kept with, and those of kernels, where they are.
            required_features: adapter.features()
                & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE | WANTED),
            // SAFETY: what is experimental may have bugs in wgpu; of it only cooperative matrices are used, by shaders of
            // this library, which the tests of conformance hold on devices that have them.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            required_limits: limits.clone(),
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = adapter.request_device(&descriptor).await;
        let (device, queue) = opened.map_err(|e| Error::device("wgsl.device", format!("`{}`: {e}", info.name)))?;
        let faults = Arc::new(Mutex::new(Faults::default()));
        let seen = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            locked(&seen).lost = Some(format!("{reason:?}: {message}"));
        });
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            let code = if matches!(error, wgpu::Error::OutOfMemory { .. }) { "wgsl.memory" } else { "wgsl.device" };
            locked(&seen).first.get_or_insert((code, error.to_string()));
        }));
        let kept = Kept::open(&device, &info);
        let offered = offered(adapter);
        let offered = let_through.map_or(offered, |features| offered.held_to(&features));
        Ok(Self { name: info.name, device, queue, limits, offered, kept, faults })
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Its queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// What it offers.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// What it offers to kernels.
    pub fn offered(&self) -> &Features {
        &self.offered
    }

    /// Whether the device can tell the time.
    pub fn has_timestamps(&self) -> bool {
        self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// A new encoder.
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// A buffer that shaders read and write. Errors: `wgsl.limit`, `wgsl.memory`.
    pub async fn buffer(&self, bytes: u64, what: &str) -> Result<wgpu::Buffer> {
        let size = padded(bytes);
        if size > self.limits.max_buffer_size {
            let most = self.limits.max_buffer_size;
            return Err(Error::unsupported(
                "wgsl.limit",
                format!("{what}: {size} bytes; a buffer of `{}` has at most {most}", self.name),
            ));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        match scope.pop().await {
            None => Ok(buffer),
            Some(error) => {
                Err(Error::device("wgsl.memory", format!("{what}: {size} bytes on `{}`: {error}", self.name)))
            }
        }
    }

    /// A buffer that the host sees; mapped if it is to be written first. Errors: `wgsl.limit`.
    pub fn host_buffer(
        &self,
        size: u64,
        what: &str,
        usage: wgpu::BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer> {
        if size > self.limits.max_buffer_size {
            let most = self.limits.max_buffer_size;
            let problem = format!("{what}: {size} bytes; a buffer of `{}` has at most {most}", self.name);
            return Err(Error::unsupported("wgsl.limit", problem));
        }
        Ok(self.device.create_buffer(&wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation }))
    }

    /// A buffer of words that shaders read as uniforms. Errors: `wgsl.limit`.
    pub fn uniforms(&self, words: &[u32]) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = self.host_buffer((4 * words.len().max(4)) as u64, "sizes", usage, false)?;
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
        Ok(buffer)
    }

    /// What a shader is bound to: so many tensors, then the sizes.
    pub fn layout(&self, tensors: usize) -> wgpu::BindGroupLayout {
        let entry = |binding: usize| {
            let read = binding == tensors;
            let storage = wgpu::BufferBindingType::Storage { read_only: false };
            wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: if read { wgpu::BufferBindingType::Uniform } else { storage },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            }
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..=tensors).map(entry).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
        self.device.create_bind_group_layout(&descriptor)
    }

    /// The pipeline of a shader of this library. Errors: `wgsl.shader`, what the validator or the driver says.
    pub async fn pipeline(&self, shader: &Shader, bindings: &wgpu::BindGroupLayout) -> Result<wgpu::ComputePipeline> {
        let (key, text) = (shader.key(), shader.text());
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(bindings)],
            immediate_size: 0,
        });
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(&key), source: wgpu::ShaderSource::Wgsl(text.into()) };
        let checked = !shader.is_bounded();
        let module = match checked {
            true => self.device.create_shader_module(descriptor),
            // SAFETY: the text is this library's own, never a plan's. Where its shaders read and write follows from sizes
            // alone, which a plan has been checked for, all loops end, and no divisor is zero.
            false => unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            },
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&key),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: checked,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: self.kept.as_ref().map(Kept::cache),
        });
        match scope.pop().await {
            None => Ok(pipeline),
            Some(error) => Err(Error::bad_file("wgsl.shader", format!("shader `{key}`: {error}"))),
        }
    }

    /// Writes bytes from an offset on; what is left of the last word is zero.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        let whole = bytes.len() / 4 * 4;
        self.queue.write_buffer(buffer, offset, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.queue.write_buffer(buffer, offset + whole as u64, &last);
        }
    }

    /// Sends what has been written on its way and, where one may, waits until it is there. Errors: as [`Gpu::wait`].
    pub fn flush(&self) -> Result<()> {
        self.queue.submit([]);
        self.settle()
    }

    /// Keeps what the driver has compiled for the next time.
    pub fn keep_pipelines(&self) {
        if let Some(kept) = &self.kept {
            kept.save();
        }
    }

    /// Bytes of buffers, once all that was submitted has run: (buffer, offset, bytes).
    pub fn read(&self, parts: &[(&wgpu::Buffer, u64, u64)]) -> Result<Vec<Vec<u8>>> {
        let mut starts = Vec::with_capacity(parts.len());
        let total = parts.iter().fold(0, |at, (.., bytes)| {
            starts.push(at);
            at + padded(*bytes)
        });
        if total == 0 {
            return Ok(Vec::new());
        }
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: total,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.encoder();
        for ((buffer, offset, bytes), start) in parts.iter().zip(&starts) {
            if *bytes > 0 {
                encoder.copy_buffer_to_buffer(buffer, *offset, &staging, *start, bytes.next_multiple_of(4));
            }
        }
        self.queue.submit([encoder.finish()]);
        let (send, receive) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |done| _ = send.send(done));
        self.wait()?;
        let mapped = receive.recv().map_err(|_| self.failed("reading back: no answer"))?;
        mapped.map_err(|e| self.failed(&format!("reading back: {e}")))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.failed(&format!("reading back: {e}")))?;
        let part = |((.., bytes), start): (&(_, u64, u64), &u64)| view[*start as usize..][..*bytes as usize].to_vec();
        Ok(parts.iter().zip(&starts).map(part).collect())
    }

    /// Waits for everything that was submitted. Errors: `wgsl.lost`, and `wgsl.memory` or `wgsl.device` for what else went
    /// wrong meanwhile.
    pub fn wait(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        let mut faults = locked(&self.faults);
        if let Some(why) = &faults.lost {
            return Err(Error::device("wgsl.lost", format!("`{}` is lost: {why}", self.name)));
        }
        match (faults.first.take(), polled) {
            (Some((code, why)), _) => Err(Error::device(code, format!("`{}`: {why}", self.name))),
            (None, Err(why)) => Err(self.failed(&why.to_string())),
            (None, Ok(_)) => Ok(()),
        }
    }

    /// As [`Gpu::wait`] where one may wait; in a browser, mappings tell when they are done.
    pub fn settle(&self) -> Result<()> {
        if cfg!(target_arch = "wasm32") { Ok(()) } else { self.wait() }
    }

    /// An error of the device.
    pub fn failed(&self, why: &str) -> Error {
        Error::device("wgsl.device", format!("`{}`: {why}", self.name))
    }
}
