//! Random graphs: the planner against the checker, the executor against the evaluator, and faults that the checker must
//! see.

use lite3r_ir::{Builder, Value, ops};
use proptest::{prelude::*, sample::Index};

use super::*;

/// What to append: which operation, on which of the values so far.
type Append = (u8, Index, Index);

/// A graph of tensors with 6 x 128 elements under changing shapes, with views, views of views, weights and several
/// outputs.
fn random(choices: &[Append], outputs: &[Index]) -> Graph {
    let mut graph = Graph::new("random");
    let ty = |shape: &[usize]| ValueType::new(DType::F32, shape.iter().copied());
    let mut values = vec![graph.input("x", ty(&[6, 128])), graph.input("y", ty(&[1, 6, 128]))];
    values.push(graph.param("w", ty(&[6, 128])));
    let mut builder = Builder::new(&mut graph, "");
    for (kind, a, b) in choices {
        let (x, y) = (*a.get(&values), *b.get(&values));
        append(&mut builder, *kind, x, y, &mut values);
    }
    let mut named = Vec::new();
    for (i, index) in outputs.iter().enumerate() {
        named.push((format!("out{i}"), *index.get(&values)));
    }
    named.into_iter().for_each(|(name, value)| graph.output(name, value));
    graph
}

fn append(builder: &mut Builder<'_>, kind: u8, x: Value, y: Value, values: &mut Vec<Value>) {
    let shape = builder.graph.ty(x).dims().unwrap();
    let count: usize = shape.iter().product();
    let to = |shape: &[usize]| ops::Reshape { shape: shape.iter().map(|d| (*d).into()).collect() };
    match kind {
        0 => values.push(builder.op(ops::Tanh {}, &[x]).unwrap()),
        1 => values.push(builder.op(ops::Neg {}, &[x]).unwrap()),
        2 if count.is_multiple_of(2) => values.push(builder.op(to(&[2, count / 2]), &[x]).unwrap()),
        3 => values.push(builder.op(to(&[1, count]), &[x]).unwrap()),
        4 if count.is_multiple_of(128) && count > 128 => {
            let rows = builder.op(to(&[count / 128, 128]), &[x]).unwrap();
            let sizes = vec![1.into(), (count / 128 - 1).into()];
            values.extend(builder.ops(ops::Split { axis: 0, sizes }, &[rows]).unwrap());
        }
        5 if shape[0] > 1 => {
            let end = shape[0].into();
            values.push(builder.op(ops::Slice { axis: 0, start: 1.into(), end, step: 1 }, &[x]).unwrap());
        }
        6 if shape.len() == 2 => values.push(builder.op(ops::Transpose { perm: vec![1, 0] }, &[x]).unwrap()),
        7 if builder.graph.ty(x) == builder.graph.ty(y) => {
            values.push(builder.op(ops::Add {}, &[x, y]).unwrap());
        }
        _ => values.push(builder.op(ops::Softmax { axis: -1 }, &[x]).unwrap()),
    }
}

fn choices() -> impl Strategy<Value = (Vec<Append>, Vec<Index>)> {
    let choice = (0u8..9, any::<Index>(), any::<Index>());
    (prop::collection::vec(choice, 0..24), prop::collection::vec(any::<Index>(), 1..4))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn plans_pass_the_check_and_run_as_the_evaluator_says((steps, outputs) in choices()) {
        let graph = random(&steps, &outputs);
        let weights = weights_for(&[&graph]);
        let plan = plan(&graph, &weights);
        check(&plan).unwrap();
        let entry = &plan.entries()[0];
        prop_assert!(inspect::live_bytes(entry).into_iter().max().unwrap_or(0) <= entry.arena_bytes);
        let mut session = session(plan);
        let inputs = inputs_for(&graph);
        let expected = reference(&graph, &weights);
        assert_close(&session.run(0, &inputs).unwrap(), &expected, 1e-5);
        assert_close(&session.run(0, &inputs).unwrap(), &expected, 1e-5);
    }

    /// Moving one value onto another, or running steps in another order, gives either a sound plan that computes the
    /// same, or one that the checker refuses.
    #[test]
    fn what_the_checker_accepts_computes_the_same(
        (steps, outputs) in choices(), a in any::<Index>(), b in any::<Index>(), reorder in any::<bool>()
    ) {
        let graph = random(&steps, &outputs);
        let weights = weights_for(&[&graph]);
        let mut plan = plan(&graph, &weights);
        let entry = &mut plan.header.entries[0];
        if reorder && !entry.steps.is_empty() {
            let (a, b) = (a.index(entry.steps.len()), b.index(entry.steps.len()));
            entry.steps.swap(a, b);
        } else {
            let (a, b) = (a.index(entry.buffers.len()), b.index(entry.buffers.len()));
            let both = [a, b].map(|i| entry.buffers[i].place);
            // Another weight of the same type is as sound as the right one.
            prop_assume!(!matches!(both, [Place::Weight(_), Place::Weight(_)]));
            entry.buffers[a].place = both[1];
        }
        if check(&plan).is_ok() {
            let outputs = session(plan).run(0, &inputs_for(&graph)).unwrap();
            assert_close(&outputs, &reference(&graph, &weights), 1e-5);
        }
    }
}

#[test]
fn each_fault_is_named() {
    let text = "graph @g(%x: f32[64]) -> (c: f32[64], b: f32[64]) {
      %a = exp(%x)
      %b = sin(%a)
      %c = add(%a, %b)
      return c=%c, b=%b
    }";
    let graph = graph(text);
    let refusal = |change: &dyn Fn(&mut Entry)| {
        let mut plan = plan(&graph, &Weights::default());
        change(&mut plan.header.entries[0]);
        check(&plan).unwrap_err().problems.join("\n")
    };
    let arena = |e: &Entry, n: u32| e.buffers[n as usize].place;
    let result = |e: &Entry, step: usize| e.steps[step].results[0];
    type Change<'a> = &'a dyn Fn(&mut Entry);
    let cases: [(&str, Change<'_>); 9] = [
        ("never written", &|e| e.steps.swap(1, 2)),
        ("writes over an operand", &|e| {
            let to = arena(e, result(e, 0));
            let n = result(e, 1) as usize;
            e.buffers[n].place = to;
        }),
        ("was written over", &|e| {
            let to = arena(e, result(e, 1));
            let n = result(e, 2) as usize;
            e.buffers[n].place = to;
            e.steps[2].operands = vec![result(e, 0), result(e, 0)];
        }),
        ("outside the arena", &|e| e.arena_bytes -= ALIGN),
        ("not aligned", &|e| e.buffers[0].place = Place::Arena(8)),
        ("computes f32[64], not f32[32]", &|e| {
            let n = result(e, 2) as usize;
            e.buffers[n].ty = "f32[32]".parse().unwrap();
        }),
        ("scratch overlap", &|e| {
            let Place::Arena(offset) = arena(e, result(e, 1)) else { unreachable!() };
            e.steps[1].scratch = Some(Region { offset, bytes: 4 });
        }),
        ("cannot be a view", &|e| e.steps[0].kernel = ALIAS.into()),
        ("two are named `b`", &|e| e.outputs[0].name = "b".into()),
    ];
    for (expected, change) in cases {
        let told = refusal(change);
        assert!(told.contains(expected), "{expected}: {told}");
    }
}
