//! `qkv_linear(x, [xs], w, [ws], [b], [q_g, q_b, k_g, k_b], [turns]) {heads, bias, norm, segments, …}`: the joint
//! projection of an attention with what stands between it and the attention.

use super::{
    Case, Cost, Linear, Op, OpDef, QkvHeads, ScaledLinear, Tolerance, activation::Activation, dequantize::quantized,
    quantize::Granularity, traffic,
};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// q, k and v [B, heads, N, D] of x [B, N, K] and w [3·heads·D, K]: `linear`, or `scaled_linear` where x and w are
    /// codes with scales, then `qkv_heads` of its result; rounded once, to `out`. Both halves of a segment turn by the
    /// same angles: turns [.., D], which broadcast to q, hold cos and sin of a column in turn, for the lower halves.
    pub struct QkvLinear {
        /// Heads.
        pub heads: usize,
        /// Whether there is a bias operand.
        pub bias: bool = false,
        /// Whether q and k are normalised.
        pub norm: bool = false,
        /// Added to the variance.
        pub eps: f64 = 1e-5,
        /// Into how many parts rotary positions cut D; 0 for none.
        pub segments: usize = 0usize,
        /// What shares a scale in x, where x and w are codes.
        pub x_scale: Option<Granularity> = None,
        /// What shares a scale in w, likewise.
        pub w_scale: Option<Granularity> = None,
        /// The element type of the results.
        pub out: DType,
    }
}

impl QkvLinear {
    /// The product by itself, with results of `out`. Errors: scales of one operand alone.
    pub fn product(&self, out: DType) -> Result<Op, String> {
        match (self.x_scale, self.w_scale) {
            (None, None) => Ok(Linear { out: Some(out), ..Linear::new(self.bias) }.into()),
            (Some(x_scale), Some(w_scale)) => {
                let (activation, bias, residual, quantize) = (Activation::None, self.bias, false, None);
                Ok(ScaledLinear { activation, bias, residual, x_scale, w_scale, out, quantize }.into())
            }
            _ => Err("has scales of x and w, or of neither".into()),
        }
    }

    /// What is done to the result of the product.
    pub fn split(&self) -> QkvHeads {
        QkvHeads { heads: self.heads, norm: self.norm, eps: self.eps, segments: self.segments, out: Some(self.out) }
    }

    /// The operands of the product, and the others of the split.
    pub fn parts<'a, T>(&self, operands: &'a [T]) -> (&'a [T], &'a [T]) {
        let product = if self.x_scale.is_some() { 4 } else { 2 } + usize::from(self.bias);
        operands.split_at(product.min(operands.len()))
    }
}

