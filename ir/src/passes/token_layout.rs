//! `token_layout{grid=[16,16]}`: before attention over all views, tokens are ordered so that blocks of them lie close
//! together in the image; afterwards the order is undone.
//!
//! A sequence of V views with s special tokens and h·w patches each, special ones first, becomes: the special tokens of
//! all views, then the patches of one view after the other. Patches are ordered in 8 x 8 tiles, Z-order inside, tiles
//! row by row, where 8 divides h and w; otherwise by Morton code over the whole grid. Attention does not care for the
//! order of keys, and a row of its result moves with its query, so the mathematics stays. The attention carries
//! `runs=[V·s,h·w]`, by which sparse attention cuts its blocks: the special tokens have blocks of their own, and no
//! block crosses views.
//!
//! ```text
//! attention(q, k, v)   →   gather(attention(gather(q), gather(k), gather(v)) {runs=[40,256]})
//! ```
//!
//! The gathers of q, k and v are then moved up, as far as every operation works on single tokens (`rope` with its
//! tables, `layer_norm`, `split_heads`, `linear`), and the one of the result is moved down through `merge_heads`: one
//! gather of tokens on either side remains. The grid is taken from the patch embedding unless it is given; if neither
//! tells, the pass refuses. Options `kind`, `layers` and `except` choose attentions as in [`super::chosen_attentions`].

use std::collections::HashMap;

use super::{Effect, Options, Pass, PassError, Report, chosen_attentions, dce::DCE};
use crate::{
    graph::{Graph, NodeId, Value},
    ops::{Attention, Constant, Gather, LayerNorm, Linear, MergeHeads, Op, Rope, SplitHeads},
    patch::{Patch, PatchError},
    tensor::Tensor,
    types::DType,
};

/// The pass.
pub const TOKEN_LAYOUT: Pass = Pass {
    name: "token_layout",
    law: "attention over all views sees special tokens first, then the patches of each view in Z-order",
    effect: Effect::Reassociates,
    run,
};

/// Views with more special tokens than this are taken for a wrong grid.
const MOST_SPECIALS: usize = 64;

fn run(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    options.only(&[&chosen_attentions::OPTIONS[..], &["grid"]].concat())?;
    // What passes have replaced still reads its operands and would pass for another reader.
    (DCE.run)(graph, &Options::default())?;
    let given = options.get::<Vec<usize>>("grid")?;
    let grids = match &given {
        None => patch_grids(graph),
        Some(grid) => match grid[..] {
            [h, w] if h > 0 && w > 0 => vec![(h, w)],
            _ => return Err(PassError::Option("`grid` must be [rows,columns], each at least 1".into())),
        },
    };
    let mut layouts = Vec::new();
    let mut problems = Vec::new();
    for id in chosen_attentions::choose(graph, options)? {
        let Op::Attention(op) = graph.op(id) else { continue };
        if !op.runs.is_empty() {
            continue;
        }
        match Layout::of(graph, id, op, &grids) {
            Ok(layout) => layouts.push((id, layout)),
            Err(problem) => problems.push(format!("attention at `{}`: {problem}", graph.node(id).origin)),
        }
    }
    if !problems.is_empty() {
        return Err(PassError::Refused(problems));
    }
    let mut orders: HashMap<Layout, Order> = HashMap::new();
    let mut notes = Vec::new();
    let mut moved = 0;
    let count = layouts.len();
    for (id, layout) in layouts {
        if !orders.contains_key(&layout) {
            notes.push(format!("{layout}"));
            let order = Order::new(graph, id, &layout)?;
            orders.insert(layout.clone(), order);
        }
        moved += rewrite(graph, id, &layout, &orders[&layout])?;
    }
    let counts = vec![("attentions".to_string(), count), ("operations moved through".to_string(), moved)];
    Ok(Report { counts, notes })
}

/// What the tokens of a sequence are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Layout {
    views: usize,
    specials: usize,
    height: usize,
    width: usize,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = if self.tiled() { "8x8 tiles" } else { "Morton order" };
        write!(
            f,
            "{} views of {} special tokens and {}x{} patches, in {order}",
            self.views, self.specials, self.height, self.width
        )
    }
}

impl Layout {
    fn of(graph: &Graph, id: NodeId, op: &Attention, grids: &[(usize, usize)]) -> Result<Self, String> {
        let operands = graph.operands(id);
        let tokens = |v: Value| graph.ty(v).shape[2].size().ok_or("its size is not bound".to_string());
        let (n, m) = (tokens(operands[0])?, tokens(operands[1])?);
        let views = op.views.size().filter(|v| *v > 0).ok_or("its number of views is not bound")?;
        if n != m || n % views != 0 {
            return Err(format!("{n} queries and {m} keys are not the tokens of {views} views"));
        }
        let per_view = n / views;
        let mut fitting: Vec<(usize, usize)> =
            grids.iter().copied().filter(|(h, w)| h * w <= per_view && per_view - h * w <= MOST_SPECIALS).collect();
        fitting.sort_unstable();
        fitting.dedup();
        match fitting[..] {
            [(height, width)] => Ok(Self { views, specials: per_view - height * width, height, width }),
            [] => Err(format!(
                "the patch grid behind {per_view} tokens a view is not known (seen: {grids:?}); give it: grid=[rows,columns]"
            )),
            _ => Err(format!("{fitting:?} may all be the patch grid; give it: grid=[rows,columns]")),
        }
    }

