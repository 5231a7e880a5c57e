//! `range() {start, count, step}`: an arithmetic sequence, the one way in which a dimension becomes data.

use super::{Case, Cost, OpDef, Tolerance, elementwise::operands};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// start, start + step, …: `count` integers as i64[count]. With a count of one it is the dimension `start` itself.
    pub struct Range {
        /// The first value.
        pub start: Dim = 0,
        /// How many values.
        pub count: Dim,
        /// The difference of neighbours.
        pub step: i64 = 1,
    }
}

impl OpDef for Range {
    const NAME: &'static str = "range";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [] = operands(inputs)?;
        match self.count.constant() {
            Some(count) if count < 0 => Err(format!("a sequence cannot have {count} values")),
            _ => Ok(vec![ValueType::new(DType::I64, [self.count.clone()])]),
        }
    }

    fn eval(&self, _: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let count = results[0].elements().ok_or("needs static shapes")?;
        let start = self.start.constant().ok_or("needs a start without symbols")?;
        let value = |i: usize| start.wrapping_add(self.step.wrapping_mul(i as i64));
        Ok(vec![Tensor::from_i64(DType::I64, &[count], &(0..count).map(value).collect::<Vec<_>>())])
    }

    fn cost(&self, _: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 0.0, bytes: super::traffic(&[], results) }
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn cases() -> Vec<Case> {
        let of = |start: i64, count: i64, step| Self { start: start.into(), count: count.into(), step };
        let known = |values: &[i64]| vec![Tensor::from_i64(DType::I64, &[values.len()], values)];
        vec![
            Case::known("known", of(2, 3, 5), vec![], known(&[2, 7, 12])),
            Case::known("down", of(1, 3, -1), vec![], known(&[1, 0, -1])),
            Case::known("one", of(-4, 1, 1), vec![], known(&[-4])),
            Case::known("none", of(0, 0, 1), vec![], known(&[])),
            Case::new("views_65", of(0, 65, 1), vec![]),
        ]
    }
}
