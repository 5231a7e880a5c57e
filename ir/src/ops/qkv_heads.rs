//! `qkv_heads(x, [q_g, q_b, k_g, k_b], [cos, sin]) {heads, norm, eps, segments, out}`: what stands between the joint
//! projection of an attention and the attention.

use super::{Case, Cost, OpDef, SplitHeads, Tolerance, layer_norm::normalise, rope, shape_rules::broadcast, traffic};
use crate::{
    tensor::Tensor,
    types::{DType, ValueType},
};

crate::attributes! {
    /// x [B, N, 3·heads·D] as q, k and v [B, heads, N, D]: `split_heads {parts=3}`, then for q and k `layer_norm` with
    /// g and b [D] where `norm` is set, then `rope {segments}` with tables that broadcast to q where `segments` is not
    /// zero; rounded once, to `out`.
    pub struct QkvHeads {
        /// Heads.
        pub heads: usize,
        /// Whether q and k are normalised (QK norm, Henry et al. 2020).
        pub norm: bool = false,
        /// Added to the variance.
        pub eps: f64 = 1e-5,
        /// Into how many parts rotary positions cut D; 0 for none.
        pub segments: usize = 0usize,
        /// The element type of the results; that of x by default.
        pub out: Option<DType> = None,
    }
}

impl QkvHeads {
    /// The operands of the norms, and those of the rotation.
    pub fn parts<'a, T>(&self, operands: &'a [T]) -> (&'a [T], &'a [T]) {
        let norms = if self.norm { 4 } else { 0 };
        (&operands[1..1 + norms], &operands[1 + norms..])
    }
}

impl OpDef for QkvHeads {
    const NAME: &'static str = "qkv_heads";

    fn infer(&self, inputs: &[ValueType]) -> Result<Vec<ValueType>, String> {
        let wanted = 1 + if self.norm { 4 } else { 0 } + if self.segments > 0 { 2 } else { 0 };
        if inputs.len() != wanted {
            return Err(format!("takes {wanted} operands, not {}", inputs.len()));
        }
        let x = &inputs[0];
        if !x.dtype.is_float() {
            return Err(format!("takes floating-point x, not {x}"));
        }
        let parts = SplitHeads { parts: 3, heads: self.heads }.infer(&inputs[..1])?;
        let (norms, tables) = self.parts(inputs);
        let d = &parts[0].shape[3];
        if let Some(odd) = norms.iter().find(|t| t.shape != [d.clone()] || !t.dtype.is_float()) {
            return Err(format!("g and b must have shape [{d}], not {odd}"));
        }
        if let [cos, sin] = tables {
            if cos != sin || !cos.dtype.is_float() || cos.shape.last() != Some(d) {
                return Err(format!("takes two tables of one type with {d} columns, not {cos}, {sin}"));
            }
            if broadcast(&[&parts[0].shape, &cos.shape])? != parts[0].shape {
                return Err(format!("the tables {cos} do not broadcast to {}", parts[0]));
            }
            if d.size().is_none_or(|d| d % (2 * self.segments) != 0) {
                return Err(format!("heads of {d} are not a multiple of {}", 2 * self.segments));
            }
        }
        let result = parts[0].with_dtype(self.out.unwrap_or(x.dtype));
        Ok(vec![result; 3])
    }

    fn eval(&self, inputs: &[&Tensor], results: &[ValueType]) -> Result<Vec<Tensor>, String> {
        let wide = results[0].with_dtype(DType::F64);
        let x = inputs[0].cast(DType::F64);
        let split =
            SplitHeads { parts: 3, heads: self.heads }.eval(&[&x], &[wide.clone(), wide.clone(), wide.clone()])?;
        let (norms, tables) = self.parts(inputs);
        let mut heads = Vec::with_capacity(3);
        for (part, mut value) in split.into_iter().enumerate() {
            if part < 2 && self.norm {
                let rows = normalise(&[&value, norms[2 * part], norms[2 * part + 1]], self.eps);
                value = Tensor::from_f64(DType::F64, value.shape(), &rows);
            }
            if part < 2 && self.segments > 0 {
                let op = rope::Rope { segments: self.segments };
                value = op.eval(&[&value, tables[0], tables[1]], std::slice::from_ref(&wide))?.remove(0);
            }
            heads.push(value.cast(results[0].dtype));
        }
        Ok(heads)
    }

    fn cost(&self, inputs: &[ValueType], results: &[ValueType]) -> Cost {
        let each = if self.norm { 8.0 } else { 0.0 } + if self.segments > 0 { 3.0 } else { 0.0 };
        Cost { flops: 2.0 * each * results[0].elements().unwrap_or(0) as f64, bytes: traffic(inputs, results) }
    }

    fn tolerance(&self, result: DType) -> Tolerance {
        match self.norm || self.segments > 0 {
            true => Tolerance::ulps(result, 16.0),
            false => Tolerance::ulps(result, 1.0),
        }
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (name, [b, n, heads, d], norm, segments, x, out) in [
            ("plain", [2, 5, 3, 64], false, 0, DType::F32, None),
            ("norm", [1, 65, 2, 32], true, 0, DType::F32, None),
            ("rope", [2, 63, 2, 64], false, 2, DType::F32, None),
            ("whole", [2, 65, 3, 64], true, 2, DType::F32, Some(DType::BF16)),
            ("bf16", [1, 64, 2, 128], true, 2, DType::BF16, Some(DType::BF16)),
            ("f16_narrow_heads", [1, 3, 1, 12], true, 1, DType::F16, Some(DType::F32)),
            ("one", [1, 1, 1, 64], true, 2, DType::F32, None),
        ] {
            let mut inputs = vec![Tensor::wave(x, &[b, n, 3 * heads * d], 1)];
            if norm {
                inputs.extend((2..6).map(|seed| Tensor::wave(DType::F32, &[d], seed)));
            }
            if segments > 0 {
                // One table for all, or one an image, as layouts make them.
                let shape = if b > 1 { vec![b, 1, n, d] } else { vec![n, d] };
                inputs.extend((6..8).map(|seed| Tensor::wave(DType::F32, &shape, seed)));
            }
            cases.push(Case::new(name, Self { heads, norm, eps: 1e-6, segments, out }, inputs));
        }
        cases
    }
}
