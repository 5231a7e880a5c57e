//! `pointwise(a, b, …) {expr, out}`: several elementwise operations as one.

use std::{fmt, str::FromStr};

use super::{
    Case, Cost, Op, OpDef, Tolerance, elementwise::indices, shape_rules::broadcast, shape_rules::strides_for,
    special::erf, traffic,
};
use crate::{
    attr::{Attr, AttrField},
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// y = expr(a, b, …) of every element under broadcasting: up to [`MOST_OPERANDS`] floating-point operands of any
    /// types of 16 bits or more, computed wide, rounded once.
    pub struct Pointwise {
        /// What is computed: `"add(mul(a,b),1)"`.
        pub expr: Expression,
        /// The element type of the result.
        pub out: DType = DType::F32,
    }
}

/// Operands are named by the first letters.
pub const MOST_OPERANDS: usize = 6;

/// What is computed of the elements of operands: calls of [`Function`]s, operands as letters `a` to `f`, and numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// The element of an operand.
    Operand(usize),
    /// A number.
    Number(f64),
    /// A function of as many arguments as it takes.
    Call(Function, Vec<Expression>),
}

/// A function of reals, named after the operation that computes it.
#[derive(Clone, Copy)]
pub struct Function {
    /// As the operation is named.
    pub name: &'static str,
    real: Real,
}

#[derive(Clone, Copy)]
enum Real {
    Unary(fn(f64) -> f64),
    Binary(fn(f64, f64) -> f64),
}

const FUNCTIONS: [Function; 19] = [
    unary("neg", |x| -x),
    unary("abs", f64::abs),
    unary("exp", f64::exp),
    unary("log", f64::ln),
    unary("sqrt", f64::sqrt),
    unary("reciprocal", |x| 1.0 / x),
    unary("tanh", f64::tanh),
    unary("sigmoid", |x| 1.0 / (1.0 + (-x).exp())),
    unary("silu", |x| x / (1.0 + (-x).exp())),
    unary("gelu", |x| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))),
    unary("relu", |x| x.max(0.0)),
    unary("erf", erf),
    unary("sign", |x| if x == 0.0 { 0.0 } else { x.signum() }),
    binary("add", |a, b| a + b),
    binary("sub", |a, b| a - b),
    binary("mul", |a, b| a * b),
    binary("div", |a, b| a / b),
    binary("max", f64::max),
    binary("min", f64::min),
];

const fn unary(name: &'static str, real: fn(f64) -> f64) -> Function {
    Function { name, real: Real::Unary(real) }
}

const fn binary(name: &'static str, real: fn(f64, f64) -> f64) -> Function {
    Function { name, real: Real::Binary(real) }
}

impl Function {
    /// The function that an operation computes, if it is one of these with its default attributes.
    pub fn of(op: &Op) -> Option<Self> {
        if op.attrs().is_empty() { Self::named(op.name()) } else { None }
    }

    fn named(name: &str) -> Option<Self> {
        FUNCTIONS.into_iter().find(|f| f.name == name)
    }

    /// How many arguments it takes.
    pub fn arity(self) -> usize {
        match self.real {
            Real::Unary(_) => 1,
            Real::Binary(_) => 2,
        }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Expression {
    /// Functions in it.
    pub fn calls(&self) -> usize {
        match self {
            Self::Operand(_) | Self::Number(_) => 0,
            Self::Call(_, arguments) => 1 + arguments.iter().map(Self::calls).sum::<usize>(),
        }
    }

    /// As many operands as it names: one more than the last.
    pub fn operands(&self) -> usize {
        match self {
            Self::Operand(i) => i + 1,
            Self::Number(_) => 0,
            Self::Call(_, arguments) => arguments.iter().map(Self::operands).max().unwrap_or(0),
        }
    }

    fn value(&self, elements: &[f64]) -> f64 {
        match self {
            Self::Operand(i) => elements[*i],
            Self::Number(number) => *number,
            Self::Call(function, arguments) => match (function.real, &arguments[..]) {
                (Real::Unary(f), [x, ..]) => f(x.value(elements)),
                (Real::Binary(f), [a, b, ..]) => f(a.value(elements), b.value(elements)),
                _ => f64::NAN,
            },
        }
    }

    /// An expression at the beginning of a text, and the rest.
    fn read(text: &str) -> Option<(Self, &str)> {
        let end = text.find(['(', ')', ',']).unwrap_or(text.len());
        let (word, mut rest) = text.split_at(end);
        let Some(inside) = rest.strip_prefix('(') else {
            let letter = <[u8; 1]>::try_from(word.as_bytes()).ok().and_then(|[c]| c.checked_sub(b'a'));
            let one = match letter.map(usize::from).filter(|i| *i < MOST_OPERANDS) {
                Some(i) => Self::Operand(i),
                None => Self::Number(word.parse().ok()?),
            };
            return Some((one, rest));
        };
        let function = Function::named(word)?;
        let mut arguments = Vec::new();
        rest = inside;
        loop {
            let (argument, behind) = Self::read(rest)?;
            arguments.push(argument);
            match behind.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    let behind = behind.strip_prefix(')')?;
                    return (arguments.len() == function.arity()).then_some((Self::Call(function, arguments), behind));
                }
            }
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operand(i) => write!(f, "{}", (b'a' + *i as u8) as char),
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Call(function, arguments) => {
                let arguments: Vec<String> = arguments.iter().map(Self::to_string).collect();
                write!(f, "{}({})", function.name, arguments.join(","))
            }
        }
    }
}

impl FromStr for Expression {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match Self::read(&text.replace(' ', "")) {
            Some((expression, "")) => Ok(expression),
            _ => Err(()),
        }
    }
}

