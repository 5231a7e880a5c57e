//! Heads in the epilogue of `cuda/gemm_wgmma.cu`, as `cuda/include/heads.cuh` has them: what joint projections of
//! attentions write.

use lite3r_ir::{
    DType, Op,
    ops::{quantize::Granularity, shape_rules::strides_for},
};

use super::{
    dims,
    floats::only,
    launch::{Arg, Base, Module, Pointer, Swizzle, TensorMap},
};
use crate::backend::Request;

/// Heads in the epilogue of a product.
#[derive(Clone, Copy, Debug)]
pub struct Joint {
    /// Columns of a head: 64 or 128.
    pub head: usize,
    /// Images, heads and tokens of an image.
    sizes: [usize; 3],
    /// The operand that is the first of the norms' g and b, with their type.
    norms: Option<(usize, DType)>,
    /// The operand that holds the turns.
    turns: Option<usize>,
    /// Half a rotated segment; 0 for no rotation.
    half: usize,
    eps: f32,
    /// How far the turns move with the image and the token.
    table: [usize; 2],
    out: DType,
}

/// Sizes, as `cuda/include/heads.cuh` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Heads {
    heads: u32,
    tokens: u32,
    eps: f32,
    unused: u32,
    table: [i64; 2],
}

impl Joint {
    /// Of a request for `qkv_linear`; `None` of one for another operation. Errors: heads that tiles do not hold.
    pub fn of(request: &Request<'_>) -> Result<Option<Self>, String> {
        let Op::QkvLinear(op) = request.op else { return Ok(None) };
        let shape = dims(&request.results[0])?;
        let &[images, heads, tokens, head] = shape.as_slice() else { return Err("gives results of rank 4".into()) };
        let out = request.results[0].dtype;
        if ![64, 128].contains(&head) || out.size() != 2 {
            return Err(format!("writes heads of 64 and 128 columns of 16 bits, not {head} of {out}"));
        }
        let (product, others) = op.parts(request.operands);
        only(others)?;
        let (norms, turns) = others.split_at(if op.norm { 4 } else { 0 });
        if norms.iter().any(|t| t.dtype != norms[0].dtype) || turns.iter().any(|t| t.dtype != DType::F32) {
            return Err("takes norms of one element type and turns of f32".into());
        }
        if op.x_scale.is_some_and(|scale| scale != Granularity::Row) {
            return Err("takes a scale a row of x".into());
        }
        let steps = turns.first().map(dims).transpose()?.map_or(vec![0; 4], |own| strides_for(&own, &shape));
        let half = head.checked_div(2 * op.segments).unwrap_or(0);
        if steps[1] != 0 || half % 8 != 0 {
            return Err(format!(
                "takes the same turns for all heads and halves of a multiple of 8 columns, not {half}"
            ));
        }
        Ok(Some(Self {
            head,
            sizes: [images, heads, tokens],
            norms: norms.first().map(|t| (product.len(), t.dtype)),
            turns: turns.first().map(|_| product.len() + norms.len()),
            half,
            eps: op.eps as f32,
            table: [steps[0], steps[2]],
            out,
        }))
    }

    /// Bytes of shared memory for g and b.
    pub fn shared(&self) -> usize {
        if self.norms.is_some() { 16 * self.head } else { 0 }
    }

    /// Whether a tile of so many columns is of whole heads, and the registers beside `sums` hold what finishes them.
    pub fn fits(&self, columns: usize, sums: usize, groups: usize) -> bool {
        let room = if self.head == 64 { sums <= 128 } else { sums <= 64 && groups < 3 };
        columns.is_multiple_of(self.head) && room
    }

    /// The macros of `cuda/include/heads.cuh`.
    pub fn define(&self, module: Module) -> Module {
        module
            .define("NORM", i32::from(self.norms.is_some()))
            .define("HALF_TURN", self.half)
            .element("TN", self.norms.map_or(DType::F32, |norms| norms.1))
    }

    /// q, k or v by panels of 64 tokens.
    pub fn panels(&self, result: usize) -> Arg {
        let [images, heads, tokens] = self.sizes;
        let row = self.head * self.out.size();
        Arg::TensorMap(TensorMap {
            base: Pointer { base: Base::Result(result), offset: 0 },
            dtype: self.out,
            dims: [self.head, tokens, heads, images].map(|n| n as u64).into(),
            strides: [row, tokens * row, heads * tokens * row].map(|n| n as u64).into(),
            tile: vec![64, 64, 1, 1],
            steps: vec![1; 4],
            swizzle: Swizzle::B128,
        })
    }

    /// What the kernel takes behind the arguments of every product.
    pub fn args(&self) -> Vec<Arg> {
        let mut args = vec![self.panels(1), self.panels(2)];
        args.extend((0..3).map(Arg::result));
        args.extend((0..4).map(|i| Arg::maybe(self.norms.map(|(first, _)| first + i))));
        args.push(Arg::maybe(self.turns));
        let [_, heads, tokens] = self.sizes.map(|n| n as u32);
        args.push(Arg::of(Heads { heads, tokens, eps: self.eps, unused: 0, table: self.table.map(|n| n as i64) }));
        args
    }
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{ValueType, ops::QkvLinear};

    use super::*;
    use crate::backend::cuda::{Arch, conformance, kernel};

    fn of(dtype: DType, shape: &[usize]) -> ValueType {
        ValueType::new(dtype, shape.iter().copied())
    }

    /// A projection of 1024 columns for `tokens` of `images`.
    fn projection(codes: bool, [images, tokens, head]: [usize; 3], norm: bool) -> conformance::Typed {
        let (f, e, b) = (DType::F32, DType::F8E4M3, DType::BF16);
        let scale = codes.then_some(Granularity::Row);
        let (heads, segments) = (1024 / head, if norm { 2 } else { 0 });
        let (x_scale, w_scale) = (scale, scale);
        let op = QkvLinear { heads, bias: true, norm, eps: 1e-6, segments, x_scale, w_scale, out: b };
        let mut operands = match codes {
            true => vec![
                of(e, &[images, tokens, 1024]),
                of(f, &[images, tokens, 1]),
                of(e, &[3072, 1024]),
                of(f, &[3072, 1]),
            ],
            false => vec![of(b, &[images, tokens, 1024]), of(b, &[3072, 1024])],
        };
        operands.push(of(f, &[3072]));
        if norm {
            operands.extend(std::iter::repeat_n(of(f, &[head]), 4));
            operands.push(of(f, &[tokens, head]));
        }
        (op.into(), operands)
    }

    #[test]
    fn projections_of_transformers_compile_without_spills() {
        let mut requests = Vec::new();
        for tokens in [1, 1374, 2748, 10992, 43968] {
            for (head, norm) in [(64, true), (64, false), (128, true), (128, false)] {
                requests.extend([true, false].map(|codes| projection(codes, [1, tokens, head], norm)));
            }
        }
        conformance::compiles(&requests, "wgmma");
    }

    #[test]
    fn what_tiles_do_not_hold_is_refused() {
        for (head, refused) in [(64, None), (128, None), (32, Some("64 and 128 columns"))] {
            let (op, operands) = projection(true, [2, 1374, head], true);
            let results = op.infer(&operands).unwrap();
            let gap = kernel(&Request { op: &op, operands: &operands, results: &results }, Arch::Sm90a).err();
            assert_eq!(gap.is_some(), refused.is_some());
            assert!(gap.is_none_or(|g| g.clause.contains(refused.unwrap_or_default())), "{head}");
        }
    }
}
