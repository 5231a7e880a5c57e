//! States: weights that runs change.

use super::*;

/// A counter that a second entry reads, and a moving mean.
const COUNT: &str = "graph @count(%x: f32[2]) {
  param $n: f32[2] {init=\"fill:3\",state=true}
  param $mean: f32[2] {init=\"fill:0\",state=true}
  %0 = add($n, %x)
  %1 = add($mean, %x)
  %2 = constant(0.5) : f32[]
  %3 = mul(%1, %2)
  %4 = mul($n, $mean)
  return y=%4, \"$n\"=%0, \"$mean\"=%3
}";
const READ: &str = "graph @read(%x: f32[3]) {
  param $n: f32[2] {init=\"fill:3\",state=true}
  %0 = reshape($n) {shape=[1,2]}
  %1 = reshape(%0) {shape=[2]}
  %2 = neg(%1)
  return n=%0, y=%2
}";

fn made() -> Plan {
    let entries = [entry(graph(COUNT)), entry(graph(READ))];
    build(&entries, &Weights::default(), &Cpu, Meta::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn of(shape: &[usize], values: &[f32]) -> BTreeMap<String, Tensor> {
    BTreeMap::from([("x".to_string(), Tensor::from_f32(shape, values))])
}

#[test]
fn states_persist_from_run_to_run_and_are_shared_by_entries() {
    let plan = made();
    assert!(plan.header().weights.iter().filter(|w| w.state).map(|w| w.name.as_str()).eq(["n", "mean"]));
    let mut session = session(plan);
    let mut run = |entry, inputs: &BTreeMap<String, Tensor>| session.run(entry, inputs).unwrap();
    assert_eq!(run(0, &of(&[2], &[1.0, 2.0]))["y"].to_f64(), [0.0, 0.0]);
    assert_eq!(run(0, &of(&[2], &[1.0, 2.0]))["y"].to_f64(), [2.0, 5.0], "what a run reads is of before its updates");
    let read = run(1, &of(&[3], &[0.0; 3]));
    assert_eq!((read["n"].to_f64(), read["y"].to_f64()), (vec![5.0, 7.0], vec![-5.0, -7.0]));
    assert_eq!(session.state("mean").unwrap().to_f64(), [0.75, 1.5]);
    session.set_state("n", &Tensor::from_f32(&[2], vec![9.0, 9.0])).unwrap();
    assert_eq!(session.run(1, &of(&[3], &[0.0; 3])).unwrap()["y"].to_f64(), [-9.0, -9.0]);
    assert_eq!(session.set_state("n", &Tensor::from_f32(&[1], vec![9.0])).unwrap_err().code, "run.state");
    assert_eq!(session.state("m").unwrap_err().code, "run.state");
}

#[test]
fn states_are_saved_with_their_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("states.l3r");
    made().save(&path, Storage::Embedded).unwrap();
    let plan = Plan::open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(plan.entries()[0].updates.len(), 2);
    let mut session = session(plan);
    session.run(0, &of(&[2], &[1.0, 2.0])).unwrap();
    assert_eq!(session.state("n").unwrap().to_f64(), [4.0, 5.0]);
}

#[test]
fn updates_that_mean_nothing_are_refused() {
    let refused = |text: &str| {
        let error = build(&[entry(graph(text))], &Weights::default(), &Cpu, Meta::default()).unwrap_err();
        (error.code, error.problems.join("; "))
    };
    let as_it_stands = "graph @g(%x: f32[2]) {
  param $n: f32[2] {init=\"fill:3\",state=true}
  %0 = add(%x, $n)
  return y=%0, \"$n\"=$n, \"$m\"=%0
}";
    let (code, problems) = refused(as_it_stands);
    assert_eq!(code, "plan.graph");
    assert!(problems.contains("output `$n` is a weight or a state as it stands"), "{problems}");
    assert!(problems.contains("output `$m`: there is no state of that name"), "{problems}");
    let frozen = READ.replace(",state=true", "");
    let mixed = [entry(graph(COUNT)), entry(graph(&frozen))];
    let error = build(&mixed, &Weights::default(), &Cpu, Meta::default()).unwrap_err();
    assert!(error.to_string().contains("`n` is not the same in all entries"), "{error}");
}
