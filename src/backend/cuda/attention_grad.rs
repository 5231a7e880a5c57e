//! `cuda/attention_grad.cu` and `cuda/block_transpose.cu`: gradients of attention of any shape in f32 arithmetic, over all
//! keys or over lists of key blocks with centroids.

use lite3r_ir::{DType, Op, ops::BlockAttentionGrad};

use super::{
    Arch, Kernel,
    attention::{Cut, Lists, Rows, Sizes},
    dims,
    floats::{FLOATS, only},
    launch::{Arg, Launch, Lowered, Module},
};
use crate::backend::Request;

/// The rows of this file: head dimensions up to 256, f32, f16 and bf16.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention_grad.fma", op: "attention_grad", dtypes: FLOATS, lower: attention_grad },
    Kernel { name: "block_attention_grad.fma", op: "block_attention_grad", dtypes: FLOATS, lower: attention_grad },
    Kernel { name: "block_transpose.counted", op: "block_transpose", dtypes: &[DType::I32], lower: block_transpose },
];

const THREADS: u32 = 256;

/// Whose rows a block of threads owns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Queries: dq.
    Queries,
    /// Keys: dk and dv.
    Keys,
    /// Centroids.
    Centroids,
}

/// Sizes of a launch, as `cuda/attention_grad.cu` lays them out.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Counts {
    query_blocks: u32,
    key_blocks: u32,
    longest: u32,
    centroids: u32,
    tiles: u32,
    n: u32,
    m: u32,
    d: u32,
    e: u32,
    scale: f32,
}

impl Counts {
    /// How many key blocks lists tell apart.
    pub fn key_blocks(&self) -> usize {
        self.key_blocks as usize
    }
}

/// A gradient of attention.
pub struct Gradient {
    /// Sizes of q, k and v.
    pub s: Sizes,
    /// The element type of all but lse.
    pub dtype: DType,
    /// What products of q and k are multiplied by.
    pub scale: f64,
    /// Where rows of o and do lie.
    pub rows: Rows,
    /// Which operand is o; lse and do follow.
    pub first: usize,
    /// The lists, if there are any.
    pub lists: Option<Lists>,
}

impl Gradient {
    /// Of a request whose operands `first` and on are o, lse and do.
    pub fn of(request: &Request<'_>, first: usize, scale: f64, merged: bool) -> Result<Self, String> {
        let (s, dtype) = (Sizes::of(request.operands)?, request.operands[0].dtype);
        only(&request.operands[first..])?;
        Ok(Self { s, dtype, scale, rows: Rows::of(s, merged), first, lists: None })
    }

    /// Whether centroids stand beside the keys.
    fn has_centroids(&self) -> bool {
        self.lists.as_ref().is_some_and(|lists| lists.counts[3] > 0)
    }

    /// Bytes of scratch memory: two numbers a query.
    pub fn scratch(&self) -> usize {
        8 * self.s.heads * self.s.n
    }

    /// The launch that writes them.
    pub fn deltas(&self) -> Result<Launch, String> {
        let queries = self.s.heads * self.s.n;
        let mut args = vec![Arg::operand(self.first), Arg::operand(self.first + 2), Arg::operand(self.first + 1)];
        args.extend([Arg::scratch(0), Arg::of(self.rows)]);
        args.extend([queries, self.s.n, self.s.e].map(|size| Arg::of(size as u32)));
        Ok(Launch {
            module: Module::new("attention_grad.cu").element("TX", self.dtype),
            function: "deltas",
            grid: grid(queries.div_ceil(32))?,
            block: THREADS,
            shared: 0,
            args,
        })
    }

    /// The cuts of queries, keys and centroids, and the sizes of a launch whose blocks own `owned` rows; how many blocks.
    pub fn counts(&self, of: Of, owned: usize) -> Result<([Cut; 3], Counts, usize), String> {
        let (s, none) = (self.s, Cut::new(1, &[], 1)?);
        let lists = self.lists.as_ref();
        let (cuts, counts) = lists.map_or(([none; 3], [1, 0, 0, 0]), |l| ([l.queries, l.keys, l.centroid], l.counts));
        let [query_blocks, key_blocks, longest, centroids] = counts;
        let m = if of == Of::Centroids { centroids } else { s.m };
        let (tiles, blocks) = match of {
            Of::Queries => {
                let tiles = lists.map_or(s.n, |_| cuts[0].size()).div_ceil(owned);
                (tiles, query_blocks * tiles)
            }
            _ => (m.div_ceil(owned), m.div_ceil(owned)),
        };
        let word = |size: usize| u32::try_from(size).map_err(|_| "takes sizes below 2^32".to_string());
        let counts = Counts {
            query_blocks: word(query_blocks)?,
            key_blocks: word(key_blocks)?,
            longest: word(longest)?,
            centroids: word(centroids)?,
            tiles: word(tiles)?,
            n: word(s.n)?,
            m: word(m)?,
            d: word(s.d)?,
            e: word(s.e)?,
            scale: self.scale as f32,
        };
        Ok((cuts, counts, s.heads * blocks))
    }

    /// Operands and results of a launch, in the order of kernels.
    pub fn pointers(&self, of: Of) -> Vec<Arg> {
        let (listed, central) = (self.lists.is_some(), self.has_centroids());
        let [k, v] = if of == Of::Centroids { [6, 7] } else { [1, 2] };
        let mut pointers = [0, k, v, self.first + 2].map(Arg::operand).to_vec();
        pointers.push(Arg::scratch(0));
        let lists = if of == Of::Queries { [Some(3), Some(4)] } else { [Some(5), None] };
        pointers.extend(lists.map(|i| Arg::maybe(i.filter(|_| listed))));
        pointers.extend([6, 7].map(|i| Arg::maybe(central.then_some(i))));
        pointers.extend(match of {
            Of::Queries => [Arg::result(0), Arg::Null],
            Of::Keys => [1, 2].map(Arg::result),
            Of::Centroids => [3, 4].map(Arg::result),
        });
        pointers
    }

