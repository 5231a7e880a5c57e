//! `layer_norm_grad`: row by row in f32, three passes over rows that stay in the cache.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::Op;

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK},
    layer_norm::sum,
    math::vectorised,
};

/// `layer_norm_grad` by rows.
pub const LAYER_NORM_GRAD: Kernel = Kernel {
    name: "layer_norm_grad.rows",
    op: "layer_norm_grad",
    dtypes: FLOATS,
    accepts: all_floats,
    // A row of h, of x, of their products and of the gain.
    lane: |request| 4 * 4 * request.operands[1].dims().and_then(|d| d.last().copied()).unwrap_or(0),
    run: |op, args, results, scratch| match op {
        Op::LayerNormGrad(op) => run(op.eps as f32, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn run(eps: f32, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (g, x, dx) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let c = x.shape.last().copied().ok_or("x needs a dimension")?;
    if dx.bytes.is_empty() {
        return Ok(());
    }
    let (g, x) = (Floats::of(g)?, Floats::of(x)?);
    let gain = args.get(2).map(Floats::of).transpose()?;
    let (dtype, row_bytes) = (dx.dtype, c * dx.dtype.size());
    let (total, rows) = (x.count() / c, (CHUNK / c).max(1));
    let out = lanes::Shared::new(&mut *dx.bytes);
    lanes::run(total.div_ceil(rows), 4 * 4 * c, scratch, |task, memory| {
        let (h, rest) = cast_mut::<f32>(memory)?.split_at_mut(c);
        let (row, rest) = rest.split_at_mut(c);
        let (products, buffer) = rest.split_at_mut(c);
        let gain = gain.map(|gain| gain.view(0, buffer));
        for i in task * rows..(task * rows + rows).min(total) {
            g.read(i * c, h);
            x.read(i * c, row);
            back(h, row, products, gain, eps);
            // SAFETY: every row belongs to one task.
            store(dtype, h, unsafe { out.slice(i * row_bytes, row_bytes) })?;
        }
        Ok(())
    })
}

/// dx in the place of g; x is centred.
fn back(h: &mut [f32], x: &mut [f32], products: &mut [f32], gain: Option<&[f32]>, eps: f32) {
    vectorised(
        #[inline(always)]
        || {
            let count = x.len() as f32;
            let mean = sum(
                x,
                #[inline(always)]
                |x| x,
            ) / count;
            x.iter_mut().for_each(|x| *x -= mean);
            let variance = sum(
                x,
                #[inline(always)]
                |x| x * x,
            ) / count;
            let scale = 1.0 / (variance + eps).sqrt();
            if let Some(gain) = gain {
                h.iter_mut().zip(gain).for_each(|(h, gain)| *h *= gain);
            }
            products.iter_mut().zip(&*h).zip(&*x).for_each(|((p, h), x)| *p = h * x);
            let along = scale * scale / count
                * sum(
                    products,
                    #[inline(always)]
                    |p| p,
                );
            let level = sum(
                h,
                #[inline(always)]
                |h| h,
            ) / count;
            h.iter_mut().zip(&*x).for_each(|(h, x)| *h = scale * x.mul_add(-along, *h - level));
        },
    )
}
