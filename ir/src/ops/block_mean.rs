//! `block_mean(x) {block, runs}`: the mean token of every block.

use super::{Case, Cost, Gather, OpDef, Tolerance, blocks::Blocks, elementwise::operands, traffic};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// x [B, H, N, D] as [B, H, T, D]: the mean over the tokens of each of T blocks, cut as [`super::blocks`] says. A
    /// ragged block is divided by the number of tokens that it has. Sums are wide.
    pub struct BlockMean {
        /// Tokens a block.
        pub block: usize,
        /// Lengths of the runs that no block crosses; the last is repeated. Empty: one run.
        pub runs: Vec<usize> = [],
    }
}

impl OpDef for BlockMean {
    const NAME: &'static str = "block_mean";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if x.rank() != 4 || !x.dtype.is_float() {
            return Err(format!("takes floating-point [B,H,N,D], not {x}"));
        }
        let count = Blocks::of(x, &self.runs, self.block)?.len();
        Ok(vec![x.with_shape([x.shape[0].clone(), x.shape[1].clone(), Dim::from(count), x.shape[3].clone()])])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let &[_, _, n, d] = inputs[0].shape() else { return Err("takes [B,H,N,D]".into()) };
        let blocks = Blocks::cut(n, &self.runs, self.block)?;
        let x = inputs[0].to_f64();
        let means: Vec<f64> = x.chunks((n * d).max(1)).flat_map(|head| blocks.means(head, d)).collect();
        Ok(vec![Tensor::from_f64(results[0].dtype, &results[0].dims().ok_or("needs static shapes")?, &means)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: inputs[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 8.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, g) = (at.operand(0), at.cotangent()?);
        let blocks = Blocks::of(at.ty(x), &self.runs, self.block).map_err(|e| at.refuse(e))?;
        let counts: Vec<f64> = blocks.tokens.iter().map(|t| t.len() as f64).collect();
        let numbers: Vec<i64> = (0i64..).zip(&blocks.tokens).flat_map(|(i, t)| t.clone().map(move |_| i)).collect();
        let counts = Tensor::from_f64(at.ty(g).dtype, &[counts.len(), 1], &counts);
        let counts = at.constant(counts);
        let numbers = at.constant(Tensor::from_i64(DType::I32, &[numbers.len()], &numbers));
        let each = at.div(g, counts)?;
        let part = at.op(Gather { axis: 2 }, &[each, numbers])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[1, 1, 5, 1], vec![1.0, 3.0, 10.0, 20.0, 5.0]);
        let mean = |v: Vec<f32>| Tensor::from_f32(&[1, 1, v.len(), 1], v);
        let of = |block, runs: &[usize]| Self { block, runs: runs.into() };
        let mut cases = vec![
            Case::known("known", of(2, &[]), vec![x.clone()], vec![mean(vec![2.0, 15.0, 5.0])]),
            Case::known("runs", of(2, &[1, 2]), vec![x.clone()], vec![mean(vec![1.0, 6.5, 12.5])]),
            Case::known("blocks_of_one", of(1, &[]), vec![x.clone()], vec![mean(x.to_f32())]),
        ];
        for (name, n, block) in
            [("one", 1, 64), ("below_64", 63, 64), ("at_64", 64, 64), ("above_64", 65, 64), ("frame_1374", 1374, 16)]
        {
            cases.push(Case::new(name, of(block, &[]), vec![Tensor::wave(DType::F32, &[1, 2, n, 64], 1)]));
        }
        cases.push(Case::new("frames", of(64, &[10, 1369]), vec![Tensor::wave(DType::F32, &[1, 1, 2748, 32], 1)]));
        cases.push(Case::new("bf16", of(16, &[5, 60]), vec![Tensor::wave(DType::BF16, &[1, 2, 65, 64], 1)]));
        cases.push(Case::new("f16", of(16, &[]), vec![Tensor::wave(DType::F16, &[2, 1, 63, 64], 1)]));
        cases
    }
}
