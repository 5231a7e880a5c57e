//! VGGT: an image encoder, alternating frame and global blocks, a camera head and dense heads.

use lite3r_ir::{
    DType, Dim, Graph, Value, ValueType,
    ops::{Abs, Div, Exp, Mul, Sign, Split, Sub, attention::AttentionKind},
};

use super::{
    BuildOptions, camera,
    config::Vggt,
    dpt::Dpt,
    posembed::{self, Filter},
    rope::{self, Positions},
    scope::{Built, Scope},
    vit::{self, Block},
};

const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f64; 3] = [0.229, 0.224, 0.225];

/// The whole model.
pub(super) fn build(config: &Vggt, options: &BuildOptions) -> Built<Graph> {
    let mut graph = Graph::new("vggt");
    let (height, width) = (options.height, options.width);
    let shape = [options.scenes.into(), options.views.clone(), 3.into(), height.into(), width.into()];
    let images = graph.input("images", ValueType::new(DType::F32, shape));
    let s = &mut Scope::new(&mut graph);

    let patches = encode(s, config, options, images)?;
    let taps = aggregate(s, config, options, patches)?;
    let (camera, taps) = separate(s, config, options, taps)?;
    let mut rounds = camera::head(s, config, camera, (options.scenes, &options.views))?;
    let pose = rounds.pop().expect("there is at least one refinement");
    s.graph().output("pose_enc", pose);
    for (round, early) in rounds.into_iter().enumerate() {
        s.graph().output(format!("pose_enc.{round}"), early);
    }

    let dense = |outputs| Dpt {
        features: config.features,
        channels: config.channels,
        outputs,
        relu_skip: true,
        grid: options.grid(),
        image: (height, width),
    };
    let logits = dense_head(s, &dense(2), "depth_head", &taps)?;
    depth(s, logits, options)?;
    if config.points {
        let logits = dense_head(s, &dense(4), "point_head", &taps)?;
        points(s, logits, options)?;
    }
    Ok(graph)
}

/// Images [B, S, 3, H, W] in 0..=1 as patch tokens [BS, hw, C].
fn encode(s: &mut Scope<'_>, config: &Vggt, options: &BuildOptions, images: Value) -> Built {
    let module = "aggregator.patch_embed";
    s.at("aggregator");
    let mean = s.constant(&[1, 1, 3, 1, 1], &MEAN)?;
    let deviation = s.constant(&[1, 1, 3, 1, 1], &DEVIATION)?;
    let x = s.op(Sub {}, &[images, mean])?;
    let x = s.op(Div {}, &[x, deviation])?;
    let (frames, dim, grid) = (&options.frames(), config.dim, options.grid());
    let x = s.reshape(x, [frames.clone(), 3.into(), options.height.into(), options.width.into()])?;
    let plain = config.dino_depth == 0;
    let patches =
        vit::patch_embed(s, &if plain { module.to_string() } else { format!("{module}.patch_embed") }, x, dim)?;
    let table = (config.grid, usize::from(!plain), dim);
    let positions = posembed::positions(s, &format!("{module}.pos_embed"), table, grid, Filter::Antialiased)?;
    if plain {
        return posembed::add(s, patches, positions);
    }
    let class = vit::same_tokens(s, &format!("{module}.cls_token"), &[1, 1, dim], frames)?;
    let x = s.concat(1, &[class, patches])?;
    let x = posembed::add(s, x, positions)?;
    // Registers stand between the class token and the patches, and have no position.
    let n = grid.0 * grid.1;
    let registers = vit::same_tokens(s, &format!("{module}.register_tokens"), &[1, config.registers, dim], frames)?;
    let class = s.slice(x, 1, 0, 1)?;
    let patches = s.slice(x, 1, 1, 1 + n)?;
    let mut x = s.concat(1, &[class, registers, patches])?;
    let block = Block {
        heads: config.heads,
        mlp_ratio: config.mlp_ratio,
        eps: 1e-6,
        qk_norm: false,
        kind: AttentionKind::Encoder,
        views: 1.into(),
    };
    for i in 0..config.dino_depth {
        x = block.build(s, &format!("{module}.blocks.{i}"), x, None)?;
    }
    let x = s.layer_norm(&format!("{module}.norm"), x, 1e-6)?;
    s.slice(x, 1, 1 + config.registers, 1 + config.registers + n)
}

