//! `quantize_items(x) {activation}`: e4m3 codes and one scale for each item of the first dimension.

use super::{
    Case, Cost, OpDef, Tolerance,
    activation::Activation,
    elementwise::operands,
    quantize::{Granularity, SMALLEST_SCALE, code_tolerance, quantize},
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// act(x), x [N, ..], as codes f8e4m3 of the same shape and scales f32 [N]: an item is an image of a batch, or the
    /// weights of an output channel. Scales and codes as those of `quantize`.
    pub struct QuantizeItems {
        /// Applied to x before.
        pub activation: Activation = Activation::None,
    }
}

impl OpDef for QuantizeItems {
    const NAME: &'static str = "quantize_items";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if !x.dtype.is_float() || x.dtype.size() == 1 {
            return Err(format!("takes a floating-point operand of 16 bits or more, not {x}"));
        }
        let items = x.shape.first().ok_or("x needs a dimension")?;
        Ok(vec![x.with_dtype(DType::F8E4M3), ValueType::new(DType::F32, [items.clone()])])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let x: Vec<f64> = inputs[0].to_f64().into_iter().map(|v| self.activation.apply(v)).collect();
        let items = inputs[0].shape()[0];
        let (codes, mut scales) = quantize(&x, (x.len() / items.max(1)).max(1), Granularity::Row);
        scales.resize(items, SMALLEST_SCALE);
        Ok(vec![
            Tensor::from_f64(results[0].dtype, inputs[0].shape(), &codes),
            Tensor::from_f64(results[1].dtype, &[items], &scales),
        ])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let flops = (3.0 + self.activation.flops()) * results[0].elements().unwrap_or(0) as f64;
        Cost { flops, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        code_tolerance(result)
    }

    fn cases() -> Vec<Case> {
        let of = |activation| Self { activation };
        let f32s = |shape: &[usize], v: &[f32]| Tensor::from_f32(shape, v.to_vec());
        let codes = |shape: &[usize], v: &[f64]| Tensor::from_f64(DType::F8E4M3, shape, v);
        let x = f32s(&[2, 1, 2], &[896.0, -1792.0, 0.0, 0.0]);
        let mut cases = vec![
            Case::known(
                "known",
                of(Activation::None),
                vec![x.clone()],
                vec![codes(&[2, 1, 2], &[224.0, -448.0, 0.0, 0.0]), f32s(&[2], &[4.0, f32::MIN_POSITIVE])],
            ),
            Case::known(
                "known_relu",
                of(Activation::Relu),
                vec![x],
                vec![codes(&[2, 1, 2], &[448.0, 0.0, 0.0, 0.0]), f32s(&[2], &[2.0, f32::MIN_POSITIVE])],
            ),
        ];
        for (name, shape, activation, dtype) in [
            ("one", &[1][..], Activation::None, DType::F32),
            ("empty_items", &[3, 0], Activation::None, DType::F32),
            ("odd", &[65, 63], Activation::None, DType::F32),
            ("weights", &[64, 3, 3, 48], Activation::None, DType::F32),
            ("images", &[2, 37, 37, 64], Activation::Relu, DType::BF16),
            ("odd_images", &[3, 5, 7, 9], Activation::Relu, DType::BF16),
            ("one_image", &[1, 1374, 65], Activation::Gelu, DType::F16),
        ] {
            cases.push(Case::new(name, of(activation), vec![Tensor::wave(dtype, shape, 1)]));
        }
        cases
    }
}

/// Codes and scales of a tensor: operands for cases.
pub fn quantized_items(x: &Tensor) -> Vec<Tensor> {
    let op = QuantizeItems { activation: Activation::None };
    let types = op.infer(&[x.value_type()]).expect("cases fit");
    op.eval(&[x], &types).expect("cases fit")
}
