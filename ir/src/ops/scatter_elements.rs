//! `scatter_elements(x, indices, updates) {axis}`: x with single elements replaced.

use super::{
    Case, OpDef, Tolerance,
    elementwise::operands,
    gather_elements::{fits, offsets},
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
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

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[1, 3], vec![1.0, 2.0, 3.0]);
        let index = Tensor::from_i64(DType::I64, &[1, 2], &[0, -1]);
        let updates = Tensor::from_f32(&[1, 2], vec![8.0, 9.0]);
        let expect = Tensor::from_f32(&[1, 3], vec![8.0, 2.0, 9.0]);
        vec![Case::known("known", Self { axis: 1 }, vec![x, index, updates], vec![expect])]
    }
}