    /// The launch of `reverse`.
    fn reverse(&self, of: Of) -> Result<Launch, String> {
        let s = self.s;
        let width = s.d.max(s.e).max(16).next_power_of_two();
        let (rows, columns) = match width {
            ..=64 => (4, 2),
            65..=128 => (2, 2),
            _ => (1, 1),
        };
        let (owned, others) = (rows * 16, columns * 16);
        let (cuts, counts, blocks) = self.counts(of, owned)?;
        let floats = (owned + others) * (s.d + s.e + 2) + 2 * owned * (others + 1) + 3 * others + 4 * owned;
        let shared = 4 * (floats + counts.key_blocks().div_ceil(32));
        let module = Module::new("attention_grad.cu")
            .element("TX", self.dtype)
            .define("WIDTH", width)
            .define("ROWS", rows)
            .define("COLUMNS", columns)
            .define("OF_KEYS", i32::from(of != Of::Queries))
            .define("CENTRAL", i32::from(of == Of::Centroids))
            .define("LISTED", i32::from(self.lists.is_some()));
        let mut args = self.pointers(of);
        args.extend(cuts.map(Arg::of));
        args.extend([Arg::of(self.rows), Arg::of(counts)]);
        Ok(Launch { module, function: "reverse", grid: grid(blocks)?, block: THREADS, shared: shared as u32, args })
    }

    /// All launches, those of dq, dk and dv by `reverse`.
    pub fn lowered(&self, reverse: impl Fn(Of) -> Result<Launch, String>) -> Result<Lowered, String> {
        let mut launches = vec![self.deltas()?, reverse(Of::Queries)?, reverse(Of::Keys)?];
        if self.has_centroids() {
            launches.push(reverse(Of::Centroids)?);
        }
        Ok(Lowered { launches, scratch: self.scratch() })
    }
}

/// So many blocks.
pub fn grid(blocks: usize) -> Result<[u32; 3], String> {
    Ok([u32::try_from(blocks).map_err(|_| "takes fewer than 2^32 blocks")?, 1, 1])
}

/// The gradient that a request is.
pub fn gradient(request: &Request<'_>) -> Result<Gradient, String> {
    match request.op {
        Op::AttentionGrad(op) => Gradient::of(request, 3, op.scale, op.merged),
        Op::BlockAttentionGrad(op) => {
            let BlockAttentionGrad { scale, merged, .. } = *op;
            let mut gradient = Gradient::of(request, op.results_at(), scale, merged)?;
            let forward = [&request.operands[..5], &request.operands[6..op.results_at()]].concat();
            gradient.lists = Some(Lists::of(&op.forward(), gradient.s, &forward)?);
            Ok(gradient)
        }
        other => Err(format!("is no kernel for {}", other.name())),
    }
}

fn attention_grad(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let gradient = gradient(request)?;
    gradient.lowered(|of| gradient.reverse(of))
}

fn block_transpose(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::BlockTranspose(op) = request.op else { return Err("computes block_transpose".into()) };
    let &[b, h, queries, longest] = &dims(&request.operands[0])?[..] else { return Err("takes [B,H,Tq,L]".into()) };
    let mut args = vec![Arg::operand(0), Arg::operand(1), Arg::result(0)];
    args.extend([queries, op.blocks, longest].map(|size| Arg::of(size as u32)));
    Ok(Launch {
        module: Module::new("block_transpose.cu"),
        function: "block_transpose",
        grid: grid(b * h)?,
        block: 1024,
        shared: 0,
        args,
    }
    .into())
}

#[cfg(test)]
pub(super) mod tests {
    use lite3r_ir::{Dim, ValueType, ops::AttentionGrad};

    use super::*;
    use crate::backend::cuda::conformance;

    /// Gradients of attention of these widths, and over lists of as many queries as keys.
    pub fn requests(dtype: DType, widths: &[usize]) -> Vec<conformance::Typed> {
        let ty = |dtype, shape: &[usize]| ValueType::new(dtype, shape.iter().map(|n| Dim::from(*n)));
        let n = 2748;
        let mut requests: Vec<conformance::Typed> = Vec::new();
        for &d in widths {
            let heads = |n: usize| ty(dtype, &[2, 16, n, d]);
            let merged = ty(dtype, &[2, n, 16 * d]);
            let results = vec![merged.clone(), ty(DType::F32, &[2, 16, n]), merged];
            let op = AttentionGrad { scale: 0.125, merged: true };
            requests.push((op.into(), [vec![heads(n); 3], results.clone()].concat()));
            for (block_k, centroid) in [(64, 0), (16, 16)] {
                let op =
                    BlockAttentionGrad { block_q: 64, block_k, scale: 0.125, runs: vec![], centroid, merged: true };
                let (queries, keys) = (n.div_ceil(64), n.div_ceil(block_k));
                let lists =
                    [[2, 16, queries, 5].to_vec(), [2, 16, queries].to_vec(), vec![2, 16, keys + 1 + queries * 5]];
                let lists = lists.iter().map(|shape| ty(DType::I32, shape)).collect();
                let centroids = if centroid > 0 { vec![heads(n.div_ceil(centroid)); 2] } else { vec![] };
                requests.push((op.into(), [vec![heads(n); 3], lists, centroids, results.clone()].concat()));
            }
        }
        requests
    }

    #[test]
    fn gradients_of_attention_compile_without_spills() {
        conformance::compiles(&requests(DType::F32, &[32, 64, 128, 256]), "_grad.fma");
    }
}
