//! Cameras: the refining head of VGGT, the decoder of DA3, and encodings as matrices.

use lite3r_ir::{
    Dim, Value,
    ops::{Add, Concat, Div, LayerNorm, MatMul, Mul, Neg, ReduceSum, Silu, Split, Sub, Tan, attention::AttentionKind},
};

use super::{
    config::Vggt,
    scope::{Built, Scope, join},
    vit::{Block, mlp},
};

pub(super) const REFINEMENTS: usize = 4;

/// Refines (translation, quaternion xyzw, vertical and horizontal field of view) of every view: tokens [B, S, 2C] to
/// [B, S, 9] after every round. Each round modulates the tokens by the last estimate; only what is returned has its
/// fields of view made positive.
pub(super) fn head(
    s: &mut Scope<'_>,
    config: &Vggt,
    tokens: Value,
    (scenes, views): (usize, &Dim),
) -> Built<Vec<Value>> {
    let dim = 2 * config.dim;
    let block = Block {
        heads: config.camera_heads,
        mlp_ratio: config.camera_mlp_ratio,
        eps: 1e-5,
        qk_norm: false,
        kind: AttentionKind::Camera,
        views: views.clone(),
    };
    let tokens = s.layer_norm("camera_head.token_norm", tokens, 1e-5)?;
    s.at("camera_head.adaln_norm");
    let bare = s.op(LayerNorm { eps: config.camera_norm_eps, out: None }, &[tokens])?;
    let mut pose: Option<Value> = None;
    let mut rounds = Vec::with_capacity(REFINEMENTS);
    for _ in 0..REFINEMENTS {
        let given = match pose {
            Some(pose) => pose,
            None => {
                s.at("camera_head.empty_pose_tokens");
                let empty = s.param("camera_head.empty_pose_tokens".into(), &[1, 1, 9]);
                s.expand(empty, [scenes.into(), views.clone(), 9.into()])?
            }
        };
        let embedded = s.linear("camera_head.embed_pose", given, dim)?;
        s.at("camera_head.poseLN_modulation.0");
        let active = s.op(Silu {}, &[embedded])?;
        let modulation = s.linear("camera_head.poseLN_modulation.1", active, 3 * dim)?;
        s.at("camera_head.poseLN_modulation");
        let parts = s.ops(Split { axis: 2, sizes: vec![dim.into(); 3] }, &[modulation])?;
        let (shift, scale, gate) = (parts[0], parts[1], parts[2]);
        let scale = s.plus(scale, 1.0)?;
        let scaled = s.op(Mul {}, &[bare, scale])?;
        let shifted = s.op(Add {}, &[scaled, shift])?;
        let gated = s.op(Mul {}, &[gate, shifted])?;
        let mut x = s.op(Add {}, &[gated, tokens])?;
        for i in 0..config.camera_depth {
            x = block.build(s, &format!("camera_head.trunk.{i}"), x, None)?;
        }
        let x = s.layer_norm("camera_head.trunk_norm", x, 1e-5)?;
        let change = mlp(s, "camera_head.pose_branch", x, dim / 2, 9)?;
        let sum = match pose {
            Some(pose) => s.op(Add {}, &[pose, change])?,
            None => change,
        };
        pose = Some(sum);
        s.at("camera_head");
        let parts = s.ops(Split { axis: 2, sizes: vec![7.into(), 2.into()] }, &[sum])?;
        let fov = s.relu(parts[1])?;
        rounds.push(s.op(Concat { axis: 2 }, &[parts[0], fov])?);
    }
    Ok(rounds)
}

/// Camera tokens [S, D] to (translation [S, 3], quaternion xyzw [S, 4], vertical and horizontal field of view [S, 2]),
/// camera to world.
pub(super) fn decoder(s: &mut Scope<'_>, tokens: Value) -> Built<[Value; 3]> {
    let dim = s.columns(tokens);
    let mut x = tokens;
    for layer in [0, 2] {
        x = s.linear(&join("cam_dec.backbone", layer), x, dim)?;
        x = s.relu(x)?;
    }
    let translation = s.linear("cam_dec.fc_t", x, 3)?;
    let quaternion = s.linear("cam_dec.fc_qvec", x, 4)?;
    let fov = s.linear("cam_dec.fc_fov.0", x, 2)?;
    Ok([translation, quaternion, s.relu(fov)?])
}

