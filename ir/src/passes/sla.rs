//! `sla{keep=0.1,block_k=16,router=sub16,form=centroid}`: softmax attention becomes block-sparse attention with
//! something cheap for what is skipped.
//!
//! For every chosen attention (see [`super::chosen_attentions`]) with T key blocks, `kept = max(1, ⌊keep·T⌋)`:
//!
//! ```text
//! idx, cnt = block_route(q, k)                       which blocks are kept; blocks that are always kept count in it
//! form=sparse     o = block_attention(q, k, v, idx, cnt)                                       the skipped are left out
//! form=add        o = block_attention(…) + linear_attention(q, k, v, W)                        SLA; W starts as N(0, 1e-3)
//! form=mix        o = a·block_attention(…) + (1 − a)·linear_attention(q, k, v, W)              SLA2; W starts as I
//! form=centroid   o = block_attention(…, block_mean(k), block_mean(v))                         no weights
//! ```
//!
//! In `mix`, a = σ(w·logit(m) + b) a query block and head, m the mass that the router gives to what is kept; w and b
//! are weights a head that start as 1 and 0. With `router_weights=true` the router reads q·W in place of q: a form qᵀWk
//! a head that can be trained to score blocks. W [H, D, D] starts as I, which chooses what is chosen without it; the
//! attention itself reads q. Weights are named after the attention: `<layer>.proj_lin.w`, `<layer>.mix.w`,
//! `<layer>.mix.b`, `<layer>.router.w`.
//!
//! Blocks are cut by the `runs` of the attention, which `token_layout` sets; without them the sequence is cut as it
//! comes, across views. `always` takes `special` (all special tokens), `reference` (the tokens of view `reference`,
//! 0 by default), `own` (the keys of the query block) and `frame` (the keys of its view); only `own` goes without a
//! token layout. With `keep=1`, `sparse` and `centroid` are dense attention.
//!
//! What a fused kernel computes at once hangs together by its operands: a `block_attention`, the `block_route` that
//! makes its lists, the `block_mean`s that make its centroids, and a `linear_attention` over the same q, k and v that
//! is added to it.

use std::collections::HashSet;

use super::{Effect, Options, Pass, PassError, Report, chosen_attentions, dce::DCE};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{
        Add, Attention, BlockAttention, BlockMean, BlockRoute, Cast, Clip, Constant, Gather, LinearAttention, Log,
        MatMul, Mul, Op, Param, Reshape, Sigmoid, Sub,
        block_route::{Own, Router},
        blocks::Blocks,
        linear_attention::{FeatureMap, Scope},
    },
    patch::{Patch, PatchError},
    tensor::Tensor,
    types::{DType, ValueType},
};

/// The pass.
pub const SLA: Pass = Pass {
    name: "sla",
    law: "attention over all keys becomes attention over chosen blocks of keys, and a cheap stand-in for the rest",
    effect: Effect::Approximates,
    run,
};

crate::word_enum! {
    /// What stands in for skipped blocks.
    pub enum Form {
        /// Nothing.
        Sparse = "sparse",
        /// A linear branch, added.
        Add = "add",
        /// A linear branch, weighted against the sparse one.
        Mix = "mix",
        /// One key for every few skipped ones.
        Centroid = "centroid",
    }
}

crate::word_enum! {
    /// What is always kept.
    pub enum Always {
        /// All special tokens.
        Special = "special",
        /// The tokens of the reference view.
        Reference = "reference",
        /// The keys of the query block.
        Own = "own",
        /// The keys of the query block's view.
        Frame = "frame",
    }
}

/// What the projection of the linear branch is called behind the name of its attention.
const PROJECTION: &str = "proj_lin.w";

/// What the weight of a router is called behind the name of its attention.
const ROUTER: &str = "router.w";

/// The options, read.
struct Settings {
    keep: Keep,
    block_q: usize,
    block_k: usize,
    router: Router,
    router_weights: bool,
    form: Form,
    map: FeatureMap,
    scope: Scope,
    centroid: usize,
    always: Vec<Always>,
    reference: usize,
}

/// How many blocks are kept.
enum Keep {
    Ratio(f64),
    Count(usize),
}

impl Keep {
    /// Of `blocks`.
    fn resolve(&self, blocks: usize) -> Result<usize, String> {
        match *self {
            // A product like 0.29 · 100 falls a hair short of the number that is meant.
            Self::Ratio(ratio) => Ok(((ratio * blocks as f64 + 1e-9).floor() as usize).clamp(1, blocks)),
            Self::Count(count) if count <= blocks => Ok(count),
            Self::Count(count) => Err(format!("kept={count} exceeds the {blocks} key blocks")),
        }
    }
}

