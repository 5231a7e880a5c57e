//! `layer_norm_grad(g, x, [gain]) {eps}`: what rows get back through `layer_norm`.

use super::{Case, Cost, OpDef, Tolerance, traffic};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// dx = (h − mean(h) − x̂·mean(h·x̂))/√(var + eps) over the last axis, with h = g·gain and x̂ = (x − mean)/√(var +
    /// eps): g like x in any floating-point type, gain [C], or none for ones; dx in the type of x.
    pub struct LayerNormGrad {
        /// Added to the variance.
        pub eps: f64 = 1e-5,
    }
}

impl OpDef for LayerNormGrad {
    const NAME: &'static str = "layer_norm_grad";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [g, x, gain @ ..] = inputs else { return Err("takes g and x at least".into()) };
        let c = x.shape.last().ok_or("x needs a dimension")?;
        if g.shape != x.shape || !g.dtype.is_float() || !x.dtype.is_float() || gain.len() > 1 {
            return Err(format!("takes floating-point g and x of one shape, and a gain, not {g} and {x}"));
        }
        match gain.iter().find(|t| t.shape != [c.clone()] || !t.dtype.is_float()) {
            Some(odd) => Err(format!("a gain must have shape [{c}], not {odd}")),
            None => Ok(vec![x.clone()]),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let c = inputs[1].shape().last().copied().unwrap_or(1).max(1);
        let (mut h, x) = (inputs[0].to_f64(), inputs[1].to_f64());
        if let Some(gain) = inputs.get(2).map(|t| t.to_f64()) {
            h.iter_mut().enumerate().for_each(|(i, h)| *h *= gain[i % c]);
        }
        let mean = |row: &[f64]| row.iter().sum::<f64>() / c as f64;
        for (h, x) in h.chunks_mut(c).zip(x.chunks(c)) {
            let centre = mean(x);
            let centred: Vec<f64> = x.iter().map(|v| v - centre).collect();
            let variance = mean(&centred.iter().map(|v| v * v).collect::<Vec<_>>());
            let scale = (variance + self.eps).sqrt().recip();
            let along = mean(&h.iter().zip(&centred).map(|(h, v)| h * v * scale).collect::<Vec<_>>());
            let level = mean(h);
            h.iter_mut().zip(&centred).for_each(|(h, v)| *h = (*h - level - v * scale * along) * scale);
        }
        Ok(vec![Tensor::from_f64(results[0].dtype, inputs[1].shape(), &h)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 14.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 32.0)
    }

    fn cases() -> Vec<Case> {
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        let row = |values: [f32; 4]| Tensor::from_f32(&[4], values.to_vec());
        let plain = Self { eps: 1e-6 };
        let mut cases = vec![Case::known(
            "known",
            Self { eps: 0.0 },
            vec![row([2.0, 0.0, 0.0, 0.0]), row([-1.0, -1.0, 1.0, 1.0]), row([2.0, 1.0, 1.0, 1.0])],
            vec![row([2.0, -2.0, 0.0, 0.0])],
        )];
        for (name, rows, c, dtype) in [
            ("one", 1, 64, DType::F32),
            ("rows_65", 65, 192, DType::F32),
            ("rows_1374", 1374, 64, DType::F32),
            ("f16", 63, 64, DType::F16),
            ("bf16", 2, 1024, DType::BF16),
            ("bf16_odd", 3, 65, DType::BF16),
        ] {
            let inputs = vec![wave(dtype, &[rows, c], 1), wave(dtype, &[rows, c], 2), wave(dtype, &[c], 3)];
            cases.push(Case::new(name, plain.clone(), inputs));
        }
        let (narrow, wide) = (wave(DType::BF16, &[2, 5, 384], 1), wave(DType::F32, &[2, 5, 384], 2));
        cases.push(Case::new(
            "wide_rows",
            plain.clone(),
            vec![narrow.clone(), wide.clone(), wave(DType::F32, &[384], 3)],
        ));
        cases.push(Case::new("wide_cotangent", plain.clone(), vec![wide, narrow, wave(DType::F32, &[384], 3)]));
        cases.push(Case::new("no_gain", plain, vec![wave(DType::F32, &[3, 63], 1), wave(DType::F32, &[3, 63], 2)]));
        cases
    }
}
