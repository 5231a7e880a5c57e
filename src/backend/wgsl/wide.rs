//! Results of 8 and 16 bits by way of f32: several of them share a word, which one thread must write whole.

use lite3r_ir::{DType, Op, ValueType, ops::Cast};

use super::{
    kernel,
    launch::{Base, Binding, Lowered},
};
use crate::backend::Request;

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
        let op: Op = Cast { to: result.dtype }.into();
        let types = ([wide.clone()], [result.clone()]);
        let (_, mut cast) =
            kernel(&Request { op: &op, operands: &types.0, results: &types.1 }).map_err(|gap| gap.clause)?;
        for binding in cast.launches.iter_mut().flat_map(|l| &mut l.bindings) {
            *binding = match binding.base {
                Base::Operand(_) => Binding::scratch(at, bytes),
                _ => Binding { base: Base::Result(index), ..*binding },
            };
        }
        casts.extend(cast.launches);
    }
    lowered.launches.extend(casts);
    Ok(lowered)
}
