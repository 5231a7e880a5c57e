//! `dequantize(q, s) {scale, out}`: codes times their scales.

use super::{
    Case, Cost, OpDef, Tolerance,
    elementwise::operands,
    quantize::{Granularity, Quantize},
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// q [.., K] f8e4m3 times the scale of its group, as `quantize` wrote them.
    pub struct Dequantize {
        /// What shares a scale.
        pub scale: Granularity = Granularity::Row,
        /// The element type of the result.
        pub out: DType = DType::F32,
    }
}

/// Checks codes against their scales.
pub fn infer_codes(q: &ValueType, s: &ValueType, scale: Granularity) -> Result<(), String> {
    let want = scale.scales(q)?;
    match q.dtype == DType::F8E4M3 && *s == want {
        true => Ok(()),
        false => Err(format!("{} scales of codes {q} must be {want}, not {s}", scale_word(scale))),
    }
}

fn scale_word(scale: Granularity) -> String {
    crate::attr::AttrField::put(&scale).to_string()
}

/// The numbers that codes and scales stand for.
pub fn dequantized(q: &Tensor, s: &Tensor, scale: Granularity) -> Vec<f64> {
    let k = q.shape().last().copied().unwrap_or(1).max(1);
    let s = s.to_f64();
    q.to_f64().into_iter().enumerate().map(|(i, v)| v * s[scale.group(i, k)]).collect()
}

impl OpDef for Dequantize {
    const NAME: &'static str = "dequantize";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [q, s] = operands(inputs)?;
        infer_codes(q, s, self.scale)?;
        match self.out.is_float() && self.out.size() > 1 {
            true => Ok(vec![q.with_dtype(self.out)]),
            false => Err(format!("out must be a floating-point type of 16 bits or more, not {}", self.out)),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let values = dequantized(inputs[0], inputs[1], self.scale);
        Ok(vec![Tensor::from_f64(results[0].dtype, inputs[0].shape(), &values)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 1.0)
    }

    fn cases() -> Vec<Case> {
        let q = Tensor::from_f64(DType::F8E4M3, &[1, 3], &[448.0, 1.0, -2.0]);
        let s = Tensor::from_f32(&[1, 2], vec![2.0, 0.5]);
        let known = Self { scale: Granularity::Columns(2), out: DType::F32 };
        let mut cases =
            vec![Case::known("columns", known, vec![q, s], vec![Tensor::from_f32(&[1, 3], vec![896.0, 2.0, -1.0])])];
        for (name, shape, scale, out) in [
            ("one", &[1, 1][..], Granularity::Row, DType::F32),
            ("rows_65", &[65, 63], Granularity::Row, DType::F32),
            ("tensor_bf16", &[64, 64], Granularity::Tensor, DType::BF16),
            ("frame_1374", &[1374, 130], Granularity::Columns(128), DType::F16),
        ] {
            cases.push(Case::new(name, Self { scale, out }, quantized(&Tensor::wave(DType::F32, shape, 1), scale)));
        }
        cases
    }
}

/// Codes and scales of a tensor: operands for cases.
pub fn quantized(x: &Tensor, scale: Granularity) -> Vec<Tensor> {
    let op = Quantize { scale };
    let types = op.infer(&[x.value_type()]).expect("cases fit");
    op.eval(&[x], &types).expect("cases fit")
}
