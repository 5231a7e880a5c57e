//! `shaders/attention.wgsl`: attention of any shape, over all keys or over lists of key blocks.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{BlockAttention, blocks::Blocks},
};

use super::{
    Features, Kernel, dims,
    floats::{FLOATS, only},
    gemm::store,
    launch::{Binding, Launch, Lowered, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::either,
};
use crate::backend::Request;
pub use crate::backend::gpu::qkv::Sizes;

/// What rows by cooperative matrices need.
const MATRICES: Features = Features { subgroups: true, workgroup_bytes: WORKGROUP_BYTES, ..Features::MATRICES };

/// The rows of this file: head dimensions up to 256, up to 128 by cooperative matrices.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        name: "attention.cooperative",
        op: "attention",
        dtypes: &[DType::F16],
        needs: MATRICES,
        lower: |r| attention(r, By::Matrices),
    },
    Kernel::plain("attention.tiled", "attention", FLOATS, |r| either(r, |r| attention(r, By::Fours))),
    Kernel {
        name: "self_attention.cooperative",
        op: "self_attention",
        dtypes: &[DType::F16],
        needs: MATRICES,
        lower: |r| self_attention(r, By::Matrices),
    },
    Kernel::plain("self_attention.tiled", "self_attention", FLOATS, |r| either(r, |r| self_attention(r, By::Fours))),
    Kernel {
        name: "block_attention.cooperative",
        op: "block_attention",
        dtypes: &[DType::F16],
        needs: MATRICES,
        lower: |r| block_attention(r, By::Matrices),
    },
    Kernel::plain("block_attention.tiled", "block_attention", FLOATS, |r| either(r, |r| block_attention(r, By::Fours))),
];

const MAX_RUNS: usize = 32;
/// Key blocks that have a bit in shared memory.
const MAX_BLOCKS: usize = 16384;

/// The words of a `Cut` of `shaders/functions.wgsl`: `n` tokens by a pattern of runs into blocks of `size`.
pub fn cut(n: usize, pattern: &[usize], size: usize) -> Result<Vec<u32>, String> {
    let pattern = if pattern.is_empty() { &[n] } else { pattern };
    if pattern.len() > MAX_RUNS {
        return Err(format!("takes patterns of up to {MAX_RUNS} runs, not {}", pattern.len()));
    }
    // A block longer than the sequence is the sequence.
    let mut words = vec![word(n)?, word(size.min(n.max(1)))?, pattern.len() as u32, 0];
    for length in pattern {
        words.push(word(*length)?);
    }
    words.resize(4 + MAX_RUNS, 0);
    Ok(words)
}

impl Sizes {
    /// Elements from image to image, head to head and token to token of [B, H, tokens, width], or of
    /// [B, tokens, H·width] if merged; the first.
    pub fn rows(&self, tokens: usize, width: usize, merged: bool) -> [usize; 4] {
        let heads = self.image_heads();
        let (head, token) = if merged { (width, heads * width) } else { (tokens * width, width) };
        [heads * tokens * width, head, token, 0]
    }
}

/// Which keys a query sees, with what weight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// All, by the softmax.
    All,
    /// Those of listed blocks and centroids, by the softmax.
    Listed,
    /// Those outside of listed blocks, by products of features.
    Rest,
}

/// The lists of a launch.
pub struct Lists {
    /// The cuts of queries, of keys, and of keys that have a centroid.
    pub cuts: [Vec<u32>; 3],
    /// Tokens of the longest query block.
    pub tokens: usize,
    /// How many lists a head has, how many key blocks there are, how long a list is, how many centroids there are.
    pub counts: [usize; 4],
}

impl Lists {
    /// Of blocks of so many queries and keys, `list` being the type of the lists.
    pub fn of(
        s: Sizes,
        runs: &[usize],
        [block_q, block_k]: [usize; 2],
        list: &ValueType,
        [centroid, centroids]: [usize; 2],
    ) -> Result<Self, String> {
        let blocks = Blocks::cut(s.m, runs, block_k)?.len();
        if blocks > MAX_BLOCKS {
            return Err(format!("takes up to {MAX_BLOCKS} key blocks, not {blocks}"));
        }
        let list = dims(list)?;
        Ok(Self {
            cuts: [cut(s.n, runs, block_q)?, cut(s.m, runs, block_k)?, cut(s.m, runs, centroid.max(1))?],
            tokens: block_q.min(s.n),
            counts: [list[2], blocks, list[3], centroids],
        })
    }

    /// Words of all lists with their lengths.
    fn list_words(&self, s: Sizes) -> usize {
        s.heads * self.counts[0] * (self.counts[2] + 1)
    }

