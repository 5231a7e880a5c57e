//! `constant`: a tensor that the graph itself holds.

use super::{Case, Cost, OpDef, elementwise::operands};
use crate::{
    attr::{Attr, AttrMap, Attributes},
    tensor::Tensor,
    types::ValueType,
};

/// A tensor that the graph itself holds: scalars, tables, index lists. The text form writes values (`value=[1.0,2.0]`), or
/// little-endian bytes in hexadecimal where there are more than [`Constant::WRITTEN_OUT`].
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
        if self.value.len() > Self::WRITTEN_OUT {
            let hex: String = self.value.bytes().iter().map(|b| format!("{b:02x}")).collect();
            return vec![ty, ("bytes".into(), Attr::Text(hex))];
        }
        let items = match self.value.dtype().is_float() {
            true => self.value.to_f64().into_iter().map(Attr::Float).collect(),
            false => self.value.to_i64().into_iter().map(|v| Attr::Dim(v.into())).collect(),
        };
        vec![ty, ("value".into(), Attr::List(items))]
    }

    fn from_attrs(attrs: &[(String, Attr)]) -> Result<Self, Vec<String>> {
        let get = |name: &str| attrs.iter().find(|(n, _)| n == name).map(|(_, a)| a);
        let parse = || -> Result<Tensor, String> {
            let Some(Attr::Text(ty)) = get("type") else { return Err("attribute `type` is required".into()) };
            let ty: ValueType = ty.parse()?;
            let shape = ty.dims().ok_or("a constant needs a static shape")?;
            let count = ty.elements().ok_or("a constant this large cannot be written")?;
            match (get("value"), get("bytes")) {
                (Some(Attr::List(items)), None) if items.len() == count => {
                    use crate::attr::AttrField;
                    if ty.dtype.is_float() {
                        let values = items.iter().map(f64::take).collect::<Option<Vec<_>>>();
                        Ok(Tensor::from_f64(ty.dtype, &shape, &values.ok_or("`value` must be a list of numbers")?))
                    } else {
                        let values = items.iter().map(i64::take).collect::<Option<Vec<_>>>();
                        Ok(Tensor::from_i64(ty.dtype, &shape, &values.ok_or("`value` must be a list of integers")?))
                    }
                }
                (None, Some(Attr::Text(hex))) => {
                    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
                    let digits = digits.ok_or("`bytes` must be hexadecimal")?;
                    let bytes: Vec<u8> = digits.chunks(2).map(|d| d.iter().fold(0, |v, d| v << 4 | d)).collect();
                    Tensor::from_bytes(ty.dtype, &shape, &bytes).ok_or_else(|| format!("{} bytes do not fill {ty}", bytes.len()))
                }
                _ => Err(format!("`value` with {count} elements, or `bytes`, is required")),
            }
        };
        parse().map(|value| Self { value }).map_err(|problem| vec![problem])
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
