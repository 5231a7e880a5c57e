//! Elements of 8 and 16 bits by way of f32: several of them share a word, which one thread must write whole.

use lite3r_ir::{DType, Op, ValueType, ops::Cast};

use super::{
    launch::{Base, Binding, Lowered, Placed},
    within,
};
use crate::backend::Request;

/// Lowers a request as `lower` does, or by way of f32 where its narrow results are not rows of whole words.
pub fn either(
    request: &Request<'_>,
    lower: impl Fn(&Request<'_>) -> Result<Lowered, String>,
) -> Result<Lowered, String> {
    lower(request).or_else(|_| through_f32(request, lower))
}

/// Lowers a request as `lower` does for results of f32, and casts them from scratch memory where they are narrower.
pub fn through_f32(
    request: &Request<'_>,
    lower: impl Fn(&Request<'_>) -> Result<Lowered, String>,
) -> Result<Lowered, String> {
    let narrow = |ty: &ValueType| ty.dtype.is_float() && ty.dtype.size() < 4;
    if !request.results.iter().any(narrow) {
        return lower(request);
    }
    let wide: Vec<ValueType> =
        request.results.iter().map(|ty| if narrow(ty) { ty.with_dtype(DType::F32) } else { ty.clone() }).collect();
    let mut lowered = lower(&Request { op: request.op, operands: request.operands, results: &wide })?;
    let mut casts = Vec::new();
    for (index, (wide, result)) in wide.iter().zip(request.results).enumerate().filter(|(_, (_, ty))| narrow(ty)) {
        let at = lowered.scratch.next_multiple_of(256);
        let bytes = wide.bytes().ok_or("needs static shapes")?;
        lowered.scratch = at + bytes;
        let moved = |binding: &mut Binding| {
            if binding.base == Base::Result(index) {
                *binding = Binding { base: Base::Scratch, offset: at as u64 + binding.offset, ..*binding };
            }
        };
        lowered.launches.iter_mut().flat_map(|l| &mut l.bindings).for_each(moved);
        let cast: Op = Cast { to: result.dtype }.into();
        let from = [(wide.clone(), Binding::scratch(at, bytes))];
        let to = [(result.clone(), Binding::result(request, index))];
        casts.extend(within(&cast, &from, &to, lowered.scratch)?.launches);
    }
    lowered.launches.extend(casts);
    Ok(lowered)
}

/// Lowers a request as `lower` does or, where it refuses narrow elements that it would move, on copies of f32.
pub fn widened(
    request: &Request<'_>,
    lower: impl Fn(&Request<'_>) -> Result<Lowered, String>,
) -> Result<Lowered, String> {
    let narrow = |ty: &ValueType| ty.dtype.is_float() && ty.dtype.size() < 4;
    let refused = match lower(request) {
        Err(clause) if request.results.iter().any(narrow) => clause,
        done => return done,
    };
    let mut inner = 0usize;
    let mut wide = |(ty, own): Placed| -> Result<Placed, String> {
        if !narrow(&ty) {
            return Ok((ty, own));
        }
        let (ty, at) = (ty.with_dtype(DType::F32), inner.next_multiple_of(256));
        let bytes = ty.bytes().ok_or_else(|| refused.clone())?;
        inner = at + bytes;
        Ok((ty, Binding::scratch(at, bytes)))
    };
    let operand = |i: usize| (request.operands[i].clone(), Binding::operand(request, i));
    let result = |i: usize| (request.results[i].clone(), Binding::result(request, i));
    let taken: Vec<Placed> = (0..request.operands.len()).map(|i| wide(operand(i))).collect::<Result<_, _>>()?;
    let given: Vec<Placed> = (0..request.results.len()).map(|i| wide(result(i))).collect::<Result<_, _>>()?;
    let mut all = Lowered::default();
    for (i, placed) in taken.iter().enumerate().filter(|(i, _)| narrow(&request.operands[*i])) {
        let cast: Op = Cast { to: DType::F32 }.into();
        all.then(within(&cast, &[operand(i)], std::slice::from_ref(placed), inner)?);
    }
    all.then(within(request.op, &taken, &given, inner)?);
    for (i, placed) in given.iter().enumerate().filter(|(i, _)| narrow(&request.results[*i])) {
        let cast: Op = Cast { to: request.results[i].dtype }.into();
        all.then(within(&cast, std::slice::from_ref(placed), &[result(i)], inner)?);
    }
    Ok(all)
}
