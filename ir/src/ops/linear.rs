//! `linear(x, w, [b], [residual])`: y = act(x wᵀ + b) + residual, or codes and scales of it.

use rayon::prelude::*;

use super::{
    Case, Cost, OpDef, Tolerance,
    activation::Activation,
    quantize::{Granularity, Quantize, code_tolerance},
    shape_rules::transposed,
    traffic,
};
use crate::{
    dim::Dim,
    graph::{OpError, Value},
    tensor::Tensor,
    types::{DType, ValueType},
    vjp::Vjp,
};

crate::attributes! {
    /// y = act(x wᵀ + b) + residual: x [.., K], w [N, K] as checkpoints store it, b [N], residual [.., N]. The sum is
    /// wide; w may have 16 bits beside f32 x, bias and residual may be f32 beside 16-bit x and w. With `quantize`, the results are those of `quantize` on y.
    pub struct Linear {
        /// Applied to the sum with its bias.
        pub activation: Activation = Activation::None,
        /// Whether there is a bias operand.
        pub bias: bool = false,
        /// Whether there is a residual operand, the last.
        pub residual: bool = false,
        /// The element type of y; that of x by default.
        pub out: Option<DType> = None,
        /// Whether y is given as codes f8e4m3 and scales, and what shares one.
        pub quantize: Option<Granularity> = None,
    }
}

impl Linear {
    /// A plain product with or without bias.
    pub fn new(bias: bool) -> Self {
        Self { activation: Activation::None, bias, residual: false, out: None, quantize: None }
    }
}

/// What sits after a product: the same for every kind of linear layer.
pub struct Epilogue<'a> {
    /// Applied to sum and bias.
    pub activation: Activation,
    /// One value a column.
    pub bias: Option<&'a Tensor>,
    /// One value an element.
    pub residual: Option<&'a Tensor>,
}

impl Epilogue<'_> {
    /// `sums` [rows, n] as y of that type.
    pub fn finish(&self, mut sums: Vec<f64>, n: usize, dtype: DType, shape: &[usize]) -> Tensor {
        let bias = self.bias.map(Tensor::to_f64);
        let residual = self.residual.map(Tensor::to_f64);
        for (i, y) in sums.iter_mut().enumerate() {
            let x = *y + bias.as_ref().map_or(0.0, |b| b[i % n]);
            *y = self.activation.apply(x) + residual.as_ref().map_or(0.0, |r| r[i]);
        }
        Tensor::from_f64(dtype, shape, &sums)
    }
}

/// The types of y as a product gives it: itself, or codes and scales.
pub fn infer_quantized(y: ValueType, quantize: Option<Granularity>) -> Result<Vec<ValueType>, String> {
    match quantize {
        None => Ok(vec![y]),
        Some(scale) => Quantize { scale }.infer(&[y]),
    }
}

/// y as a product gives it: itself, or codes and scales.
pub fn quantized_results(
    y: Tensor,
    quantize: Option<Granularity>,
    results: &[ValueType],
) -> Result<Vec<Tensor>, String> {
    match quantize {
        None => Ok(vec![y]),
        Some(scale) => Quantize { scale }.eval(&[&y], results),
    }
}

/// Checks `extra` = [bias] [residual] against y [.., N] and returns its type.
pub fn infer_epilogue(
    x: &ValueType,
    n: &Dim,
    extra: &[ValueType],
    (bias, residual): (bool, bool),
    out: DType,
) -> Result<ValueType, String> {
    if extra.len() != bias as usize + residual as usize {
        return Err(format!("has {} operands behind the weights, its attributes say otherwise", extra.len()));
    }
    let mut shape = x.shape.clone();
    *shape.last_mut().ok_or("x needs a dimension")? = n.clone();
    let result = ValueType { dtype: out, shape };
    if bias && (extra[0].shape != [n.clone()] || !extra[0].dtype.is_float()) {
        return Err(format!("the bias must have shape [{n}], not {}", extra[0]));
    }
    if residual && extra.last().is_some_and(|r| r.shape != result.shape || !r.dtype.is_float()) {
        return Err(format!("the residual must have the shape of {result}, not {}", extra[extra.len() - 1]));
    }
    Ok(result)
}

/// Σₖ x[m, k]·w[n, k] in f64.
pub fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    if k == 0 {
        return Vec::new();
    }
    x.par_chunks(k)
        .flat_map_iter(|row| w.chunks(k).map(move |column| row.iter().zip(column).map(|(a, b)| a * b).sum::<f64>()))
        .collect()
}

