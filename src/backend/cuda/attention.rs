//! `cuda/attention.cu`: attention of any shape in f32 arithmetic, over all keys or over lists of key blocks.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{BlockAttention, blocks::Blocks},
};

use super::{
    Arch, Kernel, dims,
    floats::FLOATS,
    launch::{Arg, Launch, Lowered, Module},
};
use crate::backend::Request;
pub use crate::backend::gpu::qkv::Sizes;

/// The rows of this file: head dimensions up to 256, f32, f16 and bf16.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention.fma", op: "attention", dtypes: FLOATS, lower: attention },
    Kernel { name: "block_attention.fma", op: "block_attention", dtypes: FLOATS, lower: block_attention },
];

const MAX_RUNS: usize = 32;
const THREADS: u32 = 256;

/// How tokens are cut into blocks, as `cuda/include/blocks.cuh` lays it out.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Cut {
    tokens: i32,
    size: i32,
    runs: i32,
    lengths: [i32; MAX_RUNS],
}

impl Cut {
    /// `n` tokens by a pattern of runs into blocks of `size`.
    pub fn new(n: usize, pattern: &[usize], size: usize) -> Result<Self, String> {
        let pattern = if pattern.is_empty() { &[n] } else { pattern };
        if pattern.len() > MAX_RUNS {
            return Err(format!("takes patterns of up to {MAX_RUNS} runs, not {}", pattern.len()));
        }
        let narrow = |size: usize| i32::try_from(size).map_err(|_| "takes fewer than 2^31 tokens".to_string());
        let mut lengths = [0; MAX_RUNS];
        for (to, length) in lengths.iter_mut().zip(pattern) {
            *to = narrow(*length)?;
        }
        // A block longer than the sequence is the sequence.
        Ok(Self { tokens: narrow(n)?, size: narrow(size.min(n.max(1)))?, runs: pattern.len() as i32, lengths })
    }

    /// Tokens of the longest block.
    pub fn size(&self) -> usize {
        self.size as usize
    }
}

/// Where rows of a result lie, as `cuda/include/rows.cuh` lays it out.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Rows {
    image: i64,
    head: i64,
    token: i64,
    heads: u32,
    unused: u32,
}

impl Rows {
    /// [B, H, N, E], or [B, N, H·E] if merged.
    pub fn of(s: Sizes, merged: bool) -> Self {
        let heads = s.heads.checked_div(s.images).unwrap_or(0);
        let (head, token) = if merged { (s.e, heads * s.e) } else { (s.n * s.e, s.e) };
        let [image, head, token] = [heads * s.n * s.e, head, token].map(|size| size as i64);
        Self { image, head, token, heads: heads as u32, unused: 0 }
    }

    /// Elements from one token, head and image to the next.
    pub fn steps(&self) -> [i64; 3] {
        [self.token, self.head, self.image]
    }
}

/// Which keys a query sees, with what weight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// All, by the softmax.
    All,
    /// Those of listed blocks and centroids, by the softmax.
    Listed,
    /// Those outside of listed blocks, by a feature map: that of the softmax, or elu + 1.
    Rest {
        /// Whether the feature map is the softmax.
        softmax: bool,
    },
}

/// The lists of a launch.
pub struct Lists {
    /// Blocks of queries.
    pub queries: Cut,
    /// Blocks of keys.
    pub keys: Cut,
    /// Blocks of keys that have a centroid.
    pub centroid: Cut,
    /// How many lists a head has, how many key blocks there are, how long a list is, how many centroids there are.
    pub counts: [usize; 4],
}

impl Lists {
    /// Of a `block_attention`.
    pub fn of(op: &BlockAttention, s: Sizes, operands: &[ValueType]) -> Result<Self, String> {
        let list = dims(&operands[3])?;
        let centroids = if op.centroid > 0 { dims(&operands[5])?[2] } else { 0 };
        let keys = Blocks::cut(s.m, &op.runs, op.block_k)?.len();
        Ok(Self {
            queries: Cut::new(s.n, &op.runs, op.block_q)?,
            keys: Cut::new(s.m, &op.runs, op.block_k)?,
            centroid: Cut::new(s.m, &op.runs, op.centroid.max(1))?,
            counts: [list[2], keys, list[3], centroids],
        })
    }
}