const OPTIONS: [&str; 15] = [
    "kind",
    "layers",
    "except",
    "keep",
    "kept",
    "block_q",
    "block_k",
    "router",
    "router_weights",
    "form",
    "map",
    "scope",
    "centroid",
    "always",
    "reference",
];

impl Settings {
    fn read(options: &Options) -> Result<Self, PassError> {
        options.only(&OPTIONS)?;
        let bad = |problem: &str| Err(PassError::Option(problem.into()));
        let keep = match (options.get::<f64>("keep")?, options.get::<usize>("kept")?) {
            (Some(ratio), None) if ratio > 0.0 && ratio <= 1.0 => Keep::Ratio(ratio),
            (None, Some(count)) if count > 0 => Keep::Count(count),
            (None, None) => {
                return bad("`keep` (a ratio, such as keep=0.1) or `kept` (a number of blocks) is required");
            }
            (Some(_), Some(_)) => return bad("`keep` and `kept` exclude each other"),
            _ => return bad("`keep` must be above 0 and at most 1, `kept` at least 1"),
        };
        let form = options.get_or("form", Form::Add)?;
        let linear = matches!(form, Form::Add | Form::Mix);
        for (option, fits) in [("map", linear), ("scope", linear), ("centroid", form == Form::Centroid)] {
            if !fits && options.0.iter().any(|(n, _)| n == option) {
                return Err(PassError::Option(format!("`{option}` means nothing to form={}", form.word())));
            }
        }
        let block_k = options.get_or("block_k", 64)?;
        let settings = Self {
            keep,
            block_q: options.get_or("block_q", 64)?,
            block_k,
            router: options.get_or("router", Router::Pooled)?,
            router_weights: options.get_or("router_weights", false)?,
            form,
            map: options.get_or("map", FeatureMap::Elu1)?,
            scope: options.get_or("scope", Scope::All)?,
            centroid: options.get_or("centroid", block_k)?,
            always: options.get_or("always", Vec::new())?,
            reference: options.get_or("reference", 0)?,
        };
        if settings.block_q == 0 || block_k == 0 || settings.centroid == 0 || !block_k.is_multiple_of(settings.centroid)
        {
            return bad("`block_q`, `block_k` and `centroid` must be at least 1, and `centroid` must divide `block_k`");
        }
        Ok(settings)
    }

    /// The runs that are always kept, and the near blocks.
    fn always(&self, op: &Attention, keys: &Blocks) -> Result<(Vec<usize>, Own), String> {
        let (mut runs, mut own) = (Vec::new(), Own::None);
        // A layout with special tokens is [special, view]; one without is [view].
        let specials = op.runs.len().saturating_sub(1);
        for always in &self.always {
            let needs_layout = *always != Always::Own;
            if needs_layout && op.runs.is_empty() {
                return Err(format!("always={} needs the pass token_layout before this one", always.word()));
            }
            match always {
                Always::Special if specials == 0 => return Err("always=special: there are no special tokens".into()),
                Always::Special => runs.push(0),
                Always::Reference => match specials + self.reference {
                    run if run < keys.runs.len() => runs.push(run),
                    _ => {
                        return Err(format!(
                            "reference={} exceeds {} views",
                            self.reference,
                            keys.runs.len() - specials
                        ));
                    }
                },
                Always::Own if own == Own::None => own = Own::Block,
                Always::Own => {}
                Always::Frame => own = Own::Run,
            }
        }
        Ok((runs, own))
    }