impl AttrField for Expression {
    const EXPECTS: &'static str = "calls of elementwise operations on operands a to f: \"add(mul(a,b),1)\"";
    fn put(&self) -> Attr {
        Attr::Text(self.to_string())
    }
    fn take(attr: &Attr) -> Option<Self> {
        String::take(attr)?.parse().ok()
    }
}

impl OpDef for Pointwise {
    const NAME: &'static str = "pointwise";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        if inputs.len() != self.expr.operands() || inputs.is_empty() {
            return Err(format!("`{}` takes {} operands, not {}", self.expr, self.expr.operands(), inputs.len()));
        }
        let wide = |dtype: DType| dtype.is_float() && dtype.size() > 1;
        if let Some(odd) = inputs.iter().map(|t| t.dtype).chain([self.out]).find(|t| !wide(*t)) {
            return Err(format!("takes and gives floating-point numbers of 16 bits or more, not {odd}"));
        }
        let shapes: Vec<_> = inputs.iter().map(|t| &t.shape[..]).collect();
        Ok(vec![ValueType { dtype: self.out, shape: broadcast(&shapes)? }])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let values: Vec<Vec<f64>> = inputs.iter().map(|t| t.to_f64()).collect();
        let strides: [Vec<usize>; MOST_OPERANDS] =
            std::array::from_fn(|i| strides_for(inputs.get(i).map_or(&[], |t| t.shape()), &shape));
        let mut elements = vec![0.0; inputs.len()];
        let of = |offsets: [usize; MOST_OPERANDS]| {
            elements.iter_mut().zip(&values).zip(offsets).for_each(|((e, v), at)| *e = v[at]);
            self.expr.value(&elements)
        };
        let values: Vec<f64> = indices(&shape, strides).map(of).collect();
        Ok(vec![Tensor::from_f64(self.out, &shape, &values)])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let elements = results[0].elements().unwrap_or(0) as f64;
        Cost { flops: self.expr.calls() as f64 * elements, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        Tolerance::ulps(result, 16.0)
    }

    fn cases() -> Vec<Case> {
        let of = |expr: &str, out| Self { expr: expr.parse().expect("cases are well-formed"), out };
        let wave = |dtype, shape: &[usize], seed| Tensor::wave(dtype, shape, seed);
        let f = DType::F32;
        let mut cases = vec![Case::known(
            "known",
            of("add(mul(a,add(b,1)),c)", f),
            vec![
                Tensor::from_f32(&[2], vec![2.0, 3.0]),
                Tensor::from_f32(&[1], vec![0.5]),
                Tensor::from_f32(&[], vec![-1.0]),
            ],
            vec![Tensor::from_f32(&[2], vec![2.0, 3.5])],
        )];
        for (name, shape, scale) in [
            ("one", &[1][..], &[1][..]),
            ("row_64", &[63, 64], &[64]),
            ("column_65", &[2, 64, 65], &[2, 64, 1]),
            ("frame_1374", &[1374, 48], &[1374, 48]),
        ] {
            let inputs = vec![wave(f, shape, 1), wave(f, scale, 2), wave(DType::BF16, shape, 3), wave(f, shape, 4)];
            cases.push(Case::new(name, of("add(mul(mul(a,add(b,1.0)),c),d)", f), inputs));
        }
        cases.push(Case::new("six_bf16", of("mul(sub(a,b),add(max(c,d),min(e,f)))", DType::BF16), {
            (0..6).map(|seed| wave(if seed % 2 == 0 { DType::F32 } else { DType::F16 }, &[5, 72], seed)).collect()
        }));
        for (name, expr) in [
            ("inverse_log", "mul(sign(a),sub(exp(abs(a)),1))"),
            ("activations", "add(add(silu(a),gelu(neg(a))),mul(sigmoid(a),relu(tanh(a))))"),
            ("roots", "div(sqrt(abs(a)),add(1,reciprocal(exp(a))))"),
            ("logarithm", "log(add(1.5,abs(a)))"),
        ] {
            cases.push(Case::new(name, of(expr, f), vec![wave(f, &[3, 68], 1)]));
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_they_are_written() {
        let text = "add(mul(a,add(b,1.0)),neg(-2.5e-7))";
        let read: Expression = text.parse().unwrap();
        assert_eq!((read.to_string().as_str(), read.calls(), read.operands()), (text, 4, 2));
        for bad in ["", "add(a)", "neg(a,b)", "add(a,b", "add(a,b))", "where(a,b)", "g", "add(a,,b)"] {
            assert!(bad.parse::<Expression>().is_err(), "{bad}");
        }
    }

    /// Every function is the operation of its name.
    #[test]
    fn functions_are_operations() {
        for function in FUNCTIONS {
            let op = Op::parse(function.name, &Vec::new()).unwrap();
            assert_eq!(Function::of(&op), Some(function));
            let x: Vec<Tensor> = (0..function.arity())
                .map(|i| Tensor::from_f64(DType::F64, &[3], &[0.75 + i as f64, 2.0, 0.0]))
                .collect();
            let types: Vec<ValueType> = x.iter().map(Tensor::value_type).collect();
            let want = op.eval(&x.iter().collect::<Vec<_>>(), &op.infer(&types).unwrap()).unwrap().remove(0).to_f64();
            let arguments = (0..function.arity()).map(Expression::Operand).collect();
            let call = Expression::Call(function, arguments);
            let columns: Vec<Vec<f64>> = x.iter().map(Tensor::to_f64).collect();
            for (i, want) in want.into_iter().enumerate() {
                let got = call.value(&columns.iter().map(|c| c[i]).collect::<Vec<_>>());
                assert!(got == want || got.is_nan() && want.is_nan(), "{}: {got} {want}", function.name);
            }
        }
    }
}