/// The launch of `attend`; `lists` unless it looks at all keys.
pub fn attend(
    s: Sizes,
    types: (DType, DType),
    keys: Keys,
    lists: Option<&Lists>,
    scale: f64,
    merged: bool,
    pointers: Vec<Arg>,
) -> Result<Launch, String> {
    let none = Cut::new(1, &[], 1)?;
    let (cuts, counts) = lists.map_or(([none; 3], [1, 0, 0, 0]), |l| ([l.queries, l.keys, l.centroid], l.counts));
    let longest = if lists.is_some() { cuts[0].size as usize } else { s.n };
    let width = s.d.max(s.e).max(16).next_power_of_two();
    let (rows, columns) = match width {
        _ if longest <= 16 => (1, if width > 128 { 1 } else { 2 }),
        256.. => (2, 1),
        _ => (4, 2),
    };
    let (queries, slots) = (rows * 16, columns * 16);
    let tiles = longest.div_ceil(queries);
    let floats = (queries + slots) * (s.d + 1) + slots * s.e + queries * (slots + 1) + slots;
    let shared = 4 * (floats + slots + counts[1].div_ceil(32));
    let module = Module::new("attention.cu")
        .element("TX", types.0)
        .element("TY", types.1)
        .define("WIDTH", width)
        .define("ROWS", rows)
        .define("COLUMNS", columns)
        .define("LISTED", i32::from(keys == Keys::Listed))
        .define("LINEAR", i32::from(matches!(keys, Keys::Rest { .. })))
        .define("SOFTMAX", i32::from(keys == Keys::Rest { softmax: true }));
    let mut args = pointers;
    args.extend(cuts.map(Arg::of));
    args.push(Arg::of(Rows::of(s, merged)));
    args.extend(counts.into_iter().chain([tiles, s.n, s.m, s.d, s.e]).map(|size| Arg::of(size as u32)));
    args.push(Arg::of(scale as f32));
    let blocks = s.heads * counts[0] * tiles;
    Ok(Launch {
        module,
        function: "attend",
        grid: [u32::try_from(blocks).map_err(|_| "takes fewer than 2^32 tiles")?, 1, 1],
        block: THREADS,
        shared: shared as u32,
        args,
    })
}

fn attention(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::Attention(op) = request.op else { return Err("computes attention".into()) };
    op.codes.none()?;
    let s = Sizes::of(request.operands)?;
    let pointers = [0, 1, 2].map(Arg::operand).into_iter().chain([0; 4].map(|_| Arg::Null));
    let lse = if op.lse { Arg::result(1) } else { Arg::Null };
    let pointers = pointers.chain([Arg::result(0), lse]).collect();
    let types = (request.operands[0].dtype, request.results[0].dtype);
    Ok(attend(s, types, Keys::All, None, op.scale, op.merged, pointers)?.into())
}

fn block_attention(request: &Request<'_>, _: Arch) -> Result<Lowered, String> {
    let Op::BlockAttention(op) = request.op else { return Err("computes block_attention".into()) };
    op.codes.none()?;
    let (s, operands) = (Sizes::of(request.operands)?, request.operands);
    let lists = Lists::of(op, s, operands)?;
    let types = (operands[0].dtype, request.results[0].dtype);
    Ok(attend(s, types, Keys::Listed, Some(&lists), op.scale, op.merged, listed_pointers(op))?.into())
}

/// Operands and results of `block_attention` in the order of kernels.
pub fn listed_pointers(op: &BlockAttention) -> Vec<Arg> {
    let mut pointers: Vec<Arg> = (0..5).map(Arg::operand).collect();
    pointers.extend([5, 6].map(|i| Arg::maybe((op.centroid > 0).then_some(i))));
    pointers.extend([Arg::result(0), Arg::result(1)]);
    pointers
}
