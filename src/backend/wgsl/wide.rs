//! Results of 8 and 16 bits by way of f32: several of them share a word, which one thread must write whole.

use lite3r_ir::{DType, Op, ValueType, ops::Cast};

use super::{
    launch::{Base, Binding, Lowered},
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
