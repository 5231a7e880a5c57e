//! Random weights of plausible scale, for measuring models whose weights are not at hand.
//!
//! Every value depends on the seed, the name of its weight and its position alone, so that any part can be computed by
//! itself, in any order and on any number of threads. They are computed when they are read, and not kept.

use lite3r_ir::{Graph, NodeId, Op, Tensor, ValueType, ops::Param};
use rayon::prelude::*;

use crate::rng::{GAMMA, mix};

/// How the values of one weight are drawn: normal with a mean and a standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Recipe {
    key: u64,
    mean: f32,
    deviation: f32,
}

impl Recipe {
    /// The values, as a tensor of type `ty`.
    pub(super) fn tensor(&self, ty: &ValueType) -> Tensor {
        const CHUNK: usize = 1 << 16;
        let dims = ty.dims().expect("weights have static shapes");
        if !ty.dtype.is_float() {
            return Tensor::from_i64(ty.dtype, &dims, &vec![0; dims.iter().product()]);
        }
        let mut values = vec![0f32; dims.iter().product()];
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            values.iter_mut().enumerate().for_each(|(i, v)| {
                *v = self.mean + self.deviation * normal(self.key.wrapping_add((chunk * CHUNK + i) as u64));
            });
        });
        Tensor::from_f32(&dims, values).cast(ty.dtype)
    }
}

/// The sum of four uniform numbers (Irwin-Hall), scaled to mean 0 and deviation 1; within ±2√3.
fn normal(counter: u64) -> f32 {
    let z = mix(counter.wrapping_mul(GAMMA));
    let sum: u32 = (0..4).map(|i| (z >> (16 * i)) as u16 as u32).sum();
    (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
}

/// How to draw the weight `param` at `node` of a graph: by its use where that tells, else by its name and shape.
pub(super) fn recipe(graph: &Graph, node: NodeId, param: &Param, seed: u64) -> Recipe {
    let hash = blake3::Hasher::new().update(&seed.to_le_bytes()).update(param.name.as_bytes()).finalize();
    let key = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes"));
    let (mean, deviation) = distribution(graph, node, param);
    Recipe { key, mean, deviation }
}

fn distribution(graph: &Graph, node: NodeId, param: &Param) -> (f32, f32) {
    let sizes: Vec<f32> = param.ty.shape.iter().map(|d| d.size().unwrap_or(1) as f32).collect();
    let name = param.name.to_lowercase();
    let users: Vec<(&Op, usize)> =
        graph.results(node).flat_map(|v| graph.users(v)).map(|(user, slot)| (graph.op(user), slot)).collect();
    let used = |test: fn(&Op, usize) -> bool| users.iter().any(|(op, slot)| test(op, *slot));
    if param.ty.shape.len() <= 1 {
        let normalises = used(|op, slot| matches!(op, Op::LayerNorm(_)) && slot == 1)
            || name.contains("norm") && name.ends_with("weight");
        let scales = name.contains("gamma") || name.contains(".ls") || name.ends_with(".scale");
        return match (normalises, scales) {
            (true, _) => (1.0, 0.05),
            (_, true) => (0.1, 0.02),
            _ => (0.0, 0.02),
        };
    }
    if name.contains("pos_embed") || name.contains("token") {
        return (0.0, 0.2);
    }
    // What one output value sums over.
    let inputs = if used(|op, slot| matches!(op, Op::MatMul(m) if !m.transpose_b) && slot == 1) {
        sizes[sizes.len() - 2]
    } else if used(|op, _| matches!(op, Op::ConvTranspose2d(_))) {
        sizes[0]
    } else {
        sizes[1..].iter().product()
    };
    (0.0, inputs.max(1.0).sqrt().recip())
}

#[cfg(test)]
mod tests {
    use lite3r_ir::DType;

    use super::*;
    use crate::weights::random;

    #[test]
    fn values_are_normal_and_depend_on_name_and_seed() {
        let text = "graph @g(%x: f32[2,256]) {
          param $a.weight_t: f32[256,512], $a.bias: f32[512], $n.weight: f32[512], $n.bias: f32[512]
          param $h: f16[8,8], $i: i64[3]
          %0 = matmul(%x, $a.weight_t) : f32[2,512]
          %1 = add(%0, $a.bias) : f32[2,512]
          %2 = layer_norm(%1, $n.weight, $n.bias) : f32[2,512]
          return y=%2, h=$h, i=$i
        }";
        let graph = lite3r_ir::text::parse(text).unwrap();
        let weights = random(&graph, 7);
        assert_eq!(weights.len(), 6);
        let moments = |name: &str| {
            let v = weights.get(name).unwrap().to_f32().into_owned();
            let mean = v.iter().sum::<f32>() / v.len() as f32;
            (mean, (v.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / v.len() as f32).sqrt())
        };
        let (mean, deviation) = moments("a.weight_t");
        assert!(mean.abs() < 1e-3 && (deviation - 1.0 / 16.0).abs() < 1e-3, "{mean} {deviation}");
        assert!((moments("n.weight").0 - 1.0).abs() < 0.02);
        assert_eq!(weights.get("i").unwrap().tensor().to_i64(), [0, 0, 0]);
        assert_eq!(weights.get("h").unwrap().ty.dtype, DType::F16);
        let again = random(&graph, 7);
        assert_eq!(again.get("a.bias").unwrap().bytes(), weights.get("a.bias").unwrap().bytes());
        assert_ne!(random(&graph, 8).get("a.bias").unwrap().bytes(), weights.get("a.bias").unwrap().bytes());
        assert_ne!(weights.get("n.bias").unwrap().bytes(), weights.get("a.bias").unwrap().bytes());
    }

    #[test]
    fn what_is_there_stays() {
        let graph =
            lite3r_ir::text::parse("graph @g() {\n  param $a: f32[2], $b: f32[2]\n  return a=$a, b=$b\n}").unwrap();
        let mut weights = crate::weights::Weights::default();
        let given = Tensor::from_f32(&[2], vec![5.0, 6.0]);
        weights.insert("a", crate::weights::Weight::owned(given.clone()));
        assert_eq!(weights.complete(&graph, 1), 1);
        assert_eq!(weights.get("a").unwrap().tensor(), given);
        assert_eq!(weights.len(), 2);
    }

    #[test]
    fn readers_on_all_threads_may_share_a_weight() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let params: Vec<String> = names.iter().map(|n| format!("${n}: f32[512,1024]")).collect();
        let text = format!("graph @g() {{\n  param {}\n  return a=$a\n}}", params.join(", "));
        let graph = lite3r_ir::text::parse(&text).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for seed in 0..50 {
            let weights = random(&graph, seed);
            let of = |i: usize| weights.get(names[i * 7 % 13 % names.len()]).unwrap();
            let firsts: Vec<u8> = pool.install(|| (0..48).into_par_iter().map(|i| of(i).bytes()[1]).collect());
            assert!(firsts.iter().enumerate().all(|(i, first)| *first == of(i).bytes()[1]));
        }
    }
}
