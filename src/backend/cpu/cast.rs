//! `cast` between floating-point types of up to 32 bits.

use lite3r_ir::{
    DType, Op,
    float8::{f32_to_e4m3, f32_to_e5m2},
};
use rayon::prelude::*;

use super::{
    Arg, ArgMut, Kernel,
    floats::{Floats, only, operand, store},
    lanes::CHUNK,
};
use crate::backend::Request;

/// What floats are cast from and to.
const NARROW: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

/// `cast` element by element through f32, which holds all these types exactly.
pub const CAST: Kernel = Kernel {
    name: "cast.float",
    op: "cast",
    dtypes: NARROW,
    accepts,
    lane: |_| 0,
    run: |op, args, results, _| match op {
        Op::Cast(_) => convert(operand(args, 0)?, only(results)?),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn accepts(request: &Request<'_>) -> Result<(), String> {
    let types = request.operands.first().zip(request.results.first());
    match types.is_some_and(|(x, y)| NARROW.contains(&x.dtype) && NARROW.contains(&y.dtype)) {
        true => Ok(()),
        false => Err("takes floating-point types of up to 32 bits on both sides".into()),
    }
}

fn convert(x: &Arg<'_>, y: &mut ArgMut<'_>) -> Result<(), String> {
    const SEGMENT: usize = 512;
    let (dtype, size) = (y.dtype, y.dtype.size());
    if x.dtype == dtype {
        y.bytes.copy_from_slice(x.bytes);
        return Ok(());
    }
    let x = Floats::of(x)?;
    y.bytes.par_chunks_mut(CHUNK * size).enumerate().try_for_each(|(i, out)| {
        let mut buffer = [0.0; SEGMENT];
        for (j, out) in out.chunks_mut(SEGMENT * size).enumerate() {
            let buffer = &mut buffer[..out.len() / size];
            x.read(i * CHUNK + j * SEGMENT, buffer);
            match dtype {
                DType::F8E4M3 => out.iter_mut().zip(&*buffer).for_each(|(o, x)| *o = f32_to_e4m3(*x)),
                DType::F8E5M2 => out.iter_mut().zip(&*buffer).for_each(|(o, x)| *o = f32_to_e5m2(*x)),
                _ => store(dtype, buffer, out)?,
            }
        }
        Ok(())
    })
}
