//! `cuda/attention_codes.cu` and `cuda/attention_e4m3_sm90.cu`: attention over e4m3 codes on Hopper's tensor cores,
//! over all keys or over lists of key blocks. Codes of keys and values are made once a step, in scratch memory;
//! those of queries where they are multiplied.

use std::f64::consts::LOG2_E;

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{
        Attention, BlockAttention,
        attention_codes::{CENTROIDS, Codes, KEYS},
        blocks::Blocks,
    },
};

use super::{
    Arch, Kernel,
    attention::{Cut, Rows, Sizes},
    attention_wgmma::sizes,
    dims,
    launch::{Arg, Launch, Lowered, Module, PROCESSORS, SHARED},
};
use crate::backend::Request;

/// The rows of this file: bf16 operands, head dimensions of 64 and 128; lists of at most 192 queries a block (128 where
/// heads are 128 wide) over key blocks of 16 to 128.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "attention.e4m3_wgmma", op: "attention", dtypes: &[DType::BF16], lower: attention },
    Kernel {
        name: "block_attention.e4m3_wgmma",
        op: "block_attention",
        dtypes: &[DType::BF16],
        lower: block_attention,
    },
];

/// Keys of a tile.
const TILE: usize = 128;

/// Octaves that weights span: a score is counted in spans.
const SPAN: f64 = 15.0;

/// A variant of the kernel, see its macros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    /// Warpgroups of 64 queries that share keys.
    groups: usize,
    /// Such teams a block.
    teams: usize,
    /// Tokens a key block, or 0 for all keys.
    block: usize,
}

impl Variant {
    /// For all keys: warpgroups with tiles of their own where those fill the last round of the processors better.
    fn dense(s: Sizes) -> Self {
        let rounds = |groups: usize, teams| (s.heads * s.n.div_ceil(64 * groups)).div_ceil(teams * PROCESSORS);
        let (groups, teams) = match s.d {
            _ if rounds(1, 1) == 1 => (1, 1),
            64 if rounds(1, 3) < rounds(3, 1) => (1, 3),
            64 => (3, 1),
            _ => (2, 1),
        };
        Self { groups, teams, block: 0 }
    }

    /// For lists of query blocks that need so many warpgroups, over key blocks of `block` tokens.
    fn listed(width: usize, groups: usize, block: usize) -> Self {
        Self { groups, teams: if (width, groups) == (64, 1) { 3 } else { 1 }, block }
    }

    /// Of producer and consumers, a thread; together not more than a launch of so many threads gets.
    fn registers(self) -> (u32, u32) {
        match self.groups * self.teams {
            1 => (40, 240),
            2 => (48, 224),
            _ => (32, 160),
        }
    }

    /// Tiles of keys that a ring holds.
    fn stages(width: usize) -> usize {
        if width == 64 { 4 } else { 3 }
    }

    /// Scales of keys a tile, two of which are those of centroids.
    fn scales(self) -> usize {
        TILE.checked_div(self.block).map_or(1, |boxes| boxes.max(TILE / CENTROIDS))
    }

    fn module(self, s: Sizes) -> Module {
        Module::new("attention_e4m3_sm90.cu")
            .define("WIDTH", s.d)
            .define("GROUPS", self.groups)
            .define("TEAMS", self.teams)
            .define("KEYS", TILE)
            .define("STAGES", Self::stages(s.d))
            .define("BLOCK", self.block)
            .define("PRODUCER", self.registers().0)
            .define("CONSUMER", self.registers().1)
    }
}

/// Scratch memory, handed out from the front.
#[derive(Default)]
struct Scratch(usize);

impl Scratch {
    fn take(&mut self, bytes: usize) -> Arg {
        let at = self.0;
        self.0 = (at + bytes).next_multiple_of(256);
        Arg::scratch(at)
    }
}

/// Codes of keys and values, or of centroids, as `cuda/include/attention_codes.cuh` lays them out.
pub struct Coded {
    /// Tokens a block that has a scale.
    block: usize,
    /// How many such blocks there are.
    pub blocks: usize,
    /// Places for keys of a head, a multiple of 128.
    pub slots: usize,
    keys: Arg,
    values: Arg,
    scales: Arg,
}

impl Coded {
    /// With `spare` blocks of nothing behind.
    fn new(s: Sizes, block: usize, blocks: usize, spare: usize, scratch: &mut Scratch) -> Self {
        let slots = (block * (blocks + spare)).next_multiple_of(PIECE);
        let keys = scratch.take(s.heads * slots * s.d);
        let values = scratch.take(s.heads * slots * (s.d + 8));
        Self { block, blocks, slots, keys, values, scales: scratch.take(4 * s.heads * blocks) }
    }