    fn tiled(&self) -> bool {
        self.height.is_multiple_of(8) && self.width.is_multiple_of(8)
    }

    fn runs(&self) -> Vec<usize> {
        let patches = self.height * self.width;
        if self.specials == 0 { vec![patches] } else { vec![self.views * self.specials, patches] }
    }

    /// Old positions in new order.
    fn order(&self) -> Vec<usize> {
        let per_view = self.specials + self.height * self.width;
        let mut patches: Vec<usize> = (0..self.height * self.width).collect();
        let key = |patch: usize| {
            let (y, x) = (patch / self.width, patch % self.width);
            match self.tiled() {
                true => (y / 8 * (self.width / 8) + x / 8, morton(y % 8, x % 8)),
                false => (0, morton(y, x)),
            }
        };
        patches.sort_by_key(|p| key(*p));
        let specials = (0..self.views).flat_map(|v| (0..self.specials).map(move |s| v * per_view + s));
        let patches = (0..self.views).flat_map(|v| patches.iter().map(move |p| v * per_view + self.specials + p));
        specials.chain(patches).collect()
    }
}

/// The bits of y and x interleaved, x lowest.
fn morton(y: usize, x: usize) -> usize {
    (0..usize::BITS / 2).fold(0, |code, bit| code | (x >> bit & 1) << (2 * bit) | (y >> bit & 1) << (2 * bit + 1))
}

/// Height and width of every grid of patches that the graph cuts from an image: a convolution whose steps are its
/// taps, or the same as [B, C, h, p, w, p].
fn patch_grids(graph: &Graph) -> Vec<(usize, usize)> {
    let size = |v: Value, axis: usize| graph.ty(v).shape[axis].size();
    let mut grids = Vec::new();
    for id in graph.node_ids() {
        let result = Value { node: id, slot: 0 };
        let grid = match graph.op(id) {
            Op::Conv2d(op) => {
                let w = graph.operands(id)[1];
                let taps = [size(w, 2), size(w, 3)];
                let patches = op.strides.iter().zip(taps).all(|(s, k)| *s > 1 && Some(*s) == k);
                if patches { size(result, 2).zip(size(result, 3)) } else { None }
            }
            Op::Reshape(op) => match &op.shape[..] {
                [_, _, h, p, w, q] if p == q && p.size().is_some_and(|p| p > 1) => h.size().zip(w.size()),
                _ => None,
            },
            _ => None,
        };
        grids.extend(grid);
    }
    grids.sort_unstable();
    grids.dedup();
    grids
}

/// The permutation and its inverse, as constants of the graph.
struct Order {
    there: Value,
    back: Value,
}

impl Order {
    fn new(graph: &mut Graph, id: NodeId, layout: &Layout) -> Result<Self, PassError> {
        let order = layout.order();
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, old)| inverse[*old] = new);
        let mut patch = Patch::new(graph, "token_layout", Value { node: id, slot: 0 });
        let mut constant = |order: &[usize]| {
            let order: Vec<i64> = order.iter().map(|i| *i as i64).collect();
            patch.wire(Constant { value: Tensor::from_i64(DType::I32, &[order.len()], &order) }, &[])
        };
        let order = Self { there: constant(&order)?, back: constant(&inverse)? };
        patch.apply();
        Ok(order)
    }
}

/// Answers how many operations the gathers were moved through.
fn rewrite(graph: &mut Graph, id: NodeId, layout: &Layout, order: &Order) -> Result<usize, PassError> {
    let Op::Attention(op) = graph.op(id).clone() else { return Ok(0) };
    let operands = graph.operands(id);
    let old = Value { node: id, slot: 0 };
    let merged = only_merge(graph, old);
    let mut patch = Patch::new(graph, "token_layout", old);
    let mut lift = Lift { order, moved: HashMap::new(), through: 0 };
    let operands: Vec<Value> = operands.into_iter().map(|v| lift.value(&mut patch, v, 2)).collect::<Result<_, _>>()?;
    let new = patch.wire(Attention { runs: layout.runs(), ..op }, &operands)?;
    let mut through = lift.through;
    match merged {
        Some(merged) => {
            let tokens = patch.wire(MergeHeads {}, &[new])?;
            let tokens = patch.wire(Gather { axis: 1 }, &[tokens, order.back])?;
            patch.shunt(merged, tokens)?;
            through += 1;
        }
        None => {
            let back = patch.wire(Gather { axis: 2 }, &[new, order.back])?;
            patch.shunt(old, back)?;
        }
    }
    patch.apply();
    Ok(through)
}

