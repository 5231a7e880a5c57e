//! `layer_norm(x, [g, b]) {eps}`: rows with mean zero and variance one (Ba, Kiros, Hinton 2016).

use super::{Case, Cost, LayerNormGrad, OpDef, Tolerance, traffic};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// (x − mean)/√(var + eps)·g + b over the last axis, var biased. With one operand there is neither g nor b.
    pub struct LayerNorm {
        /// Added to the variance.
        pub eps: f64 = 1e-5,
        /// The element type of the result; that of x by default.
        pub out: Option<DType> = None,
    }
}

/// Checks x and optional g, b; returns x.
pub fn infer_affine(inputs: &[ValueType]) -> Result<&ValueType, String> {
    let (x, affine) = inputs.split_first().ok_or("takes x at least")?;
    let c = x.shape.last().ok_or("x needs a dimension")?;
    if !matches!(affine.len(), 0 | 2) || !x.dtype.is_float() {
        return Err(format!("takes floating-point x, or x, g and b; not {} operands with x {x}", inputs.len()));
    }
    match affine.iter().find(|t| t.shape != [c.clone()] || !t.dtype.is_float()) {
        Some(odd) => Err(format!("g and b must have shape [{c}], not {odd}")),
        None => Ok(x),
    }
}

/// Normalised rows in f64.
pub fn normalise(inputs: &[&Tensor], eps: f64) -> Vec<f64> {
    let c = inputs[0].shape().last().copied().unwrap_or(1).max(1);
    let mut x = inputs[0].to_f64();
    let affine = inputs.get(1).zip(inputs.get(2)).map(|(g, b)| (g.to_f64(), b.to_f64()));
    for row in x.chunks_mut(c) {
        let mean = row.iter().sum::<f64>() / c as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
        let scale = (variance + eps).sqrt().recip();
        for (i, v) in row.iter_mut().enumerate() {
            *v = (*v - mean) * scale;
            if let Some((g, b)) = &affine {
                *v = *v * g[i] + b[i];
            }
        }
    }
    x
}

impl OpDef for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let x = infer_affine(inputs)?;
        Ok(vec![x.with_dtype(self.out.unwrap_or(x.dtype))])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Ok(vec![Tensor::from_f64(results[0].dtype, inputs[0].shape(), &normalise(inputs, self.eps))])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 8.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 16.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (g, x) = (at.cotangent()?, at.operand(0));
        let operands: Vec<_> = [g, x].into_iter().chain(at.operands().get(1).copied()).collect();
        let part = at.op(LayerNormGrad { eps: self.eps }, &operands)?;
        at.give(0, part)?;
        if at.operands().len() == 3 {
            let out = Some(at.ty(g).dtype);
            let normal = at.op(Self { eps: self.eps, out }, &[x])?;
            let part = at.mul(g, normal)?;
            at.give(1, part)?;
            at.give(2, g)?;
        }
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        let plain = |eps| Self { eps, out: None };
        let mut cases = vec![Case::known(
            "known",
            plain(0.0),
            vec![
                Tensor::from_f32(&[2], vec![1.0, 3.0]),
                Tensor::from_f32(&[2], vec![2.0, 2.0]),
                Tensor::from_f32(&[2], vec![0.5, 0.0]),
            ],
            vec![Tensor::from_f32(&[2], vec![-1.5, 2.0])],
        )];
        for (name, rows, c, dtype) in [
            ("one", 1, 64, DType::F32),
            ("rows_65", 65, 192, DType::F32),
            ("rows_1374", 1374, 64, DType::F32),
            ("f16", 63, 64, DType::F16),
            ("bf16", 2, 1024, DType::BF16),
        ] {
            cases.push(Case::new(
                name,
                plain(1e-6),
                vec![wave(dtype, &[rows, c], 1), wave(dtype, &[c], 2), wave(dtype, &[c], 3)],
            ));
        }
        let out = Self { eps: 1e-6, out: Some(DType::F32) };
        let (x, affine) = (wave(DType::BF16, &[5, 64], 1), [2, 3].map(|seed| wave(DType::F32, &[64], seed)));
        cases.push(Case::new("bf16_to_f32", out, [vec![x], affine.to_vec()].concat()));
        cases.push(Case::new("no_affine", plain(1e-6), vec![wave(DType::F32, &[3, 63], 1)]));
        cases
    }
}