impl OpDef for QkvLinear {
    const NAME: &'static str = "qkv_linear";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let (product, others) = self.parts(inputs);
        let joint = self.product(DType::F32)?.infer(product)?;
        // Tables of cos and sin would have the shape of the turns.
        let again = if self.segments > 0 { &others[others.len().saturating_sub(1)..] } else { &[] };
        self.split().infer(&[&joint, others, again].concat())
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let (product, others) = self.parts(inputs);
        let types: Vec<ValueType> = product.iter().map(|t| t.value_type()).collect();
        let op = self.product(DType::F64)?;
        let joint = op.eval(product, &op.infer(&types)?)?;
        let (norms, turns) = others.split_at(others.len() - usize::from(self.segments > 0));
        let tables: Vec<Tensor> = turns.iter().flat_map(|turns| tables(turns, self.segments)).collect();
        let operands: Vec<&Tensor> = joint.iter().chain(norms.iter().copied()).chain(&tables).collect();
        self.split().eval(&operands, results)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let (product, others) = self.parts(inputs);
        let flops = |op: Op| {
            let joint = op.infer(product).ok()?;
            let split = self.split().cost(&[&joint, others].concat(), results);
            Some(op.cost(product, &joint).flops + split.flops)
        };
        let flops = self.product(self.out).ok().and_then(flops).unwrap_or(0.0);
        Cost { flops, bytes: traffic(inputs, results) }
    }

    /// Of the product, where norms may enlarge an error a few times.
    fn tolerance(&self, result: DType) -> Tolerance {
        let relative = match self.x_scale {
            Some(_) => (16.0 * result.epsilon()).max(2f64.powi(-9)),
            None => 64.0 * result.epsilon(),
        };
        Tolerance { absolute: relative * 1e-3, relative }
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        let plain = |heads, out| Self {
            heads,
            bias: true,
            norm: false,
            eps: 1e-6,
            segments: 0,
            x_scale: None,
            w_scale: None,
            out,
        };
        for (name, [b, n, heads, d, k], norm, segments, x, out) in [
            ("plain", [2, 5, 3, 64, 40], false, 0, DType::F32, DType::F32),
            ("norm", [1, 65, 2, 32, 64], true, 0, DType::F32, DType::F32),
            ("rope", [2, 63, 2, 64, 33], false, 2, DType::F32, DType::F32),
            ("one", [1, 1, 1, 64, 64], true, 2, DType::BF16, DType::BF16),
            ("bf16", [2, 65, 3, 64, 64], true, 2, DType::BF16, DType::BF16),
            ("bf16_wide_heads", [1, 64, 2, 128, 72], true, 2, DType::BF16, DType::BF16),
            ("bf16_few_tokens", [33, 2, 2, 64, 64], true, 1, DType::BF16, DType::BF16),
            ("bf16_narrow_heads", [2, 9, 2, 32, 64], true, 2, DType::BF16, DType::BF16),
            ("bf16_frames_1374", [2, 1374, 1, 64, 64], true, 2, DType::BF16, DType::BF16),
        ] {
            let op = Self { norm, segments, ..plain(heads, out) };
            let product = vec![
                Tensor::wave(x, &[b, n, k], 1),
                Tensor::wave(x, &[3 * heads * d, k], 2),
                Tensor::wave(DType::F32, &[3 * heads * d], 3),
            ];
            cases.push(Case::new(name, op.clone(), [product, op.extra([b, n, d])].concat()));
        }
        for (name, [b, n, heads, d, k], norm, segments, x_scale) in [
            ("codes", [2, 65, 2, 64, 48], true, 2, Granularity::Row),
            ("codes_plain_1374", [2, 1374, 1, 64, 128], false, 0, Granularity::Row),
            ("codes_columns", [1, 63, 2, 64, 256], true, 2, Granularity::Columns(128)),
        ] {
            let scales = (Some(x_scale), Some(Granularity::Row));
            let op = Self { norm, segments, x_scale: scales.0, w_scale: scales.1, ..plain(heads, DType::BF16) };
            let product = [
                quantized(&Tensor::wave(DType::F32, &[b, n, k], 1), x_scale),
                quantized(&Tensor::wave(DType::F32, &[3 * heads * d, k], 2), Granularity::Row),
                vec![Tensor::wave(DType::F32, &[3 * heads * d], 3)],
            ]
            .concat();
            cases.push(Case::new(name, op.clone(), [product, op.extra([b, n, d])].concat()));
        }
        cases
    }
}

/// Where the cos of a column stands in a row of turns, whose sin comes next; `half` is half a segment.
pub fn turn_of(column: usize, half: usize) -> usize {
    2 * (column / (2 * half) * half + column % half)
}

/// The tables of cos and sin that turns stand for.
fn tables(turns: &Tensor, segments: usize) -> [Tensor; 2] {
    let (values, d) = (turns.to_f64(), turns.shape().last().copied().unwrap_or(0));
    [0, 1].map(|which| {
        let of = |i: usize| values[i / d * d + turn_of(i % d, d / (2 * segments)) + which];
        Tensor::from_f64(DType::F64, turns.shape(), &(0..values.len()).map(of).collect::<Vec<_>>())
    })
}

impl QkvLinear {
    /// Operands of the split for a case: turns for all, or one an image.
    fn extra(&self, [b, n, d]: [usize; 3]) -> Vec<Tensor> {
        let norms = (4..8).filter(|_| self.norm).map(|seed| Tensor::wave(DType::F32, &[d], seed));
        let shape = if b > 1 { vec![b, 1, n, d] } else { vec![n, d] };
        let turns = (self.segments > 0).then(|| Tensor::wave(DType::F32, &shape, 8));
        norms.chain(turns).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_stand_for_tables() {
        // Two segments of four columns: the first and second column of each turn with the third and fourth.
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|c| turn_of(c, 2)), [0, 2, 0, 2, 4, 6, 4, 6]);
        let turns = Tensor::from_f32(&[1, 4], vec![1.0, 2.0, 3.0, 4.0]);
        let [cos, sin] = tables(&turns, 1);
        assert_eq!((cos.to_f64(), sin.to_f64()), (vec![1.0, 3.0, 1.0, 3.0], vec![2.0, 4.0, 2.0, 4.0]));
    }

    #[test]
    fn scales_of_one_operand_alone_are_refused() {
        let case = QkvLinear::cases().into_iter().find(|c| c.name == "codes").expect("the case");
        let Op::QkvLinear(op) = case.op else { panic!("another operation") };
        let types: Vec<ValueType> = case.inputs.iter().map(Tensor::value_type).collect();
        assert!(op.infer(&types).is_ok());
        assert!(QkvLinear { w_scale: None, ..op }.infer(&types).unwrap_err().contains("neither"));
    }
}
