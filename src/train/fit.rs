//! The projections of sparse-linear attention in closed form: ridge regression of what a layer of the teacher gives on
//! what the linear branch of the student gives.
//!
//! With o of the teacher, s and l of the student's sparse and linear branch and a = 0 or its share of the sparse one:
//!
//! ```text
//! W = argmin Σ ‖(o − s) − l Wᵀ‖² + λ‖W‖²                   form=add
//! W = argmin Σ ‖(o − a s) − (1 − a) l Wᵀ‖² + λ‖W‖²         form=mix
//! ```
//!
//! over all tokens and heads of the calibration scenes, λ = `ridge`·tr(G)/E with the Gram matrix G [E, E] of the
//! regressors. Layers follow each other: each sees the student's own input, made by the projections found before it, and
//! so takes up the errors in front of it. One pass over the scenes a layer; no gradient is taken.

use std::collections::BTreeMap;

use lite3r_ir::{
    Bindings, Builder, Graph, NodeId, Op, OpError, Tensor, Value,
    ops::{Linear, LinearAttention, Mul, Sub, Transpose},
    passes::{self, pipeline::Selected},
};
use serde::Serialize;

use super::{
    join::join,
    losses::square,
    sample::Sample,
    step::{TAP, run, selected, tap},
};
use crate::{
    Error, Kind, Result,
    backend::Target,
    plan::{self, EntrySource, Meta},
    session::{self, Session},
    weights::{Weight, Weights},
};

/// How projections are found.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The passes that make the student, `sla` among them.
    pub student: String,
    /// λ in parts of the mean of the diagonal of G.
    pub ridge: f64,
}

/// What a projection explains of the scenes that it was found from; others tell what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// The name of the weight.
    pub weight: String,
    /// ‖o − s‖ / ‖o‖ without the linear branch.
    pub before: f64,
    /// ‖o − s − l Wᵀ‖ / ‖o‖ with it.
    pub after: f64,
}

/// One layer: what is regressed on what.
struct Layer {
    weight: String,
    gram: Value,
    cross: Value,
    /// ‖o − a s‖² and ‖o‖².
    rest: Value,
    whole: Value,
}

/// Finds the projections of a bound model from scenes, which it calls for once a layer. Answers them by name, with what
/// they explain.
///
/// # Errors
/// `train.recipe` for passes that do not exist, refuse the model or leave no linear branch with a projection;
/// `train.scenes` without scenes; `train.fit` where a layer gives nothing that is finite; those of the session.
pub fn fit(
    model: &Graph,
    weights: &Weights,
    fit: &Fit,
    (target, options): (&dyn Target, &session::Options),
    scenes: &[Sample],
    watch: &mut dyn FnMut(&Fitted),
) -> Result<(BTreeMap<String, Tensor>, Vec<Fitted>)> {
    if scenes.is_empty() {
        return Err(Error::usage("train.scenes", "projections are found from at least one scene"));
    }
    let (graph, layers) = regressions(model, fit)?;
    let mut known = weights.clone();
    let (mut found, mut report) = (BTreeMap::new(), Vec::new());
    for layer in &layers {
        let mut own = graph.clone();
        own.retain_outputs(|_| false);
        let names = [("gram", layer.gram), ("cross", layer.cross), ("rest", layer.rest), ("whole", layer.whole)];
        names.into_iter().for_each(|(name, value)| own.output(name, value));
        run(&mut own, &selected("dce,fold,canonicalize,cse,dce,fuse,layout,cse,dce,fuse_pointwise,dce")?)?;
        let source = EntrySource { bindings: Bindings::new(), graph: own };
        let plan = plan::build(&[source], &known, target, Meta::default())?;
        let mut session = Session::new(plan, options)?;
        let sums = sums(&mut session, scenes)?;
        let e = sums.width;
        let lambda = fit.ridge * (0..e).map(|i| sums.gram[i * e + i]).sum::<f64>() / e.max(1) as f64;
        let transposed = solve(&sums.gram, &sums.cross, e, lambda).ok_or_else(|| {
            Error::new(Kind::NotFinite, "train.fit", format!("`{}`: its Gram matrix has no inverse", layer.weight))
        })?;
        let w: Vec<f64> = (0..e * e).map(|i| transposed[i % e * e + i / e]).collect();
        let fitted = Fitted {
            weight: layer.weight.clone(),
            before: (sums.rest / sums.whole).sqrt(),
            after: (sums.residual(&transposed).max(0.0) / sums.whole).sqrt(),
        };
        watch(&fitted);
        report.push(fitted);
        let tensor = Tensor::from_f64(lite3r_ir::DType::F32, &[e, e], &w);
        known.insert(layer.weight.clone(), Weight::owned(tensor.clone()));
        found.insert(layer.weight.clone(), tensor);
    }
    Ok((found, report))
}

