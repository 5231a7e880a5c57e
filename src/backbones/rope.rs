//! 2-D rotary position embedding: the first half of a head turns with the row, the second with the column.
//!
//! In a half of width D/2, channel j pairs with channel j + D/4 and turns by p·100^(−4j/D), j < D/4. Special tokens
//! stand at (0, 0), the patch in row r and column c at (r + 1, c + 1). Laws: Su et al., "RoFormer", 2021; Heo et al.,
//! "Rotary Position Embedding for Vision Transformer", 2024.

use lite3r_ir::{Dim, Value, ops::Rope};

use super::scope::{Built, Scope};

const BASE: f64 = 100.0;

/// Cosines and sines [N, D], one row a token.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    cos: Value,
    sin: Value,
}

/// Where the tokens of a view stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// Every patch at its row and column.
    Grid,
    /// Every patch at (1, 1): only special tokens and patches are told apart.
    Same,
}

/// Tables for the tokens of one view: `special` tokens, then rows·columns patches.
pub(super) fn tables(
    s: &mut Scope<'_>,
    (rows, columns): (usize, usize),
    special: usize,
    head_dim: usize,
    positions: Positions,
) -> Built<Tables> {
    let patch = |i: usize| match positions {
        Positions::Grid => [i / columns + 1, i % columns + 1],
        Positions::Same => [1, 1],
    };
    let tokens = (0..special).map(|_| [0, 0]).chain((0..rows * columns).map(patch));
    let (half, quarter) = (head_dim / 2, head_dim / 4);
    let angles: Vec<f64> = tokens
        .flat_map(|position| (0..head_dim).map(move |i| (position[i / half], i % half % quarter)))
        .map(|(p, j)| p as f64 * BASE.powf(-(j as f64) / quarter as f64))
        .collect();
    let shape = [special + rows * columns, head_dim];
    let mut table = |f: fn(f64) -> f64| s.constant(&shape, &angles.iter().map(|a| f(*a)).collect::<Vec<_>>());
    Ok(Tables { cos: table(f64::cos)?, sin: table(f64::sin)? })
}

/// The tables of one view, repeated for every view of a joint sequence.
pub(super) fn for_all_views(s: &mut Scope<'_>, tables: Tables, views: &Dim) -> Built<Tables> {
    if views.is_one() {
        return Ok(tables);
    }
    let mut repeat = |table: Value| -> Built {
        let [n, d] = [0, 1].map(|i| s.shape(table)[i].clone());
        let one = s.reshape(table, [1.into(), n.clone(), d.clone()])?;
        let all = s.expand(one, [views.clone(), n.clone(), d.clone()])?;
        s.reshape(all, [views.clone() * n, d])
    };
    Ok(Tables { cos: repeat(tables.cos)?, sin: repeat(tables.sin)? })
}

/// x [B, heads, N, D], turned.
pub(super) fn apply(s: &mut Scope<'_>, x: Value, tables: Tables) -> Built {
    s.op(Rope { segments: 2 }, &[x, tables.cos, tables.sin])
}
