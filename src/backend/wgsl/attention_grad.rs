//! `shaders/attention_grad.wgsl`: gradients of attention over all keys, or over lists of key blocks with centroids; and
//! `shaders/block_transpose.wgsl`.
//!
//! Three launches or five: what is known of every query, then dq, then dk and dv; centroids are keys of their own, whose
//! part of dq is added to that of the others.

use lite3r_ir::{DType, Op, ops::BlockAttentionGrad};

use super::{
    Kernel,
    attention::{Lists, Sizes, cut, packed_lists},
    dims,
    floats::{FLOATS, only},
    launch::{Binding, Launch, Lowered, Placed, Scratch, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::either,
};
use crate::backend::Request;

/// The rows of this file: head dimensions up to 256.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("attention_grad.tiled", "attention_grad", FLOATS, |r| either(r, attention_grad)),
    Kernel::plain("block_attention_grad.tiled", "block_attention_grad", FLOATS, |r| either(r, block_attention_grad)),
    Kernel::plain("block_transpose.counted", "block_transpose", &[DType::I32], block_transpose),
];

/// Rows that a workgroup owns.
const OWNED: usize = 64;
/// Key blocks that have a bit in shared memory, where there are centroids.
const MAX_BLOCKS: usize = 8192;

/// Which keys a query sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// All.
    All,
    /// Those of listed blocks.
    Listed,
    /// The centroids outside of listed blocks.
    Central,
}

/// Whose rows a workgroup owns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Queries.
    Queries,
    /// Keys.
    Keys,
}

/// What every launch of a request reads.
struct Given {
    s: Sizes,
    scale: f64,
    /// Elements of o and do from image to image, head to head, token to token; the first.
    rows: [usize; 4],
    /// q, do, and what `shaders/attention_delta.wgsl` writes.
    q: Placed,
    g: Placed,
    pairs: Placed,
}

impl Given {
    /// With the launch that says what is known of every query; o, lse and do are operands `first` and on.
    fn new(
        request: &Request<'_>,
        first: usize,
        (scale, merged): (f64, bool),
        scratch: &mut Scratch,
    ) -> Result<(Self, Launch), String> {
        let s = Sizes::of(request.operands)?;
        only(&request.operands[first..])?;
        let placed = |i: usize| (request.operands[i].clone(), Binding::operand(request, i));
        let given = Self {
            s,
            scale,
            rows: s.rows(s.n, s.e, merged),
            q: placed(0),
            g: placed(first + 2),
            pairs: scratch.take(&[s.heads, s.n, 2]),
        };
        let (o, lse) = (placed(first), placed(first + 1));
        let tensors = Tensors::default().read("o", o.0.dtype).read("g", given.g.0.dtype).read("lse", DType::F32);
        let queries = s.heads * s.n;
        let mut sizes = vec![word(queries)?, word(s.image_heads())?, word(s.n)?, word(s.e)?];
        for size in given.rows {
            sizes.push(word(size)?);
        }
        let launch = Launch {
            shader: Shader::new("attention_delta.wgsl", &tensors.write("y", DType::F32).sizes()),
            groups: folded(queries.div_ceil(THREADS))?,
            bindings: vec![o.1, given.g.1, lse.1, given.pairs.1],
            sizes,
        };
        Ok((given, launch))
    }

    /// dq, to which `before` is added, or dk and dv, of keys k and v.
    fn launch(
        &self,
        (of, keys): (Of, Keys),
        [k, v]: [&Placed; 2],
        lists: Option<(&Lists, Binding)>,
        before: Option<&Placed>,
        results: &[Placed],
    ) -> Result<Launch, String> {
        let s = self.s;
        let m = dims(&k.0)?[2];
        let fours = s.d.is_multiple_of(4) && s.e.is_multiple_of(4);
        let (mut tensors, mut bindings) = (Tensors::default(), Vec::new());
        for (name, (ty, binding)) in [("q", &self.q), ("k", k), ("v", v), ("g", &self.g)] {
            tensors = part(tensors, name, ty.dtype, fours);
            bindings.push(*binding);
        }
        tensors = tensors.read("pairs", DType::F32);
        bindings.push(self.pairs.1);
        tensors = match lists {
            Some(_) => tensors.read("lists", DType::I32),
            None => tensors.function("fn lists_at(i: u32) -> i32 { return 0; }"),
        };
        bindings.extend(lists.map(|(_, binding)| binding));
        tensors = match before {
            Some(_) => tensors.read("before", DType::F32),
            None => tensors.function("fn before_at(i: u32) -> f32 { return 0.0; }"),
        };
        bindings.extend(before.map(|(_, binding)| *binding));
        for (name, (ty, binding)) in ["first", "second"].into_iter().zip(results) {
            tensors = tensors.write(name, ty.dtype);
            bindings.push(*binding);
        }
        if of == Of::Queries {
            tensors = tensors.function("fn second_set(i: u32, v: f32) {}");
            tensors = tensors.function("fn second_put(i: u32, v: vec4<f32>) {}");
        }
        let none = cut(1, &[], 1)?;
        let (cuts, tokens, counts) = match lists {
            Some((lists, _)) => (lists.cuts.clone(), lists.tokens, lists.counts),
            None => ([none.clone(), none.clone(), none], s.n, [1, 0, 0, 0]),
        };
        let [blocks, key_blocks, longest, _] = counts;
        let bits = of == Of::Queries && keys == Keys::Central;
        if bits && key_blocks > MAX_BLOCKS {
            return Err(format!("takes up to {MAX_BLOCKS} key blocks beside centroids, not {key_blocks}"));
        }
        let tiles = if of == Of::Queries { tokens } else { m }.div_ceil(OWNED);
        let mut shader = Shader::new("attention_grad.wgsl", &tensors.sizes())
            .constant("KEYS", keys as usize)
            .constant("OF", of as usize)
            .constant("WIDTH", s.d.max(s.e).max(64).next_power_of_two())
            .constant("TAKEN", if bits { key_blocks.div_ceil(32).max(1) } else { 1 });
        if fours {
            shader = shader.splice("store", STORE);
        } else if results.iter().any(|(ty, _)| ty.dtype.size() < 4) {
            return Err(format!("gives rows of whole words, not of {} and {} columns", s.d, s.e));
        }
        let mut sizes = Vec::new();
        for size in [s.heads, s.image_heads(), s.n, m, s.d, s.e, tiles, blocks, key_blocks, longest] {
            sizes.push(word(size)?);
        }
        sizes.extend([(self.scale as f32).to_bits(), 0]);
        for size in self.rows {
            sizes.push(word(size)?);
        }
        sizes.extend(cuts.concat());
        let groups = folded(s.heads * tiles * if of == Of::Queries { blocks } else { 1 })?;
        Ok(Launch { shader, groups, bindings, sizes })
    }
}

