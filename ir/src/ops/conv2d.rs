//! `conv2d(x, w, [b], [residual])`: cross-correlation of images, y = act(x ∗ w + b) + residual.

use rayon::prelude::*;

use super::{Case, Cost, OpDef, Tolerance, activation::Activation, images::ImageLayout, traffic};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// y = act(x ∗ w + b) + residual with zero padding: x [N, I, H, W], w [O, I/groups, kh, kw], b [O], residual like
    /// y; or, with `layout=nhwc`, x [N, H, W, I] and w [O, kh, kw, I/groups].
    pub struct Conv2d {
        /// Rows and columns between neighbours.
        pub strides: Vec<usize> = [1, 1],
        /// Zeros above, left, below, right.
        pub pads: Vec<usize> = [0, 0, 0, 0],
        /// Rows and columns between taps.
        pub dilations: Vec<usize> = [1, 1],
        /// Channel groups.
        pub groups: usize = 1usize,
        /// How x, w, residual and y lie in memory.
        pub layout: ImageLayout = ImageLayout::Planes,
        /// Applied to the sum with its bias.
        pub activation: Activation = Activation::None,
        /// Whether there is a bias operand.
        pub bias: bool = false,
        /// Whether there is a residual operand, the last.
        pub residual: bool = false,
        /// Whether max(y, 0) is a second result; with `layout=nhwc`.
        pub rectified: bool = false,
    }
}

impl Conv2d {
    /// A dense convolution of stride one with equal padding on all sides.
    pub fn same(pad: usize, bias: bool) -> Self {
        Self {
            strides: vec![1, 1],
            pads: vec![pad; 4],
            dilations: vec![1, 1],
            groups: 1,
            layout: ImageLayout::Planes,
            activation: Activation::None,
            bias,
            residual: false,
            rectified: false,
        }
    }
}

