//! What the weights of a backbone start as before they have learnt anything.
//!
//! Matrices and convolutions are normal with deviation 1/√(3·values that one output sums), position tables with 0.02,
//! tokens with 1e-6 about nothing; norms begin as the identity, LayerScale at what a run says, the encoding that camera
//! refinement begins with and all biases at zero. Deviations are those of the published code, which leaves its layers as
//! PyTorch makes them. Every weight is named by the seed and its own name alone.

use lite3r_ir::{Graph, Op, Tensor};
use rayon::prelude::*;

use crate::{
    rng::Stream,
    weights::{Weight, Weights},
};

const POSITION: f64 = 0.02;
const TOKEN: f64 = 1e-6;

/// What LayerScale begins with in the published code.
pub const LAYER_SCALE: f64 = 0.01;

/// The weights of a graph that has none, as [`crate::backbones`] names them.
pub fn weights(graph: &Graph, seed: u64, layer_scale: f64) -> Weights {
    let named = graph.node_ids().filter_map(|id| match graph.op(id) {
        Op::Param(op) if op.init.is_empty() => Some((op, op.ty.dims()?)),
        _ => None,
    });
    let drawn = named.collect::<Vec<_>>().into_par_iter().map(|(op, shape)| {
        let (mean, deviation) = distribution(&op.name, &shape, layer_scale);
        let words: Vec<u64> = std::iter::once(seed).chain(op.name.bytes().map(u64::from)).collect();
        let mut stream = Stream::new(&words);
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| mean + deviation * stream.normal()).collect();
        (op.name.clone(), Weight::owned(Tensor::from_f64(op.ty.dtype, &shape, &values)))
    });
    let mut weights = Weights::default();
    for (name, weight) in drawn.collect::<Vec<_>>() {
        weights.insert(name, weight);
    }
    weights
}

/// Mean and deviation.
fn distribution(name: &str, shape: &[usize], layer_scale: f64) -> (f64, f64) {
    let norm = name.contains("norm") || name.ends_with("trunk_norm.weight");
    match shape {
        _ if name.contains("pos_embed") => (0.0, POSITION),
        _ if name.contains("empty_pose") => (0.0, 0.0),
        _ if name.ends_with("token") || name.ends_with("tokens") => (0.0, TOKEN),
        [_] if name.ends_with("gamma") => (layer_scale, 0.0),
        [_] if norm && name.ends_with("weight") => (1.0, 0.0),
        [_] => (0.0, 0.0),
        [_, rest @ ..] => (0.0, (3.0 * rest.iter().product::<usize>().max(1) as f64).sqrt().recip()),
        [] => (0.0, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbones::{BuildOptions, Config, build};

    #[test]
    fn norms_are_identities_and_the_same_seed_gives_the_same() {
        let graph = build(&Config::named("vggt-tiny").unwrap(), &BuildOptions::new(2, 28, 28)).unwrap();
        let first = weights(&graph, 3, LAYER_SCALE);
        let (all, values) = (first.len(), |name: &str| first.get(name).unwrap().tensor().to_f64());
        assert!(all > 100);
        assert!(values("aggregator.frame_blocks.0.norm1.weight").iter().all(|v| *v == 1.0));
        assert!(values("aggregator.frame_blocks.0.attn.q_norm.weight").iter().all(|v| *v == 1.0));
        assert!(values("aggregator.frame_blocks.0.ls1.gamma").iter().all(|v| (*v - 0.01).abs() < 1e-9));
        assert!(values("aggregator.frame_blocks.0.attn.qkv.bias").iter().all(|v| *v == 0.0));
        let w = first.get("aggregator.frame_blocks.0.attn.qkv.weight").unwrap().tensor();
        let deviation = (w.to_f64().iter().map(|v| v * v).sum::<f64>() / w.len() as f64).sqrt();
        assert!((deviation * (3.0 * w.shape()[1] as f64).sqrt() - 1.0).abs() < 0.05, "{deviation}");
        let name = "aggregator.camera_token";
        assert_eq!(weights(&graph, 3, LAYER_SCALE).get(name).unwrap().tensor(), first.get(name).unwrap().tensor());
        assert_ne!(weights(&graph, 4, LAYER_SCALE).get(name).unwrap().tensor(), first.get(name).unwrap().tensor());
    }
}
