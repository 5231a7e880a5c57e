//! `cuda/rope.cu`: rotary position embedding.

use lite3r_ir::{Op, ops::shape_rules::strides_for};

use super::{
    Arch, Kernel, dims,
    elementwise::walk,
    floats::{FLOATS, floats},
    launch::{Arg, Launch, Lowered, Module, index_type},
};
use crate::backend::Request;

/// The row of this file.
pub const KERNELS: &[Kernel] = &[Kernel { name: "rope.elements", op: "rope", dtypes: FLOATS, lower }];

fn lower(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::Rope(op) = request.op else { return Err("computes rope".into()) };
    floats(request)?;
    let (shape, table) = (dims(&request.operands[0])?, dims(&request.operands[1])?);
    let strides = strides_for(&table, &shape).into_iter().map(|s| s as i64).collect();
    let (walked, steps) = walk(&shape, &[strides])?;
    let elements = shape.iter().product::<usize>() as u64;
    let width = shape.last().copied().unwrap_or(0) / op.segments.max(1);
    Ok(Launch::over(
        Module::new("rope.cu")
            .element("TX", request.operands[0].dtype)
            .element("TT", request.operands[1].dtype)
            .define("INDEX", index_type(elements)),
        "rope",
        elements,
        vec![
            Arg::operand(0),
            Arg::operand(1),
            Arg::operand(2),
            Arg::result(0),
            Arg::of(walked),
            Arg::of(steps[0]),
            Arg::of(elements as i64),
            Arg::of(width as u32),
        ],
    )
    .into())
}
