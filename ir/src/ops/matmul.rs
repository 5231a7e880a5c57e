//! `matmul(a, b)`: batched matrix product, batch dimensions broadcast.

use super::{
    Case, Cost, OpDef, Tolerance,
    elementwise::operands,
    shape_rules::{broadcast, strides_for, transposed},
    traffic,
};
use crate::{
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// c[.., m, n] = Σₖ a[.., m, k]·b[.., k, n], batch dimensions broadcast. With `transpose_b`, b is [.., n, k].
    pub struct MatMul {
        /// Whether b is stored [.., n, k].
        pub transpose_b: bool = false,
    }
}

impl OpDef for MatMul {
    const NAME: &'static str = "matmul";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [a, b] = operands(inputs)?;
        if a.dtype != b.dtype || !a.dtype.is_float() {
            return Err(format!("takes two operands of one floating-point type, not {a} and {b}"));
        }
        if a.rank() < 2 || b.rank() < 2 {
            return Err(format!("takes operands of rank 2 and more, not {a} and {b}"));
        }
        let (batch_a, [m, ka]) = a.shape.split_last_chunk::<2>().ok_or("rank")?;
        let (batch_b, [y, z]) = b.shape.split_last_chunk::<2>().ok_or("rank")?;
        let (kb, n) = if self.transpose_b { (z, y) } else { (y, z) };
        if ka != kb {
            return Err(format!("inner dimensions differ: {ka} in {a}, {kb} in {b}"));
        }
        let mut shape = broadcast(&[batch_a, batch_b])?;
        shape.extend([m.clone(), n.clone()]);
        Ok(vec![a.with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (batch, &[m, n]) = shape.split_last_chunk::<2>().ok_or("rank")?;
        let (a, b) = (inputs[0], inputs[1]);
        let k = a.shape()[a.shape().len() - 1];
        let (x, y) = (a.to_f64(), b.to_f64());
        let (step_k, step_n) = if self.transpose_b { (1, k) } else { (n, 1) };
        let matrices = |t: &Tensor| strides_for(&t.shape()[..t.shape().len() - 2], batch);
        let mut out = Vec::with_capacity(shape.iter().product());
        for [ia, ib] in super::elementwise::indices(batch, [matrices(a), matrices(b)]) {
            let (left, right) = (&x[ia * m * k..], &y[ib * k * n..]);
            for row in 0..m {
                for column in 0..n {
                    out.push((0..k).map(|i| left[row * k + i] * right[i * step_k + column * step_n]).sum());
                }
            }
        }
        Ok(vec![Tensor::from_f64(results[0].dtype, &shape, &out)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let k = inputs[0].shape.last().and_then(crate::dim::Dim::size).unwrap_or(0);
        Cost { flops: 2.0 * (results[0].elements().unwrap_or(0) * k) as f64, bytes: traffic(inputs, results) }
    }

    /// As `linear`: a sum of K products in f32.
    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 16.0)
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (a, b, g) = (at.operand(0), at.operand(1), at.cotangent()?);
        let product = |transpose_b| Self { transpose_b };
        // Of c = a·b: g·bᵀ and aᵀ·g; of c = a·bᵀ: g·b and gᵀ·a.
        let left = at.op(product(!self.transpose_b), &[g, b])?;
        at.give(0, left)?;
        let (tall, wide) = if self.transpose_b { (g, a) } else { (a, g) };
        let turned = transposed(at, tall)?;
        let right = at.op(product(false), &[turned, wide])?;
        at.give(1, right)
    }

    fn cases() -> Vec<Case> {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let mut cases = vec![Case::known(
            "known",
            Self { transpose_b: false },
            vec![Tensor::from_f32(&[1, 2], vec![1.0, 2.0]), Tensor::from_f32(&[2, 1], vec![3.0, 4.0])],
            vec![Tensor::from_f32(&[1, 1], vec![11.0])],
        )];
        for (name, m) in [("one", 1), ("below_64", 63), ("at_64", 64), ("above_64", 65)] {
            cases.push(Case::new(name, Self { transpose_b: true }, vec![wave(&[m, 48], 1), wave(&[m, 48], 2)]));
        }
        cases.push(Case::new(
            "batched",
            Self { transpose_b: false },
            vec![wave(&[2, 1, 5, 7], 1), wave(&[3, 7, 4], 2)],
        ));
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        for (name, transpose_b, a, b) in [
            ("bf16_transposed", true, &[65, 72][..], &[40, 72][..]),
            ("bf16_batched", false, &[2, 65, 40], &[40, 24]),
            ("bf16_odd", false, &[3, 5, 7], &[3, 7, 3]),
            ("bf16_batch_transposed", true, &[2, 1, 70, 64], &[3, 33, 64]),
        ] {
            cases.push(Case::new(name, Self { transpose_b }, vec![bf16(a, 1), bf16(b, 2)]));
        }
        cases.push(Case::new("no_rows", Self { transpose_b: false }, vec![wave(&[0, 3], 1), wave(&[3, 4], 2)]));
        cases
    }
}
