//! `cuda/conv_transpose2d.cu`: transposed convolutions, as products where stamps do not overlap, and of any geometry.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{Linear, Transpose},
};

use super::{
    Arch, Kernel, dims,
    floats::{FLOATS, floats},
    launch::{Arg, Base, Launch, Lowered, Module, Pointer, index_type},
};
use crate::backend::Request;

/// The rows of this file.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "conv_transpose2d.stamps", op: "conv_transpose2d", dtypes: FLOATS, lower: stamps },
    Kernel { name: "conv_transpose2d.direct", op: "conv_transpose2d", dtypes: FLOATS, lower: direct },
];

/// As `cuda/conv_transpose2d.cu` lays it out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Geometry {
    groups: i32,
    channels: i32,
    outputs: i32,
    height: i32,
    width: i32,
    result_height: i32,
    result_width: i32,
    kernel: [i32; 2],
    stride: [i32; 2],
    pad: [i32; 2],
    dilation: [i32; 2],
}

fn direct(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err("computes conv_transpose2d".into()) };
    floats(request)?;
    let (x, w, y) = (dims(&request.operands[0])?, dims(&request.operands[1])?, dims(&request.results[0])?);
    let ([_, c, h, width], [_, o, kh, kw], [.., rows, columns]) = (&x[..], &w[..], &y[..]) else {
        return Err("takes images".into());
    };
    let int = |n: usize| i32::try_from(n).ok().filter(|n| *n < 1 << 28).ok_or("takes sizes below 2^28");
    let two = |l: &[usize]| -> Result<[i32; 2], String> { Ok([int(l[0])?, int(l[1])?]) };
    let geometry = Geometry {
        groups: int(op.groups)?,
        channels: int(c / op.groups)?,
        outputs: int(*o)?,
        height: int(*h)?,
        width: int(*width)?,
        result_height: int(*rows)?,
        result_width: int(*columns)?,
        kernel: two(&[*kh, *kw])?,
        stride: two(&op.strides)?,
        pad: two(&op.pads)?,
        dilation: two(&op.dilations)?,
    };
    let elements = y.iter().product::<usize>() as u64;
    Ok(Launch::over(
        module(request, elements),
        "conv_transpose2d",
        elements,
        vec![
            Arg::operand(0),
            Arg::operand(1),
            Arg::maybe(op.bias.then_some(2)),
            Arg::result(0),
            Arg::of(geometry),
            Arg::of(elements as i64),
        ],
    )
    .into())
}

fn module(request: &Request<'_>, elements: u64) -> Module {
    Module::new("conv_transpose2d.cu")
        .element("TX", request.operands[0].dtype)
        .element("TB", request.operands.get(2).map_or(DType::F32, |b| b.dtype))
        .element("TR", request.results[0].dtype)
        .define("INDEX", index_type(elements))
}

/// As a product, where stamps do not overlap: pixels as rows [images * h * w, channels] times the weights as
/// [outputs * kh * kw, channels], then every column to its place in its stamp.
fn stamps(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err("computes conv_transpose2d".into()) };
    floats(request)?;
    let (x, w) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let (&[n, c, h, width], &[_, o, kh, kw]) = (&x[..], &w[..]) else { return Err("takes images".into()) };
    if op.groups != 1 || !op.stamps_lie_apart(&[kh, kw]) {
        return Err("takes kernels of the size of the stride, without groups, padding and dilation".into());
    }
    let dtype = request.operands[0].dtype;
    let (pixels, columns) = (h * width, o * kh * kw);
    if n * pixels * columns * c == 0 {
        return Err("takes no empty products".into());
    }
    let part = |elements: usize, dtype: DType| (elements * dtype.size()).next_multiple_of(256);
    let rows_at = 0;
    let weights_at = rows_at + part(n * pixels * c, dtype);
    let products_at = weights_at + part(c * columns, dtype);
    let inner_at = products_at + part(n * pixels * columns, DType::F32);

    let scratch = |offset: usize| Pointer { base: Base::Scratch, offset: offset as u64 };
    let operand = |index: usize| Pointer { base: Base::Operand(index), offset: 0 };
    let within = |op: Op, operands: &[(ValueType, Pointer)], result: usize| {
        super::within(&op, operands, &[scratch(result)], scratch(inner_at), arch)
    };
    let rows = within(
        Transpose { perm: vec![0, 2, 1] }.into(),
        &[(ValueType::new(dtype, [n, c, pixels]), operand(0))],
        rows_at,
    )?;
    let weights = within(
        Transpose { perm: vec![1, 0] }.into(),
        &[(ValueType::new(dtype, [c, columns]), operand(1))],
        weights_at,
    )?;
    let product = within(
        Linear { out: Some(DType::F32), ..Linear::new(false) }.into(),
        &[
            (ValueType::new(dtype, [n * pixels, c]), scratch(rows_at)),
            (ValueType::new(dtype, [columns, c]), scratch(weights_at)),
        ],
        products_at,
    )?;
    let inner = [&rows, &weights, &product].map(|l| l.scratch).into_iter().max().unwrap_or(0);
    let elements = (n * pixels * columns) as u64;
    let place = Launch::over(
        module(request, elements),
        "place_stamps",
        elements,
        [Arg::scratch(products_at), Arg::maybe(op.bias.then_some(2)), Arg::result(0)]
            .into_iter()
            .chain([o, h, width, kh, kw].map(|v| Arg::of(v as i32)))
            .chain([Arg::of(elements as i64)])
            .collect(),
    );
    let launches = [rows, weights, product].into_iter().flat_map(|l| l.launches).chain([place]).collect();
    Ok(Lowered { launches, scratch: inner_at + inner })
}
