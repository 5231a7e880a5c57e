//! `constant`: a tensor that the graph itself holds.

use super::{Case, Cost, OpDef, elementwise::operands};
use crate::{
    attr::{Attr, AttrField, AttrMap, Attributes},
    tensor::Tensor,
    types::{DType, ValueType},
};

/// A tensor that the graph itself holds: scalars, tables, index lists. The text form writes it in place of
/// operands, `constant([1.0,2.0])`; as little-endian bytes in hexadecimal where there are more than
/// [`Constant::WRITTEN_OUT`] elements or a NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// The value.
    pub value: Tensor,
}

impl Constant {
    /// Up to how many elements are written one by one.
    pub const WRITTEN_OUT: usize = 16;
}

impl Attributes for Constant {
    fn attrs(&self) -> AttrMap {
        let ty = ("type".to_string(), Attr::Text(self.value.value_type().to_string()));
        let reals = self.value.to_f64();
        if self.value.len() > Self::WRITTEN_OUT || reals.iter().any(|v| v.is_nan()) {
            let hex: String = self.value.bytes().iter().map(|b| format!("{b:02x}")).collect();
            return vec![ty, ("bytes".into(), Attr::Text(hex))];
        }
        let items = match self.value.dtype() {
            DType::F32 => reals.into_iter().map(|v| Attr::Float(shortest(v as f32))).collect(),
            dtype if dtype.is_float() => reals.into_iter().map(Attr::Float).collect(),
            _ => self.value.to_i64().into_iter().map(|v| Attr::Dim(v.into())).collect(),
        };
        vec![ty, ("value".into(), Attr::List(items))]
    }

    fn from_attrs(attrs: &[(String, Attr)]) -> Result<Self, Vec<String>> {
        let known = ["type", "value", "bytes"];
        let problems: Vec<String> = attrs
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_str()))
            .map(|(name, _)| format!("there is no attribute `{name}`"))
            .collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        parse(attrs).map(|value| Self { value }).map_err(|problem| vec![problem])
    }
}

/// The f64 with the fewest digits that rounds to `x`: 0.1 and not 0.10000000149011612.
fn shortest(x: f32) -> f64 {
    let short: f64 = x.to_string().parse().unwrap_or(x as f64);
    if (short as f32).to_bits() == x.to_bits() { short } else { x as f64 }
}

fn parse(attrs: &[(String, Attr)]) -> Result<Tensor, String> {
    let get = |name: &str| attrs.iter().find(|(n, _)| n == name).map(|(_, a)| a);
    let Some(Attr::Text(ty)) = get("type") else { return Err("attribute `type` is required".into()) };
    let ty: ValueType = ty.parse()?;
    let shape = ty.dims().ok_or("a constant needs a static shape")?;
    let count = ty.elements().ok_or("a constant this large cannot be written")?;
    match (get("value"), get("bytes")) {
        (Some(Attr::List(items)), None) if items.len() == count => {
            if ty.dtype.is_float() {
                let values = items.iter().map(f64::take).collect::<Option<Vec<_>>>();
                return Ok(Tensor::from_f64(ty.dtype, &shape, &values.ok_or("the value must be a list of numbers")?));
            }
            let values = items.iter().map(i64::take).collect::<Option<Vec<_>>>();
            let values = values.ok_or("the value must be a list of integers")?;
            let tensor = Tensor::from_i64(ty.dtype, &shape, &values);
            if tensor.to_i64() == values { Ok(tensor) } else { Err(format!("a value is outside {}", ty.dtype)) }
        }
        (Some(Attr::List(items)), None) => Err(format!("{ty} has {count} elements, not {}", items.len())),
        (None, Some(Attr::Text(hex))) => {
            let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
            let digits = digits.filter(|d| d.len() % 2 == 0).ok_or("the bytes must be pairs of hexadecimal digits")?;
            let bytes: Vec<u8> = digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect();
            Tensor::from_bytes(ty.dtype, &shape, &bytes).ok_or(format!("{} bytes do not fill {ty}", bytes.len()))
        }
        _ => Err("either a list `value` or a string `bytes` is required".into()),
    }
}

impl OpDef for Constant {
    const NAME: &'static str = "constant";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [] = operands(inputs)?;
        Ok(vec![self.value.value_type()])
    }

    fn eval(&self, _: &[&Tensor], _: &[ValueType]) -> Result<Vec<Tensor>, String> {
        Ok(vec![self.value.clone()])
    }

    fn cost(&self, _: &[ValueType], _: &[ValueType]) -> Cost {
        Cost::default()
    }

    fn cases() -> Vec<Case> {
        Vec::new()
    }
}
