//! `param`: a named weight, looked up when the plan is made.

use super::{Case, Cost, OpDef};
use crate::{tensor::Tensor, types::ValueType};

crate::attributes! {
    /// A named weight. Values computed from weights and constants alone are computed when the plan is made. Written in
    /// the header of the text form.
    ///
    /// With `state` it persists from run to run and may change: an output of the graph named `$` and its name is what it
    /// becomes at the end of a run. What is computed from it is computed anew in every run.
    pub struct Param {
        /// As the checkpoint names it.
        pub name: String,
        /// Its type.
        pub ty: ValueType,
        /// What it starts as where no checkpoint names it: `normal:1e-3`, `identity`, `fill:0.5`. Empty: it must be
        /// given.
        pub init: String = "",
        /// Whether runs may change it.
        pub state: bool = false,
    }
}

impl OpDef for Param {
    const NAME: &'static str = "param";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [] = super::elementwise::operands(inputs)?;
        Ok(vec![self.ty.clone()])
    }

    fn eval(&self, _: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Err(format!("param `{}` has no value of its own", self.name))
    }

    fn cost(&self, _: &[ValueType], _: &[ValueType]) -> Cost {
        Cost::default()
    }

    fn cases() -> Vec<Case> {
        Vec::new()
    }
}
