//! A node as its converter sees it: operands that may be missing, attributes with types.

use super::{
    known::Val,
    proto::{AttributeProto, NodeProto, TensorProto, attribute_type as ty},
};

/// Why a node cannot be converted; its name is put in front later.
#[derive(Clone, Debug)]
pub enum Problem {
    /// The file contradicts itself or the specification.
    Bad(String),
    /// Sound, but lite3r does not do it.
    Unsupported(String),
    /// A tensor does not hold what it says.
    Tensor(String),
    /// The data of a tensor in another file cannot be had.
    External(String),
}

impl Problem {
    /// Sound, but lite3r does not do it.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::Unsupported(text.into())
    }

    /// The same problem at a place.
    pub fn at(self, place: &str) -> Self {
        let put = |text| format!("{place}: {text}");
        match self {
            Self::Bad(text) => Self::Bad(put(text)),
            Self::Unsupported(text) => Self::Unsupported(put(text)),
            Self::Tensor(text) => Self::Tensor(put(text)),
            Self::External(text) => Self::External(put(text)),
        }
    }
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Bad(text)
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self::Bad(text.into())
    }
}

/// The largest stride or pad.
const LARGEST: usize = 1 << 20;

/// A node with the values of its operands.
pub struct Node<'m> {
    proto: &'m NodeProto,
    inputs: Vec<Option<Val>>,
}

impl<'m> Node<'m> {
    /// A node; `inputs` has an entry for each of its inputs, `None` where it is left out.
    pub fn new(proto: &'m NodeProto, inputs: Vec<Option<Val>>) -> Self {
        Self { proto, inputs }
    }

    /// The operator.
    pub fn op(&self) -> &'m str {
        &self.proto.op_type
    }

    /// How many results it names.
    pub fn outputs(&self) -> usize {
        self.proto.output.len()
    }

    /// The name of result `i`; empty where it is left out.
    pub fn output_name(&self, i: usize) -> &'m str {
        self.proto.output.get(i).map_or("", String::as_str)
    }

    /// Operand `i`, if it is there.
    pub fn get(&self, i: usize) -> Option<&Val> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// Operand `i`.
    pub fn input(&self, i: usize) -> Result<&Val, Problem> {
        self.get(i).ok_or_else(|| format!("operand {i} is missing").into())
    }

    /// All operands, of which none may be missing.
    pub fn all(&self) -> Result<Vec<&Val>, Problem> {
        (0..self.inputs.len()).map(|i| self.input(i)).collect()
    }

    fn attribute(&self, name: &str, kind: i32) -> Result<Option<&'m AttributeProto>, Problem> {
        match self.proto.attribute.iter().find(|a| a.name == name) {
            // Files of IR version 1 leave the type out.
            Some(a) if a.r#type == kind || a.r#type == 0 => Ok(Some(a)),
            Some(a) => Err(format!("attribute `{name}` has type {}, not {kind}", a.r#type).into()),
            None => Ok(None),
        }
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Result<Option<i64>, Problem> {
        Ok(self.attribute(name, ty::INT)?.map(|a| a.i))
    }

    /// An integer attribute with a default.
    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, Problem> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A number.
    pub fn float(&self, name: &str) -> Result<Option<f32>, Problem> {
        Ok(self.attribute(name, ty::FLOAT)?.map(|a| a.f))
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Result<Option<&'m [i64]>, Problem> {
        Ok(self.attribute(name, ty::INTS)?.map(|a| a.ints.as_slice()))
    }

    /// A list of integers from 0, as sizes, strides or pads.
    pub fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>, Problem> {
        let list = self.ints(name)?;
        let size = |v: &i64| {
            let within = usize::try_from(*v).ok().filter(|v| *v <= LARGEST);
            within.ok_or_else(|| format!("attribute `{name}` holds {v}"))
        };
        Ok(list.map(|l| l.iter().map(size).collect::<Result<_, _>>()).transpose()?)
    }

    /// A list of numbers.
    pub fn floats(&self, name: &str) -> Result<Option<&'m [f32]>, Problem> {
        Ok(self.attribute(name, ty::FLOATS)?.map(|a| a.floats.as_slice()))
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<Option<&'m str>, Problem> {
        let Some(a) = self.attribute(name, ty::STRING)? else { return Ok(None) };
        std::str::from_utf8(&a.s).map(Some).map_err(|_| format!("attribute `{name}` is not UTF-8").into())
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Result<Option<&'m TensorProto>, Problem> {
        let attribute = self.attribute(name, ty::TENSOR)?;
        let tensor = attribute.map(|a| a.t.as_ref().ok_or_else(|| format!("attribute `{name}` holds no tensor")));
        Ok(tensor.transpose()?)
    }

    /// Refuses an attribute that differs from the only value that is supported.
    pub fn only(&self, name: &str, supported: i64) -> Result<(), Problem> {
        match self.int(name)? {
            Some(v) if v != supported => {
                Err(Problem::unsupported(format!("{name}={v} is not supported, only {supported}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is an attribute of that name.
    pub fn has(&self, name: &str) -> bool {
        self.proto.attribute.iter().any(|a| a.name == name)
    }
}