/// The four taps [BS, T, 2C] of the alternating blocks: concat(frame, global).
fn aggregate(s: &mut Scope<'_>, config: &Vggt, options: &BuildOptions, patches: Value) -> Built<[Value; 4]> {
    let (scenes, views, dim, registers) = (options.scenes, &options.views, config.dim, config.registers);
    let camera = vit::per_view_tokens(s, "aggregator.camera_token", &[1, 2, 1, dim], (scenes, views))?;
    let register = vit::per_view_tokens(s, "aggregator.register_token", &[1, 2, registers, dim], (scenes, views))?;
    let mut x = s.concat(1, &[camera, register, patches])?;
    let special = 1 + registers;
    let tokens = special + options.grid().0 * options.grid().1;
    let alone = rope::tables(s, options.grid(), special, dim / config.heads, Positions::Grid)?;
    let together = rope::for_all_views(s, alone, views)?;
    let block = |kind, views: Dim| Block {
        heads: config.heads,
        mlp_ratio: config.mlp_ratio,
        eps: 1e-5,
        qk_norm: true,
        kind,
        views,
    };
    let (frame, global) = (block(AttentionKind::Frame, 1.into()), block(AttentionKind::Global, views.clone()));
    let mut outputs = Vec::with_capacity(config.depth);
    for i in 0..config.depth {
        let local = frame.build(s, &format!("aggregator.frame_blocks.{i}"), x, Some(alone))?;
        let module = format!("aggregator.global_blocks.{i}");
        s.at(&module);
        let joined = s.reshape(local, [scenes.into(), views.clone() * tokens.into(), dim.into()])?;
        let joined = global.build(s, &module, joined, Some(together))?;
        s.at(&module);
        x = s.reshape(joined, [options.frames(), tokens.into(), dim.into()])?;
        outputs.push((local, x));
    }
    s.at("aggregator");
    let mut taps = [x; 4];
    for (tap, i) in taps.iter_mut().zip(config.taps) {
        *tap = s.concat(2, &[outputs[i].0, outputs[i].1])?;
    }
    Ok(taps)
}

/// The camera tokens [B, S, 2C] of the last tap, and the patch tokens [BS, hw, 2C] of all.
fn separate(
    s: &mut Scope<'_>,
    config: &Vggt,
    options: &BuildOptions,
    mut taps: [Value; 4],
) -> Built<(Value, [Value; 4])> {
    let tokens = s.shape(taps[0])[1].clone();
    let camera = s.slice(taps[3], 1, 0, 1)?;
    let camera = s.reshape(camera, [options.scenes.into(), options.views.clone(), (2 * config.dim).into()])?;
    for tap in &mut taps {
        *tap = s.slice(*tap, 1, 1 + config.registers, tokens.clone())?;
    }
    Ok((camera, taps))
}

/// Logits [BS, H, W, outputs].
fn dense_head(s: &mut Scope<'_>, head: &Dpt, module: &str, taps: &[Value; 4]) -> Built {
    let levels = head.levels(s, module, taps)?;
    let fused = head.fuse(s, module, &levels, "")?;
    head.logits(s, module, fused)
}

/// Depth and its confidence from two logits: e^x and 1 + e^y.
fn depth(s: &mut Scope<'_>, logits: Value, options: &BuildOptions) -> Built<()> {
    s.at("depth_head");
    let parts = s.ops(Split { axis: 3, sizes: vec![1.into(); 2] }, &[logits])?;
    let depth = s.op(Exp {}, &[parts[0]])?;
    let depth = s.reshape(depth, image_shape(options, Some(1)))?;
    s.graph().output("depth", depth);
    let confidence = confidence(s, parts[1], options)?;
    s.graph().output("depth_conf", confidence);
    Ok(())
}

/// World points and their confidence from four logits: sign(x)(e^|x| − 1) and 1 + e^y.
fn points(s: &mut Scope<'_>, logits: Value, options: &BuildOptions) -> Built<()> {
    s.at("point_head");
    let parts = s.ops(Split { axis: 3, sizes: vec![3.into(), 1.into()] }, &[logits])?;
    let size = s.op(Abs {}, &[parts[0]])?;
    let size = s.op(Exp {}, &[size])?;
    let size = s.plus(size, -1.0)?;
    let sign = s.op(Sign {}, &[parts[0]])?;
    let points = s.op(Mul {}, &[sign, size])?;
    let points = s.reshape(points, image_shape(options, Some(3)))?;
    s.graph().output("world_points", points);
    let confidence = confidence(s, parts[1], options)?;
    s.graph().output("world_points_conf", confidence);
    Ok(())
}

/// 1 + e^x of logits [BS, H, W, 1] as [B, S, H, W].
fn confidence(s: &mut Scope<'_>, logits: Value, options: &BuildOptions) -> Built {
    let grown = s.op(Exp {}, &[logits])?;
    let grown = s.plus(grown, 1.0)?;
    s.reshape(grown, image_shape(options, None))
}

/// [B, S, H, W] with channels behind or without.
fn image_shape(options: &BuildOptions, channels: Option<usize>) -> Vec<Dim> {
    let image = [options.scenes.into(), options.views.clone(), options.height.into(), options.width.into()];
    image.into_iter().chain(channels.map(Dim::from)).collect()
}
