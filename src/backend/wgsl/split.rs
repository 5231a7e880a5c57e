//! Operations on tensors that are larger than what a shader sees of a buffer at once: computed in parts.
//!
//! A part is an operation on slices ([`super::cuts`]). Slices that lie together and begin at a multiple of 256 bytes are
//! seen where they lie; others are copied to scratch memory and back. Lowering under a limit is the same under any lower
//! limit that no binding exceeds: plans carry the largest binding, and loading them repeats what was planned.

use lite3r_ir::{
    Dim, Op, ValueType,
    ops::{Attention, MergeHeads, SplitHeads, shape_rules::strides},
};

use super::{
    adapter::padded,
    cuts::{Cut, Part, Slice, cuts},
    dims,
    launch::{Base, Binding, Lowered, Placed},
    movement, within,
};
use crate::backend::{Request, gpu::moves::Copy};

/// The largest binding of what is launched, in bytes.
pub fn largest(lowered: &Lowered) -> u64 {
    lowered.launches.iter().flat_map(|l| &l.bindings).map(|b| padded(b.bytes)).max().unwrap_or(0)
}

/// What computes a request that is lowered whole where shaders see `most` bytes of a buffer at once: that, or parts.
/// Errors: as [`lower`].
pub fn bounded(request: &Request<'_>, whole: Lowered, most: u64) -> Result<Lowered, String> {
    if largest(&whole) <= most { Ok(whole) } else { lower(request, most) }
}

/// What computes a request where shaders see `most` bytes of a buffer at once. Errors: the operation cannot be computed in
/// parts that are small enough.
pub fn lower(request: &Request<'_>, most: u64) -> Result<Lowered, String> {
    let operand = |(i, ty): (usize, &ValueType)| (ty.clone(), Binding::whole(Base::Operand(i), ty));
    let result = |(i, ty): (usize, &ValueType)| (ty.clone(), Binding::whole(Base::Result(i), ty));
    let operands: Vec<Placed> = request.operands.iter().enumerate().map(operand).collect();
    let results: Vec<Placed> = request.results.iter().enumerate().map(result).collect();
    fitted(request.op, &operands, &results, 0, most)
}

/// As [`within`], nothing bound that is larger than `most` bytes.
fn fitted(op: &Op, operands: &[Placed], results: &[Placed], inner: usize, most: u64) -> Result<Lowered, String> {
    let is_large = |(_, binding): &Placed| padded(binding.bytes) > most;
    let large = operands.iter().chain(results).any(is_large);
    match within(op, operands, results, inner) {
        Ok(lowered) if largest(&lowered) <= most => return Ok(lowered),
        Err(clause) if !large => return Err(clause),
        _ => {}
    }
    if let Op::SelfAttention(op) = op {
        let parts: Op = SplitHeads { parts: 3, heads: op.heads }.into();
        let attention: Op = Attention { kind: op.kind, views: op.views.clone(), ..Attention::new(op.scale) }.into();
        return chain(&[parts, attention, MergeHeads {}.into()], operands, results, inner, most);
    }
    let types = |all: &[Placed]| all.iter().map(|(ty, _)| ty.clone()).collect::<Vec<_>>();
    let (taken, given) = (types(operands), types(results));
    let request = Request { op, operands: &taken, results: &given };
    if movement::KERNELS.iter().any(|k| k.op == op.name()) {
        return movement::in_windows(&request, operands, results, most);
    }
    let found = cuts(&request)?;
    let tensors = |cut: &Cut| -> Vec<(Option<(usize, usize)>, Placed)> {
        cut.operands.iter().chain(&cut.results).copied().zip(operands.iter().chain(results).cloned()).collect()
    };
    // That which leaves least too large, then that which copies least.
    let cost = |cut: &&Cut| {
        let all = tensors(cut);
        let left = all.iter().filter(|(along, placed)| along.is_none() && is_large(placed)).count();
        let copied = all.iter().filter(|(along, placed)| along.is_some() && step(placed, *along, cut.size).is_none());
        (left, copied.map(|(_, (_, binding))| binding.bytes).sum::<u64>())
    };
    let helps = |cut: &Cut| {
        cut.size > 1 && (!large || tensors(cut).iter().any(|(along, placed)| along.is_some() && is_large(placed)))
    };
    let best = found.iter().filter(|cut| helps(cut)).min_by_key(cost);
    let Some(cut) = best else { return Err(too_large(operands, results, most)) };

    let steps = tensors(cut).into_iter().filter_map(|(along, placed)| step(&placed, along, cut.size));
    let step = steps.fold(1, lcm);
    let whole = (operands, results);
    let mut len = cut.size;
    loop {
        let shorter = len.div_ceil(2).next_multiple_of(step);
        if shorter >= len {
            break;
        }
        len = shorter;
        let lowered = part(whole, &cut.part(&request, 0, len)?, inner, most, &within_only);
        if lowered.is_ok_and(|lowered| largest(&lowered) <= most) {
            break;
        }
    }
    if len == cut.size {
        return Err(too_large(operands, results, most));
    }
    let mut all = Lowered::default();
    for start in (0..cut.size).step_by(len) {
        let own = cut.part(&request, start, len.min(cut.size - start))?;
        all.then(part(whole, &own, inner, most, &fitted)?);
    }
    Ok(all)
}

/// What lowers a part.
type Lower<'l> = dyn Fn(&Op, &[Placed], &[Placed], usize, u64) -> Result<Lowered, String> + 'l;

