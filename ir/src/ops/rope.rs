//! `rope(x, cos, sin) {segments}`: rotary position embedding (Su et al. 2021), along several axes at once.

use super::{
    Case, Concat, Cost, OpDef, Split, Tolerance,
    elementwise::{indices, operands},
    shape_rules::{broadcast, strides_for},
    traffic,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// The last dimension D is cut into `segments` equal parts of width W, one a spatial axis. In each, with
    /// rot(x)[j] = −x[j + W/2] and rot(x)[j + W/2] = x[j]: y = x·cos + rot(x)·sin. The tables broadcast to x.
    pub struct Rope {
        /// Into how many parts the last dimension is cut; two for images.
        pub segments: usize = 2usize,
    }
}

impl OpDef for Rope {
    const NAME: &'static str = "rope";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, cos, sin] = operands(inputs)?;
        if cos != sin || !x.dtype.is_float() || !cos.dtype.is_float() {
            return Err(format!("takes x and two tables of one type, not {x}, {cos}, {sin}"));
        }
        if broadcast(&[&x.shape, &cos.shape])? != x.shape {
            return Err(format!("the tables {cos} do not broadcast to {x}"));
        }
        match x.shape.last().and_then(crate::dim::Dim::size) {
            Some(d) if self.segments > 0 && d % (2 * self.segments) == 0 => Ok(vec![x.clone()]),
            _ => Err(format!("the last dimension of {x} is not a multiple of {}", 2 * self.segments)),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = inputs[0].shape();
        let d = *shape.last().ok_or("x needs a dimension")?;
        let width = d / self.segments;
        let (x, cos, sin) = (inputs[0].to_f64(), inputs[1].to_f64(), inputs[2].to_f64());
        let walk = indices(shape, [strides_for(inputs[1].shape(), shape)]).enumerate();
        let rotated = walk.map(|(i, [t])| {
            let rot = if i % width < width / 2 { -x[i + width / 2] } else { x[i - width / 2] };
            x[i] * cos[t] + rot * sin[t]
        });
        Ok(vec![Tensor::from_f64(results[0].dtype, shape, &rotated.collect::<Vec<_>>())])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 3.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 4.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, cos, sin, g) = (at.operand(0), at.operand(1), at.operand(2), at.cotangent()?);
        // A rotation back: the halves of every segment exchange their sines.
        let shape = at.dims(sin)?;
        let (d, outer) = shape.split_last().ok_or_else(|| at.refuse("tables need a dimension"))?;
        let halves = [outer, &[self.segments, 2, d / self.segments / 2]].concat();
        let axis = outer.len() + 1;
        let back = at.neg(sin)?;
        let back = at.reshape(back, &halves.into_iter().map(Dim::from).collect::<Vec<_>>())?;
        let back = at.ops(Split { axis, sizes: vec![Dim::from(1); 2] }, &[back])?;
        let back = at.op(Concat { axis }, &[back[1], back[0]])?;
        let back = at.reshape(back, &shape.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())?;
        let part = at.op(self.clone(), &[g, cos, back])?;
        at.give(0, part)?;
        let part = at.mul(g, x)?;
        at.give(1, part)?;
        // rot(x) = x·0 + rot(x)·1.
        let (zero, one) = (at.times(cos, 0.0)?, at.times(cos, 0.0)?);
        let one = at.plus(one, 1.0)?;
        let turned = at.op(self.clone(), &[x, zero, one])?;
        let part = at.mul(g, turned)?;
        at.give(2, part)
    }

    fn cases() -> Vec<Case> {
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        // A quarter turn: (1, 0) becomes (0, 1).
        let quarter = vec![
            Tensor::from_f32(&[1, 2], vec![1.0, 0.0]),
            Tensor::from_f32(&[1, 2], vec![0.0, 0.0]),
            Tensor::from_f32(&[1, 2], vec![1.0, 1.0]),
        ];
        let table = |n, d, seed| wave(DType::F32, &[n, d], seed);
        vec![
            Case::known("quarter_turn", Self { segments: 1 }, quarter, vec![Tensor::from_f32(&[1, 2], vec![0.0, 1.0])]),
            Case::new(
                "image",
                Self { segments: 2 },
                vec![wave(DType::F32, &[2, 3, 65, 64], 1), table(65, 64, 2), table(65, 64, 3)],
            ),
            Case::new(
                "one",
                Self { segments: 2 },
                vec![wave(DType::F32, &[1, 1, 1, 32], 1), table(1, 32, 2), table(1, 32, 3)],
            ),
            Case::new(
                "bf16",
                Self { segments: 2 },
                vec![wave(DType::BF16, &[1, 2, 63, 64], 1), table(63, 64, 2), table(63, 64, 3)],
            ),
            Case::new(
                "per_view",
                Self { segments: 2 },
                vec![
                    wave(DType::F32, &[2, 2, 5, 64], 1),
                    wave(DType::F32, &[2, 1, 5, 64], 2),
                    wave(DType::F32, &[2, 1, 5, 64], 3),
                ],
            ),
        ]
    }
}
