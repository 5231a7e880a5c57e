//! `layer_norm_quantize(x, [g, b]) {eps, scale}`: normalised rows as e4m3 codes and scales.

use super::{
    Case, Cost, OpDef, Tolerance,
    layer_norm::{infer_affine, normalise},
    quantize::{Granularity, Quantize, code_tolerance},
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// `quantize(layer_norm(x, g, b) {out=f32}) {scale}`: the same bits, in one pass over x.
    pub struct LayerNormQuantize {
        /// Added to the variance.
        pub eps: f64 = 1e-5,
        /// What shares a scale.
        pub scale: Granularity = Granularity::Row,
    }
}

impl OpDef for LayerNormQuantize {
    const NAME: &'static str = "layer_norm_quantize";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let x = infer_affine(inputs)?;
        Ok(vec![x.with_dtype(DType::F8E4M3), self.scale.scales(x)?])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let rows: Vec<f64> = normalise(inputs, self.eps).into_iter().map(|v| v as f32 as f64).collect();
        Quantize { scale: self.scale }.tensors(&rows, inputs[0].shape(), &results[1])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 11.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        match result {
            DType::F8E4M3 => code_tolerance(result),
            _ => Tolerance::ulps(result, 16.0),
        }
    }

    fn cases() -> Vec<Case> {
        let of = |scale| Self { eps: 1e-6, scale };
        let known = Case::known(
            "known",
            Self { eps: 0.0, scale: Granularity::Row },
            vec![Tensor::from_f32(&[1, 2], vec![1.0, 3.0])],
            vec![
                Tensor::from_f64(DType::F8E4M3, &[1, 2], &[-448.0, 448.0]),
                Tensor::from_f32(&[1, 1], vec![1.0 / 448.0]),
            ],
        );
        let mut cases = vec![known];
        for (name, rows, c, scale, dtype) in [
            ("one", 1, 64, Granularity::Row, DType::F32),
            ("rows_65", 65, 192, Granularity::Row, DType::F32),
            ("rows_1374", 1374, 64, Granularity::Tensor, DType::F32),
            ("columns_63", 63, 192, Granularity::Columns(128), DType::F32),
            ("bf16", 2, 1024, Granularity::Row, DType::BF16),
        ] {
            let wave = |shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
            cases.push(Case::new(name, of(scale), vec![wave(&[rows, c], 1), wave(&[c], 2), wave(&[c], 3)]));
        }
        cases
    }
}
