//! `resize(x, …) {mode, coordinates, size, …}`: images at another resolution, after the ONNX operator Resize, and what
//! is added to them.

use super::{
    Case, Cost, OpDef, ResizeGrad, Tolerance,
    activation::Activation,
    conv2d::{rectifiable, rectified, rectified_cotangent},
    images::ImageLayout,
    shape_rules::strides_for,
    traffic,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::word_enum! {
    /// Which neighbours count and how.
    pub enum ResizeMode {
        /// One neighbour.
        Nearest = "nearest",
        /// Two an axis.
        Linear = "linear",
        /// Four an axis (Keys 1981).
        Cubic = "cubic",
    }
}

crate::word_enum! {
    /// Where a pixel of the result lies in x. `scale` is result size over x size, or as given.
    pub enum Coordinates {
        /// (i + 0.5)/scale − 0.5.
        HalfPixel = "half_pixel",
        /// i·(size − 1)/(result size − 1).
        AlignCorners = "align_corners",
        /// i/scale.
        Asymmetric = "asymmetric",
        /// As half_pixel, but 0 where the result has one pixel.
        PytorchHalfPixel = "pytorch_half_pixel",
    }
}

crate::word_enum! {
    /// How `nearest` rounds.
    pub enum Nearest {
        /// Down.
        Floor = "floor",
        /// Up.
        Ceil = "ceil",
        /// To nearest, halves down.
        RoundPreferFloor = "round_prefer_floor",
        /// To nearest, halves up.
        RoundPreferCeil = "round_prefer_ceil",
    }
}

crate::attributes! {
    /// y = act(x at another resolution + addends): x [.., H, W] or, with `layout=nhwc`, [N, H, W, C]; addends have the
    /// dimensions of y or ones.
    pub struct Resize {
        /// Which neighbours count.
        pub mode: ResizeMode,
        /// Where pixels lie.
        pub coordinates: Coordinates,
        /// Height and width of the result.
        pub size: Vec<Dim>,
        /// If given, used for coordinates instead of the ratio of sizes: height, width.
        pub scales: Vec<f64> = [],
        /// The parameter a of the cubic kernel.
        pub cubic_a: f64 = -0.75,
        /// Whether the kernel widens when shrinking.
        pub antialias: bool = false,
        /// Whether weights outside x are dropped and the rest rescaled; otherwise the border is repeated.
        pub exclude_outside: bool = false,
        /// How `nearest` rounds.
        pub nearest: Nearest = Nearest::RoundPreferFloor,
        /// How x and y lie in memory.
        pub layout: ImageLayout = ImageLayout::Planes,
        /// Applied to the sum.
        pub activation: Activation = Activation::None,
        /// How many operands behind x are added.
        pub addends: usize = 0usize,
        /// Whether max(y, 0) is a second result; with `layout=nhwc`.
        pub rectified: bool = false,
    }
}

impl Resize {
    /// Between pixels as `mode` and `coordinates` say, and nothing else said.
    pub fn new(mode: ResizeMode, coordinates: Coordinates, size: impl IntoIterator<Item = Dim>) -> Self {
        Self {
            mode,
            coordinates,
            size: size.into_iter().collect(),
            scales: Vec::new(),
            cubic_a: -0.75,
            antialias: false,
            exclude_outside: false,
            nearest: Nearest::RoundPreferFloor,
            layout: ImageLayout::Planes,
            activation: Activation::None,
            addends: 0,
            rectified: false,
        }
    }

    /// Along one axis (0: height, 1: width): for every result pixel, the source pixels with their weights.
    pub fn weights(&self, axis: usize, from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
        let scale = self.scales.get(axis).copied().unwrap_or(to as f64 / from as f64);
        (0..to).map(|i| self.pixel(i as f64, from, to, scale)).collect()
    }

    /// Images, channels, rows, columns; in planes, whatever stands before rows and columns counts as channels.
    pub fn sizes(&self, shape: &[usize]) -> Result<[usize; 4], String> {
        match (self.layout, shape) {
            (ImageLayout::Planes, [outer @ .., h, w]) => Ok([1, outer.iter().product(), *h, *w]),
            (ImageLayout::Pixels, [n, h, w, c]) => Ok([*n, *c, *h, *w]),
            _ => Err("takes images".into()),
        }
    }

    fn pixel(&self, i: f64, from: usize, to: usize, scale: f64) -> Vec<(usize, f64)> {
        let at = match self.coordinates {
            Coordinates::AlignCorners if to == 1 => 0.0,
            Coordinates::AlignCorners => i * (from as f64 - 1.0) / (to as f64 - 1.0),
            Coordinates::Asymmetric => i / scale,
            Coordinates::PytorchHalfPixel if to == 1 => 0.0,
            Coordinates::HalfPixel | Coordinates::PytorchHalfPixel => (i + 0.5) / scale - 0.5,
        };
        let inside = |j: i64| j.clamp(0, from as i64 - 1) as usize;
        if self.mode == ResizeMode::Nearest {
            let j = match self.nearest {
                Nearest::Floor => at.floor(),
                Nearest::Ceil => at.ceil(),
                Nearest::RoundPreferFloor => (at - 0.5).ceil(),
                Nearest::RoundPreferCeil => (at + 0.5).floor(),
            };
            return vec![(inside(j as i64), 1.0)];
        }
        let stretch = if self.antialias { scale.min(1.0) } else { 1.0 };
        let radius = if self.mode == ResizeMode::Linear { 1.0 } else { 2.0 } / stretch;
        let (first, last) = ((at - radius).floor() as i64 + 1, (at + radius).ceil() as i64 - 1);
        let mut taps: Vec<(i64, f64)> = (first..=last).map(|j| (j, self.kernel((j as f64 - at) * stretch))).collect();
        if self.exclude_outside {
            taps.retain(|(j, _)| (0..from as i64).contains(j));
        }
        let sum: f64 = taps.iter().map(|(_, w)| w).sum();
        taps.into_iter().filter(|(_, w)| *w != 0.0).map(|(j, w)| (inside(j), w / sum)).collect()
    }

    fn kernel(&self, x: f64) -> f64 {
        let (x, a) = (x.abs(), self.cubic_a);
        match self.mode {
            ResizeMode::Nearest | ResizeMode::Linear => (1.0 - x).max(0.0),
            ResizeMode::Cubic if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            ResizeMode::Cubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
            ResizeMode::Cubic => 0.0,
        }
    }
}

/// Planes of [rows, columns] pixels, of which every pixel of the result sums some with weights, an axis at a time.
pub fn separable(x: &[f64], [h, w]: [usize; 2], rows: &[Vec<(usize, f64)>], columns: &[Vec<(usize, f64)>]) -> Vec<f64> {
    let ow = columns.len();
    let mut y = Vec::new();
    for plane in x.chunks(h * w) {
        let narrow: Vec<f64> = (0..h)
            .flat_map(|r| columns.iter().map(move |taps| taps.iter().map(|(j, k)| plane[r * w + j] * k).sum::<f64>()))
            .collect();
        for taps in rows {
            y.extend((0..ow).map(|c| taps.iter().map(|(i, k)| narrow[i * ow + c] * k).sum::<f64>()));
        }
    }
    y
}

impl OpDef for Resize {
    const NAME: &'static str = "resize";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, addends @ ..] = inputs else { return Err("takes x at least".into()) };
        if self.size.len() != 2 || !matches!(self.scales.len(), 0 | 2) || !x.dtype.is_float() {
            return Err(format!("needs two sizes, no or two scales, and floating-point images, not {x}"));
        }
        let shape = match (self.layout, x.shape.as_slice()) {
            (ImageLayout::Planes, [outer @ .., _, _]) => [outer, &self.size].concat(),
            (ImageLayout::Pixels, [n, _, _, c]) => {
                vec![n.clone(), self.size[0].clone(), self.size[1].clone(), c.clone()]
            }
            _ => return Err(format!("takes images {}, not {x}", self.layout.word())),
        };
        if self.scales.iter().any(|s| *s <= 0.0 || !s.is_finite()) {
            return Err(format!("scales must be positive: {:?}", self.scales));
        }
        let fits = |a: &ValueType| {
            a.dtype.is_float()
                && a.shape.len() == shape.len()
                && a.shape.iter().zip(&shape).all(|(a, y)| a == y || a.is_one())
        };
        if addends.len() != self.addends || !addends.iter().all(fits) {
            return Err(format!(
                "{} addends like {} do not fit the operands behind x",
                self.addends,
                x.with_shape(shape)
            ));
        }
        rectifiable(self.rectified, self.layout, x.with_shape(shape))
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (from, to) = (self.sizes(inputs[0].shape())?, self.sizes(&shape)?);
        let ([.., h, w], [.., oh, ow]) = (from, to);
        if h == 0 || w == 0 {
            return Err("takes images with pixels".into());
        }
        let x = self.layout.to_planes(inputs[0].to_f64(), from);
        let y = separable(&x, [h, w], &self.weights(0, h, oh), &self.weights(1, w, ow));
        let mut y = self.layout.of_planes(y, to);
        for addend in &inputs[1..] {
            let (values, strides) = (addend.to_f64(), strides_for(addend.shape(), &shape));
            for (i, y) in y.iter_mut().enumerate() {
                let (mut rest, mut at) = (i, 0);
                for (size, stride) in shape.iter().zip(&strides).rev() {
                    at += rest % size * stride;
                    rest /= size;
                }
                *y += values[at];
            }
        }
        y.iter_mut().for_each(|y| *y = self.activation.apply(*y));
        Ok(rectified(results, &shape, y))
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let taps = match self.mode {
            ResizeMode::Nearest => 0.0,
            ResizeMode::Linear => 8.0,
            ResizeMode::Cubic => 32.0,
        };
        Cost { flops: taps * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 32.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, mut g) = (at.operand(0), rectified_cotangent(at, self.rectified)?);
        if self.activation != Activation::None {
            let operands = at.operands().to_vec();
            let sum = at.op(Self { activation: Activation::None, rectified: false, ..self.clone() }, &operands)?;
            g = self.activation.vjp(at, sum, g)?;
        }
        let [.., h, w] = self.sizes(&at.dims(x)?).map_err(|e| at.refuse(e))?;
        let part = at.op(ResizeGrad::of(self, [h.into(), w.into()]), &[g])?;
        at.give(0, part)?;
        (1..=self.addends).try_for_each(|addend| at.give(addend, g))
    }

    fn cases() -> Vec<Case> {
        let to = |mode, coordinates, h: usize, w: usize| Self::new(mode, coordinates, [h.into(), w.into()]);
        let wave = |shape: &[usize]| Tensor::wave(DType::F32, shape, 1);
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        let pixels = |op: Self| Self { layout: ImageLayout::Pixels, ..op };
        let ramp = Tensor::from_f32(&[1, 2], vec![0.0, 3.0]);
        use {
            Coordinates::*,
            ResizeMode::{Cubic, Linear},
        };
        vec![
            Case::known(
                "ends_stay",
                to(Linear, AlignCorners, 1, 4),
                vec![ramp],
                vec![Tensor::from_f32(&[1, 4], vec![0.0, 1.0, 2.0, 3.0])],
            ),
            Case::new("dpt_up", to(Linear, AlignCorners, 10, 14), vec![wave(&[2, 3, 5, 7])]),
            Case::new("dpt_odd", to(Linear, AlignCorners, 9, 13), vec![wave(&[1, 2, 5, 7])]),
            Case::new("half_pixel", to(Linear, HalfPixel, 3, 9), vec![wave(&[1, 1, 5, 4])]),
            Case::new(
                "cubic_scales",
                Self { scales: vec![27.1 / 37.0, 36.1 / 37.0], ..to(Cubic, HalfPixel, 27, 36) },
                vec![wave(&[1, 2, 37, 37])],
            ),
            Case::new(
                "cubic_antialias",
                Self { antialias: true, exclude_outside: true, cubic_a: -0.5, ..to(Cubic, HalfPixel, 28, 37) },
                vec![wave(&[1, 2, 37, 37])],
            ),
            Case::new("nearest", to(ResizeMode::Nearest, Asymmetric, 6, 5), vec![wave(&[1, 1, 3, 4])]),
            Case::new("one_pixel", to(Linear, AlignCorners, 3, 1), vec![wave(&[1, 2, 1, 1])]),
            Case::new(
                "planes_summed",
                Self { addends: 1, activation: Activation::Relu, ..to(Linear, AlignCorners, 9, 13) },
                vec![wave(&[2, 3, 5, 7]), Tensor::wave(DType::F32, &[2, 3, 9, 13], 2)],
            ),
            Case::new(
                "pixels_summed",
                Self { addends: 1, activation: Activation::Relu, ..pixels(to(Linear, AlignCorners, 9, 13)) },
                vec![bf16(&[2, 5, 7, 24], 1), bf16(&[2, 9, 13, 24], 2)],
            ),
            Case::new(
                "pixels_strips",
                Self { addends: 2, ..pixels(to(Linear, AlignCorners, 65, 63)) },
                vec![bf16(&[1, 33, 35, 16], 1), wave(&[1, 1, 63, 16]), wave(&[1, 65, 1, 16])],
            ),
            Case::new(
                "pixels_rectified",
                Self { addends: 1, rectified: true, ..pixels(to(Linear, AlignCorners, 9, 13)) },
                vec![bf16(&[2, 5, 7, 24], 1), bf16(&[2, 9, 13, 24], 2)],
            ),
            Case::new(
                "pixels_tall",
                Self { addends: 1, ..pixels(to(Linear, AlignCorners, 361, 300)) },
                vec![bf16(&[2, 91, 40, 16], 1), bf16(&[2, 361, 300, 16], 2)],
            ),
            Case::new("pixels_f32", pixels(to(Linear, AlignCorners, 3, 9)), vec![wave(&[2, 5, 4, 8])]),
            Case::new("pixels_odd", pixels(to(Linear, AlignCorners, 3, 9)), vec![bf16(&[2, 5, 4, 3], 1)]),
            Case::new("pixels_cubic", pixels(to(Cubic, HalfPixel, 9, 9)), vec![bf16(&[1, 5, 4, 8], 1)]),
            Case::new("pixels_one", pixels(to(Linear, AlignCorners, 1, 1)), vec![bf16(&[1, 5, 4, 8], 1)]),
        ]
    }
}
