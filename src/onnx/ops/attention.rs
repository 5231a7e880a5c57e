//! Attention and RotaryEmbedding of operator set 23.

use lite3r_ir::{
    Dim,
    ops::{self},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    known::Val,
    node::{Node, Problem},
};

/// The operators.
pub const ROWS: &[Row] = &[row("Attention", 23, attention), row("RotaryEmbedding", 23, rotary)];

/// softmax(scale·Q Kᵀ) V without mask, cache, causality and cap; 4-D operands, or 3-D with the number of heads.
fn attention(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    for name in ["is_causal", "qk_matmul_output_mode"] {
        node.only(name, 0)?;
    }
    if node.float("softcap")?.is_some_and(|c| c != 0.0) {
        return Err(Problem::unsupported("softcap is not supported"));
    }
    let names = ["a mask", "a cache of keys", "a cache of values", "lengths of padded keys"];
    if let Some((_, name)) = (3..).zip(names).find(|(i, _)| node.get(*i).is_some()) {
        return Err(Problem::unsupported(format!("attention with {name} is not supported")));
    }
    let (q, k, v) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let joined = importer.shape(q).len() == 3;
    let (q, k, v) = if joined {
        let heads = |name: &str| node.int(name)?.ok_or_else(|| Problem::from(format!("attribute `{name}` is missing")));
        let (hq, hk) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        (apart(importer, q, hq)?, apart(importer, k, hk)?, apart(importer, v, hk)?)
    } else {
        (q.clone(), k.clone(), v.clone())
    };
    let (queries, keys) = (importer.shape(&q), importer.shape(&k));
    let ([_, h, _, d], [_, hk, ..]) = (queries.as_slice(), keys.as_slice()) else {
        return Err(format!("takes operands of rank 3 or 4, not {}", importer.ty(&q)).into());
    };
    if h != hk {
        return Err(Problem::unsupported(format!("{h} heads of queries on {hk} heads of keys")));
    }
    let scale = match node.float("scale")? {
        Some(scale) => f64::from(scale),
        None => (d.size().ok_or("the width of a head must be static")? as f64).powf(-0.5),
    };
    let y = importer.emit(ops::Attention::new(scale), &[&q, &k, &v])?;
    if joined { Ok(vec![importer.emit(ops::MergeHeads {}, &[&y])?]) } else { Ok(vec![y]) }
}

/// [B, N, H·D] as [B, H, N, D].
fn apart(importer: &mut Importer<'_>, x: &Val, heads: i64) -> Result<Val, Problem> {
    let shape = importer.shape(x);
    let [b, n, c] = shape.as_slice() else { return Err(format!("takes [B,N,C], not {}", importer.ty(x)).into()) };
    let heads = Dim::from(heads);
    let d = c.divide(&heads).ok_or_else(|| format!("{c} channels in {heads} heads"))?;
    let x = importer.reshape(x, vec![b.clone(), n.clone(), heads, d])?;
    importer.transpose(&x, vec![0, 2, 1, 3])
}

/// y = x·cos + rot(x)·sin on the first `rotary_embedding_dim` channels of each head. Tables are [B, N, D/2], or [P,
/// D/2] with positions [B, N].
fn rotary(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let x = node.input(0)?;
    let joined = importer.shape(x).len() == 3;
    let heads = if joined {
        let n = node.int("num_heads")?.filter(|h| *h > 0).ok_or("attribute `num_heads` is missing")?;
        apart(importer, x, n)?
    } else {
        x.clone()
    };
    let shape = importer.shape(&heads);
    let [_, _, _, d] = shape.as_slice() else { return Err("takes operands of rank 3 or 4".into()) };
    let d = d.size().ok_or("the width of a head must be static")?;
    let width = match node.int_or("rotary_embedding_dim", 0)? {
        0 => d,
        n => usize::try_from(n).ok().filter(|n| *n <= d).ok_or_else(|| format!("{n} of {d} channels"))?,
    };
    let interleaved = node.int_or("interleaved", 0)? != 0;
    let cos = table(importer, node, 1)?;
    let sin = table(importer, node, 2)?;
    let at = |i: usize| Dim::from(i);
    let turned = importer.slice(&heads, 3, at(0), at(width))?;
    let rest = importer.slice(&heads, 3, at(width), at(d))?;
    let turned = swap(importer, &turned, interleaved, width, false)?;
    let turned = importer.emit(ops::Rope { segments: 1 }, &[&turned, &cos, &sin])?;
    let turned = swap(importer, &turned, interleaved, width, true)?;
    let y = importer.concat(&[&turned, &rest], 3)?;
    if joined { Ok(vec![importer.emit(ops::MergeHeads {}, &[&y])?]) } else { Ok(vec![y]) }
}

/// A table of full width, [B, 1, N, D]: both members of a pair turn by the same angle.
fn table(importer: &mut Importer<'_>, node: &Node<'_>, operand: usize) -> Result<Val, Problem> {
    let mut half = node.input(operand)?.clone();
    if let Some(positions) = node.get(3) {
        half = importer.emit(ops::Gather { axis: 0 }, &[&half, positions])?;
    }
    let shape = importer.shape(&half);
    let [b, n, w] = shape.as_slice() else {
        return Err(format!("tables are [B,N,D/2], or [P,D/2] with positions, not {}", importer.ty(&half)).into());
    };
    let half = importer.reshape(&half, vec![b.clone(), Dim::from(1), n.clone(), w.clone()])?;
    importer.concat(&[&half, &half], 3)
}

/// Neighbours to halves: channel 2i + j to i + j·D/2, or `back`.
fn swap(importer: &mut Importer<'_>, x: &Val, interleaved: bool, width: usize, back: bool) -> Result<Val, Problem> {
    if !interleaved {
        return Ok(x.clone());
    }
    let shape = importer.shape(x);
    let (half, two) = (Dim::from(width / 2), Dim::from(2));
    let pair = if back { [two, half] } else { [half, two] };
    let x = importer.reshape(x, [&shape[..3], &pair].concat())?;
    let x = importer.transpose(&x, vec![0, 1, 2, 4, 3])?;
    importer.reshape(&x, shape)
}
