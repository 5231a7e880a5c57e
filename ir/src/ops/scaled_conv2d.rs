//! `scaled_conv2d(x, xs, w, ws, [b], [residual])`: a convolution of e4m3 codes and their scales (W8A8).

use super::{
    Case, Conv2d, Cost, OpDef, QuantizeItems, Tolerance, activation::Activation, images::ImageLayout,
    quantize::code_tolerance, quantize_items::quantized_items, traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// y = act(x̂ ∗ ŵ + b) + residual with zero padding, x̂ and ŵ being codes times scales: x [N, H, W, I] f8e4m3 with a
    /// scale xs [N] an image, w [O, kh, kw, I] with a scale ws [O] an output channel, b [O], residual like y. Sums are
    /// wide. With `quantize`, the results are those of `quantize_items` on y.
    pub struct ScaledConv2d {
        /// Rows and columns between neighbours.
        pub strides: Vec<usize> = [1, 1],
        /// Zeros above, left, below, right.
        pub pads: Vec<usize> = [0, 0, 0, 0],
        /// Rows and columns between taps.
        pub dilations: Vec<usize> = [1, 1],
        /// Applied to the sum with its bias.
        pub activation: Activation = Activation::None,
        /// Whether there is a bias operand.
        pub bias: bool = false,
        /// Whether there is a residual operand, the last.
        pub residual: bool = false,
        /// The element type of y.
        pub out: DType,
        /// Whether y is given as codes f8e4m3 and scales.
        pub quantize: bool = false,
    }
}

impl ScaledConv2d {
    /// The convolution with its codes widened and scaled.
    pub fn wide(&self) -> Conv2d {
        Conv2d {
            strides: self.strides.clone(),
            pads: self.pads.clone(),
            dilations: self.dilations.clone(),
            groups: 1,
            layout: ImageLayout::Pixels,
            activation: self.activation,
            bias: self.bias,
            residual: self.residual,
            rectified: false,
        }
    }

    /// A convolution of codes in place of one of 16 or 32 bits; `None` for planes and groups, and
    /// where there is a second result.
    pub fn of(wide: &Conv2d, out: DType) -> Option<Self> {
        if wide.groups != 1 || wide.layout != ImageLayout::Pixels || wide.rectified {
            return None;
        }
        let Conv2d { strides, pads, dilations, activation, bias, residual, .. } = wide.clone();
        Some(Self { strides, pads, dilations, activation, bias, residual, out, quantize: false })
    }

    fn codes() -> QuantizeItems {
        QuantizeItems { activation: Activation::None }
    }
}

