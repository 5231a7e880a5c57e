//! What converters share: reading known operands, and the operations that most of them need.

use lite3r_ir::{
    DType, Dim, Tensor,
    ops::{self, shape_rules},
};

use crate::onnx::{
    build::Importer,
    dims,
    known::Val,
    node::{Node, Problem},
};

impl Importer<'_> {
    /// The dimensions of a value.
    pub fn shape(&self, val: &Val) -> Vec<Dim> {
        self.ty(val).shape
    }

    /// An operand that decides shapes, as dimensions.
    pub fn known_dims(&self, val: &Val, what: &str) -> Result<Vec<Dim>, Problem> {
        val.as_dims().ok_or_else(|| {
            let ty = self.ty(val);
            Problem::unsupported(format!(
                "{what} ({ty}) depends on data, or on symbols in a way that is no polynomial; if there are symbols, bind them \
                 before the import (--bind S=N)"
            ))
        })
    }

    /// An operand that decides what is done, as integers.
    pub fn known_ints(&self, val: &Val, what: &str) -> Result<Vec<i64>, Problem> {
        let dims = self.known_dims(val, what)?;
        let constant = |d: &Dim| {
            let free = d.symbols().join(", ");
            let problem = format!("{what} is {d}; bind {free} before the import (--bind {free}=N)");
            d.constant().ok_or_else(|| Problem::unsupported(problem))
        };
        dims.iter().map(constant).collect()
    }

    /// An operand with real numbers that must be known.
    pub fn known_floats(&self, val: &Val, what: &str) -> Result<Vec<f64>, Problem> {
        match val {
            Val::Tensor(t) => Ok(t.to_f64()),
            _ => Err(Problem::unsupported(format!("{what} must be constant"))),
        }
    }

    /// A number that must be known.
    pub fn known_item(&self, val: &Val, what: &str) -> Result<f64, Problem> {
        match self.known_floats(val, what)?.as_slice() {
            [one] => Ok(*one),
            _ => Err(format!("{what} must be one number").into()),
        }
    }

    /// Axes from operand `operand` or attribute `axes`, as indices below `rank`, sorted; `None` where neither is given.
    pub fn axes(&self, node: &Node<'_>, operand: usize, rank: usize) -> Result<Option<Vec<usize>>, Problem> {
        let axes = match (node.get(operand), node.ints("axes")?) {
            (Some(val), _) => self.known_ints(val, "the list of axes")?,
            (None, Some(list)) => list.to_vec(),
            (None, None) => return Ok(None),
        };
        let mut axes = axes.iter().map(|a| shape_rules::axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
        axes.sort_unstable();
        match axes.windows(2).any(|pair| pair[0] == pair[1]) {
            true => Err("an axis is given twice".into()),
            false => Ok(Some(axes)),
        }
    }

    /// The attribute `axis`, as an index below `rank`.
    pub fn axis(&self, node: &Node<'_>, default: i64, rank: usize) -> Result<usize, Problem> {
        Ok(shape_rules::axis(node.int_or("axis", default)?, rank)?)
    }

    /// A scalar.
    pub fn scalar(&self, dtype: DType, value: f64) -> Val {
        Val::Tensor(Tensor::scalar(dtype, value))
    }

    /// x under another shape.
    pub fn reshape(&mut self, x: &Val, shape: Vec<Dim>) -> Result<Val, Problem> {
        if self.shape(x) == shape {
            return Ok(x.clone());
        }
        dims::checked(&shape)?;
        self.emit(ops::Reshape { shape }, &[x])
    }

    /// x with its dimensions in another order.
    pub fn transpose(&mut self, x: &Val, perm: Vec<usize>) -> Result<Val, Problem> {
        if perm.iter().copied().eq(0..perm.len()) {
            return Ok(x.clone());
        }
        self.emit(ops::Transpose { perm }, &[x])
    }

    /// x in another element type.
    pub fn cast(&mut self, x: &Val, to: DType) -> Result<Val, Problem> {
        if self.ty(x).dtype == to {
            return Ok(x.clone());
        }
        self.emit(ops::Cast { to }, &[x])
    }

    /// Elements `start` to `end` of x along an axis.
    pub fn slice(&mut self, x: &Val, axis: usize, start: Dim, end: Dim) -> Result<Val, Problem> {
        if start.constant() == Some(0) && self.shape(x)[axis] == end {
            return Ok(x.clone());
        }
        self.emit(ops::Slice { axis, start, end, step: 1 }, &[x])
    }

    /// x broadcast to a shape.
    pub fn expand(&mut self, x: &Val, shape: Vec<Dim>) -> Result<Val, Problem> {
        if self.shape(x) == shape {
            return Ok(x.clone());
        }
        dims::checked(&shape)?;
        self.emit(ops::Expand { shape }, &[x])
    }

    /// Tensors one after the other; empty ones are left out.
    pub fn concat(&mut self, parts: &[&Val], axis: usize) -> Result<Val, Problem> {
        let full: Vec<&Val> =
            parts.iter().copied().filter(|p| self.shape(p).get(axis).is_none_or(|d| d.size() != Some(0))).collect();
        match full.as_slice() {
            [] => Ok((*parts.first().ok_or("there are no operands")?).clone()),
            [one] => Ok((*one).clone()),
            _ => self.emit(ops::Concat { axis }, &full),
        }
    }

    /// A tensor that holds one number everywhere.
    pub fn filled(&mut self, value: &Tensor, shape: Vec<Dim>) -> Result<Val, Problem> {
        let one = value.reshaped(&[]).ok_or("one value is needed to fill a tensor")?;
        self.expand(&Val::Tensor(one), shape)
    }

    /// The integers from `start`, `count` of them.
    pub fn sequence(&mut self, start: Dim, count: Dim, step: i64) -> Result<Val, Problem> {
        dims::checked(std::slice::from_ref(&count))?;
        let op = ops::Range { start, count, step };
        let ty = ops::OpDef::infer(&op, &[])?.swap_remove(0);
        match (op.start.constant(), ty.elements()) {
            (Some(_), Some(n)) if n <= 1 << 12 => {
                Ok(Val::Tensor(ops::OpDef::eval(&op, &[], std::slice::from_ref(&ty))?.swap_remove(0)))
            }
            _ => self.emit(op, &[]),
        }
    }
}

/// Whether `b` is `a` or may be for some values of symbols.
pub fn may_equal(a: &Dim, b: &Dim) -> bool {
    dims::sign(&(a.clone() - b.clone())).is_none_or(std::cmp::Ordering::is_eq)
}

/// The f64 that an f32 attribute means: 1e-5 and not 9.999999747378752e-6.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
