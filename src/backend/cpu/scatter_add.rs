//! `scatter_add`: the slices of every row of the result listed in order, by counting; then rows in parallel, summed in
//! f32.

#![allow(unsafe_code)] // tasks write their own parts of one result

use lite3r_ir::{Op, ops::gather::wrap};

use super::{
    Arg, ArgMut, Kernel,
    floats::{FLOATS, Floats, cast_mut, only, operand, store},
    lanes::{self, CHUNK, Shared},
    movement::Indices,
};

/// Elements of a slice that a task sums at a time.
const SEGMENT: usize = 1024;

/// `scatter_add` by rows of the result.
pub const SCATTER_ADD: Kernel = Kernel {
    name: "scatter_add.rows",
    op: "scatter_add",
    dtypes: FLOATS,
    accepts: |request| match request.operands.first().is_some_and(|t| FLOATS.contains(&t.dtype)) {
        true => Ok(()),
        false => Err("takes f32, f16 and bf16".into()),
    },
    lane: |_| 2 * SEGMENT * size_of::<f32>(),
    run: |op, args, results, scratch| match op {
        Op::ScatterAdd(op) => run(op.axis, args, results, scratch),
        other => Err(format!("is no kernel for {}", other.name())),
    },
};

fn run(axis: usize, args: &[Arg<'_>], results: &mut [ArgMut<'_>], scratch: &mut [u8]) -> Result<(), String> {
    let (g, indices, y) = (Floats::of(operand(args, 0)?)?, Indices::of(operand(args, 1)?)?, only(results)?);
    let (outer, size): (usize, usize) = (y.shape[..axis].iter().product(), y.shape[axis]);
    let (inner, count): (usize, usize) = (y.shape[axis + 1..].iter().product(), indices.len());
    let (starts, order) = lists(&indices, size)?;
    if y.bytes.is_empty() {
        return Ok(());
    }
    let (dtype, width) = (y.dtype, y.dtype.size());
    let block = (CHUNK / inner).max(1);
    let out = Shared::new(&mut *y.bytes);
    lanes::run((outer * size).div_ceil(block), 2 * SEGMENT * size_of::<f32>(), scratch, |task, memory| {
        let (sums, buffer) = cast_mut::<f32>(memory)?.split_at_mut(SEGMENT);
        for row in task * block..(task * block + block).min(outer * size) {
            let (image, target) = (row / size, row % size);
            for first in (0..inner).step_by(SEGMENT) {
                let len = SEGMENT.min(inner - first);
                let (sums, buffer) = (&mut sums[..len], &mut buffer[..len]);
                sums.fill(0.0);
                for from in &order[starts[target]..starts[target + 1]] {
                    let slice = g.view((image * count + *from as usize) * inner + first, buffer);
                    sums.iter_mut().zip(slice).for_each(|(sum, g)| *sum += g);
                }
                // SAFETY: every row belongs to one task.
                store(dtype, sums, unsafe { out.slice((row * inner + first) * width, len * width) })?;
            }
        }
        Ok(())
    })
}

/// Where the list of every row begins, and positions in `indices` list by list, each in order.
fn lists(indices: &Indices<'_>, size: usize) -> Result<(Vec<usize>, Vec<u32>), String> {
    let rows: Vec<usize> = (0..indices.len()).map(|i| wrap(indices.at(i), size)).collect::<Result<_, _>>()?;
    let mut starts = vec![0; size + 1];
    rows.iter().for_each(|row| starts[row + 1] += 1);
    (0..size).for_each(|row| starts[row + 1] += starts[row]);
    let (mut next, mut order) = (starts.clone(), vec![0; rows.len()]);
    for (i, row) in rows.into_iter().enumerate() {
        order[next[row]] = u32::try_from(i).map_err(|_| "takes fewer than 2^32 indices")?;
        next[row] += 1;
    }
    Ok((starts, order))
}
