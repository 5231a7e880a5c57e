//! `gather(x, indices) {axis}`: slices of x along an axis, by index.

use super::{Case, Less, Op, OpDef, ScatterAdd, Tolerance, Where, elementwise::operands};
use crate::{
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// NumPy take: the axis is replaced by the dimensions of `indices`; negative indices count from the end.
    pub struct Gather {
        /// The axis that is indexed.
        pub axis: usize,
    }
}

/// A possibly negative index as an offset below `size`.
pub fn wrap(index: i64, size: usize) -> Result<usize, String> {
    let at = if index < 0 { index + size as i64 } else { index };
    usize::try_from(at).ok().filter(|i| *i < size).ok_or_else(|| format!("index {index} is outside {size} elements"))
}

/// Possibly negative indices as offsets below `size`, in the graph.
pub fn wrapped(at: &mut Vjp<'_>, indices: Value, size: usize) -> Result<Value, OpError> {
    let zero = at.number(indices, 0.0);
    let from_end = at.op(Less {}, &[indices, zero])?;
    let moved = at.plus(indices, size as f64)?;
    at.op(Where {}, &[from_end, moved, indices])
}

/// Refuses anything but i64 and i32.
pub fn integer(indices: &ValueType) -> Result<(), String> {
    match indices.dtype {
        DType::I64 | DType::I32 => Ok(()),
        _ => Err(format!("indices must be i64 or i32, not {indices}")),
    }
}

impl Gather {
    /// The table that undoes a constant one which only changes the order: adding up what was read once is reading again.
    fn inverse(&self, at: &Vjp<'_>) -> Option<Tensor> {
        let Op::Constant(table) = at.graph.op(at.operand(1).node) else { return None };
        let (order, shape) = (table.value.to_i64(), table.value.shape());
        let size = at.ty(at.operand(0)).shape[self.axis].size()?;
        if shape != [size] {
            return None;
        }
        let mut inverse = vec![None; size];
        for (to, from) in order.iter().enumerate() {
            inverse[wrap(*from, size).ok()?] = Some(to as i64);
        }
        let inverse: Option<Vec<i64>> = inverse.into_iter().collect();
        Some(Tensor::from_i64(table.value.dtype(), shape, &inverse?))
    }
}

impl OpDef for Gather {
    const NAME: &'static str = "gather";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, indices] = operands(inputs)?;
        integer(indices)?;
        if self.axis >= x.rank() {
            return Err(format!("axis {} is outside {x}", self.axis));
        }
        Ok(vec![x.with_shape([&x.shape[..self.axis], &indices.shape, &x.shape[self.axis + 1..]].concat())])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let (x, size) = (inputs[0], inputs[0].shape()[self.axis]);
        let inner: usize = x.shape()[self.axis + 1..].iter().product();
        let outer: usize = x.shape()[..self.axis].iter().product();
        let rows: Vec<usize> = inputs[1].to_i64().into_iter().map(|i| wrap(i, size)).collect::<Result<_, _>>()?;
        let walk = (0..outer).flat_map(|o| rows.iter().map(move |r| (o * size + r) * inner));
        Ok(vec![x.pick(&shape, walk.flat_map(|start| start..start + inner))])
    }

    fn tolerance(&self, _: DType) -> Tolerance {
        Tolerance::EXACT
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (g, indices) = (at.cotangent()?, at.operand(1));
        if let Some(inverse) = self.inverse(at) {
            let inverse = at.constant(inverse);
            let part = at.op(self.clone(), &[g, inverse])?;
            return at.give(0, part);
        }
        let size = at.ty(at.operand(0)).shape[self.axis].clone();
        let part = at.op(ScatterAdd { axis: self.axis, size }, &[g, indices])?;
        at.give(0, part)
    }

    fn cases() -> Vec<Case> {
        let index = |shape: &[usize], v: &[i64]| Tensor::from_i64(DType::I64, shape, v);
        let x = Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0]);
        vec![
            Case::known(
                "known",
                Self { axis: 0 },
                vec![x, index(&[2], &[2, -3])],
                vec![Tensor::from_f32(&[2], vec![3.0, 1.0])],
            ),
            Case::new("drop_axis", Self { axis: 1 }, vec![Tensor::wave(DType::F32, &[2, 5, 7], 1), index(&[], &[3])]),
            Case::new(
                "table",
                Self { axis: 0 },
                vec![
                    Tensor::wave(DType::F32, &[38, 32], 1),
                    index(&[1, 65], &(0..65).map(|i| i % 38).collect::<Vec<_>>()),
                ],
            ),
            Case::new(
                "half",
                Self { axis: 2 },
                vec![Tensor::wave(DType::F16, &[2, 1, 9], 1), index(&[4], &[0, 8, 8, -1])],
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        graph::Graph,
        interpret::interpret,
        passes::{ALL, pipeline},
        tensor::Tensor,
        types::DType,
    };

    #[test]
    fn an_order_is_undone_by_an_order() {
        let gradient = |order: &str| {
            let text = format!(
                "graph @g(%w: f32[3,2]) {{\n  param $x: f32[3,2] {{state=true}}\n  %t = constant([{order}]) : i64[3]\n  %y = gather($x, %t) {{axis=0}}\n  \
                 %p = mul(%y, %w)\n  %l = reduce_sum(%p) {{axes=[0,1],keep=false}}\n  return loss=%l\n}}"
            );
            let mut graph: Graph = text.parse().unwrap_or_else(|e| panic!("{e}"));
            let passes = pipeline::select("grad{wrt=[\"x\"]},dce", ALL).unwrap();
            pipeline::execute(&mut graph, &passes, true, &mut |_, _| true).unwrap();
            let w = Tensor::from_f32(&[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let x = Tensor::from_f64(DType::F32, &[3, 2], &[0.0; 6]);
            let outputs = interpret(&graph, &[("w".to_string(), w)].into(), &|_| Some(x.clone())).unwrap();
            let adds = graph.node_ids().any(|id| graph.op(id).name() == "scatter_add");
            let (_, gradient) = outputs.iter().find(|(name, _)| name.as_str() != "loss").unwrap();
            (adds, gradient.to_f64())
        };
        assert_eq!(gradient("2,-3,1"), (false, vec![3.0, 4.0, 5.0, 6.0, 1.0, 2.0]));
        assert_eq!(gradient("2,2,1"), (true, vec![0.0, 0.0, 5.0, 6.0, 4.0, 6.0]));
    }
}
