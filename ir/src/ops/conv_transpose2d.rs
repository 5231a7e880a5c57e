//! `conv_transpose2d(x, w, [b])`: the transpose of a convolution; every pixel stamps a weighted kernel.

use super::{
    Case, Conv2d, Conv2dWeightGrad, Cost, OpDef, ReduceSum, Slice, Tolerance, activation::Activation,
    images::ImageLayout, traffic,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// y[n, o, i·s + k·dilation − pad] += x[n, c, i]·w[c, o, k], plus b: x [N, I, H, W], w [I, O/groups, kh, kw], b
    /// [O].
    pub struct ConvTranspose2d {
        /// Rows and columns between stamps.
        pub strides: Vec<usize> = [1, 1],
        /// Cut off above, left, below, right.
        pub pads: Vec<usize> = [0, 0, 0, 0],
        /// Added below and at the right.
        pub output_padding: Vec<usize> = [0, 0],
        /// Rows and columns between taps.
        pub dilations: Vec<usize> = [1, 1],
        /// Channel groups.
        pub groups: usize = 1usize,
        /// Whether there is a bias operand.
        pub bias: bool = false,
    }
}

impl ConvTranspose2d {
    /// Whether stamps of such a kernel [kh, kw] lie side by side and nothing is cut off: every number of the result, but
    /// for its bias, is of one pixel.
    pub fn stamps_lie_apart(&self, kernel: &[usize]) -> bool {
        let plain = self.pads == [0; 4] && self.output_padding == [0, 0] && self.dilations == [1, 1];
        plain && self.strides == kernel
    }

    /// The convolution that takes cotangents back, with the same weights.
    fn convolution(&self) -> Conv2d {
        Conv2d {
            strides: self.strides.clone(),
            pads: self.pads.clone(),
            dilations: self.dilations.clone(),
            groups: self.groups,
            layout: ImageLayout::Planes,
            activation: Activation::None,
            bias: false,
            residual: false,
            rectified: false,
        }
    }
}

