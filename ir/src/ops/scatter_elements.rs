//! `scatter_elements(x, indices, updates) {axis}`: x with single elements replaced.

use std::collections::HashSet;

use super::{
    Case, Equal, GatherElements, OpDef, Range, Tolerance, Where,
    elementwise::operands,
    gather_elements::{fits, offsets},
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// ONNX ScatterElements without reduction: a copy of x in which y[i, indices[i, j, k], k] = updates[i, j, k] for
    /// axis 1. Of several updates of one element the last counts.
    pub struct ScatterElements {
        /// The axis that is indexed.
        pub axis: usize,
    }
}

/// x with `updates[i]` at flat offset `targets[i]`.
pub fn replace(x: &Tensor, updates: &Tensor, targets: impl Iterator<Item = usize>) -> Tensor {
    let mut from: Vec<usize> = (0..x.len()).collect();
    for (update, target) in targets.enumerate() {
        from[target] = x.len() + update;
    }
    Tensor::concat_flat(&[x, updates]).pick(x.shape(), from.into_iter())
}

/// Numbers 0, 1, … in a shape: i64.
pub fn numbers(at: &mut Vjp<'_>, shape: &[usize]) -> Result<Value, OpError> {
    let count = shape.iter().product::<usize>().into();
    let numbers = at.op(Range { start: 0.into(), count, step: 1 }, &[])?;
    at.reshape(numbers, &shape.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())
}

/// Whether no two targets are the same.
pub fn distinct(targets: impl Iterator<Item = usize>) -> bool {
    let mut seen = HashSet::new();
    targets.into_iter().all(|target| seen.insert(target))
}

impl OpDef for ScatterElements {
    const NAME: &'static str = "scatter_elements";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, indices, updates] = operands(inputs)?;
        fits(x, indices, self.axis)?;
        if updates.dtype != x.dtype || updates.shape != indices.shape {
            return Err(format!("updates {updates} do not go with {x} and {indices}"));
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let offsets = offsets(inputs[0].shape(), inputs[1], self.axis)?;
        Ok(vec![replace(inputs[0], inputs[2], offsets.into_iter())])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, indices, g) = (at.operand(0), at.operand(1), at.cotangent()?);
        let (shape, sizes) = (at.dims(x)?, at.dims(indices)?);
        let zeros = at.ty(at.operand(2)).clone();
        let zeros = at.full(&zeros, 0.0)?;
        let part = at.op(self.clone(), &[g, indices, zeros])?;
        at.give(0, part)?;
        let mut part = at.op(GatherElements { axis: self.axis }, &[g, indices])?;
        let known = at.literal(indices).and_then(|table| offsets(&shape, table, self.axis).ok());
        if !known.is_some_and(|targets| distinct(targets.into_iter())) {
            // An update counts where its own number is what was written last.
            let numbers = numbers(at, &sizes)?;
            let none = at.full(&ValueType::new(DType::I64, shape), -1.0)?;
            let last = at.op(self.clone(), &[none, indices, numbers])?;
            let last = at.op(GatherElements { axis: self.axis }, &[last, indices])?;
            let counts = at.op(Equal {}, &[last, numbers])?;
            let zero = at.number(g, 0.0);
            part = at.op(Where {}, &[counts, part, zero])?;
        }
        at.give(2, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[1, 3], vec![1.0, 2.0, 3.0]);
        let index = Tensor::from_i64(DType::I64, &[1, 2], &[0, -1]);
        let updates = Tensor::from_f32(&[1, 2], vec![8.0, 9.0]);
        let expect = Tensor::from_f32(&[1, 3], vec![8.0, 2.0, 9.0]);
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let places = |count: i64| {
            let turns: Vec<i64> = (0..2 * count * 3).map(|i| i / 3 % count * 7 % 65).collect();
            Tensor::from_i64(DType::I64, &[2, count as usize, 3], &turns)
        };
        vec![
            Case::known("known", Self { axis: 1 }, vec![x, index, updates], vec![expect]),
            Case::new("middle", Self { axis: 1 }, vec![wave(&[2, 65, 3], 1), places(63), wave(&[2, 63, 3], 2)]),
            Case::new("last_counts", Self { axis: 1 }, vec![wave(&[2, 65, 3], 1), places(130), wave(&[2, 130, 3], 2)]),
        ]
    }
}
