//! Sparse and linear attention and 8-bit products against closed forms and independent formulas.

use std::collections::BTreeMap;

use lite3r_ir::{
    DType, Graph, Op, Tensor,
    interpret::interpret,
    ops::{
        BlockAttention, BlockMean, BlockRoute, FakeQuantize, LinearAttention, Quantize,
        block_route::{Own, Router},
        blocks::Blocks,
        linear_attention::{FeatureMap, Scope},
        quantize::Granularity,
    },
    passes::{ALL, pipeline},
    verify,
};

const LENGTHS: [usize; 5] = [1, 63, 64, 65, 1374];

fn eval(op: impl Into<Op>, inputs: &[&Tensor]) -> Vec<Tensor> {
    let op = op.into();
    let types = op.infer(&inputs.iter().map(|t| t.value_type()).collect::<Vec<_>>()).unwrap();
    op.eval(inputs, &types).unwrap()
}

fn qkv(heads: usize, n: usize, d: usize) -> [Tensor; 3] {
    // Larger than a unit wave: attention that is not nearly uniform.
    [1, 2, 3].map(|seed| {
        let wave = Tensor::wave(DType::F64, &[1, heads, n, d], seed).to_f64();
        Tensor::from_f64(DType::F32, &[1, heads, n, d], &wave.iter().map(|v| 3.0 * v).collect::<Vec<_>>())
    })
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn route(block_q: usize, block_k: usize, router: Router, kept: usize, runs: &[usize]) -> BlockRoute {
    BlockRoute {
        block_q,
        block_k,
        router,
        kept,
        scale: 0.25,
        runs: runs.into(),
        always: Vec::new(),
        own: Own::None,
        mass: false,
    }
}

fn dense(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    eval(lite3r_ir::ops::Attention::new(0.25), &[q, k, v]).remove(0)
}

/// The graph of one attention after `passes`, evaluated; weights by name.
fn rewritten(n: usize, runs: &str, passes: &str, params: &dyn Fn(&str) -> Option<Tensor>) -> Tensor {
    let ty = format!("f32[1,2,{n},16]");
    let mut graph: Graph = format!(
        "graph @g(%q: {ty}, %k: {ty}, %v: {ty}) -> (y: {ty}) {{
            %y = attention(%q, %k, %v) {{scale=0.25,kind=global{runs}}} // at layer
            return y=%y
        }}"
    )
    .parse()
    .unwrap();
    let passes = pipeline::select(passes, ALL).unwrap();
    pipeline::execute(&mut graph, &passes, true, &mut |_, _| true).unwrap();
    verify(&graph).unwrap();
    let [q, k, v] = qkv(2, n, 16);
    let inputs = BTreeMap::from([("q".to_string(), q), ("k".to_string(), k), ("v".to_string(), v)]);
    interpret(&graph, &inputs, params).unwrap().remove("y").unwrap()
}

#[test]
fn keeping_everything_is_dense_attention() {
    for n in LENGTHS {
        let [q, k, v] = qkv(2, n, 16);
        let want = dense(&q, &k, &v);
        for options in ["form=sparse", "form=centroid", "form=centroid,block_k=16,router=sub16"] {
            let got = rewritten(n, "", &format!("sla{{keep=1,{options}}}"), &|_| None);
            assert!(worst(&got, &want) < 1e-5, "{n} {options}: {}", worst(&got, &want));
        }
    }
    let [q, k, v] = qkv(2, 190, 16);
    let got = rewritten(190, ",runs=[10,90],views=2", "sla{keep=1,form=sparse,block_k=16}", &|_| None);
    assert!(worst(&got, &dense(&q, &k, &v)) < 1e-5);
}

#[test]
fn centroids_of_single_tokens_are_dense_attention() {
    for n in [1, 63, 64, 65] {
        let [q, k, v] = qkv(2, n, 16);
        for options in ["block_k=1", "block_k=16,centroid=1"] {
            let got = rewritten(n, "", &format!("sla{{kept=1,form=centroid,{options}}}"), &|_| None);
            assert!(worst(&got, &dense(&q, &k, &v)) < 1e-5, "{n} {options}");
        }
    }
}

#[test]
fn the_logarithm_of_the_sum_is_that_of_dense_attention() {
    let [q, k, v] = qkv(1, 65, 16);
    let lists = eval(route(64, 64, Router::Pooled, 2, &[]), &[&q, &k]);
    let op = BlockAttention::new(64, 64, 0.25);
    let lse = eval(op, &[&q, &k, &v, &lists[0], &lists[1]]).remove(1).to_f64();
    let (q, k) = (q.to_f64(), k.to_f64());
    for (row, lse) in q.chunks(16).zip(lse) {
        let sum: f64 = k.chunks(16).map(|k| (0.25 * row.iter().zip(k).map(|(a, b)| a * b).sum::<f64>()).exp()).sum();
        assert!((sum.ln() - lse).abs() < 1e-5);
    }
}

