//! `weight_scaled_linear(x, w, ws, [b], [residual])`: a linear layer whose weights are e4m3 codes and scales (W8A16).

use super::{
    Case, Cost, OpDef, Tolerance,
    activation::Activation,
    dequantize::{dequantized, infer_codes, quantized},
    linear::{Epilogue, infer_epilogue, product},
    quantize::Granularity,
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// y = act(x ŵᵀ + b) + residual, ŵ being codes times scales: x [.., K] of 16 bits or more, w [N, K] f8e4m3 with
    /// scales ws as `quantize` writes them, b [N], residual [.., N]. Codes are widened to x; sums are wide.
    pub struct WeightScaledLinear {
        /// Applied to the sum with its bias.
        pub activation: Activation = Activation::None,
        /// Whether there is a bias operand.
        pub bias: bool = false,
        /// Whether there is a residual operand, the last.
        pub residual: bool = false,
        /// What shares a scale in w.
        pub w_scale: Granularity = Granularity::Row,
        /// The element type of the result; that of x by default.
        pub out: Option<DType> = None,
    }
}

impl OpDef for WeightScaledLinear {
    const NAME: &'static str = "weight_scaled_linear";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, w, ws, extra @ ..] = inputs else { return Err("takes x, w and ws at least".into()) };
        infer_codes(w, ws, self.w_scale)?;
        if !x.dtype.is_float() || x.dtype.size() == 1 {
            return Err(format!("x must be floating-point of 16 bits or more, not {x}"));
        }
        match (x.shape.last(), w.shape.as_slice()) {
            (Some(k), [n, kw]) if k == kw => {
                Ok(vec![infer_epilogue(x, n, extra, (self.bias, self.residual), self.out.unwrap_or(x.dtype))?])
            }
            _ => Err(format!("x [.., K] and w [N, K] do not fit: {x} and {w}")),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let [n, k] = *inputs[1].shape() else { return Err("w must be a matrix".into()) };
        let mut sums = product(&inputs[0].to_f64(), &dequantized(inputs[1], inputs[2], self.w_scale), k);
        sums.resize(shape.iter().product(), 0.0);
        let epilogue = Epilogue {
            activation: self.activation,
            bias: self.bias.then(|| inputs[3]),
            residual: self.residual.then(|| inputs[inputs.len() - 1]),
        };
        Ok(vec![epilogue.finish(sums, n, results[0].dtype, &shape)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let k = inputs[1].shape[1].size().unwrap_or(0) as f64;
        let n = results[0].elements().unwrap_or(0) as f64;
        Cost { flops: n * (2.0 * k + self.activation.flops()), bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 16.0)
    }

    fn cases() -> Vec<Case> {
        let plain =
            Self { activation: Activation::None, bias: false, residual: false, w_scale: Granularity::Row, out: None };
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        let known = vec![
            Tensor::from_f32(&[1, 2], vec![1.0, 0.5]),
            Tensor::from_f64(DType::F8E4M3, &[1, 2], &[3.0, 4.0]),
            Tensor::from_f32(&[1, 1], vec![0.5]),
        ];
        let mut cases = vec![Case::known("known", plain.clone(), known, vec![Tensor::from_f32(&[1, 1], vec![2.5])])];
        for (name, m, w_scale) in [
            ("one", 1, Granularity::Row),
            ("below_64", 63, Granularity::Tensor),
            ("at_64", 64, Granularity::Row),
            ("above_64", 65, Granularity::Columns(32)),
            ("frame_1374", 1374, Granularity::Row),
        ] {
            let w = quantized(&wave(DType::F32, &[40, 48], 2), w_scale);
            let inputs = [vec![wave(DType::F32, &[m, 48], 1)], w, vec![wave(DType::F32, &[40], 3)]].concat();
            cases.push(Case::new(name, Self { bias: true, w_scale, ..plain.clone() }, inputs));
        }
        let w = quantized(&wave(DType::F32, &[200, 136], 2), Granularity::Row);
        let inputs = [vec![wave(DType::BF16, &[1374, 136], 1)], w, vec![wave(DType::F32, &[200], 3)]].concat();
        cases.push(Case::new("bf16_tiles", Self { bias: true, ..plain.clone() }, inputs));
        let w = quantized(&wave(DType::F32, &[24, 64], 2), Granularity::Row);
        cases.push(Case::new(
            "gelu_residual_bf16",
            Self { activation: Activation::Gelu, bias: true, residual: true, out: Some(DType::F32), ..plain },
            [
                vec![wave(DType::BF16, &[2, 65, 64], 1)],
                w,
                vec![wave(DType::F32, &[24], 3), wave(DType::F32, &[2, 65, 24], 4)],
            ]
            .concat(),
        ));
        cases
    }
}
