//! `conv2d(x, w, [b], [residual])`: cross-correlation of images, y = act(x ∗ w + b) + residual.

use rayon::prelude::*;

use super::{
    Case, Conv2dWeightGrad, ConvTranspose2d, Cost, Gather, Less, OpDef, Pad, ReduceSum, Tolerance, Transpose, Where,
    activation::Activation, images::ImageLayout, traffic,
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
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

    /// The same without anything behind its sum but a bias.
    fn plain(&self, bias: bool) -> Self {
        Self { activation: Activation::None, bias, residual: false, rectified: false, ..self.clone() }
    }

    /// What x gets from the cotangent of the sum.
    fn image_part(&self, at: &mut Vjp<'_>, g: Value) -> Result<Value, OpError> {
        let (x, w) = (at.dims(at.operand(0))?, at.operand(1));
        let planes = |shape: &[usize]| self.layout.planes(shape).expect("images, as inferred");
        let ([_, _, h, width], [_, _, kh, kw]) = (planes(&x), planes(&at.dims(w)?));
        let reach = [self.dilations[0] * kh.saturating_sub(1), self.dilations[1] * kw.saturating_sub(1)];
        let pads: Option<Vec<usize>> = (0..4).map(|i| reach[i % 2].checked_sub(self.pads[i])).collect();
        if let Some(pads) = pads.filter(|_| self.strides == [1, 1]) {
            let turned = self.turned(at, w)?;
            return at.op(Self { pads, ..self.plain(false) }, &[g, turned]);
        }
        if let Some((g, pads)) = self.stuffed(at, g, [h, width], [kh, kw])? {
            let turned = self.turned(at, w)?;
            return at.op(Self { pads, strides: vec![1, 1], ..self.plain(false) }, &[g, turned]);
        }
        let [_, _, oh, ow] = planes(&at.dims(g)?);
        let left = |size: usize, out: usize, axis: usize| {
            size + self.pads[axis] + self.pads[axis + 2] - reach[axis] - 1 - (out - 1) * self.strides[axis]
        };
        let back = ConvTranspose2d {
            strides: self.strides.clone(),
            pads: self.pads.clone(),
            output_padding: vec![left(h, oh, 0), left(width, ow, 1)],
            dilations: self.dilations.clone(),
            groups: self.groups,
            bias: false,
        };
        if self.layout == ImageLayout::Planes {
            return at.op(back, &[g, w]);
        }
        let to_planes = Transpose { perm: vec![0, 3, 1, 2] };
        let (g, w) = (at.op(to_planes.clone(), &[g])?, at.op(to_planes, &[w])?);
        let part = at.op(back, &[g, w])?;
        at.op(Transpose { perm: vec![0, 2, 3, 1] }, &[part])
    }

    /// Cotangents with zeros between the pixels, and the padding under which a convolution of stride one takes them back
    /// to an image of that size: of kernels that are wider than their stride, whose stamps overlap.
    fn stuffed(
        &self,
        at: &mut Vjp<'_>,
        g: Value,
        size: [usize; 2],
        kernel: [usize; 2],
    ) -> Result<Option<(Value, Vec<usize>)>, OpError> {
        let shape = at.dims(g)?;
        // Rows, with columns behind them in both layouts.
        let [_, first, _] = self.layout.beside_channels();
        let [oh, ow] = [shape[first], shape[first + 1]];
        if self.dilations != [1, 1] || kernel[0] <= self.strides[0] || kernel[1] <= self.strides[1] {
            return Ok(None);
        }
        let reach = kernel.map(|k| k - 1);
        let wide = [oh * self.strides[0], ow * self.strides[1]];
        let pads = [0, 1, 0, 1].into_iter().enumerate().map(|(i, axis)| {
            let front = reach[axis].checked_sub(self.pads[axis])?;
            if i < 2 { Some(front) } else { (size[axis] + reach[axis]).checked_sub(wide[axis] + front) }
        });
        let Some(pads) = pads.collect::<Option<Vec<usize>>>() else { return Ok(None) };
        let (before, behind) = (&shape[..first], &shape[first + 2..]);
        let between = [before, &[oh, 1, ow, 1], behind].concat();
        let g = at.reshape(g, &between.into_iter().map(Dim::from).collect::<Vec<_>>())?;
        let rank = shape.len() + 2;
        let mut after = vec![0; rank];
        (after[first + 1], after[first + 3]) = (self.strides[0] - 1, self.strides[1] - 1);
        let g = at.op(Pad { before: vec![0; rank], after, value: 0.0 }, &[g])?;
        let whole = [before, &wide, behind].concat();
        Ok(Some((at.reshape(g, &whole.into_iter().map(Dim::from).collect::<Vec<_>>())?, pads)))
    }

    /// The weights of the convolution that takes cotangents back: taps turned round, inputs and outputs exchanged.
    fn turned(&self, at: &mut Vjp<'_>, w: Value) -> Result<Value, OpError> {
        let [o, ig, kh, kw] = self.layout.planes(&at.dims(w)?).expect("images, as inferred");
        let (groups, taps) = (self.groups, kh * kw);
        let (shape, axis, perm, turned) = match self.layout {
            ImageLayout::Planes => ([groups, o / groups, ig, taps], 3, [0, 2, 1, 3], [groups * ig, o / groups, kh, kw]),
            ImageLayout::Pixels => ([groups, o / groups, taps, ig], 2, [0, 3, 2, 1], [groups * ig, kh, kw, o / groups]),
        };
        let mut w = at.reshape(w, &shape.map(Dim::from))?;
        if taps > 1 {
            let order: Vec<i64> = (0..taps as i64).rev().collect();
            let order = at.constant(Tensor::from_i64(DType::I64, &[taps], &order));
            w = at.op(Gather { axis }, &[w, order])?;
        }
        let w = at.op(Transpose { perm: perm.to_vec() }, &[w])?;
        at.reshape(w, &turned.map(Dim::from))
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

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, w) = (at.operand(0), at.operand(1));
        let whole = rectified_cotangent(at, self.rectified)?;
        if self.residual {
            at.give(at.operands().len() - 1, whole)?;
        }
        let dtype = at.ty(x).dtype;
        let mut g = at.cast(whole, dtype)?;
        if self.activation != Activation::None {
            let operands = at.operands()[..2 + usize::from(self.bias)].to_vec();
            let sum = at.op(self.plain(self.bias), &operands)?;
            g = self.activation.vjp(at, sum, g)?;
        }
        let part = self.image_part(at, g)?;
        at.give(0, part)?;
        let [_, _, kh, kw] = self.layout.planes(&at.dims(w)?).expect("images, as inferred");
        let part = at.op(Conv2dWeightGrad::of(self, [kh, kw]), &[x, g])?;
        at.give(1, part)?;
        if self.bias {
            let part = at.op(ReduceSum { axes: self.layout.beside_channels().to_vec(), keep: false }, &[g])?;
            at.give(2, part)?;
        }
        Ok(())
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
            Case::new("stride_2", strided.clone(), vec![wave(&[1, 4, 7, 8], 1), wave(&[3, 4, 3, 3], 2), wave(&[3], 3)]),
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
            Case::new(
                "pixels_stride_2_odd",
                pixels(&Self { pads: vec![1, 0, 0, 1], ..strided.clone() }),
                vec![wave(&[1, 7, 8, 4], 1), wave(&[3, 3, 3, 4], 2), wave(&[3], 3)],
            ),
            Case::new("padded_beyond_taps", Self::same(2, false), vec![wave(&[1, 2, 3, 4], 1), wave(&[3, 2, 2, 1], 2)]),
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

/// The cotangent of y from those of y and, where it is given too, of max(y, 0).
pub fn rectified_cotangent(at: &mut Vjp<'_>, rectified: bool) -> Result<Value, OpError> {
    let g = at.cotangent()?;
    if !rectified || !at.has_cotangent(1) {
        return Ok(g);
    }
    let (y, positive) = (at.result(0), at.cotangent_of(1)?);
    let zero = at.number(y, 0.0);
    let above = at.op(Less {}, &[zero, y])?;
    let part = at.op(Where {}, &[above, positive, zero])?;
    at.add(g, part)
}

/// Wide y as the first result, and max(y, 0) as the second where there is one.
pub fn rectified(results: &[ValueType], shape: &[usize], y: Vec<f64>) -> Vec<Tensor> {
    let positive = results.get(1).map(|ty| {
        let values: Vec<f64> = y.iter().map(|v| v.max(0.0)).collect();
        Tensor::from_f64(ty.dtype, shape, &values)
    });
    std::iter::once(Tensor::from_f64(results[0].dtype, shape, &y)).chain(positive).collect()
}