    /// The router of one attention, and a remark about it.
    fn route(&self, op: &Attention, q: &ValueType, k: &ValueType) -> Result<(BlockRoute, Option<String>), String> {
        let keys = Blocks::of(k, &op.runs, self.block_k)?;
        let queries = Blocks::of(q, &op.runs, self.block_q)?;
        let (always, own) = self.always(op, &keys)?;
        let route = BlockRoute {
            block_q: self.block_q,
            block_k: self.block_k,
            router: self.router,
            kept: self.keep.resolve(keys.len())?,
            scale: op.scale,
            runs: op.runs.clone(),
            always,
            own,
            mass: self.form == Form::Mix,
        };
        let longest = route.always(&queries, &keys).iter().map(Vec::len).max().unwrap_or(0);
        let note = (longest > route.kept)
            .then(|| format!("{longest} blocks are always kept somewhere, more than kept={}", route.kept));
        Ok((route, note))
    }
}

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    let settings = Settings::read(options)?;
    // An attention that a layout of tokens has replaced is none any more.
    (DCE.run)(graph, &Options::default())?;
    let chosen = chosen_attentions::choose(graph, options)?;
    let mut names: HashSet<String> = graph
        .node_ids()
        .filter_map(|id| match graph.op(id) {
            Op::Param(param) => Some(param.name.clone()),
            _ => None,
        })
        .collect();
    let mut problems = Vec::new();
    let mut routes = Vec::new();
    for (number, id) in chosen.into_iter().enumerate() {
        let Op::Attention(op) = graph.op(id) else { continue };
        if op.merged {
            let origin = &graph.node(id).origin;
            problems.push(format!("attention at `{origin}` merges its heads already: `sla` runs before `fuse_merge`"));
            continue;
        }
        let operands = graph.operands(id);
        match settings.route(op, graph.ty(operands[0]), graph.ty(operands[1])) {
            Ok((route, note)) => {
                let weighs = settings.router_weights || matches!(settings.form, Form::Add | Form::Mix);
                let base = if weighs { layer_name(&graph.node(id).origin, number, &mut names) } else { String::new() };
                routes.push((id, route, base, note));
            }
            Err(problem) => problems.push(format!("attention at `{}`: {problem}", graph.node(id).origin)),
        }
    }
    if !problems.is_empty() {
        return Err(PassError::Refused(problems));
    }
    let mut report = Report::count("sparse attentions", routes.len());
    for (id, route, base, note) in routes {
        report.notes.extend(note.map(|n| format!("attention at `{}`: {n}", graph.node(id).origin)));
        rewrite(graph, id, &settings, route, &base)?;
    }
    Ok(report)
}

/// What the weights of an attention are named after: the module in `/blocks.3/attn/MatMul`, else the origin as it is.
fn layer_name(origin: &str, number: usize, names: &mut HashSet<String>) -> String {
    let module = match origin.strip_prefix('/').and_then(|o| o.rsplit_once('/')) {
        Some((module, _)) => module.replace('/', "."),
        None if origin.is_empty() => format!("attention.{number}"),
        None => origin.to_string(),
    };
    let free = |base: &String| [PROJECTION, ROUTER].iter().all(|w| !names.contains(&format!("{base}.{w}")));
    let name = std::iter::once(module.clone()).chain((2..).map(|n| format!("{module}.{n}"))).find(free);
    let name = name.expect("there are more numbers than names");
    names.insert(format!("{name}.{PROJECTION}"));
    name
}

fn rewrite(graph: &mut Graph, id: NodeId, settings: &Settings, route: BlockRoute, base: &str) -> Result<(), PassError> {
    let Op::Attention(op) = graph.op(id).clone() else { return Ok(()) };
    let operands = graph.operands(id);
    let (q, k, v) = (operands[0], operands[1], operands[2]);
    let old = Value { node: id, slot: 0 };
    let mut patch = Patch::new(graph, "sla", old);
    let routed = if settings.router_weights { mapped(&mut patch, q, base)? } else { q };
    let lists = patch.wire_all(route.clone(), &[routed, k])?;
    let (idx, cnt) = (lists[0], lists[1]);
    let mut inputs = vec![q, k, v, idx, cnt];
    let centroid = if settings.form == Form::Centroid { settings.centroid } else { 0 };
    if centroid > 0 {
        for x in [k, v] {
            inputs.push(patch.wire(BlockMean { block: centroid, runs: route.runs.clone() }, &[x])?);
        }
    }
    let sparse = BlockAttention {
        runs: route.runs.clone(),
        centroid,
        kind: op.kind,
        codes: op.codes,
        ..BlockAttention::new(route.block_q, route.block_k, op.scale)
    };
    let sparse = patch.wire(sparse, &inputs)?;
    let new = match settings.form {
        Form::Sparse | Form::Centroid => sparse,
        Form::Add => {
            let linear = linear(&mut patch, settings, &route, &inputs, base, "normal:1e-3")?;
            patch.wire(Add {}, &[sparse, linear])?
        }
        Form::Mix => {
            let linear = linear(&mut patch, settings, &route, &inputs, base, "identity")?;
            let share = share(&mut patch, &route, lists[2], sparse, base)?;
            let difference = patch.wire(Sub {}, &[sparse, linear])?;
            let scaled = patch.wire(Mul {}, &[share, difference])?;
            patch.wire(Add {}, &[linear, scaled])?
        }
    };
    patch.shunt(old, new)?;
    patch.apply();
    Ok(())
}