/// The `merge_heads` that alone reads an attention.
fn only_merge(graph: &Graph, attention: Value) -> Option<Value> {
    let users = graph.users(attention);
    let ([(user, _)], 1) = (users.as_slice(), graph.use_count(attention)) else { return None };
    matches!(graph.op(*user), Op::MergeHeads(_)).then_some(Value { node: *user, slot: 0 })
}

/// Values in the new order, each made once.
struct Lift<'o> {
    order: &'o Order,
    moved: HashMap<(Value, usize), Value>,
    through: usize,
}

impl Lift<'_> {
    /// `value` with its `axis` in the new order: moved up through operations on single tokens that nobody else reads.
    fn value(&mut self, patch: &mut Patch<'_>, value: Value, axis: usize) -> Result<Value, PatchError> {
        if let Some(moved) = self.moved.get(&(value, axis)) {
            return Ok(*moved);
        }
        let graph = patch.graph();
        let private = graph.results(value.node).all(|v| graph.use_count(v) <= 1);
        let op = graph.op(value.node).clone();
        let operands = graph.operands(value.node);
        let rank = graph.ty(value).rank();
        let first = operands.first().copied();
        let lifted = match (op, first) {
            (Op::Rope(op), Some(x)) if private => {
                let x = self.value(patch, x, axis)?;
                let [cos, sin] = [operands[1], operands[2]].map(|table| self.table(patch, table, rank - axis));
                Some((Op::Rope(Rope { ..op }), vec![x, cos?, sin?]))
            }
            (Op::LayerNorm(op), Some(x)) if private && axis + 1 < rank => {
                let x = self.value(patch, x, axis)?;
                Some((Op::LayerNorm(LayerNorm { ..op }), [&[x], &operands[1..]].concat()))
            }
            (Op::SplitHeads(op), Some(x)) if private && axis == 2 => {
                Some((Op::SplitHeads(SplitHeads { ..op }), vec![self.value(patch, x, 1)?]))
            }
            (Op::Linear(op), Some(x)) if private && axis + 1 < rank && !op.residual && op.quantize.is_none() => {
                let x = self.value(patch, x, axis)?;
                Some((Op::Linear(Linear { ..op }), [&[x], &operands[1..]].concat()))
            }
            _ => None,
        };
        let Some((op, operands)) = lifted else {
            let gathered = patch.wire(Gather { axis }, &[value, self.order.there])?;
            self.moved.insert((value, axis), gathered);
            return Ok(gathered);
        };
        self.through += 1;
        // All results at once: the other parts of a joint projection will be asked for too.
        let results = patch.wire_all(op, &operands)?;
        for (slot, result) in results.iter().enumerate() {
            self.moved.insert((Value { node: value.node, slot: slot as u32 }, axis), *result);
        }
        Ok(results[value.slot as usize])
    }

    /// A table that broadcasts to what is moved, `from_end` being the axis of tokens counted from the end: moved too,
    /// unless it is the same for all tokens.
    fn table(&mut self, patch: &mut Patch<'_>, table: Value, from_end: usize) -> Result<Value, PatchError> {
        let ty = patch.graph().ty(table);
        match ty.rank().checked_sub(from_end) {
            Some(axis) if !ty.shape[axis].is_one() => {
                if let Some(moved) = self.moved.get(&(table, axis)) {
                    return Ok(*moved);
                }
                let moved = patch.wire(Gather { axis }, &[table, self.order.there])?;
                self.moved.insert((table, axis), moved);
                Ok(moved)
            }
            _ => Ok(table),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_stand_first_and_patches_in_z_order() {
        let layout = Layout { views: 2, specials: 1, height: 2, width: 4 };
        assert!(!layout.tiled());
        assert_eq!(layout.order(), [0, 9, 1, 2, 5, 6, 3, 4, 7, 8, 10, 11, 14, 15, 12, 13, 16, 17]);
        assert_eq!(layout.runs(), [2, 8]);
    }

    #[test]
    fn tiles_are_squares_and_z_order_lies_inside() {
        let layout = Layout { views: 1, specials: 0, height: 16, width: 24 };
        let order = layout.order();
        // Every 64 in a row are one tile, every 16 in a row a 4 x 4 square, tiles row by row.
        for (size, edge) in [(64, 8), (16, 4), (4, 2)] {
            for block in order.chunks(size) {
                let (y, x) = (block[0] / 24, block[0] % 24);
                assert!(block.iter().all(|p| (p / 24 - y) < edge && (p % 24).wrapping_sub(x) < edge));
            }
        }
        assert_eq!(order[64], 8);
        assert_eq!(order[3 * 64], 8 * 24);
        assert_eq!(layout.runs(), [384]);
    }

    #[test]
    fn a_grid_that_tiles_do_not_divide_is_permuted_whole() {
        let mut order = Layout { views: 2, specials: 5, height: 37, width: 37 }.order();
        assert_eq!(&order[..11], [0, 1, 2, 3, 4, 1374, 1375, 1376, 1377, 1378, 5]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..2 * 1374));
    }
}
