//! `conv2d_weight_grad(x, g) {kernel, …}`: what the weights of a convolution get back.

use rayon::prelude::*;

use super::{Case, Conv2d, Cost, OpDef, Tolerance, activation::Activation, images::ImageLayout, traffic};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// dw[o, c, k] = Σ g[n, o, i]·x[n, c, i·stride + k·dilation − pad] over images n and pixels i, where x outside is
    /// zero: x [N, I, H, W], g [N, O, OH, OW], dw [O, I/groups, kh, kw]; or, with `layout=nhwc`, x [N, H, W, I], g [N,
    /// OH, OW, O] and dw [O, kh, kw, I/groups]. g may lack the last rows and columns of the convolution.
    pub struct Conv2dWeightGrad {
        /// Rows and columns of the kernel.
        pub kernel: Vec<usize>,
        /// Rows and columns between neighbours.
        pub strides: Vec<usize> = [1, 1],
        /// Zeros above, left, below, right.
        pub pads: Vec<usize> = [0, 0, 0, 0],
        /// Rows and columns between taps.
        pub dilations: Vec<usize> = [1, 1],
        /// Channel groups.
        pub groups: usize = 1usize,
        /// How x, g and dw lie in memory.
        pub layout: ImageLayout = ImageLayout::Planes,
    }
}

impl Conv2dWeightGrad {
    /// Of the weights of such a convolution with a kernel of that size.
    pub fn of(op: &Conv2d, kernel: [usize; 2]) -> Self {
        Self {
            kernel: kernel.to_vec(),
            strides: op.strides.clone(),
            pads: op.pads.clone(),
            dilations: op.dilations.clone(),
            groups: op.groups,
            layout: op.layout,
        }
    }

    /// The convolution, without anything behind its sum.
    pub fn convolution(&self) -> Conv2d {
        Conv2d {
            strides: self.strides.clone(),
            pads: self.pads.clone(),
            dilations: self.dilations.clone(),
            groups: self.groups,
            layout: self.layout,
            activation: Activation::None,
            bias: false,
            residual: false,
            rectified: false,
        }
    }
}

impl OpDef for Conv2dWeightGrad {
    const NAME: &'static str = "conv2d_weight_grad";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, g] = inputs else { return Err("takes x and g".into()) };
        let Some(([_, i, ..], [n, o, gh, gw])) = self.layout.planes(&x.shape).zip(self.layout.planes(&g.shape)) else {
            return Err(format!("takes images {}, not {x} and {g}", self.layout.word()));
        };
        let channels = i.divide(&Dim::from(self.groups));
        let (&[kh, kw], Some(channels), Some(_)) = (&self.kernel[..], channels, o.divide(&Dim::from(self.groups)))
        else {
            return Err(format!("a kernel {:?} in {} groups does not go with {x} and {g}", self.kernel, self.groups));
        };
        let w = x.with_shape(self.layout.shape([o.clone(), channels, kh.into(), kw.into()]));
        let y = self.convolution().infer(&[x.clone(), w.clone()])?.remove(0);
        let [yn, yo, yh, yw] = self.layout.planes(&y.shape).ok_or("takes images")?;
        let within = |part: &Dim, whole: &Dim| part.size().zip(whole.size()).is_some_and(|(p, w)| p <= w);
        match g.dtype == x.dtype && n == yn && o == yo && within(&gh, &yh) && within(&gw, &yw) {
            true => Ok(vec![w]),
            false => Err(format!("g {g} is not like {y}")),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let sizes = |shape: &[usize]| self.layout.planes(shape).ok_or("takes images");
        let (from, to, taps) = (sizes(inputs[0].shape())?, sizes(inputs[1].shape())?, sizes(&shape)?);
        let ([n, channels, h, w], [_, o, oh, ow], [_, ig, kh, kw]) = (from, to, taps);
        let planes = |tensor: &Tensor, size| self.layout.to_planes(tensor.to_f64(), size);
        let (x, g) = (planes(inputs[0], from), planes(inputs[1], to));
        let mut dw = vec![0.0; o * ig * kh * kw];
        dw.par_iter_mut().enumerate().for_each(|(at, sum)| {
            let (oc, ic, ky, kx) = (at / (ig * kh * kw), at / (kh * kw) % ig, at / kw % kh, at % kw);
            let channel = oc / (o / self.groups) * ig + ic;
            for image in 0..n {
                let source = &x[(image * channels + channel) * h * w..][..h * w];
                let plane = &g[(image * o + oc) * oh * ow..][..oh * ow];
                for i in 0..oh {
                    let row = (i * self.strides[0] + ky * self.dilations[0]).wrapping_sub(self.pads[0]);
                    if row >= h {
                        continue;
                    }
                    for j in 0..ow {
                        let column = (j * self.strides[1] + kx * self.dilations[1]).wrapping_sub(self.pads[1]);
                        if column < w {
                            *sum += plane[i * ow + j] * source[row * w + column];
                        }
                    }
                }
            }
        });
        Ok(vec![Tensor::from_f64(results[0].dtype, &shape, &self.layout.of_planes(dw, taps))])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let taps: f64 = results[0].shape[1..].iter().map(|d| d.size().unwrap_or(0) as f64).product();
        Cost { flops: 2.0 * taps * inputs[1].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 32.0)
    }

