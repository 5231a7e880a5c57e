//! `scatter_add(g, indices) {axis, size}`: slices added up by index; what x gets back through `gather`.

use super::{
    Case, Cost, OpDef, Tolerance,
    elementwise::operands,
    gather::{integer, wrap},
    traffic,
};
use crate::{
    dim::Dim,
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// y[.., indices[k], ..] += g[.., k, ..] from zero: g has the dimensions of `indices` from `axis` on, y one of
    /// `size` in their place. Every sum runs in the order of `indices` and is rounded once; negative indices count from
    /// the end.
    pub struct ScatterAdd {
        /// The axis that is indexed.
        pub axis: usize,
        /// How many slices y has.
        pub size: Dim,
    }
}

impl OpDef for ScatterAdd {
    const NAME: &'static str = "scatter_add";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [g, indices] = operands(inputs)?;
        integer(indices)?;
        let inner = self.axis + indices.rank();
        if inner > g.rank() || g.shape[self.axis..inner] != indices.shape || !g.dtype.is_float() {
            return Err(format!("{g} has not the dimensions of {indices} at axis {}", self.axis));
        }
        Ok(vec![g.with_shape([&g.shape[..self.axis], std::slice::from_ref(&self.size), &g.shape[inner..]].concat())])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (g, size) = (inputs[0].to_f64(), shape[self.axis]);
        let rows: Vec<usize> = inputs[1].to_i64().into_iter().map(|i| wrap(i, size)).collect::<Result<_, _>>()?;
        let inner: usize = shape[self.axis + 1..].iter().product();
        let outer: usize = shape[..self.axis].iter().product();
        let mut y = vec![0.0; shape.iter().product()];
        for (from, (o, row)) in (0..outer).flat_map(|o| rows.iter().map(move |r| (o, r))).enumerate() {
            let slice = &g[from * inner..][..inner];
            y[(o * size + row) * inner..][..inner].iter_mut().zip(slice).for_each(|(y, g)| *y += g);
        }
        Ok(vec![Tensor::from_f64(results[0].dtype, &shape, &y)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: inputs[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 16.0)
    }

    fn cases() -> Vec<Case> {
        let index = |shape: &[usize], v: &[i64]| Tensor::from_i64(DType::I64, shape, v);
        let to = |axis, size: usize| Self { axis, size: size.into() };
        let wave = |dtype, shape: &[usize]| Tensor::wave(dtype, shape, 1);
        let spread = |count: i64, size: i64| (0..count).map(|i| i * 7 % size).collect::<Vec<_>>();
        vec![
            Case::known(
                "known",
                to(0, 3),
                vec![Tensor::from_f32(&[3], vec![1.0, 2.0, 4.0]), index(&[3], &[2, 0, -1])],
                vec![Tensor::from_f32(&[3], vec![2.0, 0.0, 5.0])],
            ),
            Case::new("drop_axis", to(1, 5), vec![wave(DType::F32, &[2, 7]), index(&[], &[3])]),
            Case::new("table", to(0, 38), vec![wave(DType::F32, &[1, 65, 32]), index(&[1, 65], &spread(65, 38))]),
            Case::new(
                "tokens",
                to(1, 63),
                vec![wave(DType::F32, &[2, 1374, 3]), index(&[1374], &spread(1374, 64 - 1))],
            ),
            Case::new("sparse", to(0, 1374), vec![wave(DType::F32, &[64]), index(&[64], &spread(64, 1374))]),
            Case::new("f16", to(2, 9), vec![wave(DType::F16, &[2, 1, 4]), index(&[4], &[0, 8, 8, -1])]),
            Case::new("bf16", to(0, 4), vec![wave(DType::BF16, &[65, 72]), index(&[65], &spread(65, 4))]),
            Case::new(
                "narrow_indices",
                to(1, 64),
                vec![wave(DType::BF16, &[2, 63, 5]), Tensor::from_i64(DType::I32, &[63], &spread(63, 64))],
            ),
        ]
    }
}