/// Scores by their definition, written out once more: means with true counts, softmax of every sub-block, averages.
#[test]
fn routers_choose_by_their_definition() {
    let (n, runs) = (2 * 90 + 10, [10, 90]);
    let [q, k, _] = qkv(2, n, 16);
    let cut = |size| Blocks::cut(n, &runs, size).unwrap().tokens;
    let (qs, ks) = (q.to_f64(), k.to_f64());
    let mean = |x: &[f64], head: usize, rows: std::ops::Range<usize>| -> Vec<f64> {
        let count = rows.len() as f64;
        (0..16).map(|c| rows.clone().map(|r| x[(head * n + r) * 16 + c]).sum::<f64>() / count).collect()
    };
    for (router, sub) in [(Router::Pooled, 64), (Router::Sub(16), 16), (Router::Sub(24), 24)] {
        let lists = eval(route(64, 16, router, 5, &runs), &[&q, &k]);
        let (idx, cnt) = (lists[0].to_i64(), lists[1].to_i64());
        assert!(cnt.iter().all(|c| *c == 5));
        for head in 0..2 {
            for (i, rows) in cut(64).into_iter().enumerate() {
                let mut total = vec![0.0; cut(16).len()];
                for start in rows.clone().step_by(sub) {
                    let query = mean(&qs, head, start..(start + sub).min(rows.end));
                    let exp: Vec<f64> = cut(16)
                        .into_iter()
                        .map(|t| (0.25 * query.iter().zip(mean(&ks, head, t)).map(|(a, b)| a * b).sum::<f64>()).exp())
                        .collect();
                    let sum: f64 = exp.iter().sum();
                    total.iter_mut().zip(exp).for_each(|(t, e)| *t += e / sum);
                }
                let list = &idx[(head * cut(64).len() + i) * 5..][..5];
                let least = list.iter().map(|j| total[*j as usize]).fold(f64::MAX, f64::min);
                let others = (0..total.len()).filter(|j| !list.contains(&(*j as i64)));
                assert!(others.map(|j| total[j]).all(|t| t <= least), "{router:?} head {head} block {i}");
                assert!(list.is_sorted());
            }
        }
    }
}

/// φ(qᵢ)·φ(kⱼ) for every pair, normalised: what the linear branch stands for.
#[test]
fn the_linear_branch_is_the_quadratic_formula() {
    for n in LENGTHS {
        let [q, k, v] = qkv(1, n, 16);
        let lists = eval(route(64, 16, Router::Pooled, 1, &[]), &[&q, &k]);
        let idx = lists[0].to_i64();
        for (map, scope) in
            [(FeatureMap::Elu1, Scope::All), (FeatureMap::Softmax, Scope::Rest), (FeatureMap::Elu1, Scope::Rest)]
        {
            let op = LinearAttention {
                map,
                scope,
                proj: false,
                block_q: 64,
                block_k: 16,
                runs: Vec::new(),
                merged: false,
                residual: false,
            };
            let got = match scope {
                Scope::All => eval(op, &[&q, &k, &v]),
                Scope::Rest => eval(op, &[&q, &k, &v, &lists[0], &lists[1]]),
            };
            let phi = |x: &Tensor| {
                let mut x = x.to_f64();
                x.chunks_mut(16).for_each(|row| map.apply(row));
                x
            };
            let (q, k, v) = (phi(&q), phi(&k), v.to_f64());
            for (i, got) in got[0].to_f64().chunks(16).enumerate().step_by(7) {
                let skipped = |j: &usize| scope == Scope::Rest && idx[i / 64] == (j / 16) as i64;
                let mut want = [0.0; 16];
                let mut norm = 1e-6;
                for j in (0..n).filter(|j| !skipped(j)) {
                    let weight: f64 = q[i * 16..][..16].iter().zip(&k[j * 16..][..16]).map(|(a, b)| a * b).sum();
                    norm += weight;
                    want.iter_mut().zip(&v[j * 16..][..16]).for_each(|(w, v)| *w += weight * v);
                }
                assert!(
                    got.iter().zip(want).all(|(g, w)| (g - w / norm).abs() < 1e-5),
                    "{n} {map:?} {scope:?} row {i}"
                );
            }
        }
    }
}

