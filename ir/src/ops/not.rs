//! `not(x)`: logical negation, elementwise.

use super::{Case, OpDef, elementwise::operands};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// Logical negation of booleans, elementwise.
    pub struct Not {}
}

impl OpDef for Not {
    const NAME: &'static str = "not";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if x.dtype != DType::Bool { Err(format!("takes booleans, not {x}")) } else { Ok(vec![x.clone()]) }
    }

    fn eval(&self, inputs: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let values: Vec<i64> = inputs[0].to_i64().iter().map(|b| 1 - b).collect();
        Ok(vec![Tensor::from_i64(DType::Bool, inputs[0].shape(), &values)])
    }

    fn cases() -> Vec<Case> {
        let bools = |v: &[i64]| Tensor::from_i64(DType::Bool, &[v.len()], v);
        vec![Case::known("known", Self {}, vec![bools(&[0, 1])], vec![bools(&[1, 0])])]
    }
}
