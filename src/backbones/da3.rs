//! Depth Anything 3: a DINOv2 that turns into a multi-view transformer half-way, a dense head for depth and rays, and a
//! camera decoder.

use lite3r_ir::{
    DType, Dim, Graph, Value, ValueType,
    ops::{Exp, Split, attention::AttentionKind},
};

use super::{
    BuildOptions, camera,
    config::Da3,
    dpt::Dpt,
    posembed::{self, Filter},
    reference::{self, Order},
    rope::{self, Positions},
    scope::{Built, Scope},
    vit::{self, Block},
};

const BACKBONE: &str = "backbone.pretrained";
/// Rows of a ray map a row of patches.
const RAYS_A_PATCH: usize = 8;

/// The whole model.
pub(super) fn build(config: &Da3, options: &BuildOptions) -> Built<Graph> {
    let mut graph = Graph::new("da3");
    let (views, image) = (&options.views, (options.height, options.width));
    let shape = [1.into(), views.clone(), 3.into(), image.0.into(), image.1.into()];
    let input = graph.input("image", ValueType::new(DType::F32, shape));
    let s = &mut Scope::new(&mut graph);

    let (taps, tokens) = backbone(s, config, options, input)?;
    let (features, channels) = (config.features, config.channels);
    let head = Dpt { features, channels, outputs: 2, relu_skip: false, grid: options.grid(), image };
    let levels = head.levels(s, "head", &taps)?;
    let fused = head.fuse(s, "head", &levels, "")?;
    let logits = head.logits(s, "head", fused)?;
    let parts = s.ops(Split { axis: 3, sizes: vec![1.into(); 2] }, &[logits])?;
    let depth = s.op(Exp {}, &[parts[0]])?;
    output(s, "depth", depth, [views.clone(), image.0.into(), image.1.into()])?;
    let confidence = s.op(Exp {}, &[parts[1]])?;
    let confidence = s.plus(confidence, 1.0)?;
    output(s, "depth_conf", confidence, [views.clone(), image.0.into(), image.1.into()])?;

    let fused = head.fuse(s, "head", &levels, "_aux")?;
    let logits = head.rays(s, "head", fused)?;
    let parts = s.ops(Split { axis: 3, sizes: vec![6.into(), 1.into()] }, &[logits])?;
    let (rows, columns) = options.grid();
    let size = [views.clone(), (RAYS_A_PATCH * rows).into(), (RAYS_A_PATCH * columns).into()];
    output(s, "ray", parts[0], [&size[..], &[6.into()]].concat())?;
    let confidence = s.op(Exp {}, &[parts[1]])?;
    let confidence = s.plus(confidence, 1.0)?;
    output(s, "ray_conf", confidence, size)?;

    let encodings = camera::decoder(s, tokens)?;
    let pose = s.concat(1, &encodings)?;
    output(s, "pose", pose, [views.clone(), 9.into()])?;
    let [extrinsics, intrinsics] = camera::matrices(s, encodings, image, views)?;
    s.graph().output("extrinsics", extrinsics);
    s.graph().output("intrinsics", intrinsics);
    Ok(graph)
}

/// Names x as an output of shape [1, ..shape].
fn output(s: &mut Scope<'_>, name: &str, x: Value, shape: impl IntoIterator<Item = Dim>) -> Built<()> {
    let x = s.reshape(x, std::iter::once(Dim::from(1)).chain(shape))?;
    s.graph().output(name, x);
    Ok(())
}