    fn cases() -> Vec<Case> {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        let ones = |shape: &[usize]| Tensor::from_f32(shape, vec![1.0; shape.iter().product()]);
        let same = |k: usize| Self::of(&Conv2d::same(k / 2, false), [k, k]);
        let pixels = |op: &Self| Self { layout: ImageLayout::Pixels, ..op.clone() };
        let halving = Self { strides: vec![2, 2], ..same(3) };
        let patches = Self { strides: vec![14, 14], pads: vec![0; 4], ..same(14) };
        let grouped = Self { groups: 2, dilations: vec![2, 1], ..same(3) };
        vec![
            Case::known(
                "border",
                same(3),
                vec![ones(&[1, 1, 2, 2]), ones(&[1, 1, 2, 2])],
                vec![Tensor::from_f32(&[1, 1, 3, 3], vec![1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0])],
            ),
            Case::new("same_3x3", same(3), vec![wave(&[2, 5, 7, 9], 1), wave(&[2, 6, 7, 9], 2)]),
            Case::new("pointwise", same(1), vec![wave(&[2, 33, 5, 13], 1), wave(&[2, 65, 5, 13], 2)]),
            Case::new("stride_2", halving.clone(), vec![wave(&[1, 4, 7, 8], 1), wave(&[1, 3, 4, 4], 2)]),
            Case::new("patches", patches, vec![wave(&[2, 3, 28, 42], 1), wave(&[2, 8, 2, 3], 2)]),
            Case::new("grouped_dilated", grouped.clone(), vec![wave(&[1, 4, 6, 5], 1), wave(&[1, 6, 4, 5], 2)]),
            Case::new("one_pixel", same(3), vec![wave(&[1, 2, 1, 1], 1), wave(&[1, 2, 1, 1], 2)]),
            Case::new("cut", same(2), vec![wave(&[2, 3, 6, 5], 1), wave(&[2, 4, 6, 4], 2)]),
            Case::new("tall", same(3), vec![wave(&[1, 3, 1374, 2], 1), wave(&[1, 2, 1374, 2], 2)]),
            Case::new("bf16", same(3), vec![bf16(&[1, 8, 6, 6], 1), bf16(&[1, 4, 6, 6], 2)]),
            Case::new("bf16_wide", same(3), vec![bf16(&[2, 72, 7, 13], 1), bf16(&[2, 130, 7, 13], 2)]),
            Case::new("pixels", pixels(&same(3)), vec![wave(&[2, 5, 7, 3], 1), wave(&[2, 5, 7, 5], 2)]),
            Case::new("pixels_64", pixels(&same(3)), vec![wave(&[1, 9, 8, 64], 1), wave(&[1, 9, 8, 65], 2)]),
            Case::new("pixels_grouped", pixels(&grouped), vec![wave(&[1, 6, 5, 4], 1), wave(&[1, 4, 5, 6], 2)]),
            Case::new("pixels_bf16", pixels(&same(3)), vec![bf16(&[2, 19, 21, 72], 1), bf16(&[2, 19, 21, 136], 2)]),
            Case::new(
                "pixels_bf16_narrow",
                pixels(&same(3)),
                vec![bf16(&[3, 33, 30, 128], 1), bf16(&[3, 33, 30, 32], 2)],
            ),
            Case::new(
                "pixels_bf16_stride_2",
                pixels(&halving),
                vec![bf16(&[2, 37, 35, 64], 1), bf16(&[2, 19, 18, 128], 2)],
            ),
            Case::new("pixels_bf16_odd", pixels(&same(3)), vec![bf16(&[1, 5, 6, 9], 1), bf16(&[1, 5, 6, 7], 2)]),
            Case::new(
                "pixels_bf16_pointwise",
                pixels(&same(1)),
                vec![bf16(&[2, 9, 7, 64], 1), bf16(&[2, 9, 7, 48], 2)],
            ),
            Case::new(
                "pixels_bf16_pointwise_wide",
                pixels(&same(1)),
                vec![bf16(&[2, 9, 7, 200], 1), bf16(&[2, 9, 7, 136], 2)],
            ),
            Case::new(
                "pixels_bf16_two_outputs",
                pixels(&same(1)),
                vec![bf16(&[2, 83, 61, 32], 1), bf16(&[2, 83, 61, 2], 2)],
            ),
            Case::new(
                "pixels_bf16_four_outputs",
                pixels(&same(1)),
                vec![bf16(&[1, 9, 7, 40], 1), bf16(&[1, 9, 7, 4], 2)],
            ),
            Case::new("pixels_bf16_many", pixels(&same(3)), vec![bf16(&[5, 44, 44, 32], 1), bf16(&[5, 44, 44, 32], 2)]),
            Case::new("pixels_bf16_few", pixels(&same(3)), vec![bf16(&[2, 15, 31, 16], 1), bf16(&[2, 15, 31, 72], 2)]),
            Case::new(
                "pixels_bf16_cut",
                Self { pads: vec![2, 1, 1, 2], ..pixels(&same(3)) },
                vec![bf16(&[1, 9, 10, 40], 1), bf16(&[1, 8, 9, 24], 2)],
            ),
        ]
    }
}