#[test]
fn forms_are_assembled_as_written() {
    let (n, layout) = (190, ",runs=[10,90],views=2");
    let options = "keep=0.3,block_k=16,router=sub16";
    let eye = |name: &str| match name {
        "layer.proj_lin.w" => {
            let eye: Vec<f64> = (0..256).map(|i| (i / 16 == i % 16) as i32 as f64).collect();
            Some(Tensor::from_f64(DType::F32, &[16, 16], &eye))
        }
        "layer.mix.w" => Some(Tensor::from_f32(&[2, 1], vec![0.0, 0.0])),
        "layer.mix.b" => Some(Tensor::from_f32(&[2, 1], vec![0.0, 30.0])),
        _ => None,
    };
    let form = |form: &str| rewritten(n, layout, &format!("sla{{{options},form={form}}}"), &eye);
    let (sparse, add, mix) = (form("sparse").to_f64(), form("add").to_f64(), form("mix").to_f64());
    let [q, k, v] = qkv(2, n, 16);
    let op = LinearAttention {
        map: FeatureMap::Elu1,
        scope: Scope::All,
        proj: false,
        block_q: 64,
        block_k: 64,
        runs: Vec::new(),
        merged: false,
        residual: false,
    };
    let linear = eval(op, &[&q, &k, &v]).remove(0).to_f64();
    for i in 0..sparse.len() {
        assert!((add[i] - sparse[i] - linear[i]).abs() < 1e-5);
        // Head 0 has a = σ(0), head 1 a = σ(30).
        let want = if i < n * 16 { 0.5 * (sparse[i] + linear[i]) } else { sparse[i] };
        assert!((mix[i] - want).abs() < 1e-5, "{i}: {} {want}", mix[i]);
    }
    // Zero weights: the linear branch of `add` is silent.
    let zero = |name: &str| (name == "layer.proj_lin.w").then(|| Tensor::from_f32(&[16, 16], vec![0.0; 256]));
    let add = rewritten(n, layout, &format!("sla{{{options},form=add}}"), &zero).to_f64();
    assert!(add.iter().zip(&sparse).all(|(a, s)| a == s));
}

/// On tokens that vary smoothly, as those of images do.
#[test]
fn centroids_repair_what_sparsity_loses() {
    let n = 1374;
    let smooth = |phase: f64| {
        let at = |i: usize| (i / 16 % n) as f64 * (0.004 + 0.002 * (i % 16) as f64) + phase * (i % 16) as f64;
        let values: Vec<f64> = (0..2 * n * 16).map(|i| 2.0 * at(i).sin()).collect();
        Tensor::from_f64(DType::F32, &[1, 2, n, 16], &values)
    };
    let [q, k, v] = [0.3, 1.1, 2.7].map(smooth);
    let want = dense(&q, &k, &v).to_f64();
    let lists = eval(route(64, 16, Router::Sub(16), 8, &[]), &[&q, &k]);
    let means = [&k, &v].map(|x| eval(BlockMean { block: 16, runs: Vec::new() }, &[x]).remove(0));
    let error = |centroid: usize| {
        let op = BlockAttention { centroid, ..BlockAttention::new(64, 16, 0.25) };
        let mut inputs = vec![&q, &k, &v, &lists[0], &lists[1]];
        inputs.extend(means.iter().filter(|_| centroid > 0));
        let got = eval(op, &inputs).remove(0).to_f64();
        let square = |t: &mut dyn Iterator<Item = f64>| t.map(|v| v * v).sum::<f64>();
        let lost = square(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        (lost / square(&mut want.iter().copied())).sqrt()
    };
    assert!(error(16) < 0.5 * error(0), "{} {}", error(16), error(0));
}

/// As long as the weights of a router are the identity, it chooses what it would without; others choose otherwise.
#[test]
fn a_router_without_training_chooses_as_before() {
    let square = |on: &dyn Fn(usize, usize, usize) -> f64| {
        let values: Vec<f64> = (0..2 * 16 * 16).map(|i| on(i / 256, i / 16 % 16, i % 16)).collect();
        Tensor::from_f64(DType::F32, &[2, 16, 16], &values)
    };
    let eye = square(&|_, i, j| f64::from(u8::from(i == j)));
    let back = square(&|head, i, j| f64::from(u8::from(i == j)) * if head == 0 { 1.0 } else { -1.0 });
    for options in ["form=sparse", "form=sparse,block_k=16,router=sub16", "form=centroid,block_k=16,router=sub24"] {
        let of = |more: &str, w: &Tensor| {
            let passes = format!("sla{{keep=0.2,{options}{more}}}");
            rewritten(190, ",runs=[10,90],views=2", &passes, &|name| (name == "layer.router.w").then(|| w.clone()))
        };
        let without = of("", &eye);
        assert_eq!(of(",router_weights=true", &eye), without, "{options}");
        let other = of(",router_weights=true", &back).to_f64();
        let same = |range: std::ops::Range<usize>| other[range.clone()] == without.to_f64()[range];
        assert!(same(0..190 * 16) && !same(190 * 16..2 * 190 * 16), "{options}");
    }
}

#[test]
fn token_layout_changes_no_result() {
    for (n, options) in [(2 * 69, "grid=[8,8]"), (2 * 42, "grid=[6,7]"), (64, "grid=[8,8]"), (1374, "grid=[37,37]")] {
        let views = if n == 64 || n == 1374 { 1 } else { 2 };
        let [q, k, v] = qkv(2, n, 16);
        let got = rewritten(n, &format!(",views={views}"), &format!("token_layout{{{options}}}"), &|_| None);
        assert!(worst(&got, &dense(&q, &k, &v)) < 1e-6, "{n}");
    }
}

#[test]
fn means_of_blocks_add_up() {
    let x = Tensor::wave(DType::F32, &[1, 1, 190, 4], 1);
    let op = BlockMean { block: 16, runs: vec![10, 90] };
    let means = eval(op, &[&x]).remove(0).to_f64();
    let blocks = Blocks::cut(190, &[10, 90], 16).unwrap();
    let sums = |x: &[f64], weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..4).map(|c| x.chunks(4).enumerate().map(|(i, row)| weight(i) * row[c]).sum()).collect()
    };
    let (a, b) = (sums(&means, &|i| blocks.tokens[i].len() as f64), sums(&x.to_f64(), &|_| 1.0));
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5));
}

