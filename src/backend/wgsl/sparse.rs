//! `shaders/block_mean.wgsl`, `shaders/block_route.wgsl`, `shaders/features.wgsl` and `shaders/linear_attention.wgsl`: which
//! key blocks are attended to, and attention through a feature map.

use lite3r_ir::{
    DType, Op, ValueType,
    ops::{
        BlockMean, Linear, MatMul, ReduceMean, Sub,
        block_route::{Own, Router},
        blocks::Blocks,
        linear_attention::{FeatureMap, LinearAttention, Scope},
    },
};

use super::{
    Kernel,
    attention::{Bound, By, Keys, Lists, Sizes, attend, cut, packed_lists},
    dims,
    floats::{FLOATS, only},
    gemm::store,
    launch::{Binding, Launch, Lowered, Placed, Scratch, THREADS, folded, word},
    shader::{Shader, Tensors},
    wide::either,
    within,
};
use crate::backend::Request;

/// The rows of this file: head dimensions up to 256.
pub const KERNELS: &[Kernel] = &[
    Kernel::plain("block_mean.columns", "block_mean", FLOATS, |r| either(r, block_mean)),
    Kernel::plain("block_route.rows", "block_route", FLOATS, block_route),
    Kernel::plain("linear_attention.tiled", "linear_attention", FLOATS, |r| either(r, linear_attention)),
];

const MAX_ALWAYS: usize = 32;

/// Workgroups that a device is filled by.
const WORKGROUPS: usize = 512;

fn block_mean(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::BlockMean(op) = request.op else { return Err("computes block_mean".into()) };
    only(request.operands)?;
    let (x, y) = (dims(&request.operands[0])?, dims(&request.results[0])?);
    let (&[_, _, n, d], &[_, _, blocks, _]) = (&x[..], &y[..]) else { return Err("takes [B,H,N,D]".into()) };
    let parts = y.iter().rev().skip(1).product::<usize>() * d.div_ceil(4);
    let (dtype, result) = (request.operands[0].dtype, request.results[0].dtype);
    let tensors = Tensors::default().parts("x", dtype, d.is_multiple_of(4)).write("y", result).sizes();
    let mut shader = Shader::new("block_mean.wgsl", &tensors);
    if let Some(store) = store(result, d)? {
        shader = shader.splice("store", store);
    }
    let mut sizes = vec![word(parts)?, word(blocks)?, word(n)?, word(d)?];
    sizes.extend(cut(n, &op.runs, op.block)?);
    Ok(Launch { shader, groups: folded(parts.div_ceil(THREADS))?, bindings: Binding::all(request), sizes }.into())
}

fn block_route(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::BlockRoute(op) = request.op else { return Err("computes block_route".into()) };
    let [q, k] = request.operands else { return Err("takes q and k".into()) };
    let s = Sizes::of(&[q.clone(), k.clone(), k.clone()])?;
    let list = dims(&request.results[0])?;
    if op.always.len() > MAX_ALWAYS {
        return Err(format!("takes up to {MAX_ALWAYS} runs that are always kept, not {}", op.always.len()));
    }
    let sub = match op.router {
        Router::Pooled => op.block_q,
        Router::Sub(rows) => rows.min(op.block_q),
    };
    if !op.block_q.is_multiple_of(sub) {
        return Err(format!("takes sub-blocks that divide {}, not {sub}", op.block_q));
    }
    let keys = Blocks::cut(s.m, &op.runs, op.block_k)?.len();
    let subs = Blocks::cut(s.n, &op.runs, sub)?.len();
    // Products of means in scratch memory, the mean of them taken off the keys': it adds the same to all scores of a row.
    let (images, heads) = (s.images, s.image_heads());
    let mut scratch = Scratch::default();
    let products = scratch.take(&[images, heads, subs, keys]);
    let key_means = scratch.take(&[images, heads, keys, s.d]);
    let mean = scratch.take(&[images, heads, 1, s.d]);
    let centred = scratch.take(&[images, heads, keys, s.d]);
    let query_means = scratch.take(&[images, heads, subs, s.d]);
    let (q, k) = ((q.clone(), Binding::operand(request, 0)), (k.clone(), Binding::operand(request, 1)));
    let means = |block| Op::from(BlockMean { block, runs: op.runs.clone() });
    let mut lowered = Lowered { launches: Vec::new(), scratch: scratch.0 };
    for (op, operands, result) in [
        (means(op.block_k), vec![k], &key_means),
        (ReduceMean { axes: vec![2], keep: true }.into(), vec![key_means.clone()], &mean),
        (Sub {}.into(), vec![key_means.clone(), mean.clone()], &centred),
        (means(sub), vec![q], &query_means),
        (MatMul { transpose_b: true }.into(), vec![query_means.clone(), centred.clone()], &products),
    ] {
        lowered.then(within(&op, &operands, std::slice::from_ref(result), scratch.0)?);
    }
    let mut tensors = Tensors::default().words("products").single("lists", DType::I32).single("counts", DType::I32);
    let mut bindings = vec![products.1, Binding::result(request, 0), Binding::result(request, 1)];
    if op.mass {
        tensors = tensors.single("mass", DType::F32);
        bindings.push(Binding::result(request, 2));
    } else {
        tensors = tensors.function("fn mass_set(i: u32, v: f32) {}");
    }
    let shader = Shader::new("block_route.wgsl", &tensors.sizes())
        .constant("SUB", usize::from(op.router != Router::Pooled))
        .constant("MASS", usize::from(op.mass));
    let own = match op.own {
        Own::None => 0,
        Own::Block => 1,
        Own::Run => 2,
    };
    let rows = s.heads * list[2];
    let mut sizes = Vec::new();
    for size in [rows, list[2], keys, list[3], op.kept, own, op.always.len(), subs] {
        sizes.push(word(size)?);
    }
    sizes.extend([(op.scale as f32).to_bits(), 0, 0, 0]);
    for run in op.always.iter().copied().chain(std::iter::repeat(0)).take(MAX_ALWAYS) {
        sizes.push(word(run)?);
    }
    for (tokens, size) in [(s.n, op.block_q), (s.m, op.block_k), (s.n, sub)] {
        sizes.extend(cut(tokens, &op.runs, size)?);
    }
    lowered.launches.push(Launch { shader, groups: folded(rows)?, bindings, sizes });
    Ok(lowered)
}

