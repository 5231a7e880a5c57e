//! `slice(x) {axis, start, end, step}`: every step-th element of a range along one axis.

use super::{
    Case, OpDef, Pad, Tolerance,
    elementwise::{indices, operands},
    shape_rules::strides,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// Elements start, start + step, … below end along one axis.
    pub struct Slice {
        /// The axis that is cut.
        pub axis: usize,
        /// The first index, from 0.
        pub start: Dim,
        /// One past the last index, at most the size.
        pub end: Dim,
        /// The distance of neighbours, from 1. Above 1, start and end must be constants.
        pub step: usize = 1usize,
    }
}

impl OpDef for Slice {
    const NAME: &'static str = "slice";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        let size = x.shape.get(self.axis).ok_or_else(|| format!("axis {} is outside {x}", self.axis))?;
        let count = match (self.start.constant(), self.end.constant(), size.constant()) {
            (Some(start), Some(end), size) => {
                if start < 0 || end < start || size.is_some_and(|n| end > n) || self.step == 0 {
                    return Err(format!(
                        "{start}..{end} by {} is no range within axis {} of {x}",
                        self.step, self.axis
                    ));
                }
                Dim::from((end - start + self.step as i64 - 1) / self.step as i64)
            }
            _ if self.step == 1 => self.end.clone() - self.start.clone(),
            _ => return Err("a step above 1 needs constant ends".into()),
        };
        let mut shape = x.shape.clone();
        shape[self.axis] = count;
        Ok(vec![x.with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let mut walk = strides(inputs[0].shape());
        let first = self.start.size().ok_or("needs static shapes")? * walk[self.axis];
        walk[self.axis] *= self.step;
        Ok(vec![inputs[0].pick(&shape, indices(&shape, [walk]).map(|[i]| first + i))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        let size = at.dims(at.operand(0))?[self.axis];
        let (shape, start) = (at.dims(g)?, self.start.size().ok_or_else(|| at.refuse("needs a static start"))?);
        let count = shape[self.axis];
        // Zeros between the elements of a wider step: a dimension of them behind every element.
        let (part, end) = if self.step > 1 && count > 0 {
            let mut apart = shape.clone();
            apart.insert(self.axis + 1, 1);
            let part = at.reshape(g, &apart.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())?;
            let mut after = vec![0; apart.len()];
            after[self.axis + 1] = self.step - 1;
            let part = at.op(Pad { before: vec![0; apart.len()], after, value: 0.0 }, &[part])?;
            let mut joined = shape.clone();
            joined[self.axis] = count * self.step;
            let part = at.reshape(part, &joined.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())?;
            let used = (count - 1) * self.step + 1;
            (at.op(Self { axis: self.axis, start: 0.into(), end: used.into(), step: 1 }, &[part])?, start + used)
        } else {
            (g, start + count)
        };
        let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
        (before[self.axis], after[self.axis]) = (start, size - end);
        let part = at.op(Pad { before, after, value: 0.0 }, &[part])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let cut = |axis, start: usize, end: usize, step| Self { axis, start: start.into(), end: end.into(), step };
        let x = Tensor::from_f32(&[5], vec![0.0, 1.0, 2.0, 3.0, 4.0]);
        vec![
            Case::known("known", cut(0, 1, 4, 1), vec![x.clone()], vec![Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0])]),
            Case::known("strided", cut(0, 0, 5, 2), vec![x], vec![Tensor::from_f32(&[3], vec![0.0, 2.0, 4.0])]),
            Case::new("tokens", cut(1, 5, 65, 1), vec![Tensor::wave(DType::F32, &[2, 65, 7], 1)]),
            Case::new("nothing", cut(1, 3, 3, 1), vec![Tensor::wave(DType::F16, &[2, 5], 1)]),
            Case::new("last", cut(2, 63, 64, 1), vec![Tensor::wave(DType::F32, &[2, 3, 64], 1)]),
        ]
    }
}