    /// Codes of keys, of values, and scales of keys.
    pub fn pointers(&self) -> [Arg; 3] {
        [&self.keys, &self.values, &self.scales].map(Arg::clone)
    }
}

/// Slots that a block of threads codes at once.
const PIECE: usize = 128;

/// What is known of every head: sums of stretches of its tokens, then its mean key and the scales of its columns.
pub struct Heads {
    stretch: usize,
    stretches: usize,
    parts: Arg,
    /// The mean key.
    pub centres: Arg,
    /// The scale of every column of values.
    pub columns: Arg,
}

impl Heads {
    fn new(s: Sizes, scratch: &mut Scratch) -> Self {
        let wanted = (4 * PROCESSORS).div_ceil(s.heads).min(s.m.div_ceil(64));
        let stretch = s.m.div_ceil(wanted).next_multiple_of(32);
        let stretches = s.m.div_ceil(stretch);
        let rows = 4 * s.heads * s.d;
        Self {
            stretch,
            stretches,
            parts: scratch.take(2 * rows * stretches),
            centres: scratch.take(rows),
            columns: scratch.take(rows),
        }
    }

    fn sum(&self, s: Sizes) -> Result<Launch, String> {
        let mut args = vec![Arg::operand(1), Arg::operand(2), self.parts.clone()];
        args.extend(counts([self.stretch, s.m])?);
        Ok(code_launch(s, "sum_keys", 256, [self.stretches as u32, narrow(s.heads)?, 1], args))
    }

    /// Of `tokens` keys and values at these operands, cut into blocks. The mean and the scales of columns are written
    /// down if `first`.
    fn code(
        &self,
        s: Sizes,
        [k, v]: [usize; 2],
        tokens: usize,
        cut: Cut,
        coded: &Coded,
        first: bool,
    ) -> Result<Launch, String> {
        let pieces = coded.slots / PIECE;
        let wanted = (4 * PROCESSORS).div_ceil(s.heads).min(pieces);
        let mut args = vec![Arg::operand(k), Arg::operand(v), self.parts.clone()];
        args.extend([self.centres.clone(), self.columns.clone()]);
        args.extend(coded.pointers());
        args.push(Arg::of(cut));
        let sizes = [self.stretches, coded.block, coded.blocks, pieces, tokens, s.m, usize::from(first)];
        args.extend(counts(sizes)?);
        Ok(code_launch(s, "make_codes", 4 * s.d as u32, [wanted as u32, narrow(s.heads)?, 1], args))
    }
}

fn code_launch(s: Sizes, function: &'static str, block: u32, grid: [u32; 3], args: Vec<Arg>) -> Launch {
    let module = Module::new("attention_codes.cu").define("WIDTH", s.d);
    Launch { module, function, grid, block, shared: 0, args }
}

/// A size as kernels take it.
pub fn narrow(size: usize) -> Result<u32, String> {
    u32::try_from(size).map_err(|_| "takes sizes below 2^32".into())
}

/// Sizes as kernels take them.
pub fn counts<const N: usize>(sizes: [usize; N]) -> Result<Vec<Arg>, String> {
    sizes.into_iter().map(|size| Ok(Arg::of(narrow(size)?))).collect()
}

/// Lists of key blocks, as the kernels take them.
pub struct Listed {
    /// Blocks of queries.
    pub queries: Cut,
    /// Entries that there is room for in a list.
    pub longest: usize,
    /// Lists of a head.
    pub query_blocks: usize,
    /// How many, their codes, and what they add to their scores.
    pub centroids: Option<(usize, Coded, Arg)>,
}

/// What the operations say besides sizes.
pub struct Law {
    scale: f64,
    /// Whether heads stand side by side.
    pub merged: bool,
    /// Whether there is a second result.
    pub lse: bool,
}

impl Law {
    /// Spans of octaves a unit of scores.
    pub fn spans(&self) -> Arg {
        Arg::of((self.scale * LOG2_E / SPAN) as f32)
    }
}

/// What both kinds of kernels take first: q, the codes, those of centroids, what is known of heads, lists, results.
pub fn pointers(law: &Law, heads: &Heads, coded: &Coded, listed: Option<&Listed>) -> Vec<Arg> {
    let central = listed.and_then(|l| l.centroids.as_ref());
    let mut args = vec![Arg::operand(0)];
    args.extend(coded.pointers());
    args.extend(central.map_or([0; 3].map(|_| Arg::Null), |(_, codes, _)| codes.pointers()));
    args.extend([heads.centres.clone(), heads.columns.clone()]);
    args.extend([3, 4].map(|i| Arg::maybe(listed.map(|_| i))));
    args.push(central.map_or(Arg::Null, |(.., table)| table.clone()));
    args.extend([Arg::result(0), if law.lse { Arg::result(1) } else { Arg::Null }]);
    args
}

