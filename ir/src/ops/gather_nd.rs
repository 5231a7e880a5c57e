//! `gather_nd(x, indices) {batch_dims}`: slices of x by index tuples.

use super::{
    Case, OpDef, ScatterAdd, Slice, Tolerance,
    elementwise::operands,
    gather::{integer, wrap, wrapped},
    shape_rules::strides,
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// ONNX GatherND: the last dimension of `indices` [.., r] holds tuples that index the first r dimensions of x
    /// after the batch dimensions.
    pub struct GatherNd {
        /// How many leading dimensions x and indices share.
        pub batch_dims: usize = 0usize,
    }
}

impl GatherNd {
    /// The tuples as offsets [count] of slices of an x of that shape.
    fn slices(&self, at: &mut Vjp<'_>, table: Value, shape: &[usize]) -> Result<Value, OpError> {
        let (b, sizes) = (self.batch_dims, at.dims(table)?);
        let (tuple, outer) = sizes.split_last().ok_or_else(|| at.refuse("indices need a dimension"))?;
        let (count, batch) = (outer.iter().product::<usize>(), shape[..b].iter().product::<usize>());
        let (dtype, steps) = (at.ty(table).dtype, strides(&shape[b..b + tuple]));
        let per_batch: usize = shape[b..b + tuple].iter().product();
        let firsts: Vec<i64> = (0..count).map(|i| (i * batch / count * per_batch) as i64).collect();
        let mut sum = at.constant(Tensor::from_i64(dtype, &[count], &firsts));
        let table = at.reshape(table, &[count.into(), (*tuple).into()])?;
        for (k, step) in steps.into_iter().enumerate() {
            let column = at.op(Slice { axis: 1, start: k.into(), end: (k + 1).into(), step: 1 }, &[table])?;
            let column = at.reshape(column, &[count.into()])?;
            let column = wrapped(at, column, shape[b + k])?;
            let column = at.times(column, step as f64)?;
            sum = at.add(sum, column)?;
        }
        Ok(sum)
    }
}

impl OpDef for GatherNd {
    const NAME: &'static str = "gather_nd";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, indices] = operands(inputs)?;
        integer(indices)?;
        let (tuple, outer) = indices.shape.split_last().ok_or("indices need a dimension")?;
        let tuple = tuple.size().ok_or("the tuple length must be static")?;
        let b = self.batch_dims;
        if b > outer.len() || b + tuple > x.rank() || x.shape[..b] != outer[..b] {
            return Err(format!("{indices} with {b} batch dimensions does not index {x}"));
        }
        let shape: Vec<Dim> = [outer, &x.shape[b + tuple..]].concat();
        Ok(vec![x.with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (x, table) = (inputs[0], inputs[1]);
        let tuple = *table.shape().last().ok_or("indices need a dimension")?;
        let (b, own) = (self.batch_dims, strides(x.shape()));
        let inner: usize = x.shape()[b + tuple..].iter().product();
        let batch: usize = x.shape()[..b].iter().product();
        let count: usize = table.shape()[..table.shape().len() - 1].iter().product();
        let flat = table.to_i64();
        let per_batch = x.len().checked_div(batch).unwrap_or(0);
        let starts = (0..count).map(|t| {
            let parts = (0..tuple).map(|k| Ok(wrap(flat[t * tuple + k], x.shape()[b + k])? * own[b + k]));
            Ok(t * batch / count * per_batch + parts.sum::<Result<usize, String>>()?)
        });
        let starts = starts.collect::<Result<Vec<usize>, String>>()?;
        Ok(vec![x.pick(&shape, starts.into_iter().flat_map(|s| s..s + inner))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, table, g) = (at.operand(0), at.operand(1), at.cotangent()?);
        let shape = at.dims(x)?;
        let tuple = at.dims(table)?.last().copied().unwrap_or(0);
        let slices = self.slices(at, table, &shape)?;
        let count = at.dims(slices)?[0];
        let (size, inner) = shape.split_at(self.batch_dims + tuple);
        let (size, inner): (usize, usize) = (size.iter().product(), inner.iter().product());
        let g = at.reshape(g, &[count.into(), inner.into()])?;
        let part = at.op(ScatterAdd { axis: 0, size: size.into() }, &[g, slices])?;
        let part = at.reshape(part, &shape.into_iter().map(Dim::from).collect::<Vec<_>>())?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[2, 2], vec![0.0, 1.0, 2.0, 3.0]);
        let index = |shape: &[usize], v: &[i64]| Tensor::from_i64(DType::I64, shape, v);
        vec![
            Case::known(
                "elements",
                Self { batch_dims: 0 },
                vec![x.clone(), index(&[2, 2], &[0, 0, 1, 1])],
                vec![Tensor::from_f32(&[2], vec![0.0, 3.0])],
            ),
            Case::known(
                "rows",
                Self { batch_dims: 0 },
                vec![x.clone(), index(&[1, 1], &[-1])],
                vec![Tensor::from_f32(&[1, 2], vec![2.0, 3.0])],
            ),
            Case::known(
                "batched",
                Self { batch_dims: 1 },
                vec![x, index(&[2, 1], &[1, 0])],
                vec![Tensor::from_f32(&[2], vec![1.0, 2.0])],
            ),
            Case::new(
                "tokens_batched",
                Self { batch_dims: 2 },
                vec![
                    Tensor::wave(DType::F32, &[2, 3, 4, 5, 2], 1),
                    index(&[2, 3, 2, 2], &(0..24).map(|i| i * 5 % 8 - 4).collect::<Vec<_>>()),
                ],
            ),
            Case::new(
                "views",
                Self { batch_dims: 0 },
                vec![Tensor::wave(DType::F32, &[1, 4, 65, 3], 1), index(&[1, 4, 2], &[0, 2, 0, 0, 0, 1, 0, 3])],
            ),
        ]
    }
}
