//! A plain transformer block in burn: LayerNorm, joint projection, attention, projection, MLP, both with a residual.
//! Prints the median time of a pass. `block.py` writes the same block for `lite3r`.
//!
//! Arguments: tokens, width, heads, passes, f32 or f16.

use std::time::Instant;

use burn::{
    nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig},
    prelude::*,
    tensor::{
        DeviceKind, Distribution, FloatDType, IntDType,
        activation::{gelu, softmax},
        module::attention,
        ops::AttentionModuleOptions,
    },
};

struct Block {
    norms: [LayerNorm; 2],
    qkv: Linear,
    projection: Linear,
    up: Linear,
    down: Linear,
    heads: usize,
}

impl Block {
    fn new(width: usize, heads: usize, device: &Device) -> Self {
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        Self {
            norms: [0, 1].map(|_| LayerNormConfig::new(width).init(device)),
            qkv: linear(width, 3 * width),
            projection: linear(width, width),
            up: linear(width, 4 * width),
            down: linear(4 * width, width),
            heads,
        }
    }

    fn forward(&self, x: Tensor<3>, fused: bool) -> Tensor<3> {
        let [b, n, c] = x.dims();
        let qkv = self.qkv.forward(self.norms[0].forward(x.clone()));
        let qkv = qkv.reshape([b, n, 3, self.heads, c / self.heads]).permute([2, 0, 3, 1, 4]);
        let mut parts = qkv.chunk(3, 0).into_iter().map(|part| part.squeeze_dim::<4>(0));
        let [q, k, v] = std::array::from_fn(|_| parts.next().expect("three parts"));
        let mixed = match fused {
            true => attention(q, k, v, None, None, AttentionModuleOptions::default()),
            false => {
                let scale = ((c / self.heads) as f64).sqrt().recip();
                softmax(q.matmul(k.transpose()) * scale, 3).matmul(v)
            }
        };
        let x = x + self.projection.forward(mixed.swap_dims(1, 2).reshape([b, n, c]));
        let hidden = gelu(self.up.forward(self.norms[1].forward(x.clone())));
        x + self.down.forward(hidden)
    }
}

fn main() {
    let argument = |i: usize, otherwise: usize| {
        std::env::args().nth(i).map_or(otherwise, |a| a.parse().expect("a number"))
    };
    let (tokens, width, heads, passes) = (argument(1, 2748), argument(2, 1024), argument(3, 16), argument(4, 20));
    let mut device = Device::wgpu(DeviceKind::DefaultDevice);
    if std::env::args().nth(5).is_some_and(|a| a == "f16") {
        device.configure((FloatDType::F16, IntDType::I32)).expect("the device computes in f16");
    }
    println!("{device:?}");
    let block = Block::new(width, heads, &device);
    let x = Tensor::<3>::random([1, tokens, width], Distribution::Normal(0.0, 1.0), &device);
    let mut first: Option<Tensor<3>> = None;
    for fused in [true, false] {
        // Tuning of kernels happens here.
        let y = (0..5).map(|_| block.forward(x.clone(), fused)).last().expect("five passes");
        device.sync().expect("the device runs");
        let mut times = Vec::new();
        for _ in 0..passes {
            let begun = Instant::now();
            let y = block.forward(x.clone(), fused);
            device.sync().expect("the device runs");
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            drop(y);
        }
        times.sort_by(f64::total_cmp);
        let name = if fused { "attention" } else { "softmax of products" };
        println!("{name}: {:.3} ms ({:.3} to {:.3})", times[times.len() / 2], times[0], times[times.len() - 1]);
        match &first {
            None => first = Some(y),
            Some(other) => println!("largest difference: {}", (y - other.clone()).abs().max().into_scalar::<f32>()),
        }
    }
}
