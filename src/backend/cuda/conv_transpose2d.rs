//! `cuda/conv_transpose2d.cu`: transposed convolutions of any geometry.

use lite3r_ir::{DType, Op};

use super::{
    Arch, Kernel, dims,
    launch::{Arg, Launch, Lowered, Module, blocks, index_type},
    softmax::{FLOATS, floats},
};
use crate::backend::Request;

const THREADS: u32 = 256;

/// The rows of this file.
pub const KERNELS: &[Kernel] =
    &[Kernel { name: "conv_transpose2d.direct", op: "conv_transpose2d", dtypes: FLOATS, lower }];

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

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
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
    let module = Module::new("conv_transpose2d.cu")
        .element("TX", request.operands[0].dtype)
        .element("TB", request.operands.get(2).map_or(DType::F32, |b| b.dtype))
        .element("TR", request.results[0].dtype)
        .define("INDEX", index_type(elements));
    Ok(Launch {
        module,
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