    /// Of lists and of the tables behind them.
    pub fn bytes(&self, s: Sizes) -> usize {
        4 * (self.list_words(s) + 2 * (self.counts[1] + self.counts[3]))
    }
}

/// What `shaders/attention.wgsl` is bound to.
pub struct Bound {
    /// By the names that it has there, all or some of q, k, v, lists, centroid_keys, centroid_values, residual.
    pub operands: Vec<(&'static str, DType, Binding)>,
    /// The result.
    pub y: (DType, Binding),
    /// The logarithms of sums.
    pub lse: Option<Binding>,
}

/// By which shader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// `shaders/attention.wgsl`.
    Fours,
    /// `shaders/attention_cooperative.wgsl`.
    Matrices,
}

impl By {
    /// Queries of a workgroup.
    fn queries(self, s: Sizes, keys: Keys) -> usize {
        // Lists are of 64 queries as a rule, and wide rows leave no memory for more.
        if self == Self::Matrices && keys == Keys::All && s.d.max(s.e) <= 64 { 128 } else { 64 }
    }

    /// The declarations of what the shader reads and writes, and what it is bound to.
    fn tensors(self, s: Sizes, bound: &Bound) -> (Tensors, Vec<Binding>) {
        let (mut tensors, mut bindings) = (Tensors::default(), Vec::new());
        let fours = s.d.is_multiple_of(4) && s.e.is_multiple_of(4);
        // By name, then what is read in its place: an expression, or elements of a tensor.
        let function = |name: &str, value: &str| match self {
            Self::Fours => format!("fn {name}_part(i: u32, there: u32) -> vec4<f32> {{ {value} }}"),
            Self::Matrices => format!("fn {name}_four(i: u32) -> vec4<f16> {{ {value} }}"),
        };
        let (other, zero) = match self {
            Self::Fours => ("return q_part(i, there);", "return vec4(0.0);"),
            Self::Matrices => ("return q_four(i);", "return vec4<f16>();"),
        };
        for name in ["q", "k", "v", "lists", "centroid_keys", "centroid_values", "residual"] {
            let found = bound.operands.iter().find(|(n, ..)| *n == name);
            bindings.extend(found.map(|(.., binding)| *binding));
            tensors = match (found, self) {
                (Some((_, dtype, _)), _) if name == "lists" => tensors.read(name, *dtype),
                (Some(_), Self::Matrices) => {
                    tensors.declared(name, "array<vec4<f16>>").function(&function(name, &format!("return {name}[i];")))
                }
                (Some((_, dtype, _)), Self::Fours) => tensors.parts(name, *dtype, fours),
                (None, _) if name == "lists" => tensors.function("fn lists_at(i: u32) -> i32 { return 0; }"),
                // A joint projection holds them all.
                (None, _) if matches!(name, "k" | "v") => tensors.function(&function(name, other)),
                (None, _) => tensors.function(&function(name, zero)),
            };
        }
        tensors = tensors.write("y", bound.y.0);
        bindings.push(bound.y.1);
        tensors = match bound.lse {
            Some(_) => tensors.single("lse", DType::F32),
            None => tensors.function("fn lse_set(i: u32, v: f32) {}"),
        };
        bindings.extend(bound.lse);
        (tensors.sizes(), bindings)
    }

    /// The shader for so many key blocks, or the clause that refuses it.
    fn shader(
        self,
        s: Sizes,
        keys: Keys,
        key_blocks: usize,
        bound: &Bound,
        tensors: &Tensors,
    ) -> Result<Shader, String> {
        let taken = key_blocks.div_ceil(32).max(1);
        let shader = match self {
            Self::Fours => {
                let width = s.d.max(s.e).max(64).next_power_of_two();
                Shader::new("attention.wgsl", tensors).constant("WIDTH", width)
            }
            Self::Matrices => {
                let odd = |width: usize| !width.is_multiple_of(16) || width > 128;
                if odd(s.d) || odd(s.e) {
                    return Err(format!("takes heads of up to 128 columns in sixteens, not {} and {}", s.d, s.e));
                }
                if let Some((name, dtype, _)) =
                    bound.operands.iter().find(|(name, dtype, _)| *name != "lists" && *dtype != DType::F16)
                {
                    return Err(format!("takes f16, not {} for {name}", dtype.name()));
                }
                let queries = self.queries(s, keys);
                // A workgroup fetches whole fours of a tile. What threads hold of larger tiles does not fit their registers.
                let fits = |tile: usize| [s.d, s.e].iter().all(|width| (tile * width / 4).is_multiple_of(queries));
                Shader::new("attention_cooperative.wgsl", tensors)
                    .constant("WIDTH", s.d)
                    .constant("VALUES", s.e)
                    .constant("TILE", if fits(16) { 16 } else { 32 })
                    .constant("QUERIES", queries)
            }
        };
        Ok(shader.constant("KEYS", keys as usize).constant("TAKEN", taken))
    }
}

