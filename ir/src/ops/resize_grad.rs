//! `resize_grad(g) {mode, coordinates, from, …}`: what images get back through `resize`.

use super::{
    Case, Cost, OpDef, Resize, Tolerance,
    elementwise::operands,
    images::ImageLayout,
    resize::{Coordinates, Nearest, ResizeMode, separable},
    traffic,
};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// dx[i] = Σ g[j]·(weight of pixel i of x in pixel j of the resized image): the transpose of `resize` without
    /// addends and activation. g [.., OH, OW] and dx [.., H, W] or, with `layout=nhwc`, g [N, OH, OW, C] and dx [N, H,
    /// W, C].
    pub struct ResizeGrad {
        /// Which neighbours counted.
        pub mode: ResizeMode,
        /// Where pixels lay.
        pub coordinates: Coordinates,
        /// Height and width of x.
        pub from: Vec<Dim>,
        /// If given, used for coordinates instead of the ratio of sizes: height, width.
        pub scales: Vec<f64> = [],
        /// The parameter a of the cubic kernel.
        pub cubic_a: f64 = -0.75,
        /// Whether the kernel widened when shrinking.
        pub antialias: bool = false,
        /// Whether weights outside x were dropped and the rest rescaled; otherwise the border was repeated.
        pub exclude_outside: bool = false,
        /// How `nearest` rounded.
        pub nearest: Nearest = Nearest::RoundPreferFloor,
        /// How g and dx lie in memory.
        pub layout: ImageLayout = ImageLayout::Planes,
    }
}

impl ResizeGrad {
    /// Of such a resize, of images of that height and width.
    pub fn of(op: &Resize, from: impl IntoIterator<Item = Dim>) -> Self {
        Self {
            mode: op.mode,
            coordinates: op.coordinates,
            from: from.into_iter().collect(),
            scales: op.scales.clone(),
            cubic_a: op.cubic_a,
            antialias: op.antialias,
            exclude_outside: op.exclude_outside,
            nearest: op.nearest,
            layout: op.layout,
        }
    }

    /// What it is the transpose of, to that height and width.
    pub fn resize(&self, size: impl IntoIterator<Item = Dim>) -> Resize {
        Resize {
            scales: self.scales.clone(),
            cubic_a: self.cubic_a,
            antialias: self.antialias,
            exclude_outside: self.exclude_outside,
            nearest: self.nearest,
            layout: self.layout,
            ..Resize::new(self.mode, self.coordinates, size)
        }
    }

    /// Along one axis (0: height, 1: width) from `to` pixels of g to `from` of x: for every pixel of x, the pixels of
    /// g with their weights, in order.
    pub fn weights(&self, axis: usize, from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
        let mut taps: Vec<Vec<(usize, f64)>> = vec![Vec::new(); from];
        for (j, pixel) in self.resize([]).weights(axis, from, to).into_iter().enumerate() {
            for (i, weight) in pixel {
                // A border that is repeated is one pixel of x several times.
                match taps[i].last_mut() {
                    Some((last, sum)) if *last == j => *sum += weight,
                    _ => taps[i].push((j, weight)),
                }
            }
        }
        taps
    }
}

