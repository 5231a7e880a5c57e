//! `input`: a value given at run time.

use super::{Case, Cost, OpDef};
use crate::{tensor::Tensor, types::ValueType};

crate::attributes! {
    /// A value given at run time: an argument of the graph. Written in the header of the text form.
    pub struct Input {
        /// What callers pass it as.
        pub name: String,
        /// Its type; symbols in it are bound by `specialize`.
        pub ty: ValueType,
    }
}

impl OpDef for Input {
    const NAME: &'static str = "input";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [] = super::elementwise::operands(inputs)?;
        Ok(vec![self.ty.clone()])
    }

    fn eval(&self, _: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Err(format!("input `{}` has no value of its own", self.name))
    }

    fn cost(&self, _: &[ValueType], _: &[ValueType]) -> Cost {
        Cost::default()
    }

    fn cases() -> Vec<Case> {
        Vec::new()
    }
}
