//! `qkv_linear`: a head of some rows at a time, multiplied, normalised, rotated and rounded once.

#![allow(unsafe_code)] // tasks write their own parts of the results

use lite3r_ir::{DType, Op, ops::QkvLinear};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast, cast_mut, operand},
    gemm::{Factor, multiply, panel},
    lanes,
    qkv_heads::{BESIDE, Split},
    quantize::Scales,
};
use crate::backend::Request;

/// `qkv_linear` by heads.
pub const QKV_LINEAR: Kernel = Kernel {
    name: "qkv_linear.heads",
    op: "qkv_linear",
    dtypes: &[DType::F32, DType::F16, DType::BF16, DType::F8E4M3],
    accepts: |request| match request.operands.iter().chain(request.results).find(|t| !known(t.dtype)) {
        Some(odd) => Err(format!("takes f8e4m3, f32, f16 and bf16, not {odd}")),
        None => Ok(()),
    },
    lane,
    run: |op, args, results, scratch| match op {
        Op::QkvLinear(op) => qkv_linear(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn known(dtype: DType) -> bool {
    FLOATS.contains(&dtype) || dtype == DType::F8E4M3
}

/// Rows of a task.
const ROWS: usize = 128;

/// Bytes of rows of x and of w, of a head of the rows, and of what finishes it.
fn bytes(k: usize, d: usize) -> usize {
    4 * (ROWS * k + d * k + ROWS * d + BESIDE * d)
}

fn lane(request: &Request<'_>) -> usize {
    let last = |ty: &lite3r_ir::ValueType| ty.shape.last().and_then(|n| n.size()).unwrap_or(0);
    bytes(last(&request.operands[0]), last(&request.results[0]))
}

fn qkv_linear(op: &QkvLinear, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (product, others) = op.parts(args);
    let x = operand(product, 0)?;
    let k = x.shape.last().copied().unwrap_or(0);
    let mut next = product.iter();
    let mut factor = |scale| -> Result<Factor<'_>, String> {
        let mut take = || next.next().ok_or("an operand is missing");
        let floats = Floats::of(take()?)?;
        let scales = match scale {
            Some(granularity) => Some(Scales { values: cast(take()?.bytes)?, granularity }),
            None => None,
        };
        Ok(Factor { floats, scales })
    };
    let (a, b) = (factor(op.x_scale)?, factor(op.w_scale)?);
    let bias = next.next().map(Floats::of).transpose()?;
    let (norms, turns) = others.split_at(others.len() - usize::from(op.segments > 0));
    let split = Split::of(&op.split(), norms, turns, results)?;
    let (d, down) = (split.d, split.rows.div_ceil(ROWS));
    if split.rows * d == 0 {
        return Ok(());
    }
    lanes::run(down * 3 * split.heads, bytes(k, d), scratch, |task, memory| {
        // Neighbouring tasks share columns of w.
        let (head, row) = (task / down, task % down * ROWS);
        let rows = ROWS.min(split.rows - row);
        let (left, rest) = cast_mut::<f32>(memory)?.split_at_mut(ROWS * k);
        let (right, rest) = rest.split_at_mut(d * k);
        let (tile, rest) = rest.split_at_mut(ROWS * d);
        let (values, _) = rest.split_at_mut(BESIDE * d);
        multiply(panel(&a, row * k, rows, k, k, left), panel(&b, head * d * k, d, k, k, right).t(), tile, d, false);
        for (i, own) in tile.chunks_exact_mut(d).take(rows).enumerate() {
            if let Some(bias) = &bias {
                own.iter_mut().zip(bias.view(head * d, &mut values[..d])).for_each(|(y, b)| *y += b);
            }
            // SAFETY: every head of every row belongs to one task.
            unsafe { split.write(row + i, head, own, values)? };
        }
        Ok(())
    })
}
