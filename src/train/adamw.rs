//! The optimiser as a graph: AdamW with decoupled weight decay, after clipping by the norm of all gradients.
//!
//! For every weight w with its accumulated gradient g, moments m and v, and the numbers that a run is given:
//!
//! ```text
//! n = √Σ‖g‖²                            over all weights
//! g ← g·min(1, clip / (n + 1e-6))
//! m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
//! w ← w − rate·r·(m·c₁ / (√(v·c₂) + ε) + λ w),   cᵢ = 1 / (1 − βᵢᵗ)
//! ```
//!
//! with the rate factor r and the decay λ of the group of w. Where n is not finite, nothing changes: the step is skipped
//! on the device, and the caller sees n. Law: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.

use lite3r_ir::{
    Builder, DType, Graph, Tensor, Value, ValueType,
    ops::{Less, Min, Mul, Param, Reciprocal, Sqrt, Where},
};
use serde::{Deserialize, Serialize};

use super::losses::{Built, square, sum};

/// How weights follow their gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Of the mean of gradients.
    pub beta1: f64,
    /// Of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub epsilon: f64,
    /// λ of weights with two dimensions or more; vectors (biases, norms, scales) do not decay.
    pub weight_decay: f64,
    /// The largest norm of all gradients together.
    pub clip: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.05, clip: 1.0 }
    }
}

/// A weight that is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// As the graph names it.
    pub name: String,
    /// Its type, of f32.
    pub ty: ValueType,
    /// What it starts as where no checkpoint names it, as [`Param`] says.
    pub init: String,
    /// r of its group.
    pub rate: f64,
}

/// The state that gathers the gradient of a weight.
pub fn gradient_name(weight: &str) -> String {
    format!("grad.{weight}")
}

/// The states of the moments of a weight.
pub fn moment_names(weight: &str) -> [String; 2] {
    [format!("moment1.{weight}"), format!("moment2.{weight}")]
}

/// A state like a weight that starts as zeros.
pub fn state(b: &mut Builder<'_>, name: String, ty: &ValueType) -> Built {
    b.op(Param { name, ty: ty.clone(), init: "fill:0".into(), state: true }, &[])
}

impl AdamW {
    /// One step of all weights: takes `rate`, `correction1` (c₁) and `correction2` (c₂), gives `norm` (n), and updates
    /// the weights and their moments.
    pub fn graph(&self, weights: &[Trained]) -> Built<Graph> {
        let mut graph = Graph::new("adamw");
        let scalar = ValueType::new(DType::F32, [0usize; 0]);
        let [rate, c1, c2] = ["rate", "correction1", "correction2"].map(|name| graph.input(name, scalar.clone()));
        let mut b = Builder::new(&mut graph, "adamw");
        let mut gradients = Vec::with_capacity(weights.len());
        let mut squares = Vec::with_capacity(weights.len());
        for weight in weights {
            let gradient = state(&mut b, gradient_name(&weight.name), &weight.ty)?;
            squares.push(square(&mut b, gradient)?);
            gradients.push(gradient);
        }
        let total = sum(&mut b, &squares)?;
        let norm = b.op(Sqrt {}, &[total])?;
        let largest = b.constant(Tensor::scalar(DType::F32, f64::from(f32::MAX)));
        let finite = b.op(Less {}, &[norm, largest])?;
        let below = b.plus(norm, 1e-6)?;
        let inverse = b.op(Reciprocal {}, &[below])?;
        let scale = b.times(inverse, self.clip)?;
        let one = b.number(scale, 1.0);
        let scale = b.op(Min {}, &[scale, one])?;
        let mut updates = Vec::with_capacity(3 * weights.len());
        for (weight, gradient) in weights.iter().zip(gradients) {
            b.set_origin(weight.name.as_str());
            let param =
                Param { name: weight.name.clone(), ty: weight.ty.clone(), init: weight.init.clone(), state: true };
            let w = b.op(param, &[])?;
            let gradient = b.op(Mul {}, &[gradient, scale])?;
            let square = b.mul(gradient, gradient)?;
            let [first, second] = moment_names(&weight.name);
            let m = mean(&mut b, &weight.ty, &first, gradient, self.beta1)?;
            let v = mean(&mut b, &weight.ty, &second, square, self.beta2)?;
            let (above, below) = (b.mul(m.1, c1)?, b.mul(v.1, c2)?);
            let below = b.op(Sqrt {}, &[below])?;
            let below = b.plus(below, self.epsilon)?;
            let mut step = b.div(above, below)?;
            if weight.ty.rank() > 1 && self.weight_decay > 0.0 {
                let decay = b.times(w, self.weight_decay)?;
                step = b.add(step, decay)?;
            }
            let rate = b.times(rate, weight.rate)?;
            let step = b.mul(step, rate)?;
            let new = b.sub(w, step)?;
            updates.extend([(weight.name.clone(), w, new), (first, m.0, m.1), (second, v.0, v.1)]);
        }
        for (name, old, new) in updates {
            let kept = b.op(Where {}, &[finite, new, old])?;
            b.graph.update(&name, kept);
        }
        b.graph.output("norm", norm);
        Ok(graph)
    }
}