/// Half a step of e4m3: 2⁻⁴ of a normal number, 2⁻¹⁰ of the scale below.
#[test]
fn quantisation_errs_by_half_a_step() {
    for scale in [Granularity::Row, Granularity::Tensor, Granularity::Columns(128)] {
        for n in LENGTHS {
            let wide = Tensor::wave(DType::F64, &[n, 200], 5).to_f64();
            // Six orders of magnitude, zeros among them.
            let values: Vec<f64> = wide
                .iter()
                .enumerate()
                .map(|(i, v)| if i % 9 == 0 { 0.0 } else { v * 10f64.powi(i as i32 % 7 - 3) })
                .collect();
            let x = Tensor::from_f64(DType::F32, &[n, 200], &values);
            let scales = eval(Quantize { scale }, &[&x]).remove(1).to_f64();
            let back = eval(FakeQuantize { scale }, &[&x]).remove(0).to_f64();
            for (i, (x, y)) in x.to_f64().iter().zip(back).enumerate() {
                let unit = scales[scale.group(i, 200)];
                let bound = (x.abs() / 16.0).max(unit / 1024.0) * (1.0 + 1e-6);
                assert!((x - y).abs() <= bound, "{scale:?} {x} {y}");
            }
        }
    }
}

/// |ŷ − y| ≤ Σ|x||w|·(2·2⁻⁴ + 2⁻⁸) for numbers that are normal under their scales.
#[test]
fn eight_bit_products_stay_within_their_bound() {
    for (precision, step) in [("fp8", 2.0 / 16.0 + 1.0 / 256.0), ("fp8w", 1.0 / 16.0)] {
        for n in LENGTHS {
            let source = format!(
                "graph @g(%x: f32[{n},64]) -> (y: f32[{n},32]) {{
                    param $w: f32[32,64]
                    %y = linear(%x, $w)
                    return y=%y
                }}"
            );
            let (x, w) = (Tensor::wave(DType::F32, &[n, 64], 1), Tensor::wave(DType::F32, &[32, 64], 2));
            let inputs = BTreeMap::from([("x".to_string(), x.clone())]);
            let run = |passes: &str| {
                let mut graph: Graph = source.parse().unwrap();
                let passes = pipeline::select(passes, ALL).unwrap();
                pipeline::execute(&mut graph, &passes, true, &mut |_, _| true).unwrap();
                interpret(&graph, &inputs, &|name| (name == "w").then(|| w.clone())).unwrap().remove("y").unwrap()
            };
            let (real, fake) = (run(precision), run(&format!("{precision}{{mode=fake}}")));
            assert!(worst(&real, &fake) < 1e-5, "stored and rounded numbers are the same");
            let (got, want, x, w) = (real.to_f64(), run("").to_f64(), x.to_f64(), w.to_f64());
            let mut largest = 0f64;
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let (row, column) = (&x[i / 32 * 64..][..64], &w[i % 32 * 64..][..64]);
                let sum: f64 = row.iter().zip(column).map(|(a, b)| (a * b).abs()).sum();
                assert!((got - want).abs() <= step * sum + 1e-4, "{precision} {n} {i}");
                largest = largest.max((got - want).abs());
            }
            assert!(largest > 1e-4, "something was rounded");
        }
    }
}
