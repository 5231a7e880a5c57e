//! Operands that kernels are timed on.

use lite3r::rng::Stream;
use lite3r_ir::{Tensor, ValueType};

/// Numbers between -1 and 1, the same ones every 2^20: what is multiplied takes as much power as other numbers do, and
/// large tensors are made in no time.
pub fn random(ty: &ValueType, seed: u64) -> Tensor {
    let mut rng = Stream::new(&[seed]);
    let shape = ty.dims().expect("cases have fixed shapes");
    let count: usize = shape.iter().product();
    let period = count.min(1 << 20);
    let values: Vec<f32> = (0..period).map(|_| (2.0 * rng.unit() - 1.0) as f32).collect();
    let part = Tensor::from_f32(&[period], values).cast(ty.dtype);
    let bytes: Vec<u8> = part.bytes().iter().copied().cycle().take(count * ty.dtype.size()).collect();
    Tensor::from_bytes(ty.dtype, &shape, &bytes).expect("as many bytes as the shape has")
}