fn attend(
    s: Sizes,
    variant: Variant,
    law: &Law,
    heads: &Heads,
    coded: &Coded,
    listed: Option<&Listed>,
) -> Result<Launch, String> {
    let Variant { groups, teams, .. } = variant;
    let none = Cut::new(1, &[], 1)?;
    let tiles = listed.map_or(s.n.div_ceil(groups * 64), |l| l.query_blocks);
    let central = listed.and_then(|l| l.centroids.as_ref());
    let total = s.heads * tiles;
    let stage = TILE * (2 * s.d + 8) + 16 + 4 * variant.scales() + 2 * TILE;
    let team = Variant::stages(s.d) * stage + 4 * coded.blocks.div_ceil(32);
    if teams * team > SHARED {
        return Err(format!("has no shared memory for lists of {} key blocks", coded.blocks));
    }
    let mut args = pointers(law, heads, coded, listed);
    args.push(Arg::of(listed.map_or(none, |l| l.queries)));
    args.push(Arg::of(Rows::of(s, law.merged)));
    args.extend(counts([listed.map_or(0, |l| l.longest), coded.blocks, coded.slots])?);
    args.extend(counts(central.map_or([0; 2], |(count, codes, _)| [*count, codes.slots]))?);
    args.extend(counts([tiles, total, s.n, s.m])?);
    args.push(law.spans());
    Ok(Launch {
        module: variant.module(s),
        function: "attend_codes",
        grid: [total.div_ceil(teams).min(PROCESSORS) as u32, 1, 1],
        block: 128 * (groups * teams) as u32 + 128,
        shared: (teams * team) as u32,
        args,
    })
}

fn refuse_operands(codes: Codes) -> Result<(), String> {
    match codes {
        Codes::E4m3 => Ok(()),
        Codes::None => Err("multiplies e4m3 codes, not operands".into()),
    }
}

/// An attention over all keys: codes are made, then `attend` multiplies them.
pub fn over_all(
    op: &Attention,
    s: Sizes,
    attend: impl FnOnce(&Law, &Heads, &Coded) -> Result<Launch, String>,
) -> Result<Lowered, String> {
    refuse_operands(op.codes)?;
    let mut scratch = Scratch::default();
    let heads = Heads::new(s, &mut scratch);
    let coded = Coded::new(s, KEYS, s.m.div_ceil(KEYS), 0, &mut scratch);
    let law = Law { scale: op.scale, merged: op.merged, lse: op.lse };
    let launches = vec![
        heads.sum(s)?,
        heads.code(s, [1, 2], s.m, Cut::new(s.m, &[], KEYS)?, &coded, true)?,
        attend(&law, &heads, &coded)?,
    ];
    Ok(Lowered { launches, scratch: scratch.0 })
}

/// An attention over lists of key blocks: codes of keys and of centroids are made, then `attend` multiplies them.
pub fn over_lists(
    op: &BlockAttention,
    s: Sizes,
    operands: &[ValueType],
    attend: impl FnOnce(&Law, &Heads, &Coded, &Listed) -> Result<Launch, String>,
) -> Result<Lowered, String> {
    refuse_operands(op.codes)?;
    if ![16, 32, 64, 128].contains(&op.block_k) {
        return Err(format!("takes key blocks of 16, 32, 64 and 128, not {}", op.block_k));
    }
    let list = dims(&operands[3])?;
    let key_cut = Cut::new(s.m, &op.runs, op.block_k)?;
    let mut scratch = Scratch::default();
    let heads = Heads::new(s, &mut scratch);
    let key_blocks = Blocks::cut(s.m, &op.runs, op.block_k)?.len();
    let coded = Coded::new(s, op.block_k, key_blocks, 1, &mut scratch);
    let mut launches = vec![heads.sum(s)?, heads.code(s, [1, 2], s.m, key_cut, &coded, true)?];
    let mut centroids = None;
    if op.centroid > 0 {
        let count = dims(&operands[5])?[2];
        let codes = Coded::new(s, CENTROIDS, count.div_ceil(CENTROIDS), 0, &mut scratch);
        launches.push(heads.code(s, [5, 6], count, Cut::new(count, &[], CENTROIDS)?, &codes, false)?);
        // Read by fours.
        let table = scratch.take(8 * count.next_multiple_of(4));
        let cuts = [key_cut, Cut::new(s.m, &op.runs, op.centroid)?].map(Arg::of);
        let args = [table.clone()].into_iter().chain(cuts).chain([Arg::of(narrow(count)?)]).collect();
        launches.push(code_launch(s, "weigh_centroids", 256, [count.div_ceil(256) as u32, 1, 1], args));
        centroids = Some((count, codes, table));
    }
    let queries = Cut::new(s.n, &op.runs, op.block_q)?;
    let listed = Listed { queries, longest: list[3], query_blocks: list[2], centroids };
    let law = Law { scale: op.scale, merged: op.merged, lse: true };
    launches.push(attend(&law, &heads, &coded, &listed)?);
    Ok(Lowered { launches, scratch: scratch.0 })
}

