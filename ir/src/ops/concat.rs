//! `concat(x₀, x₁, …) {axis}`: tensors one after the other along an axis.

use super::{Case, OpDef, Split, Tolerance};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// Tensors of one type one after the other along `axis`; all other dimensions agree.
    pub struct Concat {
        /// The axis along which they are joined.
        pub axis: usize,
    }
}

impl OpDef for Concat {
    const NAME: &'static str = "concat";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let first = inputs.first().ok_or("takes at least one operand")?;
        if self.axis >= first.rank() {
            return Err(format!("axis {} is outside {first}", self.axis));
        }
        let rest = |t: &ValueType| [&t.shape[..self.axis], &t.shape[self.axis + 1..]].concat();
        for other in inputs {
            if other.dtype != first.dtype || other.rank() != first.rank() || rest(other) != rest(first) {
                return Err(format!("{other} does not continue {first} along axis {}", self.axis));
            }
        }
        let mut shape = first.shape.clone();
        shape[self.axis] = inputs.iter().fold(Dim::from(0), |n, t| n + t.shape[self.axis].clone());
        Ok(vec![first.with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let outer: usize = shape[..self.axis].iter().product();
        let run = |t: &Tensor| t.shape()[self.axis..].iter().product::<usize>();
        let starts: Vec<usize> = inputs.iter().scan(0, |at, t| Some(std::mem::replace(at, *at + t.len()))).collect();
        let order = (0..outer).flat_map(|o| {
            let runs = inputs.iter().zip(&starts);
            runs.flat_map(move |(t, start)| (0..run(t)).map(move |i| start + o * run(t) + i)).collect::<Vec<_>>()
        });
        Ok(vec![Tensor::concat_flat(inputs).pick(&shape, order)])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        let sizes = at.operands().iter().map(|x| at.ty(*x).shape[self.axis].clone()).collect();
        for (operand, part) in at.ops(Split { axis: self.axis, sizes }, &[g])?.into_iter().enumerate() {
            at.give(operand, part)?;
        }
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let a = Tensor::from_f32(&[2, 1], vec![1.0, 2.0]);
        let b = Tensor::from_f32(&[2, 2], vec![3.0, 4.0, 5.0, 6.0]);
        let expect = Tensor::from_f32(&[2, 3], vec![1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
        vec![
            Case::known("known", Self { axis: 1 }, vec![a, b], vec![expect]),
            Case::new("tokens", Self { axis: 1 }, vec![wave(&[2, 1, 8], 1), wave(&[2, 64, 8], 2), wave(&[2, 0, 8], 3)]),
            Case::new("one", Self { axis: 0 }, vec![wave(&[3], 1)]),
            Case::new(
                "indices",
                Self { axis: 0 },
                vec![Tensor::wave(DType::I64, &[2], 1), Tensor::wave(DType::I64, &[1], 2)],
            ),
        ]
    }
}
