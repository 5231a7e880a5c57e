//! `quantize(x) {scale}`: e4m3 codes and the scales that they stand under.

use super::{Case, Cost, OpDef, Tolerance, elementwise::operands, traffic};
use crate::{
    attr::{Attr, AttrField},
    dim::Dim,
    float8::E4M3_MAX,
    tensor::Tensor,
    types::{DType, ValueType},
};

/// What shares a scale. Scales of x [.., K] have shape [.., G] with G groups a row, or [1, .., 1] for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// A row of the last axis: an output row of weights, a token of activations. Written `row`.
    Row,
    /// Everything. Written `tensor`.
    Tensor,
    /// So many neighbouring columns of a row, the last group ragged. Written `columns128`.
    Columns(usize),
}

impl AttrField for Granularity {
    const EXPECTS: &'static str = "row, tensor, or columns and a number: columns128";
    fn put(&self) -> Attr {
        Attr::Word(match self {
            Self::Row => "row".into(),
            Self::Tensor => "tensor".into(),
            Self::Columns(n) => format!("columns{n}"),
        })
    }
    fn take(attr: &Attr) -> Option<Self> {
        let Attr::Word(word) = attr else { return None };
        match word.as_str() {
            "row" => Some(Self::Row),
            "tensor" => Some(Self::Tensor),
            _ => word.strip_prefix("columns")?.parse().ok().filter(|n| *n > 0).map(Self::Columns),
        }
    }
}

impl Granularity {
    /// The type of the scales of x.
    pub fn scales(self, x: &ValueType) -> Result<ValueType, String> {
        let (last, rows) = x.shape.split_last().ok_or("x needs a dimension")?;
        let rows = rows.iter().cloned();
        match self {
            Self::Row => Ok(ValueType::new(DType::F32, rows.chain([Dim::from(1)]))),
            Self::Tensor => Ok(ValueType::new(DType::F32, vec![Dim::from(1); x.rank()])),
            Self::Columns(n) => {
                let k = last.size().ok_or_else(|| format!("groups of columns need a fixed width, not {last}"))?;
                Ok(ValueType::new(DType::F32, rows.chain([Dim::from(k.div_ceil(n))])))
            }
        }
    }

    /// The index of the scale of element `at` of rows of `k` columns.
    pub fn group(self, at: usize, k: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row => at / k,
            Self::Columns(n) => at / k * k.div_ceil(n) + at % k / n,
        }
    }
}

/// The smallest scale, so that rows of zeros and of subnormal numbers have one: the smallest normal f32.
pub const SMALLEST_SCALE: f64 = f32::MIN_POSITIVE as f64;

crate::attributes! {
    /// x [.., K] as codes f8e4m3 of the same shape and scales f32, shaped as [`Granularity`] says. The scale of a
    /// group is the f32 nearest to max(amax/448, 2^−126), amax the largest magnitude in it; a code is the e4m3 number
    /// nearest to x/scale, ties to even, saturating. A group of zeros has codes of zero.
    pub struct Quantize {
        /// What shares a scale.
        pub scale: Granularity = Granularity::Row,
    }
}

/// Codes (as reals that e4m3 holds) and scales.
pub fn quantize(x: &[f64], k: usize, scale: Granularity) -> (Vec<f64>, Vec<f64>) {
    use crate::float8::{e4m3_to_f32, f32_to_e4m3};
    let groups = if x.is_empty() { 0 } else { scale.group(x.len() - 1, k) + 1 };
    let mut scales = vec![0f64; groups];
    x.iter().enumerate().for_each(|(i, v)| {
        let s = &mut scales[scale.group(i, k)];
        *s = s.max(v.abs());
    });
    scales.iter_mut().for_each(|s| *s = (*s / E4M3_MAX as f64).max(SMALLEST_SCALE) as f32 as f64);
    let code = |(i, v): (usize, &f64)| e4m3_to_f32(f32_to_e4m3((v / scales[scale.group(i, k)]) as f32)) as f64;
    (x.iter().enumerate().map(code).collect(), scales)
}