fn within_only(op: &Op, operands: &[Placed], results: &[Placed], inner: usize, _: u64) -> Result<Lowered, String> {
    within(op, operands, results, inner)
}

/// A part: slices that must be moved to scratch memory, the operation, slices that are moved back.
fn part(
    (operands, results): (&[Placed], &[Placed]),
    part: &Part,
    inner: usize,
    most: u64,
    lower: &Lower<'_>,
) -> Result<Lowered, String> {
    let mut all = Lowered { launches: Vec::new(), scratch: inner };
    let mut place = |placed: &Placed, slice: &Option<Slice>| -> Result<(Placed, Option<Copy>), String> {
        let Some(slice) = slice else { return Ok((placed.clone(), None)) };
        let (ty, full) = (sliced(&placed.0, *slice), dims(&placed.0)?);
        let start = slice.start * strides(&full)[slice.axis];
        let (offset, bytes) = (start * ty.dtype.size(), ty.bytes().ok_or("needs static shapes")?);
        if lies_together(&full, slice.axis) && offset % 256 == 0 {
            let (offset, bytes) = (placed.1.offset + offset as u64, bytes as u64);
            return Ok(((ty, Binding { offset, bytes, ..placed.1 }), None));
        }
        let at = all.scratch.next_multiple_of(256);
        all.scratch = at + bytes;
        let shape = dims(&ty)?;
        let copy = Copy::new(&shape, (0, start, &strides(&full)), (0, 0, &strides(&shape)));
        Ok(((ty, Binding::scratch(at, bytes)), Some(copy)))
    };
    let mut taken = Vec::new();
    let mut copies = Vec::new();
    for (placed, slice) in operands.iter().zip(&part.operands) {
        let (own, copy) = place(placed, slice)?;
        if let Some(copy) = copy {
            copies.extend(movement::moved(&copy, own.0.dtype.size(), placed.1, own.1, most)?);
        }
        taken.push(own);
    }
    let mut given = Vec::new();
    let mut back = Vec::new();
    for (placed, slice) in results.iter().zip(&part.results) {
        let (own, copy) = place(placed, slice)?;
        if let Some(Copy { axes, starts, .. }) = copy {
            let turned = axes.into_iter().map(|(n, steps)| (n, vec![steps[1], steps[0]])).collect();
            let copy = Copy { operand: 0, result: 0, axes: turned, starts: [starts[1], starts[0]] };
            back.extend(movement::moved(&copy, own.0.dtype.size(), own.1, placed.1, most)?);
        }
        given.push(own);
    }
    let types: Vec<ValueType> = taken.iter().map(|(ty, _)| ty.clone()).collect();
    if part.op.infer(&types)? != given.iter().map(|(ty, _)| ty.clone()).collect::<Vec<_>>() {
        return Err(format!("{} does not fall into these parts", part.op.name()));
    }
    all.launches = copies;
    let inner = all.scratch;
    all.then(lower(&part.op, &taken, &given, inner, most)?);
    all.launches.extend(back);
    Ok(all)
}

/// Operations one after the other, what lies between in scratch memory.
fn chain(ops: &[Op], operands: &[Placed], results: &[Placed], inner: usize, most: u64) -> Result<Lowered, String> {
    let mut all = Lowered { launches: Vec::new(), scratch: inner };
    let mut taken = operands.to_vec();
    for (i, op) in ops.iter().enumerate() {
        let mut given = results.to_vec();
        if i + 1 < ops.len() {
            given.clear();
            for ty in op.infer(&taken.iter().map(|(ty, _)| ty.clone()).collect::<Vec<_>>())? {
                let (at, bytes) = (all.scratch.next_multiple_of(256), ty.bytes().ok_or("needs static shapes")?);
                all.scratch = at + bytes;
                given.push((ty, Binding::scratch(at, bytes)));
            }
        }
        let inner = all.scratch;
        all.then(fitted(op, &taken, &given, inner, most)?);
        taken = given;
    }
    Ok(all)
}

/// The type of a slice.
fn sliced(ty: &ValueType, slice: Slice) -> ValueType {
    let mut shape = ty.shape.clone();
    shape[slice.axis] = Dim::from(slice.len);
    ty.with_shape(shape)
}

/// Whether neighbours along an axis lie side by side.
fn lies_together(shape: &[usize], axis: usize) -> bool {
    shape[..axis].iter().all(|n| *n == 1)
}

/// Steps of a cut after which a tensor is at a multiple of 256 bytes; `None` where it must be copied.
fn step((ty, _): &Placed, along: Option<(usize, usize)>, size: usize) -> Option<usize> {
    let (axis, per) = along?;
    let shape = dims(ty).ok()?;
    let bytes = per * strides(&shape)[axis] * ty.dtype.size();
    let step = 256 / gcd(bytes.max(1), 256);
    (lies_together(&shape, axis) && 2 * step <= size).then_some(step)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: usize, b: usize) -> usize {
    a / gcd(a, b) * b
}

fn too_large(operands: &[Placed], results: &[Placed], most: u64) -> String {
    let all = operands.iter().chain(results);
    let largest = all.max_by_key(|(_, binding)| binding.bytes);
    let what = largest.map_or(String::new(), |(ty, binding)| format!("{ty} of {} bytes", binding.bytes));
    format!(
        "cannot be computed in parts of which a shader sees {most} bytes at once (`--target wgsl:binding=…`): {what}"
    )
}
