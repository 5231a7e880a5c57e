//! `softmax(x) {axis}`: eˣ/Σeˣ along an axis.

use super::{Case, Cost, OpDef, Tolerance, elementwise::infer_unary, shape_rules, traffic};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// eˣ/Σeˣ along an axis, computed from differences to the largest value.
    pub struct Softmax {
        /// The axis that adds up to one; counted from the end where negative.
        pub axis: i64 = -1,
    }
}

/// Softmax in place.
pub fn softmax(row: &mut [f64]) {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|v| *v = (*v - top).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|v| *v /= sum);
}

impl OpDef for Softmax {
    const NAME: &'static str = "softmax";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let types = infer_unary(inputs, false)?;
        shape_rules::axis(self.axis, types[0].rank())?;
        Ok(types)
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = inputs[0].shape();
        let axis = shape_rules::axis(self.axis, shape.len())?;
        let (n, step) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        let mut data = inputs[0].to_f64();
        let mut row = vec![0.0; n];
        for start in (0..data.len()).filter(|i| i / step % n == 0) {
            row.iter_mut().enumerate().for_each(|(i, v)| *v = data[start + i * step]);
            softmax(&mut row);
            row.iter().enumerate().for_each(|(i, v)| data[start + i * step] = *v);
        }
        Ok(vec![Tensor::from_f64(results[0].dtype, shape, &data)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 7.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 16.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (y, g) = (at.result(0), at.cotangent()?);
        let rank = at.ty(y).rank();
        let axis = shape_rules::axis(self.axis, rank).map_err(|e| at.refuse(e))?;
        let product = at.mul(g, y)?;
        let sum = at.sum(product, &[axis])?;
        let centred = at.sub(g, sum)?;
        let part = at.mul(y, centred)?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2], vec![0.0, 3f32.ln()]);
        vec![
            Case::known("known", Self { axis: -1 }, vec![x], vec![Tensor::from_f32(&[2], vec![0.25, 0.75])]),
            Case::known(
                "large",
                Self { axis: 0 },
                vec![Tensor::from_f32(&[2], vec![1e4, -1e4])],
                vec![Tensor::from_f32(&[2], vec![1.0, 0.0])],
            ),
            Case::new("rows_65", Self { axis: -1 }, vec![Tensor::wave(DType::F32, &[3, 65], 1)]),
            Case::new("rows_1374", Self { axis: -1 }, vec![Tensor::wave(DType::F32, &[2, 1374], 1)]),
            Case::new("middle", Self { axis: 1 }, vec![Tensor::wave(DType::F32, &[2, 63, 3], 1)]),
            Case::new("one", Self { axis: -1 }, vec![Tensor::wave(DType::F16, &[4, 1], 1)]),
        ]
    }
}