/// The element type that features of an operand are kept in: its own where rows are whole words.
fn feature_type(operand: &ValueType) -> DType {
    match operand.dims() {
        Some(shape) if shape.last().is_some_and(|d| d.is_multiple_of(4)) => operand.dtype,
        _ => DType::F32,
    }
}

/// The features of an operand of rank 4.
fn features(request: &Request<'_>, operand: usize, map: FeatureMap, to: &Placed) -> Result<Launch, String> {
    let shape = dims(&request.operands[operand])?;
    let d = shape.last().copied().unwrap_or(0);
    let rows = shape.iter().product::<usize>().checked_div(d).unwrap_or(0);
    let tensors = Tensors::default().parts("x", request.operands[operand].dtype, d.is_multiple_of(4));
    let tensors = tensors.write("y", to.0.dtype).sizes();
    let mut shader =
        Shader::new("features.wgsl", &tensors).constant("SOFTMAX", usize::from(map == FeatureMap::Softmax));
    if let Some(store) = store(to.0.dtype, d)? {
        shader = shader.splice("store", store);
    }
    Ok(Launch {
        shader,
        groups: folded(rows.div_ceil(16))?,
        bindings: vec![Binding::operand(request, operand), to.1],
        sizes: vec![word(rows)?, word(d)?],
    })
}

fn linear_attention(request: &Request<'_>) -> Result<Lowered, String> {
    let Op::LinearAttention(op) = request.op else { return Err("computes linear_attention".into()) };
    let s = Sizes::of(request.operands)?;
    let (images, heads) = (s.images, s.image_heads());
    let mut lowered = Lowered::default();
    let mut scratch = Scratch::default();
    let lists = match op.scope {
        Scope::All => None,
        Scope::Rest => Some(Lists::of(s, &op.runs, [op.block_q, op.block_k], &request.operands[3], [1, 0])?),
    };
    if let Some(lists) = &lists {
        lowered.launches.push(packed_lists(request, 3, s, lists)?);
        scratch.0 = lists.bytes(s).next_multiple_of(256);
    }
    let query_features = scratch.take_as(feature_type(&request.operands[0]), &[images, heads, s.n, s.d]);
    let key_features = scratch.take_as(feature_type(&request.operands[1]), &[images, heads, s.m, s.d]);
    for (operand, to) in [(0, &query_features), (1, &key_features)] {
        lowered.launches.push(features(request, operand, op.map, to)?);
    }
    let mut values = (request.operands[2].clone(), Binding::operand(request, 2));
    let w = op.weights_at().map(|w| (request.operands[w].clone(), Binding::operand(request, w)));
    let residual = op.residual_at().map(|i| (request.operands[i].dtype, Binding::operand(request, i)));
    let y = (request.results[0].dtype, Binding::result(request, 0));
    match &lists {
        None => over_all(op, s, [&query_features, &key_features, &values], (w, residual), y, &mut lowered, scratch)?,
        Some(lists) => {
            // Every query has sums of its own: a projection of sums is a sum of projections.
            if let Some(w) = w {
                let projected = scratch.take(&[images, heads, s.m, s.e]);
                let project = Linear { out: Some(DType::F32), ..Linear::new(false) };
                lowered.then(within(&project.into(), &[values, w], std::slice::from_ref(&projected), scratch.0)?);
                values = projected;
            }
            let mut operands = vec![
                ("q", query_features.0.dtype, query_features.1),
                ("k", key_features.0.dtype, key_features.1),
                ("v", values.0.dtype, values.1),
                ("lists", DType::I32, Binding::scratch(0, lists.bytes(s))),
            ];
            operands.extend(residual.map(|(dtype, binding)| ("residual", dtype, binding)));
            let rows = [
                s.rows(s.n, s.d, false),
                s.rows(s.m, s.d, false),
                s.rows(s.m, s.e, false),
                s.rows(s.n, s.e, op.merged),
            ];
            let bound = Bound { operands, y, lse: None };
            lowered.launches.push(attend((s, By::Fours), (Keys::Rest, Some(lists)), 1.0, rows, &bound)?);
            lowered.scratch = lowered.scratch.max(scratch.0);
        }
    }
    Ok(lowered)
}

