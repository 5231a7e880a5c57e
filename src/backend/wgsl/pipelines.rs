//! Pipelines: each shader's once, several at a time, and what the driver has compiled kept for the next time.

#![allow(unsafe_code)] // what a driver has compiled is given back to it

use std::{collections::HashMap, path::PathBuf};

use super::{adapter::Gpu, launch::Launch, shader::Shader};
use crate::{Result, backend::gpu::cache};

/// A shader with the number of tensors that it is bound to.
type Key = (Shader, usize);

/// The pipelines of some launches.
pub struct Pipelines {
    layouts: HashMap<usize, wgpu::BindGroupLayout>,
    all: HashMap<Key, wgpu::ComputePipeline>,
}

impl Pipelines {
    /// Of every shader that is launched. Errors: `wgsl.shader`, that of the first.
    pub async fn new<'l>(gpu: &Gpu, launches: impl Iterator<Item = &'l Launch>) -> Result<Self> {
        let mut layouts = HashMap::new();
        let mut wanted: Vec<Key> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for launch in launches {
            let tensors = launch.bindings.len();
            layouts.entry(tensors).or_insert_with(|| gpu.layout(tensors));
            if seen.insert((&launch.shader, tensors)) {
                wanted.push((launch.shader.clone(), tensors));
            }
        }
        let made = made(gpu, &wanted, &layouts).await?;
        Ok(Self { layouts, all: wanted.into_iter().zip(made).collect() })
    }

    /// Of a launch, with what it is bound to.
    pub fn of(&self, launch: &Launch) -> (wgpu::ComputePipeline, &wgpu::BindGroupLayout) {
        let tensors = launch.bindings.len();
        (self.all[&(launch.shader.clone(), tensors)].clone(), &self.layouts[&tensors])
    }
}

#[cfg(not(target_arch = "wasm32"))]
async fn made(
    gpu: &Gpu,
    wanted: &[Key],
    layouts: &HashMap<usize, wgpu::BindGroupLayout>,
) -> Result<Vec<wgpu::ComputePipeline>> {
    use rayon::prelude::*;
    let one = |(shader, tensors): &Key| pollster::block_on(gpu.pipeline(shader, &layouts[tensors]));
    wanted.par_iter().map(one).collect()
}

#[cfg(target_arch = "wasm32")]
async fn made(
    gpu: &Gpu,
    wanted: &[Key],
    layouts: &HashMap<usize, wgpu::BindGroupLayout>,
) -> Result<Vec<wgpu::ComputePipeline>> {
    let mut all = Vec::with_capacity(wanted.len());
    for (shader, tensors) in wanted {
        all.push(gpu.pipeline(shader, &layouts[tensors]).await?);
    }
    Ok(all)
}

/// What a driver has compiled, as a file of the cache: a hash, then what it hashes.
pub struct Kept {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// The hash of what the file holds.
    held: Option<blake3::Hash>,
}

impl Kept {
    /// Of a device that keeps what it compiles, where there is a place for it. A file that is damaged counts as none and
    /// is warned of.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let name = format!("{}-{}", wgpu::util::pipeline_cache_key(info)?, env!("CARGO_PKG_VERSION"));
        let path = cache::folder()?.join("pipelines").join(name);
        let bytes = std::fs::read(&path).ok();
        let held = bytes.as_deref().and_then(whole);
        if bytes.is_some() && held.is_none() {
            tracing::warn!("{}: damaged, and not used", path.display());
        }
        let data = held.map(|(_, data)| data);
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("lite3r"), data, fallback: true };
        // SAFETY: the data are what `save` has written for an adapter of this key, as their hash shows.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, path, held: held.map(|(hash, _)| hash) })
    }

    /// What pipelines are made with.
    pub fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the file where it holds something else. That it cannot be written is warned of.
    pub fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let hash = blake3::hash(&data);
        if self.held == Some(hash) {
            return;
        }
        if let Err(error) = cache::keep(&self.path, &[hash.as_bytes(), data.as_slice()].concat()) {
            tracing::warn!("pipelines are not kept: {error}");
        }
    }
}

/// Hash and data of a file that is whole.
fn whole(bytes: &[u8]) -> Option<(blake3::Hash, &[u8])> {
    let (hash, data) = bytes.split_first_chunk::<32>()?;
    let hash = blake3::Hash::from_bytes(*hash);
    (blake3::hash(data) == hash).then_some((hash, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_seen() {
        let data = b"what the driver says";
        let mut bytes = [blake3::hash(data).as_bytes(), data.as_slice()].concat();
        assert_eq!(whole(&bytes).map(|(_, data)| data), Some(&data[..]));
        bytes[40] ^= 1;
        assert!(whole(&bytes).is_none() && whole(&bytes[..31]).is_none());
    }
}