/// Camera-to-world encodings as world-to-camera matrices [1, S, 3, 4] and intrinsics [1, S, 3, 3] in pixels.
pub(super) fn matrices(
    s: &mut Scope<'_>,
    [translation, quaternion, fov]: [Value; 3],
    (height, width): (usize, usize),
    views: &Dim,
) -> Built<[Value; 2]> {
    s.at("cam_dec");
    let inverse = inverse_rotation(s, quaternion, views)?;
    let column = s.reshape(translation, [views.clone(), 3.into(), 1.into()])?;
    let moved = s.op(MatMul { transpose_b: false }, &[inverse, column])?;
    let moved = s.op(Neg {}, &[moved])?;
    let extrinsics = s.concat(2, &[inverse, moved])?;
    let extrinsics = s.reshape(extrinsics, [1.into(), views.clone(), 3.into(), 4.into()])?;

    let half = s.times(fov, 0.5)?;
    let tangent = s.op(Tan {}, &[half])?;
    let tangent = s.at_least(tangent, 1e-6)?;
    let middle = s.constant(&[1, 2], &[height as f64 / 2.0, width as f64 / 2.0])?;
    let focal = s.op(Div {}, &[middle, tangent])?;
    // K = fy·Ey + fx·Ex + constant part, row by row.
    let vertical = s.slice(focal, 1, 0, 1)?;
    let horizontal = s.slice(focal, 1, 1, 2)?;
    let unit = |at: usize| (0..9).map(|i| f64::from(u8::from(i == at))).collect::<Vec<_>>();
    let (ex, ey) = (s.constant(&[1, 9], &unit(0))?, s.constant(&[1, 9], &unit(4))?);
    let (w, h) = (width as f64 / 2.0, height as f64 / 2.0);
    let fixed = s.constant(&[1, 9], &[0.0, 0.0, w, 0.0, 0.0, h, 0.0, 0.0, 1.0])?;
    let x = s.op(Mul {}, &[horizontal, ex])?;
    let y = s.op(Mul {}, &[vertical, ey])?;
    let k = s.op(Add {}, &[x, y])?;
    let k = s.op(Add {}, &[k, fixed])?;
    Ok([extrinsics, s.reshape(k, [1.into(), views.clone(), 3.into(), 3.into()])?])
}

/// The transposed rotations [S, 3, 3] of quaternions xyzw [S, 4] of any length.
fn inverse_rotation(s: &mut Scope<'_>, quaternion: Value, views: &Dim) -> Built {
    let square = s.op(Mul {}, &[quaternion, quaternion])?;
    let norm = s.op(ReduceSum { axes: vec![1], keep: true }, &[square])?;
    let two = s.constant(&[], &[2.0])?;
    let two = s.op(Div {}, &[two, norm])?;
    let q = s.ops(Split { axis: 1, sizes: vec![1.into(); 4] }, &[quaternion])?;
    let [x, y, z, w] = [q[0], q[1], q[2], q[3]];
    let one = s.constant(&[], &[1.0])?;
    let mut product = |a: Value, b: Value, c: Value, d: Value, plus: bool| -> Built {
        let (ab, cd) = (s.op(Mul {}, &[a, b])?, s.op(Mul {}, &[c, d])?);
        let sum = if plus { s.op(Add {}, &[ab, cd])? } else { s.op(Sub {}, &[ab, cd])? };
        s.op(Mul {}, &[two, sum])
    };
    // Row by row of the transpose; the diagonal is one minus its entry.
    let entries = [
        product(y, y, z, z, true)?,
        product(x, y, z, w, true)?,
        product(x, z, y, w, false)?,
        product(x, y, z, w, false)?,
        product(x, x, z, z, true)?,
        product(y, z, x, w, true)?,
        product(x, z, y, w, true)?,
        product(y, z, x, w, false)?,
        product(x, x, y, y, true)?,
    ];
    let mut rows = entries;
    for i in [0, 4, 8] {
        rows[i] = s.op(Sub {}, &[one, entries[i]])?;
    }
    let flat = s.concat(1, &rows)?;
    s.reshape(flat, [views.clone(), 3.into(), 3.into()])
}
