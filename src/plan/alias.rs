//! Operations that move nothing: their results are views of their operand.

use lite3r_ir::{Dim, Op, ValueType};

use super::ALIGN;

/// Where each result begins within the operand, in bytes; `None` where an operation moves something, or a view would
/// not be aligned. Types are static and as the operation infers them.
pub fn offsets(op: &Op, operands: &[ValueType], results: &[ValueType]) -> Option<Vec<u64>> {
    let [x] = operands else { return None };
    let shape = x.dims()?;
    let whole = |moves_nothing: bool| moves_nothing.then(|| vec![0]);
    match op {
        Op::Reshape(_) | Op::Again(_) | Op::StopGradient(_) => whole(true),
        Op::Expand(_) => whole(x.elements()? == results[0].elements()?),
        Op::Cast(_) => whole(x.dtype == results[0].dtype),
        Op::Transpose(op) => whole(op.perm.iter().filter(|axis| shape[**axis] != 1).is_sorted()),
        Op::MergeHeads(_) => whole(shape[1] == 1 || shape[2] == 1),
        Op::Slice(op) if op.step == 1 => cuts(x, &shape, op.axis, &[op.start.size()?]),
        Op::Split(op) => {
            let mut end = 0;
            let starts = op.sizes.iter().map(|size| {
                let start = end;
                end += size.size()?;
                Some(start)
            });
            cuts(x, &shape, op.axis, &starts.collect::<Option<Vec<_>>>()?)
        }
        _ => None,
    }
}

/// Byte offsets of cuts along an axis outside which there is nothing.
fn cuts(x: &ValueType, shape: &[usize], axis: usize, starts: &[usize]) -> Option<Vec<u64>> {
    if shape[..axis].iter().any(|d| *d != 1) {
        return None;
    }
    let row = x.shape[axis + 1..].iter().try_fold(x.dtype.size(), |n, d: &Dim| n.checked_mul(d.size()?))?;
    let bytes = |start: &usize| u64::try_from(start.checked_mul(row)?).ok().filter(|b| b % ALIGN == 0);
    starts.iter().map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(op: &str, x: &str) -> Option<Vec<u64>> {
        let (op, x) = (lite3r_ir::text::parse_op(op).unwrap(), x.parse().unwrap());
        let results = op.infer(std::slice::from_ref(&x)).unwrap();
        offsets(&op, &[x], &results)
    }

    #[test]
    fn views_and_copies_are_told_apart() {
        assert_eq!(of("reshape {shape=[6,2]}", "f32[3,4]"), Some(vec![0]));
        assert_eq!(of("transpose {perm=[1,0,2]}", "f32[1,3,4]"), Some(vec![0]));
        assert_eq!(of("transpose {perm=[1,0,2]}", "f32[2,3,4]"), None);
        assert_eq!(of("slice {axis=1,start=2,end=3}", "f32[1,4,64]"), Some(vec![512]));
        assert_eq!(of("slice {axis=1,start=2,end=3}", "f32[2,4,64]"), None);
        assert_eq!(of("slice {axis=0,start=1,end=3}", "f32[4,63]"), None, "63·4 bytes are not aligned");
        assert_eq!(of("slice {axis=0,start=0,end=4,step=2}", "f32[4,64]"), None);
        assert_eq!(of("split {axis=0,sizes=[1,2]}", "f32[3,64]"), Some(vec![0, 256]));
        assert_eq!(of("split {axis=0,sizes=[1,2]}", "f32[3,65]"), None);
        assert_eq!(of("merge_heads", "f32[2,1,3,4]"), Some(vec![0]));
        assert_eq!(of("merge_heads", "f32[2,2,3,4]"), None);
        assert_eq!(of("exp", "f32[2]"), None);
    }
}
