//! `qkv_heads`: a row of the projection at a time, every head of it normalised, rotated and rounded once.

#![allow(unsafe_code)] // tasks write their own parts of the results

use lite3r_ir::{
    Op,
    ops::{QkvHeads, shape_rules::strides_for},
};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, operand, store},
    gemm::all_floats,
    lanes::{self, CHUNK, Shared},
    layer_norm::normalise,
    rope::rotate,
};
use crate::backend::Request;

/// `qkv_heads` by rows of x.
pub const QKV_HEADS: Kernel = Kernel {
    name: "qkv_heads.rows",
    op: "qkv_heads",
    dtypes: FLOATS,
    accepts: all_floats,
    lane,
    run: |op, args, results, scratch| match op {
        Op::QkvHeads(op) => qkv_heads(op, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

/// A head, the head rotated, g and b, and a row of both tables.
fn lane(request: &Request<'_>) -> usize {
    let d = request.results[0].dims().and_then(|d| d.last().copied()).unwrap_or(0);
    6 * 4 * d
}

fn qkv_heads(op: &QkvHeads, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (norms, tables) = op.parts(args);
    let &[batch, heads, n, d] = results.first().ok_or("gives three results")?.shape else {
        return Err("gives results of rank 4".into());
    };
    let x = Floats::of(operand(args, 0)?)?;
    let affine = norms.iter().map(Floats::of).collect::<Result<Vec<_>, _>>()?;
    let rope = match tables {
        [cos, sin] => Some((Floats::of(cos)?, Floats::of(sin)?, strides_for(cos.shape, &[batch, heads, n, d]))),
        _ => None,
    };
    let [q, k, v] = results else { return Err("gives three results".into()) };
    let (dtype, size) = (q.dtype, q.dtype.size());
    if q.bytes.is_empty() {
        return Ok(());
    }
    let out = [q, k, v].map(|r| Shared::new(&mut *r.bytes));
    let rows = (CHUNK / (3 * heads * d)).max(1);
    lanes::run((batch * n).div_ceil(rows), 6 * 4 * d, scratch, |task, memory| {
        let mut parts = cast_mut::<f32>(memory)?.chunks_exact_mut(d);
        let mut part = || parts.next().ok_or("the scratch is too small");
        let (own, rotated, g, b, cosines, sines) = (part()?, part()?, part()?, part()?, part()?, part()?);
        for row in task * rows..(task * rows + rows).min(batch * n) {
            let (image, token) = (row / n, row % n);
            for (which, out) in out.iter().enumerate() {
                for head in 0..heads {
                    x.read(((row * 3 + which) * heads + head) * d, own);
                    if which < 2 && op.norm {
                        let affine = (affine[2 * which].view(0, g), affine[2 * which + 1].view(0, b));
                        normalise(own, Some(affine), op.eps as f32);
                    }
                    let mut done: &[f32] = own;
                    if let Some((cos, sin, steps)) = rope.as_ref().filter(|_| which < 2) {
                        let at = image * steps[0] + head * steps[1] + token * steps[2];
                        rotate(own, cos.view(at, cosines), sin.view(at, sines), d / op.segments / 2, rotated);
                        done = rotated;
                    }
                    let start = (((image * heads) + head) * n + token) * d * size;
                    // SAFETY: every head of every row belongs to one task.
                    store(dtype, done, unsafe { out.slice(start, d * size) })?;
                }
            }
        }
        Ok(())
    })
}