/// (the state, β state + (1 − β) x).
fn mean(b: &mut Builder<'_>, ty: &ValueType, name: &str, x: Value, beta: f64) -> Built<(Value, Value)> {
    let old = state(b, name.to_string(), ty)?;
    let (kept, part) = (b.times(old, beta)?, b.times(x, 1.0 - beta)?);
    Ok((old, b.add(kept, part)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lite3r_ir::Bindings;

    use super::*;
    use crate::{
        backend::cpu::Cpu,
        plan::{EntrySource, Meta, build},
        session::{Options, Session},
        weights::Weights,
    };

    /// By hand, in f64.
    fn reference(adam: &AdamW, w: &mut [f64], gradients: &[Vec<f64>], rate: f64, decays: bool) {
        let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        for (t, g) in gradients.iter().enumerate() {
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            let scale = (adam.clip / (norm + 1e-6)).min(1.0);
            let correct = |beta: f64| 1.0 / (1.0 - beta.powi(t as i32 + 1));
            for i in 0..w.len() {
                let g = g[i] * scale;
                m[i] = adam.beta1 * m[i] + (1.0 - adam.beta1) * g;
                v[i] = adam.beta2 * v[i] + (1.0 - adam.beta2) * g * g;
                let step = m[i] * correct(adam.beta1) / ((v[i] * correct(adam.beta2)).sqrt() + adam.epsilon);
                w[i] -= rate * (step + if decays { adam.weight_decay * w[i] } else { 0.0 });
            }
        }
    }

    fn inputs(adam: &AdamW, t: i32, rate: f64) -> BTreeMap<String, Tensor> {
        let number = |x: f64| Tensor::scalar(DType::F32, x);
        let correct = |beta: f64| 1.0 / (1.0 - beta.powi(t));
        let all = [("rate", rate), ("correction1", correct(adam.beta1)), ("correction2", correct(adam.beta2))];
        all.into_iter().map(|(name, x)| (name.to_string(), number(x))).collect()
    }

    #[test]
    fn steps_are_those_of_the_law_and_what_is_not_finite_is_skipped() {
        let adam = AdamW { clip: 0.5, ..AdamW::default() };
        for shape in [vec![3], vec![3, 1]] {
            let ty = ValueType::new(DType::F32, shape.iter().copied());
            let trained = Trained { name: "w".into(), ty, init: "fill:0.25".into(), rate: 1.0 };
            let source = EntrySource { bindings: Bindings::new(), graph: adam.graph(&[trained]).unwrap() };
            let plan = build(&[source], &Weights::default(), &Cpu, Meta::default()).unwrap();
            let mut session = Session::new(plan, &Options::default()).unwrap();
            let gradients = [vec![0.1, -0.2, 0.3], vec![3.0, 4.0, 0.0], vec![-0.1, 0.0, 0.2]];
            for (t, g) in gradients.iter().enumerate() {
                session.set_state("grad.w", &Tensor::from_f64(DType::F32, &shape, g)).unwrap();
                let out = session.run(0, &inputs(&adam, t as i32 + 1, 0.01)).unwrap();
                let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
                assert!((out["norm"].item().unwrap() - norm).abs() < 1e-6 * norm);
            }
            let mut expect = vec![0.25; 3];
            reference(&adam, &mut expect, &gradients, 0.01, shape.len() > 1);
            let got = session.state("w").unwrap();
            for (got, expect) in got.to_f64().iter().zip(&expect) {
                assert!((got - expect).abs() < 1e-6, "{got} {expect}");
            }
            for bad in [f64::NAN, f64::INFINITY] {
                session.set_state("grad.w", &Tensor::from_f64(DType::F32, &shape, &[0.0, bad, 0.0])).unwrap();
                let out = session.run(0, &inputs(&adam, 4, 0.01)).unwrap();
                assert!(!out["norm"].item().unwrap().is_finite());
                assert_eq!(session.state("w").unwrap(), got);
                assert!(session.state("moment1.w").unwrap().to_f64().iter().all(|m| m.is_finite()));
            }
        }
    }
}
