//! `scatter_nd(x, indices, updates)`: x with slices replaced, by index tuples.

use super::{
    Case, Equal, GatherNd, OpDef, Tolerance, Where,
    elementwise::operands,
    gather::{integer, wrap},
    scatter_elements::{distinct, numbers, replace},
    shape_rules::strides,
};
use crate::{
    dim::Dim,
    graph::OpError,
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// ONNX ScatterND without reduction: the last dimension of `indices` [.., r] holds tuples that index the first r
    /// dimensions of x; each addressed slice becomes the slice of `updates` at the same position. The last update
    /// counts.
    pub struct ScatterNd {}
}

/// Where the slices of x of that shape begin that tuples address.
fn starts(shape: &[usize], table: &Tensor) -> Result<Vec<usize>, String> {
    let tuple = *table.shape().last().ok_or("indices need a dimension")?;
    let (own, flat) = (strides(shape), table.to_i64());
    let count: usize = table.shape()[..table.shape().len() - 1].iter().product();
    let start = |t: usize| (0..tuple).map(|k| Ok(wrap(flat[t * tuple + k], shape[k])? * own[k])).sum();
    (0..count).map(start).collect()
}

impl OpDef for ScatterNd {
    const NAME: &'static str = "scatter_nd";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, indices, updates] = operands(inputs)?;
        integer(indices)?;
        let (tuple, outer) = indices.shape.split_last().ok_or("indices need a dimension")?;
        let tuple =
            tuple.size().filter(|r| *r <= x.rank()).ok_or("the tuple length must be static and at most the rank")?;
        let slices: Vec<Dim> = [outer, &x.shape[tuple..]].concat();
        if updates.dtype != x.dtype || updates.shape != slices {
            return Err(format!("updates {updates} do not go with {x} and {indices}"));
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let (x, table) = (inputs[0], inputs[1]);
        let tuple = *table.shape().last().ok_or("indices need a dimension")?;
        let inner: usize = x.shape()[tuple..].iter().product();
        let starts = starts(x.shape(), table)?;
        Ok(vec![replace(x, inputs[2], starts.into_iter().flat_map(|s| s..s + inner))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, table, g) = (at.operand(0), at.operand(1), at.cotangent()?);
        let (shape, sizes) = (at.dims(x)?, at.dims(table)?);
        let (tuple, outer) = sizes.split_last().ok_or_else(|| at.refuse("indices need a dimension"))?;
        let zeros = at.ty(at.operand(2)).clone();
        let zeros = at.full(&zeros, 0.0)?;
        let part = at.op(Self {}, &[g, table, zeros])?;
        at.give(0, part)?;
        let pick = GatherNd { batch_dims: 0 };
        let mut part = at.op(pick.clone(), &[g, table])?;
        let known = at.literal(table).and_then(|table| starts(&shape, table).ok());
        if !known.is_some_and(|targets| distinct(targets.into_iter())) {
            // An update counts where its own number is what was written last.
            let numbers = numbers(at, outer)?;
            let none = at.full(&ValueType::new(DType::I64, shape[..*tuple].iter().copied()), -1.0)?;
            let last = at.op(Self {}, &[none, table, numbers])?;
            let last = at.op(pick, &[last, table])?;
            let counts = at.op(Equal {}, &[last, numbers])?;
            let column = outer.iter().copied().chain(shape[*tuple..].iter().map(|_| 1)).map(Dim::from);
            let counts = at.reshape(counts, &column.collect::<Vec<_>>())?;
            let zero = at.number(g, 0.0);
            part = at.op(Where {}, &[counts, part, zero])?;
        }
        at.give(2, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[3, 2], vec![0.0; 6]);
        let index = Tensor::from_i64(DType::I64, &[2, 1], &[2, 0]);
        let updates = Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let expect = Tensor::from_f32(&[3, 2], vec![3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let pairs = |count: i64| {
            let flat: Vec<i64> = (0..count).flat_map(|i| [i % 2, i * 7 % 33 - 33]).collect();
            Tensor::from_i64(DType::I64, &[count as usize, 2], &flat)
        };
        vec![
            Case::known("rows", Self {}, vec![x, index, updates], vec![expect]),
            Case::new("tuples", Self {}, vec![wave(&[2, 33, 5], 1), pairs(64), wave(&[64, 5], 2)]),
            Case::new("last_counts", Self {}, vec![wave(&[2, 33, 5], 1), pairs(130), wave(&[130, 5], 2)]),
        ]
    }
}