/// Sums over all keys, in stretches that fill a device, and what queries make of them.
fn over_all(
    op: &LinearAttention,
    s: Sizes,
    [queries, keys, values]: [&Placed; 3],
    (w, residual): (Option<Placed>, Option<(DType, Binding)>),
    y: (DType, Binding),
    lowered: &mut Lowered,
    mut scratch: Scratch,
) -> Result<(), String> {
    let tiles = s.d.div_ceil(64) * s.e.div_ceil(64);
    let wanted = WORKGROUPS.div_ceil((s.heads * tiles).max(1));
    let stretch = s.m.div_ceil(wanted).max(128).next_multiple_of(16);
    let stretches = s.m.div_ceil(stretch).max(1);
    let parts = scratch.take(&[s.heads, stretches, s.d * (s.e + 1)]);
    let whole = scratch.take(&[s.heads, 1, s.d * (s.e + 1)]);
    let mut sizes = Vec::new();
    let counts = [s.heads, s.image_heads(), s.n, s.m, s.d, s.e, stretches, stretch];
    for size in counts.into_iter().chain(s.rows(s.n, s.e, op.merged)) {
        sizes.push(word(size)?);
    }
    let absent = "fn residual_at(i: u32) -> f32 { return 0.0; }";
    // Rows are read by fours where they are whole ones.
    let fours = s.d.is_multiple_of(4) && s.e.is_multiple_of(4);
    let tensors = Tensors::default().parts("a", keys.0.dtype, fours).parts("b", values.0.dtype, fours).function(absent);
    lowered.launches.push(Launch {
        shader: Shader::new("linear_attention.wgsl", &tensors.write("y", DType::F32).sizes()),
        groups: folded(s.heads * stretches * tiles)?,
        bindings: vec![keys.1, values.1, parts.1],
        sizes: sizes.clone(),
    });
    let mut tensors = Tensors::default().parts("a", DType::F32, false);
    let mut bindings = vec![parts.1];
    tensors = match &w {
        Some((ty, binding)) => {
            bindings.push(*binding);
            tensors.parts("b", ty.dtype, false)
        }
        None => tensors
            .function("fn b_one(i: u32) -> f32 { return 0.0; }")
            .function("fn b_part(i: u32, there: u32) -> vec4<f32> { return vec4(0.0); }"),
    };
    bindings.push(whole.1);
    lowered.launches.push(Launch {
        shader: Shader::new("linear_attention.wgsl", &tensors.function(absent).write("y", DType::F32).sizes())
            .constant("STEP", 1)
            .constant("PROJECTED", usize::from(w.is_some())),
        groups: folded(s.heads * s.d)?,
        bindings,
        sizes: sizes.clone(),
    });
    let mut tensors = Tensors::default().parts("a", queries.0.dtype, fours).parts("b", DType::F32, fours);
    tensors = match residual {
        Some((dtype, _)) => tensors.read("residual", dtype),
        None => tensors.function(absent),
    };
    tensors = tensors.write("y", y.0);
    if y.0.size() < 4 {
        // States are not written here.
        tensors = tensors.function("fn y_set(i: u32, v: f32) {}");
    }
    let mut shader = Shader::new("linear_attention.wgsl", &tensors.sizes()).constant("STEP", 2);
    if let Some(store) = store(y.0, s.e)? {
        shader = shader.splice("store", store);
    }
    let mut bindings = vec![queries.1, whole.1];
    bindings.extend(residual.map(|(_, binding)| binding));
    bindings.push(y.1);
    let groups = folded(s.heads * s.n.div_ceil(64) * s.e.div_ceil(64))?;
    lowered.launches.push(Launch { shader, groups, bindings, sizes });
    lowered.scratch = lowered.scratch.max(scratch.0);
    Ok(())
}