/// The four patch taps [S, hw, 2C], and the camera tokens [S, 2C] of the last.
fn backbone(s: &mut Scope<'_>, config: &Da3, options: &BuildOptions, image: Value) -> Built<([Value; 4], Value)> {
    let (views, dim, grid) = (&options.views, config.dim, options.grid());
    let tokens = 1 + grid.0 * grid.1;
    let mut x = embed(s, config, options, image)?;
    let head_dim = dim / config.heads;
    let here = rope::tables(s, grid, 1, head_dim, Positions::Grid)?;
    let anywhere = rope::tables(s, grid, 1, head_dim, Positions::Same)?;
    let anywhere = rope::for_all_views(s, anywhere, views)?;
    let mut local = x;
    let mut order = Order::Kept;
    let mut kept: Vec<(Value, Value)> = Vec::with_capacity(config.depth);
    for i in 0..config.depth {
        if i == config.alt_start - 1 {
            order = reference::order(s, options, |s| {
                let class = s.slice(x, 1, 0, 1)?;
                s.reshape(class, [views.clone(), dim.into()])
            })?;
            x = order.to_front(s, x, views)?;
            local = x;
        }
        if i == config.alt_start {
            let name = format!("{BACKBONE}.camera_token");
            let camera = vit::per_view_tokens(s, &name, &[1, 2, dim], (1, views))?;
            let patches = s.slice(x, 1, 1, tokens)?;
            x = s.concat(1, &[camera, patches])?;
        }
        let late = i >= config.alt_start;
        let global = late && i % 2 == 1;
        let block = Block {
            heads: config.heads,
            mlp_ratio: config.mlp_ratio,
            eps: 1e-6,
            qk_norm: late,
            kind: match (late, global) {
                (false, _) => AttentionKind::Encoder,
                (true, false) => AttentionKind::Frame,
                (true, true) => AttentionKind::Global,
            },
            views: if global { views.clone() } else { 1.into() },
        };
        let module = format!("{BACKBONE}.blocks.{i}");
        if global {
            s.at(&module);
            let joined = s.reshape(x, [1.into(), views.clone() * tokens.into(), dim.into()])?;
            let joined = block.build(s, &module, joined, Some(anywhere))?;
            s.at(&module);
            x = s.reshape(joined, [views.clone(), tokens.into(), dim.into()])?;
        } else {
            x = block.build(s, &module, x, late.then_some(here))?;
            local = x;
        }
        kept.push((local, x));
    }
    let mut taps = Vec::with_capacity(4);
    for i in config.taps {
        let local = order.back(s, kept[i].0, views)?;
        let all = order.back(s, kept[i].1, views)?;
        taps.push((local, all));
    }
    camera_and_patches(s, config, views, tokens, &taps)
}

/// Of taps (local, all) [S, T, C]: patches as concat(local, norm all) without the first token, and the first token of
/// the last tap as concat(local, all), not normalised.
fn camera_and_patches(
    s: &mut Scope<'_>,
    config: &Da3,
    views: &Dim,
    tokens: usize,
    taps: &[(Value, Value)],
) -> Built<([Value; 4], Value)> {
    s.at(BACKBONE);
    let last = taps[3];
    let both = s.concat(2, &[last.0, last.1])?;
    let camera = s.slice(both, 1, 0, 1)?;
    let camera = s.reshape(camera, [views.clone(), (2 * config.dim).into()])?;
    let mut patches = [last.0; 4];
    for (patch, (local, all)) in patches.iter_mut().zip(taps) {
        let normed = s.layer_norm(&format!("{BACKBONE}.norm"), *all, 1e-5)?;
        let joined = s.concat(2, &[*local, normed])?;
        *patch = s.slice(joined, 1, 1, tokens)?;
    }
    Ok((patches, camera))
}

/// Images [1, S, 3, H, W], already normalised, as tokens [S, 1 + hw, C] with positions.
fn embed(s: &mut Scope<'_>, config: &Da3, options: &BuildOptions, image: Value) -> Built {
    let (views, dim) = (&options.views, config.dim);
    s.at(BACKBONE);
    let x = s.reshape(image, [views.clone(), 3.into(), options.height.into(), options.width.into()])?;
    let patches = vit::patch_embed(s, &format!("{BACKBONE}.patch_embed"), x, dim)?;
    let class = vit::same_tokens(s, &format!("{BACKBONE}.cls_token"), &[1, 1, dim], views)?;
    let x = s.concat(1, &[class, patches])?;
    let table = (config.grid, 1, dim);
    let positions = posembed::positions(s, &format!("{BACKBONE}.pos_embed"), table, options.grid(), Filter::Offset)?;
    posembed::add(s, x, positions)
}
