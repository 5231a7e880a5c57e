//! `scatter_nd(x, indices, updates)`: x with slices replaced, by index tuples.

use super::{
    Case, OpDef, Tolerance,
    elementwise::operands,
    gather::{integer, wrap},
    scatter_elements::replace,
    shape_rules::strides,
};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// ONNX ScatterND without reduction: the last dimension of `indices` [.., r] holds tuples that index the first r
    /// dimensions of x; each addressed slice becomes the slice of `updates` at the same position. The last update
    /// counts.
    pub struct ScatterNd {}
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
        let own = strides(x.shape());
        let inner: usize = x.shape()[tuple..].iter().product();
        let flat = table.to_i64();
        let count: usize = table.shape()[..table.shape().len() - 1].iter().product();
        let starts = (0..count).map(|t| {
            (0..tuple).map(|k| Ok(wrap(flat[t * tuple + k], x.shape()[k])? * own[k])).sum::<Result<usize, String>>()
        });
        let starts = starts.collect::<Result<Vec<usize>, String>>()?;
        Ok(vec![replace(x, inputs[2], starts.into_iter().flat_map(|s| s..s + inner))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn cases() -> Vec<Case> {
        let x = Tensor::from_f32(&[3, 2], vec![0.0; 6]);
        let index = Tensor::from_i64(DType::I64, &[2, 1], &[2, 0]);
        let updates = Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let expect = Tensor::from_f32(&[3, 2], vec![3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
        vec![Case::known("rows", Self {}, vec![x, index, updates], vec![expect])]
    }
}
