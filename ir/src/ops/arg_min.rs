//! `arg_min(x) {axis, keep}`: where the smallest value is.

use super::{Case, OpDef, reduce};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// The index of the smallest value along an axis, as i64; the first of equals.
    pub struct ArgMin {
        /// The axis that is searched.
        pub axis: usize,
        /// Whether it stays with size one.
        pub keep: bool = true,
    }
}

impl OpDef for ArgMin {
    const NAME: &'static str = "arg_min";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(reduce::infer(inputs, &[self.axis], self.keep)?.into_iter().map(|t| t.with_dtype(DType::I64)).collect())
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let first = |v: &[f64]| (1..v.len()).fold(0, |best, i| if v[i] < v[best] { i } else { best }) as f64;
        Ok(vec![reduce::eval(inputs[0], &results[0], &[self.axis], first)?])
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2, 3], vec![3.0, 1.0, 3.0, 1.0, 5.0, 1.0]);
        let expect = Tensor::from_i64(DType::I64, &[2], &[1, 0]);
        vec![
            Case::known("ties", Self { axis: 1, keep: false }, vec![x], vec![expect]),
            Case::new("columns", Self { axis: 0, keep: true }, vec![Tensor::wave(DType::F32, &[65, 3], 1)]),
        ]
    }
}