/// Memory that a workgroup of `shaders/attention_cooperative.wgsl` has at most.
const WORKGROUP_BYTES: u32 = 48 << 10;

/// The launch of attention; `lists` unless it looks at all keys; `rows` are those of q, k, v and the result.
pub fn attend(
    (s, by): (Sizes, By),
    (keys, lists): (Keys, Option<&Lists>),
    scale: f64,
    rows: [[usize; 4]; 4],
    bound: &Bound,
) -> Result<Launch, String> {
    let none = cut(1, &[], 1)?;
    let (tokens, counts) = lists.map_or((s.n, [1, 0, 0, 0]), |l| (l.tokens, l.counts));
    let tiles = tokens.div_ceil(by.queries(s, keys));
    let (tensors, bindings) = by.tensors(s, bound);
    let mut shader = by.shader(s, keys, counts[1], bound, &tensors)?;
    if let Some(store) = store(bound.y.0, s.e)? {
        shader = shader.splice("store", store);
    }
    let mut sizes = Vec::new();
    for size in [s.heads, s.image_heads(), s.n, s.m, s.d, s.e, tiles].into_iter().chain(counts) {
        sizes.push(word(size)?);
    }
    sizes.push((scale as f32).to_bits());
    for size in rows.into_iter().flatten() {
        sizes.push(word(size)?);
    }
    match lists {
        Some(lists) => sizes.extend(lists.cuts[..2].concat()),
        None => sizes.extend([none.clone(), none].concat()),
    }
    Ok(Launch { shader, groups: folded(s.heads * counts[0] * tiles)?, bindings, sizes })
}

/// Operands `first` and on, by names.
fn named(request: &Request<'_>, first: usize, names: &[&'static str]) -> Vec<(&'static str, DType, Binding)> {
    let operand = |(i, name): (usize, &&'static str)| {
        (*name, request.operands[first + i].dtype, Binding::operand(request, first + i))
    };
    names.iter().enumerate().map(operand).collect()
}

/// What `shaders/attention.wgsl` reads of lists, which are operand `first` with their lengths behind it, in scratch memory
/// from its start.
pub fn packed_lists(request: &Request<'_>, first: usize, s: Sizes, lists: &Lists) -> Result<Launch, String> {
    let [_, blocks, longest, centroids] = lists.counts;
    let words = lists.list_words(s);
    let mut sizes = vec![word(words)?, word(longest)?, word(blocks)?, word(centroids)?];
    sizes.extend(lists.cuts[1..].concat());
    let tensors = Tensors::default().read("idx", DType::I32).read("cnt", DType::I32).words("y").sizes();
    Ok(Launch {
        shader: Shader::new("block_lists.wgsl", &tensors),
        groups: folded((words + blocks + centroids).div_ceil(THREADS))?,
        bindings: vec![
            Binding::operand(request, first),
            Binding::operand(request, first + 1),
            Binding::scratch(0, lists.bytes(s)),
        ],
        sizes,
    })
}

fn attention(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let Op::Attention(op) = request.op else { return Err("computes attention".into()) };
    op.codes.none()?;
    let s = Sizes::of(request.operands)?;
    let bound = Bound {
        operands: named(request, 0, &["q", "k", "v"]),
        y: (request.results[0].dtype, Binding::result(request, 0)),
        lse: op.lse.then(|| Binding::result(request, 1)),
    };
    let rows = [s.rows(s.n, s.d, false), s.rows(s.m, s.d, false), s.rows(s.m, s.e, false), s.rows(s.n, s.e, op.merged)];
    Ok(attend((s, by), (Keys::All, None), op.scale, rows, &bound)?.into())
}

fn self_attention(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let Op::SelfAttention(op) = request.op else { return Err("computes self_attention".into()) };
    only(request.operands)?;
    let &[b, n, width] = &dims(&request.results[0])?[..] else { return Err("gives [B, N, C]".into()) };
    let d = width / op.heads;
    let s = Sizes { images: b, heads: b * op.heads, n, m: n, d, e: d }.checked()?;
    let bound = Bound {
        operands: named(request, 0, &["q"]),
        y: (request.results[0].dtype, Binding::result(request, 0)),
        lse: None,
    };
    let part = |first: usize| [3 * n * width, d, 3 * width, first * width];
    let rows = [part(0), part(1), part(2), s.rows(n, d, true)];
    Ok(attend((s, by), (Keys::All, None), op.scale, rows, &bound)?.into())
}

