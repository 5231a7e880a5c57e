//! `block_transpose(idx, cnt) {blocks}`: for every key block the query blocks whose lists hold it.

use super::{
    Case, Cost, OpDef, Tolerance,
    blocks::{checkered, lists},
    elementwise::operands,
    traffic,
};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// The lists idx i32 [B, H, Tq, L] and cnt i32 [B, H, Tq] of `block_route`, each of distinct numbers below `blocks`,
    /// to i32 [B, H, `blocks` + 1 + Tq·L]: of every head first s₀ … s of `blocks`, then r. The query blocks whose lists
    /// hold key block j are r[sⱼ] … r[sⱼ₊₁ − 1], in ascending order; behind the last of all r is −1.
    pub struct BlockTranspose {
        /// The number of key blocks.
        pub blocks: usize,
    }
}

/// The type of the transpose of lists.
pub fn infer_transpose(idx: &ValueType, blocks: usize) -> Result<ValueType, String> {
    let [b, h, queries, longest] = idx.shape.as_slice() else { return Err(format!("takes [B,H,Tq,L], not {idx}")) };
    Ok(idx.with_shape([b.clone(), h.clone(), Dim::from(blocks + 1) + queries.clone() * longest.clone()]))
}

impl OpDef for BlockTranspose {
    const NAME: &'static str = "block_transpose";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [idx, cnt] = operands(inputs)?;
        let result = infer_transpose(idx, self.blocks)?;
        if idx.dtype != DType::I32 || cnt.dtype != DType::I32 || cnt.shape != idx.shape[..3] {
            return Err(format!("lists must be i32 [B,H,Tq,L] and [B,H,Tq], not {idx} and {cnt}"));
        }
        Ok(vec![result])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let &[b, h, queries, longest] = inputs[0].shape() else { return Err("takes [B,H,Tq,L]".into()) };
        let lists = lists(inputs[0], inputs[1], self.blocks)?;
        let mut out = Vec::new();
        for head in 0..b * h {
            let lists = &lists[head * queries..][..queries];
            let holders = |j: usize| (0..queries).filter(move |i| lists[*i].contains(&j));
            let (mut starts, mut rows) = (vec![0], Vec::new());
            for j in 0..self.blocks {
                rows.extend(holders(j).map(|i| i as i64));
                starts.push(rows.len() as i64);
            }
            rows.resize(queries * longest, -1);
            out.extend(starts.into_iter().chain(rows));
        }
        Ok(vec![Tensor::from_i64(DType::I32, &results[0].dims().ok_or("needs static shapes")?, &out)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: inputs[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn cases() -> Vec<Case> {
        let ints = |shape: &[usize], v: &[i64]| Tensor::from_i64(DType::I32, shape, v);
        let known = vec![ints(&[1, 1, 3, 2], &[1, 3, 0, -1, 1, 2]), ints(&[1, 1, 3], &[2, 1, 2])];
        // Block 0 in list 1; 1 in lists 0 and 2; 2 in list 2; 3 in list 0.
        let expect = ints(&[1, 1, 11], &[0, 1, 3, 4, 5, 1, 0, 2, 2, 0, -1]);
        let mut cases = vec![Case::known("known", Self { blocks: 4 }, known, vec![expect])];
        for (name, heads, queries, blocks) in
            [("one", 1, 1, 1), ("below_64", 2, 3, 63), ("above_64", 3, 65, 64), ("many", 2, 22, 1374)]
        {
            let (idx, cnt) = checkered(heads, queries, blocks);
            cases.push(Case::new(name, Self { blocks }, vec![idx, cnt]));
        }
        cases
    }
}
