//! `transpose(x) {perm}`: dimension i of the result is dimension perm[i] of x.

use super::{
    Case, OpDef, Tolerance,
    elementwise::{indices, operands},
    shape_rules::strides,
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// Dimension i of the result is dimension `perm[i]` of x.
    pub struct Transpose {
        /// A permutation of 0..rank.
        pub perm: Vec<usize>,
    }
}

impl OpDef for Transpose {
    const NAME: &'static str = "transpose";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.rank()) {
            return Err(format!("{:?} is not a permutation of the {} dimensions of {x}", self.perm, x.rank()));
        }
        Ok(vec![x.with_shape(self.perm.iter().map(|p| x.shape[*p].clone()))])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let own = strides(inputs[0].shape());
        let moved = self.perm.iter().map(|p| own[*p]).collect();
        Ok(vec![inputs[0].pick(&shape, indices(&shape, [moved]).map(|[i]| i))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let g = at.cotangent()?;
        let mut perm = vec![0; self.perm.len()];
        self.perm.iter().enumerate().for_each(|(to, from)| perm[*from] = to);
        let part = at.op(Self { perm }, &[g])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let known = Tensor::from_f32(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let expect = Tensor::from_f32(&[3, 2], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let mut cases = vec![Case::known("known", Self { perm: vec![1, 0] }, vec![known], vec![expect])];
        for (name, shape, perm, dtype) in [
            ("heads", vec![2, 65, 3, 32], vec![0, 2, 1, 3], DType::F32),
            ("qkv", vec![1, 63, 3, 2, 8], vec![2, 0, 3, 1, 4], DType::F16),
            ("image", vec![2, 3, 14, 5, 14], vec![0, 2, 3, 1, 4], DType::F32),
            ("matrix_1374", vec![1374, 64], vec![1, 0], DType::BF16),
            ("planes", vec![2, 66, 5, 14], vec![0, 2, 3, 1], DType::BF16),
            ("indices", vec![4, 1, 2], vec![2, 1, 0], DType::I64),
        ] {
            cases.push(Case::new(name, Self { perm }, vec![Tensor::wave(dtype, &shape, 1)]));
        }
        cases
    }
}