/// Four neighbours of a row, of rows of whole fours.
const STORE: &str = "fn store_first(at: u32, column: u32, v: vec4<f32>) { first_put(at / 4u, v); }
fn store_second(at: u32, column: u32, v: vec4<f32>) { second_put(at / 4u, v); }";

/// With a tensor of which rows are read by `NAME_part`.
fn part(tensors: Tensors, name: &str, dtype: DType, fours: bool) -> Tensors {
    let body = match fours {
        true => format!("return {name}_four(i / 4u);"),
        false => format!(
            "var part = vec4(0.0); for (var j = 0u; j < min(there, 4u); j++) {{ part[j] = {name}_at(i + j); }} return part;"
        ),
    };
    let function = format!("fn {name}_part(i: u32, there: u32) -> vec4<f32> {{ {body} }}");
    tensors.read_or_fours(name, dtype, fours).function(&function)
}

fn results(request: &Request<'_>, which: std::ops::Range<usize>) -> Vec<Placed> {
    which.map(|i| (request.results[i].clone(), Binding::result(request, i))).collect()
}

fn attention_grad(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::AttentionGrad(op) = request.op else { return Err("computes attention_grad".into()) };
    let mut scratch = Scratch::default();
    let (given, delta) = Given::new(request, 3, (op.scale, op.merged), &mut scratch)?;
    let placed = |i: usize| (request.operands[i].clone(), Binding::operand(request, i));
    let (k, v) = (placed(1), placed(2));
    let launch = |of, which| given.launch((of, Keys::All), [&k, &v], None, None, &results(request, which));
    Ok(Lowered { launches: vec![delta, launch(Of::Queries, 0..1)?, launch(Of::Keys, 1..3)?], scratch: scratch.0 })
}

fn block_attention_grad(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::BlockAttentionGrad(op) = request.op else { return Err("computes block_attention_grad".into()) };
    let BlockAttentionGrad { block_q, block_k, scale, ref runs, centroid, merged } = *op;
    let s = Sizes::of(request.operands)?;
    let centroids = if centroid > 0 { dims(&request.operands[6])?[2] } else { 0 };
    let lists = Lists::of(s, runs, [block_q, block_k], &request.operands[3], [centroid, centroids])?;
    let mut scratch = Scratch(lists.bytes(s).next_multiple_of(256));
    let own = (&lists, Binding::scratch(0, lists.bytes(s)));
    let turned = (&lists, Binding::operand(request, 5));
    let (given, delta) = Given::new(request, op.results_at(), (scale, merged), &mut scratch)?;
    let placed = |i: usize| (request.operands[i].clone(), Binding::operand(request, i));
    let (k, v) = (placed(1), placed(2));
    let mut launches = vec![packed_lists(request, 3, s, &lists)?, delta];
    let dq = results(request, 0..1);
    let listed = |of, lists, results: &[Placed]| given.launch((of, Keys::Listed), [&k, &v], Some(lists), None, results);
    if centroid > 0 {
        let (ck, cv) = (placed(6), placed(7));
        let before = scratch.take(&[s.images, s.image_heads(), s.n, s.d]);
        let central = |of, lists, before, results: &[Placed]| {
            given.launch((of, Keys::Central), [&ck, &cv], Some(lists), before, results)
        };
        launches.push(listed(Of::Queries, own, std::slice::from_ref(&before))?);
        launches.push(central(Of::Queries, own, Some(&before), &dq)?);
        launches.push(central(Of::Keys, turned, None, &results(request, 3..5))?);
    } else {
        launches.push(listed(Of::Queries, own, &dq)?);
    }
    launches.push(listed(Of::Keys, turned, &results(request, 1..3))?);
    Ok(Lowered { launches, scratch: scratch.0 })
}

fn block_transpose(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::BlockTranspose(op) = request.op else { return Err("computes block_transpose".into()) };
    let &[b, h, queries, longest] = &dims(&request.operands[0])?[..] else { return Err("takes [B,H,Tq,L]".into()) };
    let tensors = Tensors::default().read("idx", DType::I32).read("cnt", DType::I32).words("y").sizes();
    Ok(Launch {
        shader: Shader::new("block_transpose.wgsl", &tensors),
        groups: folded(b * h)?,
        bindings: Binding::all(request),
        sizes: vec![word(b * h)?, word(queries)?, word(op.blocks)?, word(longest)?],
    }
    .into())
}
