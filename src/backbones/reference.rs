//! The reference view of DA3: which view stands first, and the order of views before and after.
//!
//! The choice is an argmin over few numbers and decides the world frame, so it is computed in f32 whatever the rest of
//! the model computes in; `first` or a number takes it out of the graph.

use lite3r_ir::{
    Dim, Value,
    ops::{
        Abs, Add, ArgMin, Div, Equal, Gather, Less, LessEqual, MatMul, Mul, ReduceMax, ReduceMean, ReduceMin,
        ReduceSum, Sqrt, Sub, Where,
    },
};

use super::{
    BuildOptions, ReferenceView,
    scope::{Built, Scope},
};

/// How the views of [S, ..] are put in order.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// As they come.
    Kept,
    /// The view of a fixed number moves to the front.
    Fixed(usize),
    /// By index lists i64 [S]: to the front, and back.
    Chosen { to_front: Value, back: Value },
}

/// The order for the options; `class` are the class tokens [S, C] before the first block that looks at all views.
pub(super) fn order(
    s: &mut Scope<'_>,
    options: &BuildOptions,
    class: impl FnOnce(&mut Scope<'_>) -> Built,
) -> Built<Order> {
    match (options.reference_view, options.views.size()) {
        (ReferenceView::First | ReferenceView::View(0), _) => Ok(Order::Kept),
        (ReferenceView::View(n), _) => Ok(Order::Fixed(n)),
        // Checked by `build`: the number of views is known here.
        (ReferenceView::Auto, None | Some(..3)) => Ok(Order::Kept),
        (ReferenceView::Auto, Some(views)) => {
            s.at("backbone.pretrained.reference_view");
            let class = class(s)?;
            chosen(s, class, views)
        }
    }
}

impl Order {
    /// x [S, ..] with the reference view in front.
    pub(super) fn to_front(self, s: &mut Scope<'_>, x: Value, views: &Dim) -> Built {
        s.at("backbone.pretrained.reference_view");
        match self {
            Self::Kept => Ok(x),
            Self::Fixed(n) => {
                let parts = [(n, (n + 1).into()), (0, n.into()), (n + 1, views.clone())];
                in_pieces(s, x, parts)
            }
            Self::Chosen { to_front, .. } => s.op(Gather { axis: 0 }, &[x, to_front]),
        }
    }

    /// The inverse of [`Order::to_front`].
    pub(super) fn back(self, s: &mut Scope<'_>, x: Value, views: &Dim) -> Built {
        s.at("backbone.pretrained.reference_view");
        match self {
            Self::Kept => Ok(x),
            Self::Fixed(n) => {
                let parts = [(1, (n + 1).into()), (0, 1.into()), (n + 1, views.clone())];
                in_pieces(s, x, parts)
            }
            Self::Chosen { back, .. } => s.op(Gather { axis: 0 }, &[x, back]),
        }
    }
}

/// Ranges of views, one after the other.
fn in_pieces(s: &mut Scope<'_>, x: Value, parts: [(usize, Dim); 3]) -> Built {
    let parts = parts.into_iter().filter(|(start, end)| end.size() != Some(*start));
    let parts: Vec<Value> = parts.map(|(start, end)| s.slice(x, 0, start, end)).collect::<Built<_>>()?;
    s.concat(0, &parts)
}

/// The view whose class token lies nearest the middle in similarity to the others, length, and variance; each measure
/// is stretched to 0..=1 over the views first.
fn chosen(s: &mut Scope<'_>, class: Value, views: usize) -> Built<Order> {
    let c = s.columns(class);
    let square = s.op(Mul {}, &[class, class])?;
    let length = s.op(ReduceSum { axes: vec![1], keep: true }, &[square])?;
    let length = s.op(Sqrt {}, &[length])?;
    let unit = s.op(Div {}, &[class, length])?;

    let products = s.op(MatMul { transpose_b: true }, &[unit, unit])?;
    let eye: Vec<f64> = (0..views * views).map(|i| f64::from(u8::from(i % (views + 1) == 0))).collect();
    let eye = s.constant(&[views, views], &eye)?;
    let others = s.op(Sub {}, &[products, eye])?;
    let similarity = s.op(ReduceSum { axes: vec![1], keep: true }, &[others])?;
    let similarity = s.times(similarity, 1.0 / (views - 1) as f64)?;

    let mean = s.op(ReduceMean { axes: vec![1], keep: true }, &[unit])?;
    let centred = s.op(Sub {}, &[unit, mean])?;
    let square = s.op(Mul {}, &[centred, centred])?;
    let variance = s.op(ReduceSum { axes: vec![1], keep: true }, &[square])?;
    let variance = s.times(variance, 1.0 / (c - 1) as f64)?;

    let mut score: Option<Value> = None;
    for measure in [similarity, length, variance] {
        let low = s.op(ReduceMin { axes: vec![0], keep: true }, &[measure])?;
        let high = s.op(ReduceMax { axes: vec![0], keep: true }, &[measure])?;
        let (above, range) = (s.op(Sub {}, &[measure, low])?, s.op(Sub {}, &[high, low])?);
        let range = s.plus(range, 1e-8)?;
        let stretched = s.op(Div {}, &[above, range])?;
        let off = s.plus(stretched, -0.5)?;
        let off = s.op(Abs {}, &[off])?;
        score = Some(match score {
            Some(score) => s.op(Add {}, &[score, off])?,
            None => off,
        });
    }
    let score = score.expect("there are three measures");
    let best = s.op(ArgMin { axis: 0, keep: false }, &[score])?;
    orders(s, best, views)
}

/// Index lists from the number `best` i64 [1] of the reference view.
fn orders(s: &mut Scope<'_>, best: Value, views: usize) -> Built<Order> {
    let count: Vec<i64> = (0..views as i64).collect();
    let count = s.index(&[views], &count)?;
    let (zero, one) = (s.index(&[1], &[0])?, s.index(&[1], &[1])?);
    let before = s.op(Sub {}, &[count, one])?;
    let after = s.op(Add {}, &[count, one])?;

    let up_to = s.op(LessEqual {}, &[count, best])?;
    let shifted = s.op(Where {}, &[up_to, before, count])?;
    let front = s.op(Equal {}, &[count, zero])?;
    let to_front = s.op(Where {}, &[front, best, shifted])?;

    let below = s.op(Less {}, &[count, best])?;
    let shifted = s.op(Where {}, &[below, after, count])?;
    let itself = s.op(Equal {}, &[count, best])?;
    let back = s.op(Where {}, &[itself, zero, shifted])?;
    Ok(Order::Chosen { to_front, back })
}