/// Sums over all scenes.
struct Sums {
    width: usize,
    gram: Vec<f64>,
    cross: Vec<f64>,
    rest: f64,
    whole: f64,
}

impl Sums {
    /// Σ ‖t − l Wᵀ‖² from the sums alone: Σ‖t‖² − 2⟨C, Wᵀ⟩ + ⟨Wᵀ, G Wᵀ⟩.
    fn residual(&self, transposed: &[f64]) -> f64 {
        let e = self.width;
        let mut sum = self.rest;
        for i in 0..e {
            for j in 0..e {
                let product: f64 = (0..e).map(|k| self.gram[i * e + k] * transposed[k * e + j]).sum();
                sum += transposed[i * e + j] * (product - 2.0 * self.cross[i * e + j]);
            }
        }
        sum
    }
}

fn sums(session: &mut Session, scenes: &[Sample]) -> Result<Sums> {
    let mut sums = Sums { width: 0, gram: Vec::new(), cross: Vec::new(), rest: 0.0, whole: 0.0 };
    for scene in scenes {
        let inputs = scene.inputs(&session.plan().entries()[0]);
        let outputs = session.run(0, &inputs)?;
        let (gram, cross) = (outputs["gram"].to_f64(), outputs["cross"].to_f64());
        sums.width = outputs["gram"].shape()[0];
        sums.gram.resize(gram.len(), 0.0);
        sums.cross.resize(cross.len(), 0.0);
        sums.gram.iter_mut().zip(gram).for_each(|(sum, x)| *sum += x);
        sums.cross.iter_mut().zip(cross).for_each(|(sum, x)| *sum += x);
        sums.rest += outputs["rest"].item().unwrap_or(f64::NAN);
        sums.whole += outputs["whole"].item().unwrap_or(f64::NAN);
    }
    Ok(sums)
}

/// The student beside its teacher, and the sums of every layer with a projection, in order.
fn regressions(model: &Graph, fit: &Fit) -> Result<(Graph, Vec<Layer>)> {
    let passes = selected(&fit.student)?;
    let Some(first) = passes.iter().position(|s| s.pass.name == "sla") else {
        return Err(Error::usage("train.recipe", "the passes that make the student lack `sla`"));
    };
    // The teacher sees tokens in the student's order, so that what they give can be compared token by token.
    let mut base = model.clone();
    run(&mut base, &passes[..first])?;
    tap(&mut base, &passes::Options(chosen(&passes[first])))?;
    let mut graph = base.clone();
    run(&mut graph, &passes[first..])?;
    let wrong = |e: OpError| Error::unsupported("train.recipe", e.to_string());
    let teacher = join(&mut graph, &base).map_err(wrong)?;
    let student: BTreeMap<String, Value> = graph.outputs().iter().cloned().collect();
    let mut taps: Vec<(usize, Value, Value)> = student
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(TAP)?.parse().ok()?, teacher[name], *value)))
        .collect();
    taps.sort_unstable_by_key(|tap| tap.0);
    let mut layers = Vec::with_capacity(taps.len());
    for (_, teacher, student) in taps {
        if let Some(branches) = Branches::of(&graph, student) {
            layers.push(branches.layer(&mut graph, teacher).map_err(wrong)?);
        }
    }
    match layers.is_empty() {
        false => Ok((graph, layers)),
        true => Err(Error::usage("train.recipe", "no attention of the student has a linear branch with a projection")),
    }
}

/// The options of `sla` that choose attentions.
fn chosen(sla: &Selected) -> lite3r_ir::attr::AttrMap {
    let own = passes::chosen_attentions::OPTIONS;
    sla.options.0.iter().filter(|(name, _)| own.contains(&name.as_str())).cloned().collect()
}

/// What the pass `sla` has put in place of an attention.
struct Branches {
    linear: NodeId,
    sparse: Value,
    /// Of the sparse branch; none: both are added as they are.
    share: Option<Value>,
}