impl OpDef for Linear {
    const NAME: &'static str = "linear";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let [x, w, extra @ ..] = inputs else { return Err("takes x and w at least".into()) };
        let narrower = x.dtype == DType::F32 && matches!(w.dtype, DType::BF16 | DType::F16);
        if !(x.dtype == w.dtype || narrower) || !x.dtype.is_float() {
            return Err(format!(
                "x and w must share a floating-point type, or w have 16 bits beside f32, not {x} and {w}"
            ));
        }
        match (x.shape.last(), w.shape.as_slice()) {
            (Some(k), [n, kw]) if k == kw => {
                let y = infer_epilogue(x, n, extra, (self.bias, self.residual), self.out.unwrap_or(x.dtype))?;
                infer_quantized(y, self.quantize)
            }
            _ => Err(format!("x [.., K] and w [N, K] do not fit: {x} and {w}")),
        }
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let shape = results[0].dims().ok_or("needs static shapes")?;
        let [n, k] = *inputs[1].shape() else { return Err("w must be a matrix".into()) };
        let mut sums = product(&inputs[0].to_f64(), &inputs[1].to_f64(), k);
        sums.resize(shape.iter().product(), 0.0);
        let epilogue = Epilogue {
            activation: self.activation,
            bias: self.bias.then(|| inputs[2]),
            residual: self.residual.then(|| inputs[inputs.len() - 1]),
        };
        let y = epilogue.finish(sums, n, self.out.unwrap_or(inputs[0].dtype()), &shape);
        quantized_results(y, self.quantize, results)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let k = inputs[1].shape[1].size().unwrap_or(0) as f64;
        let n = results[0].elements().unwrap_or(0) as f64;
        Cost { flops: n * (2.0 * k + self.activation.flops()), bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        match self.quantize {
            Some(_) if result == DType::F8E4M3 => code_tolerance(result),
            _ => Tolerance::ulps(result, 16.0),
        }
    }

