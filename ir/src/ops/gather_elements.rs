//! `gather_elements(x, indices) {axis}`: every element picks along one axis.

use super::{
    Case, OpDef, ScatterAdd, Tolerance,
    elementwise::operands,
    gather::{integer, wrap, wrapped},
    shape_rules::strides,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// ONNX GatherElements: y[i, j, k] = x[i, indices[i, j, k], k] for axis 1. `indices` has the rank of x and is
    /// nowhere larger beside the axis.
    pub struct GatherElements {
        /// The axis that is indexed.
        pub axis: usize,
    }
}

/// The flat offset in a tensor of `shape` for every element of `indices`, whose value replaces the position on `axis`.
pub fn offsets(shape: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>, String> {
    let (own, small) = (strides(shape), strides(indices.shape()));
    let at = |(flat, index): (usize, i64)| {
        (0..shape.len())
            .map(|d| Ok(own[d] * if d == axis { wrap(index, shape[d])? } else { flat / small[d] % indices.shape()[d] }))
            .sum::<Result<usize, String>>()
    };
    indices.to_i64().into_iter().enumerate().map(at).collect()
}

/// Whether `indices` may address a tensor of type `x` along `axis`.
pub fn fits(x: &ValueType, indices: &ValueType, axis: usize) -> Result<(), String> {
    integer(indices)?;
    let larger = |d: usize| matches!((indices.shape[d].size(), x.shape[d].size()), (Some(i), Some(n)) if i > n);
    match axis < x.rank() && indices.rank() == x.rank() && !(0..x.rank()).any(|d| d != axis && larger(d)) {
        true => Ok(()),
        false => Err(format!("{indices} does not index {x} along axis {axis}")),
    }
}

impl OpDef for GatherElements {
    const NAME: &'static str = "gather_elements";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, indices] = operands(inputs)?;
        fits(x, indices, self.axis)?;
        Ok(vec![x.with_shape(indices.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let offsets = offsets(inputs[0].shape(), inputs[1], self.axis)?;
        Ok(vec![inputs[0].pick(inputs[1].shape(), offsets.into_iter())])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, indices, g) = (at.operand(0), at.operand(1), at.cotangent()?);
        let (shape, sizes, dtype) = (at.dims(x)?, at.dims(indices)?, at.ty(indices).dtype);
        let (size, count): (usize, usize) = (shape.iter().product(), sizes.iter().product());
        // Where an index of zero leads.
        let firsts = offsets(&shape, &Tensor::from_i64(dtype, &sizes, &vec![0; count]), self.axis);
        let firsts: Vec<i64> = firsts.map_err(|e| at.refuse(e))?.into_iter().map(|i| i as i64).collect();
        let firsts = at.constant(Tensor::from_i64(dtype, &sizes, &firsts));
        let steps = wrapped(at, indices, shape[self.axis])?;
        let steps = at.times(steps, strides(&shape)[self.axis] as f64)?;
        let flat = at.add(firsts, steps)?;
        let part = at.op(ScatterAdd { axis: 0, size: size.into() }, &[g, flat])?;
        let part = at.reshape(part, &shape.into_iter().map(Dim::from).collect::<Vec<_>>())?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let index = Tensor::from_i64(DType::I64, &[2, 2], &[0, 0, 1, -2]);
        let expect = Tensor::from_f32(&[2, 2], vec![1.0, 1.0, 4.0, 3.0]);
        let turns: Vec<i64> = (0..2 * 63 * 3).map(|i| i * 11 % 130 - 65).collect();
        let turns = Tensor::from_i64(DType::I64, &[2, 63, 3], &turns);
        vec![
            Case::known("known", Self { axis: 1 }, vec![x, index], vec![expect]),
            Case::new("middle", Self { axis: 1 }, vec![Tensor::wave(DType::F32, &[2, 65, 4], 1), turns]),
        ]
    }
}