impl Branches {
    /// Of the sum that stands where the attention stood.
    fn of(graph: &Graph, sum: Value) -> Option<Self> {
        let linear_of = |v: &Value| match graph.op(v.node) {
            Op::LinearAttention(op) if op.proj => Some(v.node),
            _ => None,
        };
        let Op::Add(_) = graph.op(sum.node) else { return None };
        let operands = graph.operands(sum.node);
        let linear = operands.iter().find_map(linear_of)?;
        let other = *operands.iter().find(|v| v.node != linear)?;
        let Op::Mul(_) = graph.op(other.node) else { return Some(Self { linear, sparse: other, share: None }) };
        let parts = graph.operands(other.node);
        let (share, difference) = (parts[0], parts[1]);
        let Op::Sub(_) = graph.op(difference.node) else { return None };
        Some(Self { linear, sparse: graph.operands(difference.node)[0], share: Some(share) })
    }

    /// G, C and squares of one layer.
    fn layer(&self, graph: &mut Graph, teacher: Value) -> Result<Layer, OpError> {
        let Op::LinearAttention(op) = graph.op(self.linear).clone() else { unreachable!("found by `of`") };
        let mut operands = graph.operands(self.linear);
        let w = operands.remove(op.weights_at().unwrap_or(operands.len() - 1));
        let weight = match graph.op(w.node) {
            Op::Param(param) => param.name.clone(),
            _ => String::new(),
        };
        let origin = graph.node(self.linear).origin.clone();
        let mut b = Builder::new(graph, origin);
        let mut l = b.op(LinearAttention { proj: false, ..op }, &operands)?;
        let mut s = self.sparse;
        if let Some(a) = self.share {
            s = b.op(Mul {}, &[a, s])?;
            let lost = b.op(Mul {}, &[a, l])?;
            l = b.sub(l, lost)?;
        }
        let t = b.op(Sub {}, &[teacher, s])?;
        let (rest, whole) = (square(&mut b, t)?, square(&mut b, teacher)?);
        let (l, t) = (columns(&mut b, l)?, columns(&mut b, t)?);
        // Of l [N, E] and t [N, E], given as their transposes: lᵀ l and lᵀ t.
        let gram = b.op(Linear::new(false), &[l, l])?;
        let cross = b.op(Linear::new(false), &[l, t])?;
        Ok(Layer { weight, gram, cross, rest, whole })
    }
}

/// [B, H, N, E] as [E, B·H·N].
fn columns(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let shape = b.ty(x).dims().unwrap_or_default();
    let e = shape.last().copied().unwrap_or(1);
    let rows: usize = shape.iter().product::<usize>() / e.max(1);
    let flat = b.reshape(x, &[rows.into(), e.into()])?;
    b.op(Transpose { perm: vec![1, 0] }, &[flat])
}

