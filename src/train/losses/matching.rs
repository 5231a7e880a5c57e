//! Matching: a head of a global attention looks from every patch to where the same surface lies in the next view.
//!
//! With p = softmax(q·kᵀ·scale) of one head over the patches of the next view (of the last view: of the first), (x, y)
//! the place in that view, in patches, of what the middle of a patch shows, and v = 1 where it is seen there:
//!
//! ```text
//! − Σ v·log(ε + Σ_rc p_rc·e^(−((c + ½ − x)² + (r + ½ − y)²) / 2σ²)) / Σ v
//! ```
//!
//! the mean over layers. Cameras follow from matches, and this says what matches. After the matching losses of Sarlin et al., "SuperGlue", 2020, and Leroy et al., "MASt3R", 2024, over the
//! attention of the model itself.

use std::collections::BTreeMap;

use lite3r_ir::{
    Builder, DType, Dim, Graph, Op, Tensor, Value, ValueType,
    ops::{Concat, Exp, Log, MatMul, Softmax},
    passes::{Options, PassError, chosen_attentions::choose},
};

use super::{Built, count, part, sum};

/// σ, in patches.
const SPREAD: f64 = 0.6;

/// ε: what is given to a match that is missed altogether.
const SMALLEST: f64 = 1e-6;

/// The input that says where patches are seen again.
const TRUTH: &str = "target.match";

/// What the loss reads of a model.
#[derive(Clone, Debug)]
pub struct Matched {
    /// A layer: the outputs that its queries and keys are called, and the scale of their products.
    layers: Vec<(String, String, f64)>,
    head: usize,
    /// B, S, rows and columns of patches.
    sizes: [usize; 4],
}

impl Matched {
    /// Names queries and keys of chosen attentions as outputs, which passes follow. `sizes` are scenes, views of each, rows
    /// and columns of patches. It is refused where an attention has no such head over the patches of all views.
    pub fn tap(graph: &mut Graph, chosen: &Options, head: usize, sizes: [usize; 4]) -> Result<Self, PassError> {
        let [scenes, views, rows, columns] = sizes;
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        for (number, id) in choose(graph, chosen)?.into_iter().enumerate() {
            let Op::Attention(op) = graph.op(id) else { continue };
            let (scale, operands) = (op.scale, graph.operands(id));
            let fits = |shape: &[usize]| {
                shape[0] == scenes
                    && head < shape[1]
                    && shape[2].is_multiple_of(views)
                    && shape[2] / views >= rows * columns
            };
            if !graph.ty(operands[0]).dims().as_deref().is_some_and(fits) {
                problems.push(format!(
                    "`{}` has no head {head} over the patches of all views of a scene: its queries are {}",
                    graph.node(id).origin,
                    graph.ty(operands[0])
                ));
            }
            let [q, k] = ["q", "k"].map(|kind| format!("match.{kind}.{number}"));
            graph.output(&q, operands[0]);
            graph.output(&k, operands[1]);
            layers.push((q, k, scale));
        }
        if problems.is_empty() { Ok(Self { layers, head, sizes }) } else { Err(PassError::Refused(problems)) }
    }

    /// The loss of what was named, among the outputs that the graph had.
    pub fn loss(&self, graph: &mut Graph, outputs: &BTreeMap<String, Value>) -> Built {
        let [scenes, views, rows, columns] = self.sizes;
        let truth = graph.input(TRUTH, ValueType::new(DType::F32, [scenes, views, rows * columns, 3]));
        let layer = |(q, k, scale): &(String, String, f64)| Layer { q: outputs[q], k: outputs[k], scale: *scale };
        let layers: Vec<Layer> = self.layers.iter().map(layer).collect();
        loss(&mut Builder::new(graph, "loss.matching"), &layers, self.head, truth, (rows, columns))
    }
}

/// What one layer multiplies: queries [B, heads, S·T, D] and keys like them.
struct Layer {
    q: Value,
    k: Value,
    scale: f64,
}

/// Of one head; `truth` is [B, S, rows·columns, 3]: x, y, v. The patches of a view stand behind its other tokens.
fn loss(b: &mut Builder<'_>, layers: &[Layer], head: usize, truth: Value, grid: (usize, usize)) -> Built {
    let near = near(b, truth, grid)?;
    let seen = part(b, truth, 3, 2..3)?;
    let count = count(b, seen)?;
    let mut terms = Vec::with_capacity(layers.len());
    for layer in layers {
        let shape = b.ty(truth).shape.clone();
        let q = patches(b, layer.q, head, &shape)?;
        let k = patches(b, layer.k, head, &shape)?;
        let k = next_view(b, k)?;
        let logits = b.op(MatMul { transpose_b: true }, &[q, k])?;
        let logits = b.times(logits, layer.scale)?;
        let found = b.op(Softmax { axis: 3 }, &[logits])?;
        let found = b.mul(found, near)?;
        let found = b.sum(found, &[3])?;
        let found = b.plus(found, SMALLEST)?;
        let found = b.op(Log {}, &[found])?;
        let found = b.mul(found, seen)?;
        let total = b.total(found)?;
        let mean = b.div(total, count)?;
        terms.push(b.neg(mean)?);
    }
    let total = sum(b, &terms)?;
    b.times(total, 1.0 / layers.len().max(1) as f64)
}

