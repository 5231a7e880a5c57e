//! Images whose pixels keep their channels side by side: `conv2d` and `scaled_conv2d` as products of gathered pixels and
//! weights, `resize` as sums of whole pixels.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{Conv2d, ScaledConv2d, activation::Activation, images::ImageLayout, shape_rules::strides_for},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast, cast_mut, operand, store},
    gemm::{View, all_floats, multiply},
    lanes::{self, Shared},
    math::activate,
};
use crate::backend::Request;

/// `conv2d` by tiles of pixels.
pub const CONV2D: Kernel = Kernel {
    name: "conv2d.pixels",
    op: "conv2d",
    dtypes: FLOATS,
    accepts: |request| match request.op {
        Op::Conv2d(op) if op.layout == ImageLayout::Pixels && op.groups == 1 => all_floats(request),
        _ => Err("takes images whose pixels keep their channels side by side, and one group".into()),
    },
    lane: |request| lane(request.operands.get(1)),
    run: |op, args, results, scratch| match op {
        Op::Conv2d(op) => {
            let [x, w, extra @ ..] = args else { return Err("takes x and w".into()) };
            conv2d(op, [x, w], None, extra, results, scratch)
        }
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// `scaled_conv2d` by tiles of pixels; sums of codes are scaled.
pub const SCALED_CONV2D: Kernel = Kernel {
    name: "scaled_conv2d.pixels",
    op: "scaled_conv2d",
    dtypes: &[DType::F8E4M3],
    accepts: |request| match request.op {
        Op::ScaledConv2d(ScaledConv2d { quantize: false, .. }) => {
            let rest = request.operands.get(4..).unwrap_or_default();
            all_floats(&Request { operands: rest, ..*request })
        }
        _ => Err("gives no codes".into()),
    },
    lane: |request| lane(request.operands.get(2)),
    run: |op, args, results, scratch| match op {
        Op::ScaledConv2d(op) => {
            let [x, xs, w, ws, extra @ ..] = args else { return Err("takes x, xs, w and ws".into()) };
            let scales = [cast(xs.bytes)?, cast(ws.bytes)?];
            conv2d(&op.wide(), [x, w], Some(scales), extra, results, scratch)
        }
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// `resize` by rows of pixels.
pub const RESIZE: Kernel = Kernel {
    name: "resize.pixels",
    op: "resize",
    dtypes: FLOATS,
    accepts: |request| {
        all_floats(request)?;
        match request.op {
            Op::Resize(op) if op.layout == ImageLayout::Pixels && request.operands[0].elements() != Some(0) => Ok(()),
            _ => Err("takes pixels that keep their channels side by side".into()),
        }
    },
    lane: |request| 2 * channels(request) * size_of::<f32>(),
    run: |op, args, results, scratch| match op {
        Op::Resize(op) => resize(|axis, from, to| op.weights(axis, from, to), op.activation, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// `resize_grad` by rows of pixels.
pub const RESIZE_GRAD: Kernel = Kernel {
    name: "resize_grad.pixels",
    op: "resize_grad",
    dtypes: FLOATS,
    accepts: |request| {
        all_floats(request)?;
        match (request.op, request.results[0].elements()) {
            (Op::ResizeGrad(op), Some(1..)) if op.layout == ImageLayout::Pixels => Ok(()),
            _ => Err("takes pixels that keep their channels side by side".into()),
        }
    },
    lane: |request| 2 * channels(request) * size_of::<f32>(),
    run: |op, args, results, scratch| match op {
        Op::ResizeGrad(op) => {
            resize(|axis, from, to| op.weights(axis, to, from), Activation::None, args, results, scratch)
        }
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// Pixels of a convolution a task.
const TILE: usize = 64;

fn channels(request: &Request<'_>) -> usize {
    request.results.first().and_then(ValueType::dims).and_then(|dims| dims.last().copied()).unwrap_or(0)
}

/// y, and max(y, 0) where it is asked for.
fn with_positive<'r, 'a>(
    results: &'r mut [ArgMut<'a>],
) -> Result<(&'r mut ArgMut<'a>, Option<&'r mut ArgMut<'a>>), String> {
    match results {
        [y] => Ok((y, None)),
        [y, positive] => Ok((y, Some(positive))),
        _ => Err("has one result or two".into()),
    }
}

/// Bytes that a task needs: gathered pixels, their products, a line of what is added, weights.
fn lane(weights: Option<&ValueType>) -> usize {
    let size =
        |from: usize| -> usize { weights.and_then(ValueType::dims).map_or(0, |dims| dims[from..].iter().product()) };
    let (depth, weights) = (size(1), size(0));
    (TILE * (depth + 2 * weights.checked_div(depth).unwrap_or(0)) + weights) * size_of::<f32>()
}

/// Of x and w, with scales for each image and each output channel, and bias and residual as `extra`.
fn conv2d(
    op: &Conv2d,
    [x, w]: [&Arg<'_>; 2],
    scales: Option<[&[f32]; 2]>,
    extra: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let (y, positive) = with_positive(results)?;
    let (&[_, height, width, c], &[outputs, kh, kw, _], &[images, oh, ow, _]) = (x.shape, w.shape, y.shape) else {
        return Err("takes images".into());
    };
    if y.bytes.is_empty() {
        return Ok(());
    }
    let (x, w) = (Floats::of(x)?, Floats::of(w)?);
    let bias = op.bias.then(|| Floats::of(operand(extra, 0)?)).transpose()?;
    let residual = op.residual.then(|| Floats::of(operand(extra, op.bias as usize)?)).transpose()?;
    let (depth, pixels, dtype) = (kh * kw * c, images * oh * ow, y.dtype);
    let lane = (TILE * (depth + 2 * outputs) + outputs * depth) * size_of::<f32>();
    let out = Shared::new(&mut *y.bytes);
    let positive = positive.map(|r| Shared::new(&mut *r.bytes));
    lanes::run(pixels.div_ceil(TILE), lane, scratch, |task, memory| {
        let (first, count) = (task * TILE, TILE.min(pixels - task * TILE));
        let (columns, rest) = cast_mut::<f32>(memory)?.split_at_mut(TILE * depth);
        let (products, rest) = rest.split_at_mut(TILE * outputs);
        let (line, weights) = rest.split_at_mut(TILE * outputs);
        let taps = columns.chunks_exact_mut(c.max(1)).take(count * kh * kw).enumerate();
        for (i, tap) in taps.filter(|_| c > 0) {
            let (pixel, ky, kx) = (first + i / (kh * kw), i / kw % kh, i % kw);
            let (image, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let row = (oy * op.strides[0] + ky * op.dilations[0]).wrapping_sub(op.pads[0]);
            let column = (ox * op.strides[1] + kx * op.dilations[1]).wrapping_sub(op.pads[1]);
            match row < height && column < width {
                true => x.read(((image * height + row) * width + column) * c, tap),
                false => tap.fill(0.0),
            }
        }
        let weights = View::rows(w.view(0, weights), outputs, depth, depth).t();
        let products = &mut products[..count * outputs];
        multiply(View::rows(columns, count, depth, depth), weights, products, outputs, false);
        if let Some([images, channels]) = scales {
            for (i, pixel) in products.chunks_exact_mut(outputs).enumerate() {
                let image = images[(first + i) / (oh * ow)];
                pixel.iter_mut().zip(channels).for_each(|(y, channel)| *y *= image * channel);
            }
        }
        if let Some(bias) = &bias {
            let bias = bias.view(0, &mut line[..outputs]);
            products.chunks_exact_mut(outputs).for_each(|p| p.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        activate(op.activation, products);
        if let Some(residual) = &residual {
            let residual = residual.view(first * outputs, &mut line[..count * outputs]);
            products.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        }
        let size = outputs * dtype.size();
        // SAFETY: every task has its own pixels.
        store(dtype, products, unsafe { out.slice(first * size, count * size) })?;
        if let Some(positive) = &positive {
            activate(Activation::Relu, products);
            // SAFETY: as above.
            store(dtype, products, unsafe { positive.slice(first * size, count * size) })?;
        }
        Ok(())
    })
}

/// Of the taps of an axis from a number of pixels to another, and what is applied to the sum of x and addends.
fn resize(
    taps: impl Fn(usize, usize, usize) -> Vec<Vec<(usize, f64)>>,
    activation: Activation,
    args: &[Arg<'_>],
    results: &mut [ArgMut<'_>],
    scratch: &mut [u8],
) -> Result<(), String> {
    let x = operand(args, 0)?;
    let (y, positive) = with_positive(results)?;
    let (&[_, h, w, c], &[images, oh, ow, _]) = (x.shape, y.shape) else { return Err("takes images".into()) };
    let x = Floats::of(x)?;
    let addends: Vec<(Floats<'_>, Vec<usize>)> =
        args[1..].iter().map(|a| Ok((Floats::of(a)?, strides_for(a.shape, y.shape)))).collect::<Result<_, String>>()?;
    let (rows, columns) = (taps(0, h, oh), taps(1, w, ow));
    let (dtype, size) = (y.dtype, c * y.dtype.size());
    let out = Shared::new(&mut *y.bytes);
    let positive = positive.map(|r| Shared::new(&mut *r.bytes));
    lanes::run(images * oh, 2 * c * size_of::<f32>(), scratch, |task, memory| {
        let (image, i) = (task / oh, task % oh);
        let (sums, buffer) = cast_mut::<f32>(memory)?.split_at_mut(c);
        for (j, across) in columns.iter().enumerate() {
            sums.fill(0.0);
            for ((row, down), (column, weight)) in rows[i].iter().flat_map(|r| across.iter().map(move |c| (r, c))) {
                let weight = (down * weight) as f32;
                let pixel = x.view(((image * h + row) * w + column) * c, buffer);
                sums.iter_mut().zip(pixel).for_each(|(y, x)| *y += x * weight);
            }
            for (addend, strides) in &addends {
                let first = image * strides[0] + i * strides[1] + j * strides[2];
                match strides[3] {
                    0 => {
                        let mut one = [0.0];
                        addend.read(first, &mut one);
                        sums.iter_mut().for_each(|y| *y += one[0]);
                    }
                    _ => sums.iter_mut().zip(addend.view(first, buffer)).for_each(|(y, a)| *y += a),
                }
            }
            activate(activation, sums);
            // SAFETY: every row of y belongs to one task.
            store(dtype, sums, unsafe { out.slice((task * ow + j) * size, size) })?;
            if let Some(positive) = &positive {
                activate(Activation::Relu, sums);
                // SAFETY: as above.
                store(dtype, sums, unsafe { positive.slice((task * ow + j) * size, size) })?;
            }
        }
        Ok(())
    })
}
