//! `pad(x) {before, after, value}`: a constant border.

use super::{Case, OpDef, Slice, Tolerance, elementwise::operands, shape_rules::strides};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x with a constant border.
    pub struct Pad {
        /// Elements added in front, a number a dimension.
        pub before: Vec<usize>,
        /// Elements added behind, a number a dimension.
        pub after: Vec<usize>,
        /// What is added.
        pub value: f64 = 0.0,
    }
}

impl OpDef for Pad {
    const NAME: &'static str = "pad";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if self.before.len() != x.rank() || self.after.len() != x.rank() {
            return Err(format!("needs {} numbers before and after for {x}", x.rank()));
        }
        let sums = self.before.iter().zip(&self.after).map(|(a, b)| Dim::from(a + b));
        Ok(vec![x.with_shape(x.shape.iter().cloned().zip(sums).map(|(d, s)| d + s))])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let x = inputs[0];
        let fill = Tensor::from_f64(x.dtype(), &[1], &[self.value]);
        let pool = Tensor::concat_flat(&[x, &fill]);
        let (own, outer) = (strides(x.shape()), strides(&shape));
        let count: usize = shape.iter().product();
        let at = |flat: usize| {
            (0..shape.len())
                .map(|axis| {
                    let position = (flat / outer[axis] % shape[axis]).checked_sub(self.before[axis])?;
                    (position < x.shape()[axis]).then(|| position * own[axis])
                })
                .sum::<Option<usize>>()
                .unwrap_or(x.len())
        };
        Ok(vec![pool.pick(&shape, (0..count).map(at))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let mut part = at.cotangent()?;
        let shape = at.dims(at.operand(0))?;
        for (axis, (start, size)) in self.before.iter().zip(&shape).enumerate() {
            let whole = at.dims(part)?[axis];
            if whole != *size {
                let end = (start + size).into();
                part = at.op(Slice { axis, start: (*start).into(), end, step: 1 }, &[part])?;
            }
        }
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2], vec![1.0, 2.0]);
        vec![
            Case::known(
                "known",
                Self { before: vec![1], after: vec![2], value: 9.0 },
                vec![x],
                vec![Tensor::from_f32(&[5], vec![9.0, 1.0, 2.0, 9.0, 9.0])],
            ),
            Case::new(
                "image",
                Self { before: vec![0, 0, 1, 1], after: vec![0, 0, 1, 2], value: 0.0 },
                vec![Tensor::wave(DType::F32, &[1, 3, 5, 7], 1)],
            ),
            Case::new(
                "none",
                Self { before: vec![0, 0], after: vec![0, 0], value: 1.0 },
                vec![Tensor::wave(DType::BF16, &[3, 63], 1)],
            ),
        ]
    }
}