impl OpDef for ResizeGrad {
    const NAME: &'static str = "resize_grad";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [g] = operands(inputs)?;
        let size = match (self.layout, g.shape.as_slice()) {
            (ImageLayout::Planes, [.., h, w]) | (ImageLayout::Pixels, [_, h, w, _]) => [h.clone(), w.clone()],
            _ => return Err(format!("takes images {}, not {g}", self.layout.word())),
        };
        if self.from.len() != 2 {
            return Err("needs the height and width of x".into());
        }
        let shape = match (self.layout, g.shape.as_slice()) {
            (ImageLayout::Pixels, [n, .., c]) => vec![n.clone(), self.from[0].clone(), self.from[1].clone(), c.clone()],
            (_, shape) => [&shape[..shape.len() - 2], &self.from[..]].concat(),
        };
        let x = g.with_shape(shape);
        self.resize(size).infer(std::slice::from_ref(&x))?;
        Ok(vec![x])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let resize = self.resize([]);
        let (from, to) = (resize.sizes(&shape)?, resize.sizes(inputs[0].shape())?);
        let ([.., h, w], [.., oh, ow]) = (from, to);
        if h == 0 || w == 0 {
            return Err("gives images with pixels".into());
        }
        let (rows, columns) = (self.weights(0, h, oh), self.weights(1, w, ow));
        let g = self.layout.to_planes(inputs[0].to_f64(), to);
        let dx = self.layout.of_planes(separable(&g, [oh, ow], &rows, &columns), from);
        Ok(vec![Tensor::from_f64(results[0].dtype, &shape, &dx)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let taps = match self.mode {
            ResizeMode::Nearest => 1.0,
            ResizeMode::Linear => 8.0,
            ResizeMode::Cubic => 32.0,
        };
        Cost { flops: taps * inputs[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 32.0)
    }

    fn cases() -> Vec<Case> {
        use {
            Coordinates::*,
            ResizeMode::{Cubic, Linear},
        };
        let back =
            |mode, coordinates, h: usize, w: usize| Self::of(&Resize::new(mode, coordinates, []), [h.into(), w.into()]);
        let wave = |shape: &[usize]| Tensor::wave(DType::F32, shape, 1);
        let bf16 = |shape: &[usize]| Tensor::wave(DType::BF16, shape, 1);
        let pixels = |op: Self| Self { layout: ImageLayout::Pixels, ..op };
        vec![
            Case::known(
                "thirds",
                back(Linear, AlignCorners, 1, 2),
                vec![Tensor::from_f32(&[1, 4], vec![3.0; 4])],
                vec![Tensor::from_f32(&[1, 2], vec![6.0, 6.0])],
            ),
            Case::new("dpt_up", back(Linear, AlignCorners, 5, 7), vec![wave(&[2, 3, 10, 14])]),
            Case::new("dpt_odd", back(Linear, AlignCorners, 5, 7), vec![wave(&[1, 2, 9, 13])]),
            Case::new("half_pixel", back(Linear, HalfPixel, 5, 4), vec![wave(&[1, 1, 3, 9])]),
            Case::new(
                "cubic_scales",
                Self { scales: vec![27.1 / 37.0, 36.1 / 37.0], ..back(Cubic, HalfPixel, 37, 37) },
                vec![wave(&[1, 2, 27, 36])],
            ),
            Case::new(
                "cubic_antialias",
                Self { antialias: true, exclude_outside: true, cubic_a: -0.5, ..back(Cubic, HalfPixel, 37, 37) },
                vec![wave(&[1, 2, 28, 37])],
            ),
            Case::new("nearest", back(ResizeMode::Nearest, Asymmetric, 3, 4), vec![wave(&[1, 1, 6, 5])]),
            Case::new("nearest_fewer", back(ResizeMode::Nearest, Asymmetric, 65, 63), vec![wave(&[1, 2, 9, 64])]),
            Case::new("one_pixel", back(Linear, AlignCorners, 1, 1), vec![wave(&[1, 2, 3, 1])]),
            Case::new("tall", back(Linear, AlignCorners, 91, 40), vec![wave(&[1, 2, 361, 300])]),
            Case::new("bf16", back(Linear, AlignCorners, 5, 7), vec![bf16(&[2, 70, 9, 13])]),
            Case::new("pixels", pixels(back(Linear, AlignCorners, 5, 7)), vec![bf16(&[2, 9, 13, 24])]),
            Case::new("pixels_tall", pixels(back(Linear, AlignCorners, 91, 40)), vec![bf16(&[2, 361, 300, 16])]),
            Case::new("pixels_f32", pixels(back(Linear, AlignCorners, 5, 4)), vec![wave(&[2, 3, 9, 8])]),
            Case::new("pixels_odd", pixels(back(Linear, AlignCorners, 5, 4)), vec![bf16(&[2, 3, 9, 3])]),
            Case::new("pixels_cubic", pixels(back(Cubic, HalfPixel, 5, 4)), vec![bf16(&[1, 9, 9, 8])]),
            Case::new("pixels_one", pixels(back(Linear, AlignCorners, 5, 4)), vec![bf16(&[1, 1, 1, 8])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_transposed() {
        let op = ResizeGrad {
            scales: vec![0.4, 0.4],
            ..ResizeGrad::of(&Resize::new(ResizeMode::Cubic, Coordinates::HalfPixel, []), [])
        };
        let (forth, back) = (op.resize([]).weights(0, 11, 4), op.weights(0, 11, 4));
        let sum = |taps: &[(usize, f64)], at: usize| taps.iter().filter(|t| t.0 == at).map(|t| t.1).sum::<f64>();
        for (i, j) in (0..11).flat_map(|i| (0..4).map(move |j| (i, j))) {
            assert_eq!(sum(&forth[j], i), sum(&back[i], j), "{i} {j}");
        }
    }
}