fn attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::Attention(op) = request.op else { return Err("computes attention".into()) };
    let s = sizes(request, arch, op.scale, 1)?;
    over_all(op, s, |law, heads, coded| attend(s, Variant::dense(s), law, heads, coded, None))
}

fn block_attention(request: &Request<'_>, arch: Arch) -> Result<Lowered, String> {
    let Op::BlockAttention(op) = request.op else { return Err("computes block_attention".into()) };
    let s = sizes(request, arch, op.scale, 1)?;
    let most = if s.d == 64 { 192 } else { 128 };
    if op.block_q > most {
        return Err(format!("takes query blocks of up to {most}, not {}", op.block_q));
    }
    let variant = Variant::listed(s.d, op.block_q.div_ceil(64), op.block_k);
    over_lists(op, s, request.operands, |law, heads, coded, listed| attend(s, variant, law, heads, coded, Some(listed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::conformance;

    fn of(dtype: DType, shape: &[usize]) -> ValueType {
        ValueType::new(dtype, shape.iter().copied())
    }

    fn dense(heads: usize, n: usize, d: usize) -> conformance::Typed {
        let op = Attention { codes: Codes::E4m3, ..Attention::new(0.125) };
        (Op::Attention(op), vec![of(DType::BF16, &[1, heads, n, d]); 3])
    }

    fn lists(n: usize, d: usize, block_q: usize, block_k: usize, centroid: usize) -> conformance::Typed {
        let op = BlockAttention { codes: Codes::E4m3, centroid, ..BlockAttention::new(block_q, block_k, 0.125) };
        let mut operands = vec![of(DType::BF16, &[1, 16, n, d]); 3];
        let (queries, keys) = (n.div_ceil(block_q), n.div_ceil(block_k));
        operands.push(of(DType::I32, &[1, 16, queries, keys.div_ceil(4)]));
        operands.push(of(DType::I32, &[1, 16, queries]));
        if centroid > 0 {
            operands.extend([
                of(DType::BF16, &[1, 16, n.div_ceil(centroid), d]),
                of(DType::BF16, &[1, 16, n.div_ceil(centroid), d]),
            ]);
        }
        (Op::BlockAttention(op), operands)
    }

    /// Every variant that models come to.
    #[test]
    fn variants_compile_without_spills() {
        let mut requests = Vec::new();
        for (heads, n) in [(16, 94), (16, 2748), (16, 10992)] {
            requests.extend([64, 128].map(|d| dense(heads, n, d)));
        }
        for block_k in [16, 32, 64, 128] {
            for block_q in [64, 128, 192] {
                requests.push(lists(2748, 64, block_q, block_k, 16));
            }
            requests.extend([64, 128].map(|block_q| lists(2748, 128, block_q, block_k, 16)));
        }
        conformance::compiles(&requests, "e4m3_wgmma");
    }

    /// Consumers that ask for more than producers left would wait for ever.
    #[test]
    fn registers_suffice() {
        for (groups, teams) in [(1, 1), (2, 1), (3, 1), (1, 3)] {
            let workers = (groups * teams) as u32;
            let (producer, consumer) = Variant { groups, teams, block: 0 }.registers();
            let at_launch = 65536 / (128 * (workers + 1)) / 8 * 8;
            assert!(producer + workers * consumer <= (workers + 1) * at_launch.min(255), "{groups} {teams}");
        }
    }

    /// 137,400 tokens, those of a hundred views, in blocks of 16.
    #[test]
    fn long_lists_fit() {
        for block_q in [64, 128, 192] {
            let (op, operands) = lists(137_400, 64, block_q, 16, 16);
            let results = op.infer(&operands).unwrap();
            let request = Request { op: &op, operands: &operands, results: &results };
            block_attention(&request, Arch::Sm90a).unwrap();
        }
    }

    #[test]
    fn what_multiplies_operands_is_refused() {
        let (op, operands) = (Op::Attention(Attention::new(0.125)), vec![of(DType::BF16, &[1, 2, 65, 64]); 3]);
        let results = op.infer(&operands).unwrap();
        let request = Request { op: &op, operands: &operands, results: &results };
        assert!(attention(&request, Arch::Sm90a).unwrap_err().contains("e4m3 codes"));
    }
}