impl OpDef for Conv2d {
    const NAME: &'static str = "conv2d";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, w, extra @ ..] = inputs else { return Err("takes x and w at least".into()) };
        let Some(([n, i, h, ww], [o, ig, kh, kw])) = self.layout.planes(&x.shape).zip(self.layout.planes(&w.shape))
        else {
            return Err(format!("takes x [N,I,H,W] and w [O,I,kh,kw] as {}, not {x} and {w}", self.layout.word()));
        };
        if x.dtype != w.dtype || !x.dtype.is_float() {
            return Err(format!("x and w must share a floating-point type, not {x} and {w}"));
        }
        let lists =
            [&self.strides, &self.dilations].iter().all(|l| l.len() == 2 && !l.contains(&0)) && self.pads.len() == 4;
        if !lists || self.groups == 0 || ig * Dim::from(self.groups) != i {
            return Err(format!(
                "{} groups of {w} do not fit {x}, or strides, pads, dilations are malformed",
                self.groups
            ));
        }
        let along = |size: &Dim, k: &Dim, axis: usize| -> Result<Dim, String> {
            let (size, k) = size.size().zip(k.size()).ok_or("needs static image sizes")?;
            let padded = size + self.pads[axis] + self.pads[axis + 2];
            let reach = self.dilations[axis] * k.saturating_sub(1) + 1;
            let room =
                padded.checked_sub(reach).ok_or_else(|| format!("a kernel of {reach} does not fit {padded} pixels"))?;
            Ok(Dim::from(room / self.strides[axis] + 1))
        };
        let y = x.with_shape(self.layout.shape([n, o.clone(), along(&h, &kh, 0)?, along(&ww, &kw, 1)?]));
        let (bias, residual) = (self.bias as usize, self.residual as usize);
        if extra.len() != bias + residual
            || self.bias && extra[0].shape != [o.clone()]
            || self.residual && extra[bias].shape != y.shape
        {
            return Err(format!("bias [{o}] and residual like {y} do not fit the operands behind w"));
        }
        rectifiable(self.rectified, self.layout, y)
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let sizes = |shape: &[usize]| self.layout.planes(shape).ok_or("takes images");
        let (from, taps, to) = (sizes(inputs[0].shape())?, sizes(inputs[1].shape())?, sizes(&shape)?);
        let ([_, channels, h, w], [o, ig, kh, kw], [_, _, oh, ow]) = (from, taps, to);
        let planes = |tensor: &Tensor, size| self.layout.to_planes(tensor.to_f64(), size);
        let (x, k) = (planes(inputs[0], from), planes(inputs[1], taps));
        let bias = self.bias.then(|| inputs[2].to_f64());
        let residual = self.residual.then(|| planes(inputs[inputs.len() - 1], to));
        let mut y = vec![0.0; shape.iter().product()];
        y.par_chunks_mut((oh * ow).max(1)).enumerate().for_each(|(plane, out)| {
            let (image, oc) = (plane / o, plane % o);
            let first = oc / (o / self.groups) * ig;
            for ic in 0..ig {
                let source = &x[(image * channels + first + ic) * h * w..][..h * w];
                for (ky, kx) in (0..kh * kw).map(|t| (t / kw, t % kw)) {
                    let tap = k[((oc * ig + ic) * kh + ky) * kw + kx];
                    for (i, value) in out.iter_mut().enumerate() {
                        let row = (i / ow * self.strides[0] + ky * self.dilations[0]).wrapping_sub(self.pads[0]);
                        let column = (i % ow * self.strides[1] + kx * self.dilations[1]).wrapping_sub(self.pads[1]);
                        if row < h && column < w {
                            *value += tap * source[row * w + column];
                        }
                    }
                }
            }
            for (i, value) in out.iter_mut().enumerate() {
                let sum = *value + bias.as_ref().map_or(0.0, |b| b[oc]);
                *value = self.activation.apply(sum) + residual.as_ref().map_or(0.0, |r| r[plane * oh * ow + i]);
            }
        });
        Ok(rectified(results, &shape, self.layout.of_planes(y, to)))
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let taps: f64 = inputs[1].shape[1..].iter().map(|d| d.size().unwrap_or(0) as f64).product();
        Cost { flops: 2.0 * taps * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 32.0)
    }

    fn cases() -> Vec<Case> {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let ones = |shape: &[usize]| Tensor::from_f32(shape, vec![1.0; shape.iter().product()]);
        let strided = Self { strides: vec![2, 2], ..Self::same(1, true) };
        let patch = Self { strides: vec![14, 14], ..Self::same(0, true) };
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        let dilated = Self { dilations: vec![2, 2], ..Self::same(2, false) };
        let fused = Self { activation: Activation::Relu, residual: true, ..Self::same(1, true) };
        let grouped = Self { groups: 2, dilations: vec![2, 1], ..Self::same(1, false) };
        let pixels = |op: &Self| Self { layout: ImageLayout::Pixels, ..op.clone() };
        let halving = Self { strides: vec![2, 2], ..fused.clone() };
        vec![
            Case::known(
                "border",
                Self::same(1, false),
                vec![ones(&[1, 1, 2, 2]), ones(&[1, 1, 3, 3])],
                vec![Tensor::from_f32(&[1, 1, 2, 2], vec![4.0; 4])],
            ),
            Case::new(
                "same_3x3",
                Self::same(1, true),
                vec![wave(&[2, 5, 7, 9], 1), wave(&[6, 5, 3, 3], 2), wave(&[6], 3)],
            ),
            Case::new(
                "pointwise",
                Self::same(0, true),
                vec![wave(&[2, 33, 5, 13], 1), wave(&[65, 33, 1, 1], 2), wave(&[65], 3)],
            ),
            Case::new("stride_2", strided, vec![wave(&[1, 4, 7, 8], 1), wave(&[3, 4, 3, 3], 2), wave(&[3], 3)]),
            Case::new("patches", patch, vec![wave(&[2, 3, 28, 42], 1), wave(&[8, 3, 14, 14], 2), wave(&[8], 3)]),
            Case::new(
                "fused",
                fused.clone(),
                vec![wave(&[1, 4, 5, 6], 1), wave(&[4, 4, 3, 3], 2), wave(&[4], 3), wave(&[1, 4, 5, 6], 4)],
            ),
            Case::new("pixels_grouped_dilated", pixels(&grouped), vec![wave(&[1, 6, 5, 4], 1), wave(&[6, 3, 3, 2], 2)]),
            Case::new("grouped_dilated", grouped, vec![wave(&[1, 4, 6, 5], 1), wave(&[6, 2, 3, 3], 2)]),
            Case::new(
                "pixels_fused",
                pixels(&fused),
                vec![wave(&[2, 5, 7, 3], 1), wave(&[5, 3, 3, 3], 2), wave(&[5], 3), wave(&[2, 5, 7, 5], 4)],
            ),
            Case::new(
                "pixels_bf16",
                pixels(&fused),
                vec![bf16(&[2, 19, 21, 72], 1), bf16(&[136, 3, 3, 72], 2), wave(&[136], 3), bf16(&[2, 19, 21, 136], 4)],
            ),
            Case::new(
                "pixels_bf16_wide",
                pixels(&Self::same(1, true)),
                vec![bf16(&[1, 37, 37, 64], 1), bf16(&[256, 3, 3, 64], 2), bf16(&[256], 3)],
            ),
            Case::new(
                "pixels_bf16_narrow",
                pixels(&Self { activation: Activation::Relu, ..Self::same(1, true) }),
                vec![bf16(&[3, 33, 30, 128], 1), bf16(&[32, 3, 3, 128], 2), wave(&[32], 3)],
            ),
            Case::new(
                "pixels_bf16_residual_f32",
                pixels(&fused),
                vec![bf16(&[1, 9, 8, 64], 1), bf16(&[64, 3, 3, 64], 2), wave(&[64], 3), wave(&[1, 9, 8, 64], 4)],
            ),
            Case::new(
                "pixels_bf16_stride_2",
                pixels(&halving),
                vec![bf16(&[2, 37, 35, 64], 1), bf16(&[128, 3, 3, 64], 2), wave(&[128], 3), bf16(&[2, 19, 18, 128], 4)],
            ),
            Case::new(
                "pixels_bf16_odd",
                pixels(&Self::same(1, false)),
                vec![bf16(&[1, 5, 6, 9], 1), bf16(&[7, 3, 3, 9], 2)],
            ),
            Case::new(
                "pixels_bf16_pointwise",
                pixels(&Self::same(0, true)),
                vec![bf16(&[2, 9, 7, 64], 1), bf16(&[48, 1, 1, 64], 2), wave(&[48], 3)],
            ),
            Case::new(
                "pixels_rectified",
                pixels(&Self { rectified: true, ..Self::same(1, true) }),
                vec![bf16(&[2, 19, 21, 72], 1), bf16(&[136, 3, 3, 72], 2), wave(&[136], 3)],
            ),
            Case::new("one_pixel", Self::same(1, false), vec![wave(&[1, 2, 1, 1], 1), wave(&[2, 2, 3, 3], 2)]),
            Case::new("bf16", Self::same(1, false), vec![bf16(&[1, 8, 6, 6], 1), bf16(&[4, 8, 3, 3], 2)]),
            Case::new(
                "bf16_fused_odd",
                fused.clone(),
                vec![bf16(&[2, 72, 7, 13], 1), bf16(&[130, 72, 3, 3], 2), wave(&[130], 3), wave(&[2, 130, 7, 13], 4)],
            ),
            Case::new(
                "bf16_fused_even",
                fused,
                vec![bf16(&[3, 40, 20, 22], 1), bf16(&[24, 40, 3, 3], 2), bf16(&[24], 3), bf16(&[3, 24, 20, 22], 4)],
            ),
            Case::new("bf16_dilated", dilated, vec![bf16(&[1, 16, 9, 11], 1), bf16(&[65, 16, 3, 3], 2)]),
            Case::new("bf16_pointwise", Self::same(0, false), vec![bf16(&[2, 24, 4, 10], 1), bf16(&[33, 24, 1, 1], 2)]),
            Case::new(
                "bf16_pointwise_odd",
                Self::same(0, false),
                vec![bf16(&[1, 20, 3, 5], 1), bf16(&[18, 20, 1, 1], 2)],
            ),
        ]
    }
}

/// The types of y, and of max(y, 0) where that is given too.
pub fn rectifiable(rectified: bool, layout: ImageLayout, y: ValueType) -> Result<Vec<ValueType>, String> {
    match (rectified, layout) {
        (false, _) => Ok(vec![y]),
        (true, ImageLayout::Pixels) => Ok(vec![y.clone(), y]),
        (true, ImageLayout::Planes) => Err("gives a second result with layout=nhwc alone".into()),
    }
}

/// Wide y as the first result, and max(y, 0) as the second where there is one.
pub fn rectified(results: &[ValueType], shape: &[usize], y: Vec<f64>) -> Vec<Tensor> {
    let positive = results.get(1).map(|ty| {
        let values: Vec<f64> = y.iter().map(|v| v.max(0.0)).collect();
        Tensor::from_f64(ty.dtype, shape, &values)
    });
    std::iter::once(Tensor::from_f64(results[0].dtype, shape, &y)).chain(positive).collect()
}