/// X of (G + λI) X = C, all [n, n], by Cholesky; none where G + λI is not positive definite.
fn solve(gram: &[f64], cross: &[f64], n: usize, lambda: f64) -> Option<Vec<f64>> {
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let inner: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
            let value = gram[i * n + j] + if i == j { lambda } else { 0.0 } - inner;
            if i != j {
                l[i * n + j] = value / l[j * n + j];
            } else if value > 0.0 && value.is_finite() {
                l[i * n + i] = value.sqrt();
            } else {
                return None;
            }
        }
    }
    let mut x = cross.to_vec();
    for column in 0..n {
        for i in 0..n {
            let inner: f64 = (0..i).map(|k| l[i * n + k] * x[k * n + column]).sum();
            x[i * n + column] = (x[i * n + column] - inner) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let inner: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k * n + column]).sum();
            x[i * n + column] = (x[i * n + column] - inner) / l[i * n + i];
        }
    }
    x.iter().all(|v| v.is_finite()).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn systems_are_solved() {
        let gram = [4.0, 1.0, 1.0, 3.0];
        let x = solve(&gram, &[1.0, 0.0, 0.0, 1.0], 2, 0.0).unwrap();
        for (got, want) in x.iter().zip([3.0 / 11.0, -1.0 / 11.0, -1.0 / 11.0, 4.0 / 11.0]) {
            assert!((got - want).abs() < 1e-12);
        }
        assert!(solve(&[0.0], &[1.0], 1, 0.0).is_none() && solve(&[f64::NAN], &[1.0], 1, 1.0).is_none());
        assert!((solve(&[0.0], &[1.0], 1, 0.5).unwrap()[0] - 2.0).abs() < 1e-12);
    }

    /// One attention over 130 tokens, of which the student keeps one block of 64.
    const MODEL: &str = "graph @m(%images: f32[1,2,130,32], %k: f32[1,2,130,32], %v: f32[1,2,130,32]) {
  %0 = attention(%images, %k, %v) {scale=0.2,kind=global}
  return y=%0
}";

    fn scene(seed: u64) -> Sample {
        let wave = |i| Tensor::wave(lite3r_ir::DType::F32, &[1, 2, 130, 32], seed * 10 + i);
        let tensors = [("images", wave(1)), ("k", wave(2)), ("v", wave(3))];
        Sample {
            scenes: 1,
            views: 1,
            cameras: Vec::new(),
            tensors: tensors.into_iter().map(|(n, t)| (n.to_string(), t)).collect(),
        }
    }

    #[test]
    fn no_other_projection_explains_more() {
        let model: Graph = MODEL.parse().unwrap();
        let scenes = [scene(1), scene(2)];
        for form in ["add", "mix"] {
            let fit = Fit { student: format!("sla{{keep=0.4,form={form}}}"), ridge: 0.0 };
            let on = (&Cpu as &dyn Target, &session::Options::default());
            let (found, report) = super::fit(&model, &Weights::default(), &fit, on, &scenes, &mut |_| {}).unwrap();
            assert_eq!((found.len(), report.len()), (1, 1));
            assert!(report[0].after < report[0].before, "{report:?}");
            let (name, w) = found.first_key_value().unwrap();
            // The student's own error with the projection, and with others near it.
            let (graph, layers) = regressions(&model, &fit).unwrap();
            let error = |w: &Tensor| {
                let mut graph = graph.clone();
                let (layer, outputs) = (&layers[0], graph.outputs().to_vec());
                let (_, student) = outputs.iter().find(|(name, _)| name == "tap.0").unwrap().clone();
                graph.retain_outputs(|_| false);
                graph.output("student", student);
                graph.output("whole", layer.whole);
                let params = |p: &str| (p == name).then(|| w.clone()).or_else(|| start(&graph, p));
                let run = |graph: &Graph, scene: &Sample| {
                    lite3r_ir::interpret::interpret(graph, &scene.tensors, &params).unwrap()
                };
                let mut sum = 0.0;
                for scene in &scenes {
                    let (own, truth) = (run(&graph, scene), run(&model, scene));
                    sum += own["student"]
                        .to_f64()
                        .iter()
                        .zip(truth["y"].to_f64())
                        .map(|(a, b)| (a - b).powi(2))
                        .sum::<f64>();
                }
                sum
            };
            let whole: f64 = {
                let run =
                    |s: &Sample| lite3r_ir::interpret::interpret(&model, &s.tensors, &|_| None).unwrap()["y"].to_f64();
                scenes.iter().flat_map(run).map(|v| v * v).sum()
            };
            let best = error(w);
            assert!(
                (report[0].after - (best / whole).sqrt()).abs() < 1e-4,
                "{form}: {report:?} {}",
                (best / whole).sqrt()
            );
            for seed in 0..3 {
                let step = Tensor::wave(lite3r_ir::DType::F32, &[32, 32], seed).to_f64();
                let moved: Vec<f64> = w.to_f64().iter().zip(step).map(|(w, d)| w + 0.02 * d).collect();
                assert!(error(&Tensor::from_f64(lite3r_ir::DType::F32, &[32, 32], &moved)) > best, "{form}");
            }
        }
    }

    /// What weights start as that the fit leaves alone.
    fn start(graph: &Graph, name: &str) -> Option<Tensor> {
        graph.node_ids().find_map(|id| match graph.op(id) {
            Op::Param(op) if op.name == name => crate::plan::init::value(op).ok(),
            _ => None,
        })
    }

    #[test]
    fn students_without_a_projection_are_refused() {
        let model: Graph = MODEL.parse().unwrap();
        for (student, what) in [("dce", "lack `sla`"), ("sla{keep=0.4,form=sparse}", "linear branch")] {
            let fit = Fit { student: student.into(), ridge: 1e-3 };
            let error = regressions(&model, &fit).err().unwrap();
            assert!(error.code == "train.recipe" && error.to_string().contains(what), "{error}");
        }
    }
}