    fn vjp(&self, at: &mut Vjp<'_>) -> Result<(), OpError> {
        let (x, w, cotangent) = (at.operand(0), at.operand(1), at.cotangent()?);
        if self.quantize.is_some() {
            return Err(at.refuse("has no gradient: its codes are made by `fuse_quantize`"));
        }
        if self.residual {
            at.give(at.operands().len() - 1, cotangent)?;
        }
        let (rows, wide) = (at.ty(x).dtype, at.ty(w).dtype);
        let mut g = at.cast(cotangent, rows)?;
        if self.activation != Activation::None {
            let operands = at.operands()[..2 + usize::from(self.bias)].to_vec();
            let sum = at.op(Self { out: None, ..Self::new(self.bias) }, &operands)?;
            g = self.activation.vjp(at, sum, g)?;
        }
        let turned = transposed(at, w)?;
        let part = at.op(Self::new(false), &[g, turned])?;
        at.give(0, part)?;
        let flat = |at: &mut Vjp<'_>, t: Value| {
            let shape = at.dims(t)?;
            let columns = *shape.last().unwrap_or(&1);
            let count = shape[..shape.len() - 1].iter().product::<usize>();
            let matrix = at.reshape(t, &[count.into(), columns.into()])?;
            transposed(at, matrix)
        };
        let (gt, xt) = (flat(at, g)?, flat(at, x)?);
        // Weights of 16 bits beside f32 rows are multiplied wide.
        let out = (wide != rows).then_some(DType::F32).filter(|_| rows != DType::F32);
        let part = at.op(Self { out, ..Self::new(false) }, &[gt, xt])?;
        at.give(1, part)?;
        if self.bias {
            at.give(2, g)?;
        }
        Ok(())
    }

    fn cases() -> Vec<Case> {
        let wave = |shape: &[usize], seed| Tensor::wave(DType::F32, shape, seed);
        let x = Tensor::from_f32(&[1, 2], vec![1.0, 2.0]);
        let w = Tensor::from_f32(&[1, 2], vec![3.0, 4.0]);
        let b = Tensor::from_f32(&[1], vec![-20.0]);
        let r = Tensor::from_f32(&[1, 1], vec![7.0]);
        let relu = Self { activation: Activation::Relu, bias: true, residual: true, ..Self::new(true) };
        let mut cases = vec![
            Case::known(
                "known",
                Self::new(true),
                vec![x.clone(), w.clone(), b.clone()],
                vec![Tensor::from_f32(&[1, 1], vec![-9.0])],
            ),
            Case::known("known_epilogue", relu.clone(), vec![x, w, b, r.clone()], vec![r]),
        ];
        for (name, m) in [("one", 1), ("below_64", 63), ("at_64", 64), ("above_64", 65), ("frame_1374", 1374)] {
            let inputs = vec![wave(&[m, 48], 1), wave(&[40, 48], 2), wave(&[40], 3)];
            cases.push(Case::new(name, Self::new(true), inputs));
        }
        let gelu = Self { activation: Activation::Gelu, ..relu.clone() };
        cases.push(Case::new(
            "gelu_residual",
            gelu,
            vec![wave(&[2, 65, 32], 1), wave(&[24, 32], 2), wave(&[24], 3), wave(&[2, 65, 24], 4)],
        ));
        let half = Self { activation: Activation::Silu, out: Some(DType::F32), ..Self::new(true) };
        let bf16 = |shape: &[usize], seed| Tensor::wave(DType::BF16, shape, seed);
        cases.push(Case::new("bf16_to_f32", half, vec![bf16(&[63, 64], 1), bf16(&[8, 64], 2), wave(&[8], 3)]));
        let wide = Self { activation: Activation::Gelu, residual: true, out: Some(DType::F32), ..Self::new(true) };
        cases.push(Case::new(
            "bf16_residual_tiles",
            wide,
            vec![bf16(&[300, 136], 1), bf16(&[264, 136], 2), wave(&[264], 3), wave(&[300, 264], 4)],
        ));
        let narrow = Self { activation: Activation::GeluTanh, residual: true, ..Self::new(true) };
        cases.push(Case::new(
            "bf16_tiles",
            narrow,
            vec![bf16(&[1374, 72], 1), bf16(&[200, 72], 2), bf16(&[200], 3), bf16(&[1374, 200], 4)],
        ));
        cases.push(Case::new("bf16_odd", Self::new(true), vec![bf16(&[65, 63], 1), bf16(&[7, 63], 2), bf16(&[7], 3)]));
        cases.push(Case::known(
            "codes_known",
            Self { quantize: Some(Granularity::Columns(1)), ..Self::new(false) },
            vec![Tensor::from_f32(&[1, 1], vec![2.0]), Tensor::from_f32(&[2, 1], vec![-224.0, 0.0])],
            vec![
                Tensor::from_f64(DType::F8E4M3, &[1, 2], &[-448.0, 0.0]),
                Tensor::from_f32(&[1, 2], vec![1.0, f32::MIN_POSITIVE]),
            ],
        ));
        for (name, m, n, k) in [("narrow_weights", 3, 40, 264), ("narrow_weights_33", 33, 33, 64)] {
            let inputs = vec![wave(&[m, k], 1), bf16(&[n, k], 2), wave(&[n], 3)];
            cases.push(Case::new(name, Self { activation: Activation::Silu, ..Self::new(true) }, inputs));
        }
        for (name, m, n, scale) in [
            ("codes_columns", 65, 520, Granularity::Columns(256)),
            ("codes_rows", 63, 40, Granularity::Row),
            ("codes_tensor", 5, 40, Granularity::Tensor),
        ] {
            let op = Self { activation: Activation::Gelu, out: Some(DType::F32), ..Self::new(true) };
            let inputs = vec![bf16(&[m, 72], 1), bf16(&[n, 72], 2), wave(&[n], 3)];
            cases.push(Case::new(name, Self { quantize: Some(scale), ..op }, inputs));
        }
        for (name, n, k, out) in [("few_columns", 2, 32, DType::F32), ("few_columns_odd", 7, 40, DType::BF16)] {
            let op = Self { activation: Activation::Relu, out: Some(out), ..Self::new(true) };
            cases.push(Case::new(name, op, vec![bf16(&[4097, k], 1), bf16(&[n, k], 2), wave(&[n], 3)]));
        }
        let inputs = vec![wave(&[2, 2100, 12], 1), wave(&[3, 12], 2), wave(&[3], 3), wave(&[2, 2100, 3], 4)];
        cases.push(Case::new("few_columns_f32", Self { residual: true, ..Self::new(true) }, inputs));
        cases.push(Case::new(
            "f16",
            Self::new(false),
            vec![Tensor::wave(DType::F16, &[3, 64], 1), Tensor::wave(DType::F16, &[5, 64], 2)],
        ));
        cases
    }
}