impl Quantize {
    /// Codes and scales of wide `x` of this shape, as tensors.
    pub fn tensors(&self, x: &[f64], shape: &[usize], scales: &ValueType) -> Result<Vec<Tensor>, String> {
        let k = shape.last().copied().unwrap_or(1).max(1);
        let (codes, mut values) = quantize(x, k, self.scale);
        let scales = scales.dims().ok_or("needs static shapes")?;
        // An empty tensor still has a scale where everything shares one.
        values.resize(scales.iter().product(), SMALLEST_SCALE);
        Ok(vec![Tensor::from_f64(DType::F8E4M3, shape, &codes), Tensor::from_f64(DType::F32, &scales, &values)])
    }
}

/// Codes may differ by a step where x/scale lies between two of them: 32 of 448 at the top. Scales agree as f32 do.
pub fn code_tolerance(result: DType) -> Tolerance {
    match result {
        DType::F8E4M3 => Tolerance { absolute: 0.0, relative: 32.0 / 448.0 },
        _ => Tolerance::ulps(result, 4.0),
    }
}

impl OpDef for Quantize {
    const NAME: &'static str = "quantize";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x] = operands(inputs)?;
        if !x.dtype.is_float() || x.dtype.size() == 1 {
            return Err(format!("takes a floating-point operand of 16 bits or more, not {x}"));
        }
        Ok(vec![x.with_dtype(DType::F8E4M3), self.scale.scales(x)?])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        self.tensors(&inputs[0].to_f64(), inputs[0].shape(), &results[1])
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        Cost { flops: 3.0 * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        code_tolerance(result)
    }

    fn cases() -> Vec<Case> {
        let of = |scale| Self { scale };
        let f32s = |shape: &[usize], v: &[f32]| Tensor::from_f32(shape, v.to_vec());
        let codes = |shape: &[usize], v: &[f64]| Tensor::from_f64(DType::F8E4M3, shape, v);
        let x = f32s(&[2, 3], &[448.0, -1.0, 17.0, 0.0, 0.0, 0.0]);
        let mut cases = vec![
            Case::known(
                "rows",
                of(Granularity::Row),
                vec![x.clone()],
                vec![codes(&[2, 3], &[448.0, -1.0, 16.0, 0.0, 0.0, 0.0]), f32s(&[2, 1], &[1.0, f32::MIN_POSITIVE])],
            ),
            Case::known(
                "columns",
                of(Granularity::Columns(2)),
                vec![f32s(&[1, 3], &[896.0, 2.0, 448.0])],
                vec![codes(&[1, 3], &[448.0, 1.0, 448.0]), f32s(&[1, 2], &[2.0, 1.0])],
            ),
            Case::known(
                "tensor",
                of(Granularity::Tensor),
                vec![f32s(&[2, 1], &[-896.0, 2.0])],
                vec![codes(&[2, 1], &[-448.0, 1.0]), f32s(&[1, 1], &[2.0])],
            ),
        ];
        for (name, shape, scale, dtype) in [
            ("one", &[1, 1][..], Granularity::Row, DType::F32),
            ("below_64", &[63, 64], Granularity::Row, DType::F32),
            ("tensor_64", &[64, 48], Granularity::Tensor, DType::F32),
            ("columns_65", &[65, 200], Granularity::Columns(128), DType::F32),
            ("frame_1374", &[1, 1374, 192], Granularity::Row, DType::F32),
            ("bf16", &[2, 65, 64], Granularity::Row, DType::BF16),
            ("f16", &[63, 256], Granularity::Columns(128), DType::F16),
        ] {
            cases.push(Case::new(name, of(scale), vec![Tensor::wave(dtype, shape, 1)]));
        }
        cases
    }
}
