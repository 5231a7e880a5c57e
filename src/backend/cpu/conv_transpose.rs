//! `conv_transpose2d` where kernel and stride agree, as DPT heads have it: stamps do not overlap, so that every pixel
//! of x becomes a block of y through one matrix product.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{DType, Op, ops::ConvTranspose2d};

use super::{
    Arg, ArgMut, Kernel,
    floats::{Floats, cast_mut, only, operand},
    gemm::{View, multiply},
    lanes::{self, Shared},
};
use crate::backend::Request;

/// `conv_transpose2d` without overlap.
pub const CONV_TRANSPOSE2D: Kernel = Kernel {
    name: "conv_transpose2d.blocks",
    op: "conv_transpose2d",
    dtypes: &[DType::F32],
    accepts,
    lane: |request| {
        let size = |operand: usize, axis: usize| request.operands[operand].shape[axis].size().unwrap_or(0);
        let stamps = size(1, 1) * size(1, 2) * size(1, 3);
        stamps * rows(size(0, 2), size(0, 3)) * size(0, 3) * size_of::<f32>()
    },
    run: |op, args, results, scratch| match op {
        Op::ConvTranspose2d(op) => conv_transpose2d(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn accepts(request: &Request<'_>) -> Result<(), String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err("computes conv_transpose2d".into()) };
    if let Some(odd) = request.operands.iter().find(|t| t.dtype != DType::F32) {
        return Err(format!("takes f32, not {odd}"));
    }
    let kernel: Option<Vec<usize>> = request.operands[1].shape[2..].iter().map(|d| d.size()).collect();
    match op.groups == 1 && kernel.is_some_and(|kernel| op.stamps_lie_apart(&kernel)) {
        true => Ok(()),
        false => Err("takes kernels of the size of the stride, without groups, padding and dilation".into()),
    }
}

/// Rows of x a task: about 256 pixels.
fn rows(h: usize, w: usize) -> usize {
    (256 / w.max(1)).clamp(1, h.max(1))
}

fn conv_transpose2d(
    op: &ConvTranspose2d,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let (x, w, y) = (operand(args, 0)?, operand(args, 1)?, only(results)?);
    let (&[images, channels, h, width], &[_, outputs, kh, kw]) = (x.shape, w.shape) else {
        return Err("takes images".into());
    };
    fn plain<'a>(arg: &Arg<'a>) -> Result<&'a [f32], String> {
        Floats::of(arg)?.as_f32().ok_or_else(|| format!("takes f32, not {}", arg.dtype))
    }
    let (x, w) = (plain(x)?, plain(w)?);
    let bias = op.bias.then(|| plain(operand(args, 2)?)).transpose()?;
    let out = Shared::new(cast_mut::<f32>(y.bytes)?);
    let (stamps, height) = (outputs * kh * kw, rows(h, width));
    let strips = h.div_ceil(height);
    let lane = stamps * height * width * size_of::<f32>();
    lanes::run(images * strips, lane, scratch, |task, memory| {
        let (image, first) = (task / strips, task % strips * height);
        let count = height.min(h - first) * width;
        let products = &mut cast_mut::<f32>(memory)?[..stamps * count];
        let pixels = View::rows(&x[(image * channels * h + first) * width..], channels, count, h * width);
        multiply(View::rows(w, channels, stamps, stamps).t(), pixels, products, count, false);
        for o in 0..outputs {
            let bias = bias.map_or(0.0, |b| b[o]);
            for (row, ky) in (0..count / width).flat_map(|r| (0..kh).map(move |ky| (r, ky))) {
                let line = ((image * outputs + o) * h * kh + (first + row) * kh + ky) * width * kw;
                // SAFETY: every row of y comes from one row of x.
                let line = unsafe { out.slice(line, width * kw) };
                for kx in 0..kw {
                    let stamp = &products[((o * kh + ky) * kw + kx) * count + row * width..][..width];
                    line.iter_mut().skip(kx).step_by(kw).zip(stamp).for_each(|(y, p)| *y = p + bias);
                }
            }
        }
        Ok(())
    })
}
