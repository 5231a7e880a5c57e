//! Transformer blocks, patch embedding, tokens that differ between the first view and the others.

use lite3r_ir::{
    Dim, Value,
    ops::{Add, Attention, Gelu, MergeHeads, Mul, SplitHeads, attention::AttentionKind, gelu::Approximate},
};

use super::{
    PATCH,
    rope::{self, Tables},
    scope::{Built, Kernel, Scope, join},
};

/// What the blocks of one kind share.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Attention heads.
    pub(super) heads: usize,
    /// Hidden over outer channels of the MLP.
    pub(super) mlp_ratio: f64,
    /// ε of both LayerNorms.
    pub(super) eps: f64,
    /// Whether q and k are normalised a head.
    pub(super) qk_norm: bool,
    /// What the attention looks over.
    pub(super) kind: AttentionKind,
    /// How many views the sequence joins.
    pub(super) views: Dim,
}

impl Block {
    /// Pre-norm block with LayerScale on both branches, x [B, N, C]: x += γ₁·attention(norm x), x += γ₂·mlp(norm x).
    pub(super) fn build(&self, s: &mut Scope<'_>, module: &str, x: Value, rope: Option<Tables>) -> Built {
        let normed = s.layer_norm(&join(module, "norm1"), x, self.eps)?;
        let branch = self.attention(s, &join(module, "attn"), normed, rope)?;
        let x = self.add_scaled(s, &join(module, "ls1"), x, branch)?;
        let normed = s.layer_norm(&join(module, "norm2"), x, self.eps)?;
        let hidden = (s.columns(x) as f64 * self.mlp_ratio) as usize;
        let branch = mlp(s, &join(module, "mlp"), normed, hidden, s.columns(x))?;
        self.add_scaled(s, &join(module, "ls2"), x, branch)
    }

    /// Multi-head self-attention: q/k norm, then RoPE, then the scaled product.
    fn attention(&self, s: &mut Scope<'_>, module: &str, x: Value, rope: Option<Tables>) -> Built {
        let c = s.columns(x);
        let qkv = s.linear(&join(module, "qkv"), x, 3 * c)?;
        s.at(module);
        let mut parts = s.ops(SplitHeads { parts: 3, heads: self.heads }, &[qkv])?;
        for (part, name) in parts.iter_mut().zip(["q_norm", "k_norm"]) {
            if self.qk_norm {
                *part = s.layer_norm(&join(module, name), *part, 1e-5)?;
            }
            if let Some(tables) = rope {
                s.at(module);
                *part = rope::apply(s, *part, tables)?;
            }
        }
        s.at(module);
        let scale = ((c / self.heads) as f64).sqrt().recip();
        let attention = Attention { kind: self.kind, views: self.views.clone(), ..Attention::new(scale) };
        let y = s.op(attention, &parts)?;
        let y = s.op(MergeHeads {}, &[y])?;
        s.linear(&join(module, "proj"), y, c)
    }

    /// x + γ·branch.
    fn add_scaled(&self, s: &mut Scope<'_>, module: &str, x: Value, branch: Value) -> Built {
        s.at(module);
        let c = s.columns(x);
        let gamma = s.param(join(module, "gamma"), &[c]);
        let scaled = s.op(Mul {}, &[branch, gamma])?;
        s.op(Add {}, &[x, scaled])
    }
}

/// fc2(gelu(fc1 x)).
pub(super) fn mlp(s: &mut Scope<'_>, module: &str, x: Value, hidden: usize, outputs: usize) -> Built {
    let x = s.linear(&join(module, "fc1"), x, hidden)?;
    let x = s.op(Gelu { approximate: Approximate::None }, &[x])?;
    s.linear(&join(module, "fc2"), x, outputs)
}

/// Images [B, 3, H, W] as tokens [B, hw, C], by the convolution `module`.proj with kernel and stride of a patch.
pub(super) fn patch_embed(s: &mut Scope<'_>, module: &str, images: Value, dim: usize) -> Built {
    let kernel = Kernel { side: PATCH, stride: PATCH, pad: 0, bias: true };
    let x = s.conv(&join(module, "proj"), images, dim, kernel)?;
    let (batch, (rows, columns)) = (s.shape(x)[0].clone(), s.size(x));
    let x = s.reshape(x, [batch, dim.into(), (rows * columns).into()])?;
    s.transpose(x, &[0, 2, 1])
}

/// Two versions of a token group, stored as `shape` with [2, n, C] elements, for every view [BS, n, C]: version 0 for
/// the first view of a scene, version 1 for the others.
pub(super) fn per_view_tokens(s: &mut Scope<'_>, name: &str, shape: &[usize], (scenes, views): (usize, &Dim)) -> Built {
    let (c, n) = (shape[shape.len() - 1], shape[2..shape.len() - 1].iter().product::<usize>());
    let stored = s.param(name.to_string(), shape);
    s.at(name);
    let both = s.reshape(stored, [2, n, c])?;
    let first = s.slice(both, 0, 0, 1)?;
    let mut all = first;
    if !views.is_one() {
        let other = s.slice(both, 0, 1, 2)?;
        let others = s.expand(other, [views.clone() - Dim::from(1), n.into(), c.into()])?;
        all = s.concat(0, &[first, others])?;
    }
    if scenes == 1 {
        return Ok(all);
    }
    let all = s.reshape(all, [1.into(), views.clone(), n.into(), c.into()])?;
    let all = s.expand(all, [scenes.into(), views.clone(), n.into(), c.into()])?;
    s.reshape(all, [Dim::from(scenes) * views.clone(), n.into(), c.into()])
}

/// A token group [1, n, C] for every view [S, n, C].
pub(super) fn same_tokens(s: &mut Scope<'_>, name: &str, shape: &[usize; 3], views: &Dim) -> Built {
    let stored = s.param(name.to_string(), shape);
    s.at(name);
    s.expand(stored, [views.clone(), shape[1].into(), shape[2].into()])
}
