//! `fake_quantize(x) {scale}`: x as e4m3 sees it, in its own element type.

use super::{
    Case, Cost, OpDef, Tolerance,
    elementwise::operands,
    quantize::{Granularity, SMALLEST_SCALE, quantize},
    traffic,
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// `dequantize(quantize(x))` in the element type of x. For training: its gradient is that of the identity (straight
    /// through; Bengio et al. 2013).
    pub struct FakeQuantize {
        /// What shares a scale.
        pub scale: Granularity = Granularity::Row,
    }
}

impl OpDef for FakeQuantize {
    const NAME: &'static str = "fake_quantize";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if !x.dtype.is_float() || x.dtype.size() == 1 {
            return Err(format!("takes a floating-point operand of 16 bits or more, not {x}"));
        }
        self.scale.scales(x)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = inputs[0].shape();
        let k = shape.last().copied().unwrap_or(1).max(1);
        let (codes, scales) = quantize(&inputs[0].to_f64(), k, self.scale);
        let values: Vec<f64> = codes.iter().enumerate().map(|(i, c)| c * scales[self.scale.group(i, k)]).collect();
        Ok(vec![Tensor::from_f64(results[0].dtype, shape, &values)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 4.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    /// A step of e4m3 at the top, where x/scale lies between two codes.
    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance { absolute: SMALLEST_SCALE, relative: 32.0 / 448.0 }
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        at.give(0, g)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2, 2], vec![448.0, 17.0, 0.0, 0.0]);
        let y = Tensor::from_f32(&[2, 2], vec![448.0, 16.0, 0.0, 0.0]);
        let mut cases = vec![Case::known("known", Self { scale: Granularity::Row }, vec![x], vec![y])];
        for (name, shape, scale, dtype) in [
            ("one", &[1, 1][..], Granularity::Row, DType::F32),
            ("rows_65", &[65, 63], Granularity::Row, DType::F32),
            ("tensor_64", &[64, 64], Granularity::Tensor, DType::F32),
            ("frame_1374", &[1374, 130], Granularity::Columns(128), DType::F32),
            ("bf16", &[63, 64], Granularity::Row, DType::BF16),
        ] {
            cases.push(Case::new(name, Self { scale }, vec![Tensor::wave(dtype, shape, 1)]));
        }
        cases
    }
}