impl OpDef for ConvTranspose2d {
    const NAME: &'static str = "conv_transpose2d";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, w, extra @ ..] = inputs else { return Err("takes x and w at least".into()) };
        let ([n, i, h, ww], [iw, og, kh, kw]) = (x.shape.as_slice(), w.shape.as_slice()) else {
            return Err(format!("takes x [N,I,H,W] and w [I,O,kh,kw], not {x} and {w}"));
        };
        let pairs = [&self.strides, &self.dilations].iter().all(|l| l.len() == 2 && !l.contains(&0));
        if x.dtype != w.dtype
            || i != iw
            || self.groups == 0
            || !pairs
            || self.pads.len() != 4
            || self.output_padding.len() != 2
        {
            return Err(format!("{x} and {w} do not fit, or strides, pads, dilations are malformed"));
        }
        let o = og.clone() * Dim::from(self.groups);
        let along = |size: &Dim, k: &Dim, a: usize| -> Result<Dim, String> {
            let (size, k) =
                size.size().zip(k.size()).filter(|(s, k)| *s > 0 && *k > 0).ok_or("needs static image sizes")?;
            let full = (size - 1) * self.strides[a] + self.dilations[a] * (k - 1) + 1 + self.output_padding[a];
            let cut = full.checked_sub(self.pads[a] + self.pads[a + 2]).ok_or("the padding cuts everything off")?;
            Ok(Dim::from(cut))
        };
        let y = x.with_shape([n.clone(), o.clone(), along(h, kh, 0)?, along(ww, kw, 1)?]);
        if extra.len() != self.bias as usize || self.bias && extra[0].shape != [o.clone()] {
            return Err(format!("a bias [{o}] does not fit the operands behind w"));
        }
        Ok(vec![y])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (&[n, channels, h, w], &[_, og, kh, kw], &[_, o, oh, ow]) =
            (inputs[0].shape(), inputs[1].shape(), &shape[..])
        else {
            return Err("takes images".into());
        };
        let (x, k) = (inputs[0].to_f64(), inputs[1].to_f64());
        let bias = self.bias.then(|| inputs[2].to_f64());
        let mut y = vec![0.0; shape.iter().product()];
        let per_group = channels / self.groups;
        for (at, value) in x.iter().enumerate() {
            let (image, c, row, column) = (at / (channels * h * w), at / (h * w) % channels, at / w % h, at % w);
            for (oc, tap) in (0..og).flat_map(|oc| (0..kh * kw).map(move |t| (oc, t))) {
                let i = (row * self.strides[0] + tap / kw * self.dilations[0]).wrapping_sub(self.pads[0]);
                let j = (column * self.strides[1] + tap % kw * self.dilations[1]).wrapping_sub(self.pads[1]);
                if i < oh && j < ow {
                    let channel = c / per_group * og + oc;
                    y[((image * o + channel) * oh + i) * ow + j] += value * k[(c * og + oc) * kh * kw + tap];
                }
            }
        }
        if let Some(bias) = bias {
            y.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i / (oh * ow) % o]);
        }
        debug_assert_eq!(y.len(), n * o * oh * ow);
        Ok(vec![Tensor::from_f64(results[0].dtype, &shape, &y)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let taps: f64 = inputs[1].shape[1..].iter().map(|d| d.size().unwrap_or(0) as f64).product();
        Cost { flops: 2.0 * taps * inputs[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 32.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, w, g) = (at.operand(0), at.operand(1), at.cotangent()?);
        let (shape, kernel) = (at.dims(x)?, at.dims(w)?);
        let mut part = at.op(self.convolution(), &[g, w])?;
        for axis in [2, 3] {
            // Output padding of a stride or more leaves room for pixels that are not there.
            if at.dims(part)?[axis] > shape[axis] {
                part = at.op(Slice { axis, start: 0.into(), end: shape[axis].into(), step: 1 }, &[part])?;
            }
        }
        at.give(0, part)?;
        let part = at.op(Conv2dWeightGrad::of(&self.convolution(), [kernel[2], kernel[3]]), &[g, x])?;
        at.give(1, part)?;
        if self.bias {
            let part = at.op(ReduceSum { axes: ImageLayout::Planes.beside_channels().to_vec(), keep: false }, &[g])?;
            at.give(2, part)?;
        }
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let by = |s: usize, pad: usize, bias| Self {
            strides: vec![s, s],
            pads: vec![pad; 4],
            output_padding: vec![0, 0],
            dilations: vec![1, 1],
            groups: 1,
            bias,
        };
        let x = Tensor::from_f32(&[1, 1, 1, 2], vec![1.0, 2.0]);
        let w = Tensor::from_f32(&[1, 1, 1, 2], vec![10.0, 1.0]);
        let stamp = Self { strides: vec![1, 2], ..by(1, 0, false) };
        vec![
            Case::known("stamp", stamp, vec![x, w], vec![Tensor::from_f32(&[1, 1, 1, 4], vec![10.0, 1.0, 20.0, 2.0])]),
            Case::new(
                "kernel_is_stride_4",
                by(4, 0, true),
                vec![wave(&[2, 6, 3, 5], 1), wave(&[6, 5, 4, 4], 2), wave(&[5], 3)],
            ),
            Case::new(
                "kernel_is_stride_2",
                by(2, 0, true),
                vec![wave(&[1, 4, 5, 4], 1), wave(&[4, 4, 2, 2], 2), wave(&[4], 3)],
            ),
            Case::new(
                "overlapping",
                Self { output_padding: vec![1, 0], ..by(2, 1, false) },
                vec![wave(&[1, 3, 4, 4], 1), wave(&[3, 2, 3, 3], 2)],
            ),
            Case::new(
                "dilated",
                Self { output_padding: vec![1, 2], dilations: vec![2, 3], ..by(1, 1, true) },
                vec![wave(&[1, 3, 4, 5], 1), wave(&[3, 2, 3, 2], 2), wave(&[2], 3)],
            ),
            Case::new(
                "grouped",
                Self { groups: 2, ..by(2, 0, false) },
                vec![wave(&[1, 4, 2, 3], 1), wave(&[4, 3, 2, 2], 2)],
            ),
        ]
    }
}
