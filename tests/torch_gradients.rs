//! Losses and gradients of whole models against torch's autograd in f64, recorded by `tools/make_gradients.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use lite3r::{
    backbones::{BuildOptions, Config, adopt, build},
    backend::cpu::Cpu,
    plan,
    session::{self, Session},
    train::{
        adamw::gradient_name,
        step::{ADD, Loss, Recipe, SHARE, TOTAL, gradients},
    },
    weights::{Weights, safetensors},
};
use lite3r_ir::{DType, Tensor};

/// ‖ours − torch's‖ / ‖torch's‖ of every parameter.
const TOLERANCE: f64 = 1e-4;

fn fixture(kind: &str, model: &str) -> Weights {
    let path = format!("tests/fixtures/{kind}/{model}_tiny.safetensors");
    safetensors::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What a recording holds under names that begin with `prefix`, by what follows.
fn part(recorded: &Weights, prefix: &str) -> BTreeMap<String, Tensor> {
    let named = recorded.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_string(), value)));
    named.map(|(name, value)| (name, value.tensor())).collect()
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64(), b.to_f64());
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Runs one gradients entry of a model over everything that it can train, in f32 on the CPU.
fn agrees(model: &str, config: &Config, outputs: Vec<String>, losses: Vec<Loss>) {
    let recorded = fixture("gradients", model);
    let mut inputs = part(&recorded, "in.");
    let images = inputs.iter().find(|(name, _)| name.starts_with("image")).expect("there are images").1;
    let &[_, views, _, height, width] = images.shape() else { panic!("images are [1, S, 3, H, W]") };
    let graph = build(config, &BuildOptions { outputs, ..BuildOptions::new(views, height, width) }).unwrap();
    let weights = adopt(&graph, &fixture("weights", model)).unwrap();
    let recipe = Recipe { train: vec!["*".into()], losses: losses.clone(), ..Recipe::default() };
    let (graph, trained, _) = gradients(&graph, &recipe).unwrap();

    let counts = part(&recorded, "weight.").into_iter().map(|(loss, value)| (format!("weight.{loss}"), value));
    let scalars = [(SHARE, 1.0), (ADD, 0.0)].map(|(name, x)| (name.to_string(), Tensor::scalar(DType::F64, x)));
    inputs.extend(counts.chain(scalars).map(|(name, value)| (name, value.cast(DType::F32))));
    let source = plan::EntrySource { bindings: Default::default(), graph };
    let plan = plan::build(&[source], &weights, &Cpu, plan::Meta::default()).unwrap();
    let mut session = Session::new(plan, &session::Options::default()).unwrap();
    let values = session.run(0, &inputs).unwrap();

    let loss = |name: &str| (values[name].item().unwrap(), recorded.get(name).unwrap().tensor().item().unwrap());
    for name in losses.iter().map(|loss| loss.output()).chain([TOTAL.to_string()]) {
        let (got, want) = loss(&name);
        println!("{model} {name}: {got} for {want}");
        assert!((got - want).abs() <= 1e-5 * want.abs(), "{model} {name}: {got} for {want}");
    }
    let expected = part(&recorded, "grad.");
    let names: BTreeSet<&String> = trained.iter().map(|t| &t.name).collect();
    assert_eq!(names, expected.keys().collect());
    let mut error = |name| distance(&session.state(&gradient_name(name)).unwrap(), &expected[name]);
    let mut errors: Vec<(&String, f64)> = names.into_iter().map(|name| (name, error(name))).collect();
    errors.sort_by(|a, b| b.1.total_cmp(&a.1));
    println!("{model}: {} gradients within {:.1e}, which is `{}`", errors.len(), errors[0].1, errors[0].0);
    let wrong: Vec<_> = errors.iter().filter(|(_, error)| error.is_nan() || *error > TOLERANCE).collect();
    assert!(wrong.is_empty(), "{model}: {wrong:?}");
}

#[test]
fn vggt_has_the_gradients_of_torch() {
    let Config::Vggt(mut vggt) = Config::named("vggt-tiny").unwrap() else { panic!("a VGGT") };
    vggt.camera_norm_eps = 1e-5; // as the torch modules have it
    let config = Config::Vggt(vggt);
    let outputs = config.rounds().into_iter().chain(config.outputs().into_iter().map(String::from)).collect();
    agrees("vggt", &config, outputs, vec![Loss::Camera, Loss::Depth, Loss::Points]);
}

/// Three views, so that the model chooses its reference view.
#[test]
fn da3_has_the_gradients_of_torch() {
    let config = Config::named("da3-tiny").unwrap();
    let outputs = ["depth", "depth_conf", "ray", "ray_conf", "pose"].map(String::from).into();
    agrees("da3", &config, outputs, vec![Loss::Depth, Loss::Rays, Loss::Pose]);
}