fn block_attention(request: &Request<'_>, by: By) -> Result<Lowered, String> {
    let Op::BlockAttention(op) = request.op else { return Err("computes block_attention".into()) };
    let BlockAttention { block_q, block_k, runs, centroid, merged, .. } = op;
    op.codes.none()?;
    let s = Sizes::of(request.operands)?;
    let centroids = if *centroid > 0 { dims(&request.operands[5])?[2] } else { 0 };
    let lists = Lists::of(s, runs, [*block_q, *block_k], &request.operands[3], [*centroid, centroids])?;
    let mut operands = named(request, 0, &["q", "k", "v"]);
    operands.push(("lists", DType::I32, Binding::scratch(0, lists.bytes(s))));
    if *centroid > 0 {
        operands.extend(named(request, 5, &["centroid_keys", "centroid_values"]));
    }
    let bound = Bound {
        operands,
        y: (request.results[0].dtype, Binding::result(request, 0)),
        lse: Some(Binding::result(request, 1)),
    };
    let rows = [s.rows(s.n, s.d, false), s.rows(s.m, s.d, false), s.rows(s.m, s.e, false), s.rows(s.n, s.e, *merged)];
    let attend = attend((s, by), (Keys::Listed, Some(&lists)), op.scale, rows, &bound)?;
    Ok(Lowered { launches: vec![packed_lists(request, 3, s, &lists)?, attend], scratch: lists.bytes(s) })
}

#[cfg(test)]
mod tests {
    use lite3r_ir::{
        Dim, Tensor,
        ops::{Case, attention_codes::Codes},
    };

    use super::*;
    use crate::backend::wgsl::{conformance::hold, variants};

    /// Storage buffers that every adapter lets a shader see.
    const BINDINGS: usize = 8;

    #[test]
    fn cases_are_taken_except_over_codes() {
        let family = [
            "attention",
            "self_attention",
            "block_attention",
            "linear_attention",
            "block_route",
            "block_mean",
            "attention_grad",
            "block_attention_grad",
        ];
        let mut seen = 0;
        for case in Op::all_cases().into_iter().filter(|c| family.contains(&c.op.name())) {
            let operands: Vec<ValueType> = case.inputs.iter().map(Tensor::value_type).collect();
            let results = case.op.infer(&operands).unwrap();
            let lowered = super::super::kernel(&Request { op: &case.op, operands: &operands, results: &results });
            let coded = match &case.op {
                Op::Attention(op) => op.codes != Codes::None,
                Op::BlockAttention(op) => op.codes != Codes::None,
                _ => false,
            };
            assert_eq!(lowered.is_err(), coded, "{} {}", case.op.name(), case.name);
            if let Ok((_, lowered)) = lowered {
                assert!(lowered.launches.iter().all(|l| l.bindings.len() <= BINDINGS), "{}", case.name);
                seen += 1;
            }
        }
        assert!(seen > 60, "{seen} cases");
    }

    #[test]
    fn cases_hold_in_f16_too() {
        let family = ["attention", "self_attention", "block_attention", "linear_attention", "block_route"];
        let narrow = |t: Tensor| if matches!(t.dtype(), DType::F32 | DType::BF16) { t.cast(DType::F16) } else { t };
        let coded = |op: &Op| match op {
            Op::Attention(op) => op.codes != Codes::None,
            Op::BlockAttention(op) => op.codes != Codes::None,
            _ => false,
        };
        let small = |case: &Case| case.inputs[0].len() < 100_000 && !coded(&case.op);
        let of_family = Op::all_cases().into_iter().filter(|c| family.contains(&c.op.name()) && small(c));
        let cases: Vec<Case> =
            of_family.map(|c| Case::new(c.name, c.op, c.inputs.into_iter().map(narrow).collect())).collect();
        hold(&cases);
        let by_matrices = |case: &&Case| {
            let operands: Vec<ValueType> = case.inputs.iter().map(Tensor::value_type).collect();
            let results = case.op.infer(&operands).unwrap();
            let request = Request { op: &case.op, operands: &operands, results: &results };
            variants(&request).next().is_some()
        };
        let count = cases.iter().filter(by_matrices).count();
        assert!(count > 20, "{count} of {} cases by cooperative matrices", cases.len());
    }

    #[test]
    fn wide_heads_are_refused() {
        let ty = |d: usize| ValueType::new(DType::F32, [1, 1, 3, d].map(Dim::from));
        assert!(Sizes::of(&[ty(256), ty(256), ty(256)]).is_ok());
        assert!(Sizes::of(&[ty(257), ty(257), ty(64)]).is_err());
    }
}