/// q·W, which a router with weights reads, in the type of q.
fn mapped(patch: &mut Patch<'_>, q: Value, base: &str) -> Result<Value, PatchError> {
    let q_ty = patch.graph().ty(q).clone();
    let (heads, width) = (q_ty.shape[1].clone(), q_ty.shape[3].clone());
    let ty = ValueType::new(DType::F32, [heads, width.clone(), width]);
    let w = Param { name: format!("{base}.{ROUTER}"), ty, init: "identity".into(), state: false };
    let w = patch.wire(w, &[])?;
    let w = if q_ty.dtype == DType::F32 { w } else { patch.wire(Cast { to: q_ty.dtype }, &[w])? };
    patch.wire(MatMul { transpose_b: false }, &[q, w])
}

/// q and W of a router with weights, as the pass and those after it leave it; none of any other value.
pub fn weighted(graph: &Graph, routed: Value) -> Option<(Value, Value)> {
    let through_casts = |mut value: Value| {
        while let Op::Cast(_) = graph.op(value.node) {
            value = graph.operands(value.node)[0];
        }
        value
    };
    let product = through_casts(routed);
    let Op::MatMul(MatMul { transpose_b: false }) = graph.op(product.node) else { return None };
    let [q, w] = <[Value; 2]>::try_from(graph.operands(product.node)).ok()?;
    let w = through_casts(w);
    let named = |p: &Param| p.name.strip_suffix(ROUTER).is_some_and(|base| base.ends_with('.'));
    matches!(graph.op(w.node), Op::Param(p) if named(p)).then_some((q, w))
}

/// The linear branch over `inputs` = q, k, v, idx, cnt.
fn linear(
    patch: &mut Patch<'_>,
    settings: &Settings,
    route: &BlockRoute,
    inputs: &[Value],
    base: &str,
    init: &str,
) -> Result<Value, PatchError> {
    let width = patch.graph().ty(inputs[2]).shape[3].clone();
    let ty = ValueType::new(DType::F32, [width.clone(), width]);
    let w = patch.wire(Param { name: format!("{base}.{PROJECTION}"), ty, init: init.into(), state: false }, &[])?;
    let rest = settings.scope == Scope::Rest;
    let op = LinearAttention {
        map: settings.map,
        scope: settings.scope,
        proj: true,
        block_q: if rest { route.block_q } else { 64 },
        block_k: if rest { route.block_k } else { 64 },
        runs: if rest { route.runs.clone() } else { Vec::new() },
        merged: false,
        residual: false,
    };
    let operands = [&inputs[..if rest { 5 } else { 3 }], &[w]].concat();
    patch.wire(op, &operands)
}

/// a = σ(w·logit(mass) + b) as [B, H, N, 1], in the type of `like`.
fn share(patch: &mut Patch<'_>, route: &BlockRoute, mass: Value, like: Value, base: &str) -> Result<Value, PatchError> {
    let ty = patch.graph().ty(like).clone();
    let tokens = ty.shape[2].size().expect("the router has cut a fixed number of tokens");
    let heads = ValueType::new(DType::F32, [ty.shape[1].clone(), 1.into()]);
    let one = patch.constant(Tensor::scalar(DType::F32, 1.0));
    let mass = patch.wire(Clip { min: 1e-6, max: 1.0 - 1e-6 }, &[mass])?;
    let rest = patch.wire(Sub {}, &[one, mass])?;
    let (mass, rest) = (patch.wire(Log {}, &[mass])?, patch.wire(Log {}, &[rest])?);
    let mut logit = patch.wire(Sub {}, &[mass, rest])?;
    for (op, name, init) in [(Op::Mul(Mul {}), "mix.w", "fill:1"), (Op::Add(Add {}), "mix.b", "fill:0")] {
        let param = Param { name: format!("{base}.{name}"), ty: heads.clone(), init: init.into(), state: false };
        let param = patch.wire(param, &[])?;
        logit = patch.wire(op, &[logit, param])?;
    }
    let a = patch.wire(Sigmoid {}, &[logit])?;
    // From one a query block to one a row.
    let blocks = Blocks::cut(tokens, &route.runs, route.block_q).expect("the router has cut them");
    let rows: Vec<i64> = blocks.tokens.iter().enumerate().flat_map(|(i, t)| t.clone().map(move |_| i as i64)).collect();
    let rows = patch.wire(Constant { value: Tensor::from_i64(DType::I32, &[tokens], &rows) }, &[])?;
    let a = patch.wire(Gather { axis: 2 }, &[a, rows])?;
    let a = patch.wire(Reshape { shape: [&ty.shape[..3], &[1.into()]].concat() }, &[a])?;
    if ty.dtype == DType::F32 { Ok(a) } else { patch.wire(Cast { to: ty.dtype }, &[a]) }
}