impl OpDef for ScaledConv2d {
    const NAME: &'static str = "scaled_conv2d";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, xs, w, ws, extra @ ..] = inputs else { return Err("takes x, xs, w and ws at least".into()) };
        for (codes, scales) in [(x, xs), (w, ws)] {
            let want = codes.shape.first().map(|items| ValueType::new(DType::F32, [items.clone()]));
            if codes.dtype != DType::F8E4M3 || want.as_ref() != Some(scales) {
                return Err(format!("takes codes f8e4m3 with a scale for each item, not {codes} and {scales}"));
            }
        }
        if !self.out.is_float() || self.out.size() == 1 {
            return Err(format!("out must be a floating-point type of 16 bits or more, not {}", self.out));
        }
        if let Some(odd) = extra.iter().find(|t| !t.dtype.is_float()) {
            return Err(format!("bias and residual must be of floating point, not {odd}"));
        }
        let y = self.wide().infer(&[&[x.clone(), w.clone()], extra].concat())?.remove(0).with_dtype(self.out);
        if self.quantize { Self::codes().infer(&[y]) } else { Ok(vec![y]) }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let (x, w) = (dequantized(inputs[0], inputs[1]), dequantized(inputs[2], inputs[3]));
        let y = results[0].with_dtype(self.out);
        let y = self.wide().eval(&[&[&x, &w], &inputs[4..]].concat(), &[y])?;
        if self.quantize { Self::codes().eval(&[&y[0]], results) } else { Ok(y) }
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let taps: f64 = inputs[2].shape[1..].iter().map(|d| d.size().unwrap_or(0) as f64).product();
        let y = results[0].elements().unwrap_or(0) as f64;
        Cost { flops: y * (2.0 * taps + self.activation.flops()), bytes: traffic(inputs, results) }
    }

    /// As `scaled_linear`.
    fn tolerance(&self, result: DType) -> Tolerance {
        if self.quantize && result == DType::F8E4M3 {
            return code_tolerance(result);
        }
        let relative = (16.0 * result.epsilon()).max(2f64.powi(-11));
        Tolerance { absolute: relative * 1e-3, relative }
    }

    fn cases() -> Vec<Case> {
        let plain = Self::of(&Conv2d { layout: ImageLayout::Pixels, ..Conv2d::same(1, false) }, DType::F32);
        let plain = plain.expect("pixels in one group");
        let fused = Self { activation: Activation::Relu, bias: true, out: DType::BF16, ..plain.clone() };
        let codes = |shape: &[usize], seed| quantized_items(&Tensor::wave(DType::F32, shape, seed));
        let known = vec![
            Tensor::from_f64(DType::F8E4M3, &[1, 1, 1, 1], &[3.0]),
            Tensor::from_f32(&[1], vec![2.0]),
            Tensor::from_f64(DType::F8E4M3, &[1, 3, 3, 1], &[9.0, 9.0, 9.0, 9.0, 5.0, 9.0, 9.0, 9.0, 9.0]),
            Tensor::from_f32(&[1], vec![0.5]),
        ];
        let mut cases =
            vec![Case::known("known", plain.clone(), known, vec![Tensor::from_f32(&[1, 1, 1, 1], vec![15.0])])];
        let halving = Self { strides: vec![2, 2], ..fused.clone() };
        let across = Self { pads: vec![0, 1, 0, 1], ..plain.clone() };
        for (name, op, x, w) in [
            ("one_pixel", &plain, [1, 1, 1, 16], [8, 3, 3, 16]),
            ("odd", &plain, [2, 5, 6, 9], [7, 3, 3, 9]),
            ("across", &across, [3, 9, 11, 160], [64, 1, 3, 160]),
            ("narrow", &fused, [3, 33, 30, 128], [32, 3, 3, 128]),
            ("wide", &fused, [1, 37, 37, 64], [256, 3, 3, 64]),
            ("stride_2", &halving, [2, 37, 35, 80], [128, 3, 3, 80]),
            ("deep", &fused, [2, 9, 7, 1024], [64, 3, 3, 1024]),
        ] {
            let bias = op.bias.then(|| Tensor::wave(DType::F32, &w[..1], 3));
            cases.push(Case::new(name, op.clone(), [codes(&x, 1), codes(&w, 2), bias.into_iter().collect()].concat()));
        }
        let operands = [codes(&[2, 19, 21, 80], 1), codes(&[136, 3, 3, 80], 2)].concat();
        let residual = |dtype| {
            let (bias, residual) = (Tensor::wave(DType::F32, &[136], 3), Tensor::wave(dtype, &[2, 19, 21, 136], 4));
            [&operands[..], &[bias, residual]].concat()
        };
        let added = Self { residual: true, ..fused.clone() };
        cases.push(Case::new("residual", added.clone(), residual(DType::BF16)));
        cases.push(Case::new("residual_f32", Self { out: DType::F32, ..added.clone() }, residual(DType::F32)));
        cases.push(Case::new("codes", Self { quantize: true, ..added }, residual(DType::BF16)));
        let operands = [codes(&[3, 37, 37, 64], 1), codes(&[128, 3, 3, 64], 2)].concat();
        let bias = Tensor::wave(DType::F32, &[128], 3);
        cases.push(Case::new("codes_wide", Self { quantize: true, ..fused }, [operands, vec![bias]].concat()));
        cases
    }
}

/// Codes times the scales of their items.
fn dequantized(codes: &Tensor, scales: &Tensor) -> Tensor {
    let (mut values, scales) = (codes.to_f64(), scales.to_f64());
    let item = (values.len() / scales.len().max(1)).max(1);
    values.iter_mut().enumerate().for_each(|(i, v)| *v *= scales[i / item]);
    Tensor::from_f64(DType::F64, codes.shape(), &values)
}