/// How near patches of the next view lie to a match: [B, S, n, n].
fn near(b: &mut Builder<'_>, truth: Value, (rows, columns): (usize, usize)) -> Built {
    let mut squares = Vec::with_capacity(2);
    for (axis, at) in [
        (0, (0..rows * columns).map(|i| i % columns).collect::<Vec<_>>()),
        (1, (0..rows * columns).map(|i| i / columns).collect()),
    ] {
        let middles: Vec<f64> = at.into_iter().map(|i| i as f64 + 0.5).collect();
        let middles = b.constant(Tensor::from_f64(DType::F32, &[1, 1, 1, rows * columns], &middles));
        let place = part(b, truth, 3, axis..axis + 1)?;
        let away = b.sub(place, middles)?;
        squares.push(b.mul(away, away)?);
    }
    let away = sum(b, &squares)?;
    let away = b.times(away, -0.5 / (SPREAD * SPREAD))?;
    b.op(Exp {}, &[away])
}

/// The patches of one head: [B, heads, S·T, D] as [B, S, n, D].
fn patches(b: &mut Builder<'_>, x: Value, head: usize, truth: &[Dim]) -> Built {
    let [scenes, views, n] = [0, 1, 2].map(|axis| truth[axis].size().unwrap_or(1));
    let [all, columns] = [2, 3].map(|axis| b.ty(x).shape[axis].size().unwrap_or(1));
    let tokens = all / views;
    let x = part(b, x, 1, head..head + 1)?;
    let x = b.reshape(x, &[scenes, views, tokens, columns].map(Dim::from))?;
    part(b, x, 2, tokens - n..tokens)
}

/// Every view becomes the one behind it, the last one the first.
fn next_view(b: &mut Builder<'_>, x: Value) -> Built {
    let views = b.ty(x).shape[1].size().unwrap_or(1);
    if views < 2 {
        return Ok(x);
    }
    let (first, rest) = (part(b, x, 1, 0..1)?, part(b, x, 1, 1..views)?);
    b.op(Concat { axis: 1 }, &[rest, first])
}

#[cfg(test)]
mod tests {
    use lite3r_ir::interpret::interpret;

    use super::*;

    /// Two scenes of three views of 2 x 3 patches behind one other token, two heads of four columns.
    #[test]
    fn the_loss_is_its_definition() {
        let (scenes, views, rows, columns, heads, width, head) = (2, 3, 2, 3, 2, 4, 1);
        let (n, tokens) = (rows * columns, 1 + rows * columns);
        let (q_shape, truth_shape) = ([scenes, heads, views * tokens, width], [scenes, views, n, 3]);
        let mut graph = Graph::new("matching");
        let mut input =
            |name: &str, shape: &[usize]| graph.input(name, ValueType::new(DType::F32, shape.iter().copied()));
        let (q, k, truth) = (input("q", &q_shape), input("k", &q_shape), input("truth", &truth_shape));
        let layer = Layer { q, k, scale: 0.5 };
        let value = loss(&mut Builder::new(&mut graph, "loss"), &[layer], head, truth, (rows, columns)).unwrap();
        graph.output("loss", value);

        let (q, k) = (Tensor::wave(DType::F32, &q_shape, 1), Tensor::wave(DType::F32, &q_shape, 2));
        let places: Vec<f64> = (0..scenes * views * n)
            .flat_map(|i| [(i * 7 % 30) as f64 / 10.0, (i * 11 % 20) as f64 / 10.0, f64::from(u8::from(i % 3 > 0))])
            .collect();
        let truth = Tensor::from_f64(DType::F32, &truth_shape, &places);
        let (mut total, mut count) = (0.0, 0.0);
        let at = |x: &[f64], scene: usize, view: usize, patch: usize, column: usize| {
            x[((scene * heads + head) * views * tokens + view * tokens + 1 + patch) * width + column]
        };
        let (qs, ks) = (q.to_f64(), k.to_f64());
        for (scene, view, from) in (0..scenes * views * n).map(|i| (i / (views * n), i / n % views, i % n)) {
            let [x, y, seen] = [0, 1, 2].map(|c| places[((scene * views + view) * n + from) * 3 + c]);
            let next = (view + 1) % views;
            let logit = |to: usize| -> f64 {
                (0..width).map(|c| 0.5 * at(&qs, scene, view, from, c) * at(&ks, scene, next, to, c)).sum()
            };
            let all: f64 = (0..n).map(|to| logit(to).exp()).sum();
            let near = |to: usize| {
                let (dx, dy) = ((to % columns) as f64 + 0.5 - x, (to / columns) as f64 + 0.5 - y);
                (-(dx * dx + dy * dy) / (2.0 * SPREAD * SPREAD)).exp()
            };
            let found: f64 = (0..n).map(|to| logit(to).exp() / all * near(to)).sum();
            total -= seen * (SMALLEST + found).ln();
            count += seen;
        }
        let inputs = [("q", q), ("k", k), ("truth", truth)].map(|(name, t)| (name.to_string(), t)).into();
        let got = interpret(&graph, &inputs, &|_| None).unwrap()["loss"].item().unwrap();
        assert!((got - total / count).abs() < 1e-5 * got.abs(), "{got} for {}", total / count);
    }
}
