//! `scaled_linear(x, xs, w, ws, [b], [residual])`: a linear layer over e4m3 codes and their scales (W8A8).

use super::{
    Case, Cost, OpDef, Tolerance,
    activation::Activation,
    dequantize::{dequantized, infer_codes, quantized},
    linear::{Epilogue, infer_epilogue, infer_quantized, product, quantized_results},
    quantize::{Granularity, code_tolerance},
    traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// y = act(x̂ ŵᵀ + b) + residual, x̂ and ŵ being codes times scales: x [.., K] and w [N, K] f8e4m3 with scales xs
    /// and ws as `quantize` writes them, b [N], residual [.., N]. Sums are wide. With `quantize`, the results are those of
    /// `quantize` on y.
    pub struct ScaledLinear {
        /// Applied to the sum with its bias.
        pub activation: Activation = Activation::None,
        /// Whether there is a bias operand.
        pub bias: bool = false,
        /// Whether there is a residual operand, the last.
        pub residual: bool = false,
        /// What shares a scale in x.
        pub x_scale: Granularity = Granularity::Row,
        /// What shares a scale in w.
        pub w_scale: Granularity = Granularity::Row,
        /// The element type of y.
        pub out: DType,
        /// Whether y is given as codes f8e4m3 and scales, and what shares one.
        pub quantize: Option<Granularity> = None,
    }
}

impl OpDef for ScaledLinear {
    const NAME: &'static str = "scaled_linear";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, xs, w, ws, extra @ ..] = inputs else { return Err("takes x, xs, w and ws at least".into()) };
        infer_codes(x, xs, self.x_scale)?;
        infer_codes(w, ws, self.w_scale)?;
        if !self.out.is_float() || self.out.size() == 1 {
            return Err(format!("out must be a floating-point type of 16 bits or more, not {}", self.out));
        }
        match (x.shape.last(), w.shape.as_slice()) {
            (Some(k), [n, kw]) if k == kw => {
                infer_quantized(infer_epilogue(x, n, extra, (self.bias, self.residual), self.out)?, self.quantize)
            }
            _ => Err(format!("x [.., K] and w [N, K] do not fit: {x} and {w}")),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let [n, k] = *inputs[2].shape() else { return Err("w must be a matrix".into()) };
        let x = dequantized(inputs[0], inputs[1], self.x_scale);
        let w = dequantized(inputs[2], inputs[3], self.w_scale);
        let mut sums = product(&x, &w, k);
        sums.resize(shape.iter().product(), 0.0);
        let epilogue = Epilogue {
            activation: self.activation,
            bias: self.bias.then(|| inputs[4]),
            residual: self.residual.then(|| inputs[inputs.len() - 1]),
        };
        quantized_results(epilogue.finish(sums, n, self.out, &shape), self.quantize, results)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let k = inputs[2].shape[1].size().unwrap_or(0) as f64;
        let n = results[0].elements().unwrap_or(0) as f64;
        Cost { flops: n * (2.0 * k + self.activation.flops()), bytes: traffic(inputs, results) }
    }

    /// Hopper's tensor cores add products of e4m3 with about 14 bits (DeepSeek-V3 report, section 3.3).
    fn tolerance(&self, result: DType) -> Tolerance {
        if self.quantize.is_some() && result == DType::F8E4M3 {
            return code_tolerance(result);
        }
        let relative = (16.0 * result.epsilon()).max(2f64.powi(-11));
        Tolerance { absolute: relative * 1e-3, relative }
    }

    fn cases() -> Vec<Case> {
        let plain = Self {
            activation: Activation::None,
            bias: false,
            residual: false,
            x_scale: Granularity::Row,
            w_scale: Granularity::Row,
            out: DType::F32,
            quantize: None,
        };
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let codes = |v: &[f64]| Tensor::from_f64(DType::F8E4M3, &[1, 2], v);
        let scale = |v: f32| Tensor::from_f32(&[1, 1], vec![v]);
        let known = vec![codes(&[1.0, 2.0]), scale(2.0), codes(&[3.0, 4.0]), scale(0.5)];
        let mut cases = vec![Case::known("known", plain.clone(), known, vec![Tensor::from_f32(&[1, 1], vec![11.0])])];
        for (name, m, x_scale, w_scale) in [
            ("one", 1, Granularity::Row, Granularity::Row),
            ("below_64", 63, Granularity::Row, Granularity::Tensor),
            ("at_64", 64, Granularity::Tensor, Granularity::Row),
            ("above_64", 65, Granularity::Columns(32), Granularity::Row),
            ("frame_1374", 1374, Granularity::Row, Granularity::Row),
        ] {
            let op = Self { bias: true, x_scale, w_scale, ..plain.clone() };
            let inputs = [quantized(&wave(&[m, 48], 1), x_scale), quantized(&wave(&[40, 48], 2), w_scale)].concat();
            cases.push(Case::new(name, op, [inputs, vec![wave(&[40], 3)]].concat()));
        }
        for (name, [m, n, k], x_scale, out) in [
            ("tiles_1374", [1374, 264, 272], Granularity::Row, DType::BF16),
            ("columns_256", [130, 200, 640], Granularity::Columns(256), DType::F32),
            ("columns_128_bf16", [65, 72, 400], Granularity::Columns(128), DType::BF16),
        ] {
            let op = Self { activation: Activation::Silu, bias: true, residual: true, x_scale, out, ..plain.clone() };
            let codes =
                [quantized(&wave(&[m, k], 1), x_scale), quantized(&wave(&[n, k], 2), Granularity::Row)].concat();
            cases.push(Case::new(name, op, [codes, vec![wave(&[n], 3), wave(&[m, n], 4)]].concat()));
        }
        for (name, [m, n, k], x_scale) in [
            ("codes", [65, 520, 64], Granularity::Row),
            ("codes_1374", [1374, 512, 256], Granularity::Row),
            ("codes_of_columns", [63, 264, 512], Granularity::Columns(256)),
        ] {
            let quantize = Some(Granularity::Columns(256));
            let op = Self { activation: Activation::Gelu, bias: true, x_scale, quantize, ..plain.clone() };
            let codes =
                [quantized(&wave(&[m, k], 1), x_scale), quantized(&wave(&[n, k], 2), Granularity::Row)].concat();
            cases.push(Case::new(name, op, [codes, vec![wave(&[n], 3)]].concat()));
        }
        let epilogue = Self { activation: Activation::Gelu, bias: true, residual: true, out: DType::BF16, ..plain };
        let inputs =
            [quantized(&wave(&[2, 65, 64], 1), Granularity::Row), quantized(&wave(&[24, 64], 2), Granularity::Row)];
        cases.push(Case::new(
            "gelu_residual_bf16",
            epilogue,
            [inputs.concat(), vec![wave(&[24], 3), wave(&[2, 65, 24], 4)]].concat(),
        ));
        cases
    }
}
