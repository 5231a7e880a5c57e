//! Values during the import: nodes of the graph, or what is known on the host.

use lite3r_ir::{DType, Dim, Op, Tensor, Value, ValueType, ops};

use super::dims::sign;

/// What an ONNX value has become.
#[derive(Clone, Debug)]
pub enum Val {
    /// A value of the graph.
    Graph(Value),
    /// A tensor known on the host. Becomes a `Constant` when the graph reads it.
    Tensor(Tensor),
    /// Integers that depend on symbols.
    Dims(Dims),
}

/// An i64 tensor whose elements are polynomials over the symbols of the inputs.
#[derive(Clone, Debug)]
pub struct Dims {
    /// Sizes of the tensor itself.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub dims: Vec<Dim>,
}

impl Val {
    /// A vector of dimensions; a plain tensor where no symbol is left.
    pub fn dims(shape: Vec<usize>, dims: Vec<Dim>) -> Self {
        match dims.iter().map(Dim::constant).collect::<Option<Vec<i64>>>() {
            Some(values) => Self::Tensor(Tensor::from_i64(DType::I64, &shape, &values)),
            None => Self::Dims(Dims { shape, dims }),
        }
    }

    /// The elements as dimensions, where this is a known integer tensor.
    pub fn as_dims(&self) -> Option<Vec<Dim>> {
        match self {
            Self::Dims(d) => Some(d.dims.clone()),
            Self::Tensor(t) if matches!(t.dtype(), DType::I64 | DType::I32) => {
                Some(t.to_i64().into_iter().map(Dim::from).collect())
            }
            _ => None,
        }
    }
}

/// Applies an operation to operands of which at least one holds symbols. `None` where the result cannot be said.
pub fn apply(op: &Op, operands: &[&Val]) -> Option<Val> {
    match op {
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Concat(_)
        | Op::Slice(_)
        | Op::Expand(_)
        | Op::Gather(_)
        | Op::Where(_) => moved(op, operands),
        Op::Cast(ops::Cast { to: DType::I64 | DType::I32 }) => Some(operands[0].clone()),
        Op::Neg(_) => map(operands[0], |d| Some(Dim::from(0) - d)),
        Op::Abs(_) => map(operands[0], |d| sign(&d).map(|s| if s.is_lt() { Dim::from(0) - d } else { d })),
        Op::Add(_) => zip(operands, |a, b| Some(a + b)),
        Op::Sub(_) => zip(operands, |a, b| Some(a - b)),
        Op::Mul(_) => zip(operands, |a, b| Some(a * b)),
        Op::Div(_) => zip(operands, |a, b| a.divide(&b)),
        Op::Remainder(_) => zip(operands, |a, b| a.divide(&b).map(|_| Dim::from(0))),
        Op::Max(_) => zip(operands, |a, b| sign(&(a.clone() - b.clone())).map(|s| if s.is_lt() { b } else { a })),
        Op::Min(_) => zip(operands, |a, b| sign(&(a.clone() - b.clone())).map(|s| if s.is_gt() { b } else { a })),
        Op::Equal(_) => compare(operands, |s| s.is_eq()),
        Op::Less(_) => compare(operands, |s| s.is_lt()),
        Op::LessEqual(_) => compare(operands, |s| s.is_le()),
        Op::ReduceProd(ops::ReduceProd { axes, keep }) => {
            let Val::Dims(d) = operands[0] else { return None };
            let all = axes.len() == d.shape.len();
            let shape = if *keep { vec![1; axes.len()] } else { Vec::new() };
            all.then(|| Val::dims(shape, vec![super::dims::product(&d.dims)]))
        }
        _ => None,
    }
}

/// Operations that only move elements are evaluated on the positions of the elements.
fn moved(op: &Op, operands: &[&Val]) -> Option<Val> {
    // A Gather reads its indices and a Where its condition as numbers; all else is moved.
    let read = match op {
        Op::Gather(_) => Some(1),
        Op::Where(_) => Some(0),
        _ => None,
    };
    let mut pool: Vec<Dim> = Vec::new();
    let mut tensors = Vec::with_capacity(operands.len());
    for (i, operand) in operands.iter().enumerate() {
        tensors.push(match (operand, read == Some(i)) {
            (Val::Tensor(t), true) => t.clone(),
            (Val::Graph(_) | Val::Dims(_), true) => return None,
            (operand, false) => {
                let dims = operand.as_dims()?;
                let first = pool.len() as i64;
                let shape = match operand {
                    Val::Tensor(t) => t.shape().to_vec(),
                    Val::Dims(d) => d.shape.clone(),
                    Val::Graph(_) => return None,
                };
                pool.extend(dims);
                Tensor::from_i64(DType::I64, &shape, &(first..pool.len() as i64).collect::<Vec<_>>())
            }
        });
    }
    let types: Vec<ValueType> = tensors.iter().map(Tensor::value_type).collect();
    let results = op.infer(&types).ok()?;
    results.iter().all(|t| t.elements().is_some_and(|n| n <= LIMIT)).then_some(())?;
    let moved = op.eval(&tensors.iter().collect::<Vec<_>>(), &results).ok()?;
    let [moved] = moved.as_slice() else { return None };
    Some(Val::dims(moved.shape().to_vec(), moved.to_i64().into_iter().map(|i| pool[i as usize].clone()).collect()))
}

/// How many dimensions a known tensor may hold; beyond, it is data and goes into the graph.
const LIMIT: usize = 1 << 12;

fn map(x: &Val, f: impl Fn(Dim) -> Option<Dim>) -> Option<Val> {
    let Val::Dims(d) = x else { return None };
    Some(Val::dims(d.shape.clone(), d.dims.iter().cloned().map(f).collect::<Option<_>>()?))
}

/// Pairs of elements under broadcasting.
struct Pairs {
    shape: Vec<usize>,
    pairs: Vec<(Dim, Dim)>,
}

fn pairs(operands: &[&Val]) -> Option<Pairs> {
    let [a, b] = operands else { return None };
    let shape = |v: &Val| match v {
        Val::Tensor(t) => t.shape().to_vec(),
        Val::Dims(d) => d.shape.clone(),
        Val::Graph(_) => Vec::new(),
    };
    let (x, y) = (a.as_dims()?, b.as_dims()?);
    let sides = [a, b].map(|v| shape(v).into_iter().map(Dim::from).collect::<Vec<_>>());
    let to = ops::shape_rules::broadcast(&[&sides[0], &sides[1]]).ok()?;
    let to: Vec<usize> = to.iter().map(Dim::size).collect::<Option<_>>()?;
    let steps = [a, b].map(|v| ops::shape_rules::strides_for(&shape(v), &to));
    let walk = ops::elementwise::indices(&to, steps);
    let pairs = walk.map(|[i, j]| (x[i].clone(), y[j].clone())).collect();
    Some(Pairs { shape: to, pairs })
}

fn zip(operands: &[&Val], f: impl Fn(Dim, Dim) -> Option<Dim>) -> Option<Val> {
    let Pairs { shape, pairs } = pairs(operands)?;
    Some(Val::dims(shape, pairs.into_iter().map(|(a, b)| f(a, b)).collect::<Option<_>>()?))
}

fn compare(operands: &[&Val], holds: impl Fn(std::cmp::Ordering) -> bool) -> Option<Val> {
    let Pairs { shape, pairs } = pairs(operands)?;
    let decided = pairs.into_iter().map(|(a, b)| sign(&(a - b)).map(|s| i64::from(holds(s))));
    Some(Val::Tensor(Tensor::from_i64(DType::Bool, &shape, &decided.collect::<Option<Vec<_>>>()?)))
}
