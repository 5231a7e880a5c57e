//! Transposed convolutions: as linear layers where stamps do not overlap, and of any geometry by
//! `cuda/conv_transpose2d.cu`.

use lite3r_ir::{
    DType, Dim, Op, ValueType,
    ops::{Expand, Linear, Transpose},
};

use super::{
    Arch, Kernel, dims,
    launch::{Arg, Base, Launch, Lowered, Module, Pointer, blocks, index_type},
    softmax::{FLOATS, floats},
};
use crate::backend::Request;

const THREADS: u32 = 256;

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
    Ok(Launch {
        module: Module::new("conv_transpose2d.cu")
            .element("TX", request.operands[0].dtype)
            .element("TB", request.operands.get(2).map_or(DType::F32, |b| b.dtype))
            .element("TR", request.results[0].dtype)
            .define("INDEX", index_type(elements)),
        function: "conv_transpose2d",
        grid: [blocks(elements, THREADS), 1, 1],
        block: THREADS,
        shared: 0,
        args: vec![
            Arg::operand(0),
            Arg::operand(1),
            Arg::maybe(op.bias.then_some(2)),
            Arg::result(0),
            Arg::of(geometry),
            Arg::of(elements as i64),
        ],
    }
    .into())
}

/// As a linear layer, where stamps do not overlap: pixels as rows [images * h * w, channels], weights as
/// [outputs * kh * kw, channels]; then every column moves to its place in its stamp.
fn stamps(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::ConvTranspose2d(op) = request.op else { return Err("computes conv_transpose2d".into()) };
    floats(request)?;
    let (x, w) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let (&[n, c, h, width], &[_, o, kh, kw]) = (&x[..], &w[..]) else { return Err("takes images".into()) };
    let plain = op.groups == 1 && op.pads == [0; 4] && op.output_padding == [0, 0] && op.dilations == [1, 1];
    if !plain || op.strides != [kh, kw] {
        return Err("takes kernels of the size of the stride, without groups, padding and dilation".into());
    }
    let (dtype, result) = (request.operands[0].dtype, &request.results[0]);
    let (pixels, columns) = (h * width, o * kh * kw);
    if n * pixels * columns * c == 0 {
        return Err("takes no empty products".into());
    }
    let part = |elements: usize, dtype: DType| (elements * dtype.size()).next_multiple_of(256);
    let rows_at = 0;
    let weights_at = rows_at + part(n * pixels * c, dtype);
    let bias_at = weights_at + part(c * columns, dtype);
    let bias = request.operands.get(2).map(|b| b.dtype);
    let products_at = bias_at + bias.map_or(0, |dtype| part(columns, dtype));
    let inner_at = products_at + part(n * pixels * columns, result.dtype);

    let scratch = |offset: usize| Pointer { base: Base::Scratch, offset: offset as u64 };
    let operand = |index: usize| Pointer { base: Base::Operand(index), offset: 0 };
    let within = |op: Op, operands: &[(ValueType, Pointer)], result: Pointer| {
        step(&op, operands, result, scratch(inner_at), arch)
    };
    let mut factors = vec![
        (ValueType::new(dtype, [n * pixels, c]), scratch(rows_at)),
        (ValueType::new(dtype, [columns, c]), scratch(weights_at)),
    ];
    let image = (ValueType::new(dtype, [n, c, pixels]), operand(0));
    let kernel = (ValueType::new(dtype, [c, columns]), operand(1));
    let mut steps = vec![
        within(Transpose { perm: vec![0, 2, 1] }.into(), &[image], scratch(rows_at))?,
        within(Transpose { perm: vec![1, 0] }.into(), &[kernel], scratch(weights_at))?,
    ];
    if let Some(dtype) = bias {
        let shape = [o, kh * kw].map(Dim::from).to_vec();
        let given = (ValueType::new(dtype, [o, 1]), operand(2));
        steps.push(within(Expand { shape }.into(), &[given], scratch(bias_at))?);
        factors.push((ValueType::new(dtype, [columns]), scratch(bias_at)));
    }
    let linear = Linear { out: Some(result.dtype), ..Linear::new(bias.is_some()) };
    steps.push(within(linear.into(), &factors, scratch(products_at))?);
    let stamps = (ValueType::new(result.dtype, [n, h, width, o, kh, kw]), scratch(products_at));
    let placed = Pointer { base: Base::Result(0), offset: 0 };
    steps.push(within(Transpose { perm: vec![0, 3, 1, 4, 2, 5] }.into(), &[stamps], placed)?);
    let inner = steps.iter().map(|l| l.scratch).max().unwrap_or(0);
    Ok(Lowered { launches: steps.into_iter().flat_map(|l| l.launches).collect(), scratch: inner_at + inner })
}

/// What computes an operation whose operands, result and scratch memory lie elsewhere.
fn step(
    op: &Op,
    operands: &[(ValueType, Pointer)],
    result: Pointer,
    scratch: Pointer,
    arch: Arch,
) -> Result<Lowered, String> {
    let types: Vec<ValueType> = operands.iter().map(|(ty, _)| ty.clone()).collect();
    let results = op.infer(&types)?;
    let request = Request { op, operands: &types, results: &results };
    let (_, mut lowered) = super::kernel(&request, arch).map_err(|gap| gap.clause)?;
    let moved = |pointer: &mut Pointer| {
        let target = match pointer.base {
            Base::Operand(index) => operands[index].1,
            Base::Result(_) => result,
            Base::Scratch => scratch,
        };
        *pointer = Pointer { base: target.base, offset: target.offset + pointer.offset };
    };
    for arg in lowered.launches.iter_mut().flat_map(|l| &mut l.args) {
        match arg {
            Arg::Pointer(pointer) => moved(pointer),
            Arg::TensorMap(map) => moved(&mut map.base),
            Arg::Null | Arg::Value(_) => {}
        }
    }
    Ok(lowered)
}
