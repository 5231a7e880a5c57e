//! Training from end to end: gradients of whole models against differences in f64, on every backend against the
//! reference, losses that fall, runs that go on where they stood.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use lite3r::{
    backbones::{BuildOptions, Config, ReferenceView, build},
    backend::{Target, cpu::Cpu},
    data::{self, Options, Sampler, Split},
    demo, scenes, session,
    train::{
        config::{self, Losses, Student},
        init,
        models::Models,
        run::{self, Folder, Scenes},
        sample::Sample,
        schedule::Scheduled,
        step::{Loss, Recipe, differentiated, gradients},
        trainer::Trainer,
    },
};
use lite3r_ir::{
    DType, Graph, NodeId, Op, Tensor, Value,
    interpret::interpret,
    ops::{Cast, Constant, Input, LayerNorm, Linear, Param, attention::AttentionKind},
    passes,
};

const SIZE: usize = 28;

/// A rendered scene of some views.
fn scene(index: u64, views: usize) -> Sample {
    large_scene(index, views, SIZE)
}

/// The same in images of `size` rows and columns.
fn large_scene(index: u64, views: usize, size: usize) -> Sample {
    let source = data::Source::Synthetic(data::Synthetic { recipe: scenes::Recipe::Arc, ..data::Synthetic::default() });
    let options = Options { views: vec![views], sizes: vec![[size as u32; 2]], seed: 11, ..Options::default() };
    let sampler = Sampler::new(source, Split::Train, options).unwrap();
    Sample::try_from(&sampler.sample(index).unwrap()).unwrap()
}

/// The same graph over f64.
fn wide(graph: &Graph) -> Graph {
    let mut out = Graph::new("wide");
    let mut moved: HashMap<Value, Value> = HashMap::new();
    let widen = |dtype: DType| if dtype == DType::F32 { DType::F64 } else { dtype };
    for id in graph.topological() {
        let node = graph.node(id);
        let op: Op = match node.op.clone() {
            Op::Input(op) => Input { ty: op.ty.with_dtype(widen(op.ty.dtype)), ..op }.into(),
            Op::Param(op) => Param { ty: op.ty.with_dtype(widen(op.ty.dtype)), ..op }.into(),
            Op::Constant(op) => Constant { value: op.value.cast(widen(op.value.dtype())) }.into(),
            Op::Cast(op) => Cast { to: widen(op.to) }.into(),
            Op::LayerNorm(op) => LayerNorm { out: op.out.map(widen), ..op }.into(),
            Op::Linear(op) => Linear { out: op.out.map(widen), ..op }.into(),
            op => op,
        };
        let operands: Vec<Value> = graph.operands(id).iter().map(|v| moved[v]).collect();
        // Logarithms of sums and masses are f32 by law; what computes with them is widened all the same.
        let new = out.add(op.clone(), &operands, &node.origin).unwrap_or_else(|_| {
            let mut wide = |v: &Value| match out.ty(*v).dtype {
                DType::F32 => Value { node: out.add(Cast { to: DType::F64 }, &[*v], &node.origin).unwrap(), slot: 0 },
                _ => *v,
            };
            let operands: Vec<Value> = operands.iter().map(&mut wide).collect();
            out.add(op, &operands, &node.origin).unwrap()
        });
        moved.extend(graph.results(id).zip(out.results(new)));
    }
    for (name, value) in graph.outputs() {
        out.output(name.clone(), moved[value]);
    }
    out
}

/// A tiny VGGT with everything that a loss reads, for some scenes at once.
fn tiny(scenes: usize, views: usize) -> (Graph, BTreeMap<String, Tensor>) {
    let config = Config::named("vggt-tiny").unwrap();
    let names = ["pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"].map(String::from);
    grown(&config, (scenes, views), config.rounds().into_iter().chain(names).collect())
}

/// A tiny DA3 likewise.
fn tiny_da3(views: usize) -> (Graph, BTreeMap<String, Tensor>) {
    let names = ["depth", "depth_conf", "ray", "ray_conf", "pose"].map(String::from);
    grown(&Config::named("da3-tiny").unwrap(), (1, views), names.into())
}

/// A model with these outputs, and weights for it.
fn grown(config: &Config, (scenes, views): (usize, usize), outputs: Vec<String>) -> (Graph, BTreeMap<String, Tensor>) {
    let reference_view = ReferenceView::First;
    let options = BuildOptions { outputs, scenes, reference_view, ..BuildOptions::new(views, SIZE, SIZE) };
    let graph = build(config, &options).unwrap();
    let weights = init::weights(&graph, 5, init::LAYER_SCALE);
    // Larger than training begins with: what is nearly zero tells nothing about a gradient.
    let grown = |(name, w): (&str, &lite3r::weights::Weight)| {
        let tensor = w.tensor();
        let noise = Tensor::wave(DType::F32, tensor.shape(), name.len() as u64).to_f64();
        let values: Vec<f64> = tensor.to_f64().iter().zip(noise).map(|(w, n)| w + 0.2 * n).collect();
        (name.to_string(), Tensor::from_f64(DType::F32, tensor.shape(), &values))
    };
    let weights = weights.iter().map(grown).collect();
    (graph, weights)
}

/// Scalars of a gradients entry.
fn scalars(losses: &[Loss], dtype: DType) -> BTreeMap<String, Tensor> {
    let weights = losses.iter().enumerate().map(|(i, l)| (l.weight(), 1.0 - 0.25 * i as f64));
    let all = weights.chain([("share".to_string(), 0.5), ("add".to_string(), 0.0)]);
    all.map(|(name, x)| (name, Tensor::scalar(dtype, x))).collect()
}

const FORMS: [(&str, Option<&str>); 7] = [
    ("dense", None),
    ("add", Some("token_layout{kind=global};sla{kind=global,kept=1,block_q=4,block_k=4,form=add}")),
    ("rest", Some("sla{kind=global,kept=2,block_q=4,block_k=4,form=add,map=softmax,scope=rest}")),
    ("mix", Some("token_layout{kind=global};sla{kind=global,kept=1,block_q=4,block_k=4,form=mix}")),
    (
        "centroid",
        Some("token_layout{kind=global};sla{kind=global,kept=1,block_q=8,block_k=4,form=centroid,router=sub16}"),
    ),
    (
        "adapted",
        Some(r#"lora{names=["*blocks*"],rank=2,alpha=3};sla{kind=global,kept=2,block_q=4,block_k=4,form=sparse}"#),
    ),
    (
        "routed",
        Some(
            "token_layout{kind=global};sla{kind=global,kept=1,block_q=8,block_k=4,form=add,router=sub4,router_weights=true}",
        ),
    ),
];

fn recipe(student: Option<&str>) -> Recipe {
    let mut losses = vec![Loss::Camera, Loss::Depth, Loss::Points];
    losses.push(if student.is_some() { Loss::Attention } else { Loss::Matching });
    losses.extend(student.filter(|passes| passes.contains("router_weights")).map(|_| Loss::Router));
    let attentions = passes::Options::default().with("kind", AttentionKind::Global);
    Recipe { train: vec!["*".into()], losses, student: student.map(String::from), attentions, ..Recipe::default() }
}

/// The model itself is trained on two scenes at once.
fn scenes_of(student: Option<&str>) -> usize {
    if student.is_some() { 1 } else { 2 }
}

fn joined(scenes: usize) -> Sample {
    Sample::join((0..scenes as u64).map(|index| scene(index, 2)).collect()).unwrap()
}

/// Every block of a model at once: encoder, frame and global blocks, camera head, DPT; dense and in each sparse form.
#[test]
fn whole_models_meet_differences_in_f64() {
    for (name, student) in FORMS {
        let scenes = scenes_of(student);
        let (model, weights) = tiny(scenes, 2);
        let sample = joined(scenes);
        let mut recipe = recipe(student);
        if name == "mix" {
            // The mass that a router keeps counts as given, so nothing in front of a router may move.
            recipe.train = ["proj_lin", "mix"].map(|part| format!("*global_blocks.1*.{part}*")).into();
        }
        if name == "routed" {
            // So does all that a router is compared with.
            recipe.train = vec!["router".into()];
        }
        meets_differences(name, (&model, &weights), &sample, &recipe);
    }
    let (model, weights) = tiny_da3(2);
    let losses = vec![Loss::Depth, Loss::Rays, Loss::Pose];
    meets_differences("DA3", (&model, &weights), &scene(0, 2), &Recipe { losses, ..self::recipe(None) });
}

fn meets_differences(
    name: &str,
    (model, weights): (&Graph, &BTreeMap<String, Tensor>),
    sample: &Sample,
    recipe: &Recipe,
) {
    let (graph, trained) = differentiated(model, recipe).unwrap_or_else(|e| panic!("{name}: {e}"));
    let inputs: BTreeMap<String, Tensor> =
        given(sample, &graph).into_iter().map(|(n, t)| (n, t.cast(DType::F64))).collect();
    let inputs: BTreeMap<String, Tensor> = inputs.into_iter().chain(scalars(&recipe.losses, DType::F64)).collect();
    let graph = wide(&graph);
    let starts = starts(&graph);
    let direction = |name: &str, shape: &[usize]| Tensor::wave(DType::F64, shape, 7 + name.len() as u64).to_f64();
    // Weights moved along a direction; those of a teacher stay.
    let at = |by: f64| {
        let param = |p: &str| {
            let own = weights.get(p.strip_prefix("teacher.").unwrap_or(p)).or_else(|| starts.get(p))?;
            let moves = trained.iter().any(|t| t.name == p);
            let d = direction(p, own.shape());
            let step = if moves { by } else { 0.0 };
            let values: Vec<f64> = own.to_f64().iter().zip(d).map(|(w, d)| w + step * d).collect();
            Some(Tensor::from_f64(DType::F64, own.shape(), &values))
        };
        interpret(&graph, &inputs, &param).unwrap()
    };
    let here = at(0.0);
    let total = |outputs: &BTreeMap<String, Tensor>| outputs["loss"].item().unwrap();
    let h = 1e-8;
    let expect = 0.5 * (total(&at(h)) - total(&at(-h))) / (2.0 * h);
    let (mut got, mut size) = (0.0, 0.0);
    for t in &trained {
        let gradient = &here[&format!("$grad.{}", t.name)];
        for (g, d) in gradient.to_f64().iter().zip(direction(&t.name, gradient.shape())) {
            got += g * d;
            size += (g * d).powi(2);
        }
    }
    let scale = expect.abs().max(size.sqrt());
    assert!((got - expect).abs() <= 1e-4 * scale, "{name}: {got} for {expect}, scale {scale}");
}

/// What a graph takes of a scene.
fn given(sample: &Sample, graph: &Graph) -> BTreeMap<String, Tensor> {
    let taken = graph.inputs().iter().filter_map(|id| match graph.op(*id) {
        Op::Input(op) => Some((op.name.clone(), sample.input(&op.name, &op.ty)?)),
        _ => None,
    });
    taken.collect()
}

/// What states and projections start as.
fn starts(graph: &Graph) -> BTreeMap<String, Tensor> {
    let start = |id: NodeId| match graph.op(id) {
        Op::Param(op) if !op.init.is_empty() => {
            let shape = op.ty.dims().unwrap();
            let tensor = match op.init.as_str() {
                "identity" => {
                    let n = shape[shape.len() - 1];
                    let on = |i: usize| f64::from(u8::from(i / n % n == i % n));
                    let values: Vec<f64> = (0..shape.iter().product()).map(on).collect();
                    Tensor::from_f64(DType::F32, &shape, &values)
                }
                "fill:1" => Tensor::from_f64(DType::F32, &shape, &vec![1.0; shape.iter().product()]),
                "fill:0" => Tensor::from_f64(DType::F32, &shape, &vec![0.0; shape.iter().product()]),
                _ => Tensor::wave(DType::F32, &shape, op.name.len() as u64),
            };
            Some((op.name.clone(), tensor))
        }
        _ => None,
    };
    graph.node_ids().filter_map(start).collect()
}

/// Gradients of a plan on a device against the reference in f64, by weight; with products of 16 bits, where `narrow` names
/// the pass for them.
fn on_device(target: &dyn Target, device: &str, forms: &[(&str, Option<&str>)], narrow: Option<&'static str>) {
    use lite3r::{
        plan,
        weights::{Weight, Weights},
    };
    for (name, student) in forms {
        let scenes = scenes_of(*student);
        let (model, weights) = tiny(scenes, 2);
        let sample = joined(scenes);
        let exactly = recipe(*student);
        let channels_last = target.dense_heads().channels_last;
        let recipe = Recipe { channels_last, narrow, ..exactly.clone() };
        let (graph, trained, _) = gradients(&model, &recipe).unwrap();
        let inputs: BTreeMap<String, Tensor> =
            sample.tensors.clone().into_iter().chain(scalars(&recipe.losses, DType::F32)).collect();
        let starts = starts(&graph);
        let param = |p: &str| weights.get(p.strip_prefix("teacher.").unwrap_or(p)).or_else(|| starts.get(p)).cloned();
        let exact: BTreeMap<String, Tensor> = inputs.iter().map(|(n, t)| (n.clone(), t.cast(DType::F64))).collect();
        let reference = wide(&differentiated(&model, &exactly).unwrap().0);
        // Near weights: what lies within rounding of a kink, of |x| or a ReLU, falls on the other side of it for some.
        let near = |number: u64| {
            let moved = |p: &str| {
                let own = param(p)?;
                let wave = Tensor::wave(DType::F64, own.shape(), 100 * number + p.len() as u64).to_f64();
                let by = if number == 0 { 0.0 } else { 1e-6 };
                let values: Vec<f64> = own.to_f64().iter().zip(wave).map(|(w, d)| w * (1.0 + by * d)).collect();
                Some(Tensor::from_f64(DType::F64, own.shape(), &values))
            };
            interpret(&reference, &exact, &moved).unwrap()
        };
        let mut given = Weights::default();
        for id in graph.node_ids() {
            if let Op::Param(op) = graph.op(id) {
                given.insert(op.name.clone(), Weight::owned(param(&op.name).unwrap()));
            }
        }
        let source = plan::EntrySource { bindings: Default::default(), graph };
        let plan =
            plan::build(&[source], &given, target, plan::Meta::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let options = session::Options { device: Some(device.into()), ..session::Options::default() };
        let mut session = session::Session::new(plan, &options).unwrap();
        let wanted: Vec<String> = session.plan().entries()[0].inputs.iter().map(|p| p.name.clone()).collect();
        let inputs = inputs.into_iter().filter(|(n, _)| wanted.contains(n)).collect();
        let outputs = session.run(0, &inputs).unwrap();
        let first = near(0);
        let (got, want) = (outputs["loss"].item().unwrap(), first["loss"].item().unwrap());
        let of_loss = if narrow.is_some() { 1e-2 } else { 1e-4 };
        assert!((got - want).abs() < of_loss * want.abs(), "{name} on {device}: loss {got} for {want}");
        let got: Vec<(&str, Tensor)> =
            trained.iter().map(|t| (&t.name[..], session.state(&format!("grad.{}", t.name)).unwrap())).collect();
        let fault = |want: &BTreeMap<String, Tensor>| {
            let sizes = got.iter().map(|(name, got)| {
                let want = &want[&format!("$grad.{name}")];
                let error = got.to_f64().iter().zip(want.to_f64()).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                (*name, error.sqrt(), norm(want))
            });
            let sizes: Vec<(&str, f64, f64)> = sizes.collect();
            if narrow.is_some() {
                // 16 bits push many a value of the dense head over the kink of a ReLU: what holds closely are all gradients
                // together.
                let all = |of: fn(&(&str, f64, f64)) -> f64| sizes.iter().map(|s| of(s).powi(2)).sum::<f64>().sqrt();
                let together = ("", all(|s| s.1), all(|s| s.2));
                let off = sizes.iter().find(|s| s.1 > 0.5 * s.2 + 1e-3 * together.2);
                let (name, error, size) = off.or(Some(&together).filter(|s| s.1 > 0.03 * s.2))?;
                return Some(format!("gradients `{name}` are off by {error} of {size}"));
            }
            // Of the largest as well: small ones are sums that nearly cancel.
            let largest = sizes.iter().map(|s| s.2).fold(0.0, f64::max);
            let (name, error, size) = sizes.iter().find(|(_, e, size)| *e > 2e-4 * size + 2e-6 * largest)?;
            Some(format!("gradient of `{name}` is off by {error} of {size}"))
        };
        if let Some(fault) = fault(&first).filter(|_| (1..8).all(|number| fault(&near(number)).is_some())) {
            panic!("{name} on {device}: {fault}");
        }
    }
}

fn norm(t: &Tensor) -> f64 {
    t.to_f64().iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn gradients_on_the_cpu_are_those_of_the_reference() {
    on_device(&Cpu, "cpu", &FORMS, None);
}

#[test]
fn products_of_16_bits_give_nearly_the_same_gradients() {
    on_device(&Cpu, "cpu", &FORMS[..1], Some("bf16"));
}

#[test]
#[cfg(feature = "wgpu")]
fn gradients_in_shaders_are_those_of_the_reference() {
    use lite3r::backend::wgsl;
    if wgsl::adapter::adapters().is_empty() {
        assert!(std::env::var_os("LITE3R_REQUIRE_WGPU").is_none(), "an adapter was asked for and is not there");
        return eprintln!("skipped: no adapter");
    }
    on_device(&wgsl::PORTABLE, "wgsl", &FORMS[..2], None);
}

#[test]
#[cfg(feature = "cuda")]
fn gradients_on_cuda_are_those_of_the_reference() {
    use lite3r::backend::cuda;
    match cuda::driver::Context::open(0) {
        Err(error) => eprintln!("skipped: {error}"),
        Ok(_) => on_device(&cuda::SM_90A, "cuda:0", &FORMS, None),
    }
}

/// Scenes in the order of their position.
struct Rendering {
    next: u64,
    views: Vec<usize>,
}

impl Scenes for Rendering {
    fn next(&mut self) -> lite3r::Result<Sample> {
        self.next += 1;
        Ok(scene(100 + self.next % 4, self.views[self.next as usize % self.views.len()]))
    }

    fn seek(&mut self, position: u64) -> lite3r::Result<()> {
        self.next = position;
        Ok(())
    }

    fn validation(&mut self) -> lite3r::Result<Vec<Sample>> {
        Ok(vec![scene(500, self.views[0])])
    }
}

fn scenes() -> Rendering {
    Rendering { next: 0, views: vec![2, 3] }
}

fn settings(steps: u64) -> config::Config {
    let model = config::Model { arch: "vggt-tiny".into(), size: [SIZE, SIZE], seed: 3, ..config::Model::default() };
    let data = config::Data { views: vec![2, 3], validation: 1, ..config::Data::default() };
    let run =
        config::Run { steps, scenes: 2, rate: 3e-3, warmup: 2, checkpoint: 4, validate: 4, ..config::Run::default() };
    config::Config { model, data, run, ..config::Config::default() }
}

fn trainer(config: config::Config) -> Trainer {
    Trainer::new(config, &Cpu, &session::Options::default()).unwrap()
}

#[test]
fn losses_fall_and_a_run_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, halves) = (folder.path().join("whole"), folder.path().join("halves"));
    let config = settings(8);
    let mut first = trainer(config.clone());
    let lines = run::run(&mut first, &Folder::new(&whole).unwrap(), &mut scenes(), &mut |_| {}).unwrap();
    assert!(lines.len() == 8 && lines.iter().all(|l| !l.skipped && l.norm.is_some()));
    assert!(lines[7].loss < 0.8 * lines[0].loss, "{} after {}", lines[7].loss, lines[0].loss);
    assert!(lines[3].validation.is_some() && lines[4].validation.is_none());
    for file in ["config.toml", "metrics.jsonl", "last.safetensors", "curves.svg", "weights.safetensors"] {
        assert!(whole.join(file).exists(), "{file}");
    }
    assert_eq!(Folder::new(&whole).err().unwrap().code, "train.folder");

    // The same schedule, stopped behind the fifth step: the last checkpoint is that of the fourth.
    struct Stops(Rendering, u64);
    impl Scenes for Stops {
        fn next(&mut self) -> lite3r::Result<Sample> {
            match self.0.next < self.1 {
                true => self.0.next(),
                false => Err(lite3r::Error::usage("test.stop", "no more")),
            }
        }
        fn seek(&mut self, position: u64) -> lite3r::Result<()> {
            self.0.seek(position)
        }
        fn validation(&mut self) -> lite3r::Result<Vec<Sample>> {
            self.0.validation()
        }
    }
    let mut second = trainer(config.clone());
    let error =
        run::run(&mut second, &Folder::new(&halves).unwrap(), &mut Stops(scenes(), 10), &mut |_| {}).unwrap_err();
    assert_eq!(error.code, "test.stop");
    let mut third = trainer(config);
    let open = Folder::open(&halves).unwrap();
    third.resume(&open.checkpoint()).unwrap();
    assert_eq!(third.made(), (4, 0));
    let resumed = run::run(&mut third, &open, &mut scenes(), &mut |_| {}).unwrap();
    assert_eq!(resumed.len(), 8);
    for (a, b) in lines.iter().zip(&resumed) {
        assert_eq!((a.loss, a.norm, a.rate), (b.loss, b.norm, b.rate), "step {}", a.step);
    }
    assert_eq!(first.weights(false).unwrap(), third.weights(false).unwrap());
}

#[test]
fn da3_learns_from_rays_and_cameras_in_the_world_of_the_first_view() {
    let mut config = settings(8);
    config.model.arch = "da3-tiny".into();
    let error = Trainer::new(config.clone(), &Cpu, &session::Options::default()).err().unwrap();
    assert!(error.code == "train.model" && error.to_string().contains("loss `camera` needs"), "{error}");
    let one = Scheduled::Constant(1.0);
    config.loss = Losses { camera: Scheduled::Constant(0.0), rays: one, pose: one, ..Losses::default() };
    let mut imported = config.clone();
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/da3_s_ts17/model.onnx");
    imported.model = config::Model { onnx: Some(onnx), ..config::Model::default() };
    for config in [&config, &imported] {
        let models = Models::of(config).unwrap().by_views;
        let chooses = |graph: &Graph| graph.node_ids().any(|id| matches!(graph.op(id), Op::ArgMin(_)));
        assert!(models.len() == 2 && !models.values().any(chooses));
    }
    let mut trainer = trainer(config);
    let batch = [scene(1, 2), scene(2, 3)];
    let reports: Vec<_> = (0..8).map(|_| trainer.learn(&batch).unwrap()).collect();
    let names: Vec<_> = reports[0].losses.keys().copied().collect();
    assert_eq!(names, ["depth", "pose", "rays"]);
    for name in names {
        assert!(reports[7].losses[name] < reports[0].losses[name], "{name}: {reports:?}");
    }
}

#[test]
fn a_student_learns_its_projections_alone() {
    let mut config = settings(6);
    config.model.train = vec!["proj_lin".into()];
    config.loss = Losses { attention: Scheduled::Cosine { from: 0.1, to: 0.01 }, ..Losses::default() };
    let passes = "token_layout{kind=global};sla{kind=global,kept=1,block_q=4,block_k=4,form=add};fp8{mode=fake}";
    config.student = Some(Student { passes: passes.into(), attentions: "kind=global".into() });
    let mut trainer = trainer(config);
    assert_eq!(trainer.trained().len(), 2, "{:?}", trainer.trained());
    let batch = [scene(1, 2), scene(2, 3)];
    let before = trainer.weights(false).unwrap();
    let reports: Vec<_> = (0..6).map(|_| trainer.learn(&batch).unwrap()).collect();
    assert!(reports[5].loss < reports[0].loss, "{reports:?}");
    assert!(reports[0].losses["attention"] > 0.0);
    let after = trainer.weights(false).unwrap();
    assert!(before.iter().all(|(name, w)| *w != after[name]) && after.len() == 2);
    let states = trainer.plan().header().weights.iter().filter(|w| w.state).count();
    assert_eq!(states, 4 * 2, "frozen weights have no gradient and no moments");
}

#[test]
fn a_student_learns_where_attention_is() {
    let mut config = settings(6);
    config.model.train = vec!["router".into()];
    config.run.rate = 0.005;
    let zero = Scheduled::Constant(0.0);
    config.loss = Losses { camera: zero, depth: zero, router: Scheduled::Constant(1.0), ..Losses::default() };
    let passes =
        |more: &str| format!("token_layout{{kind=global}};sla{{kind=global,kept=1,block_q=4,block_k=4{more}}}");
    let student = |more: &str| Some(Student { passes: passes(more), attentions: "kind=global".into() });
    for more in [",form=centroid,router=sub2,router_weights=true", ",form=add,router_weights=true"] {
        config.student = student(more);
        let mut trainer = trainer(config.clone());
        let names: Vec<&str> = trainer.trained().iter().map(|t| t.name.as_str()).collect();
        assert!(names.len() == 2 && names.iter().all(|n| n.ends_with(".router.w")), "{names:?}");
        let batch = [scene(1, 2), scene(2, 3)];
        let reports: Vec<_> = (0..6).map(|_| trainer.learn(&batch).unwrap()).collect();
        assert!(reports[5].losses["router"] < reports[0].losses["router"], "{reports:?}");
    }
    config.student = student(",form=centroid");
    config.model.train = vec!["*".into()];
    let error = Trainer::new(config, &Cpu, &session::Options::default()).err().unwrap();
    assert!(error.code == "train.recipe" && error.to_string().contains("router_weights"), "{error}");
}

/// Adapters change nothing until they are trained, and no launch when they are compiled.
#[test]
fn adapters_are_learnt_and_become_part_of_their_weights() {
    use lite3r::compile::{self, Model, options::Bind, source::ArchWeights};
    let options = r#"names=["qkv","proj"],rank=2,alpha=4"#;
    let sla = "sla{kind=global,kept=1,block_q=4,block_k=4,form=centroid}";
    let mut config = settings(6);
    config.model.train = vec!["lora_*".into()];
    config.loss = Losses { attention: Scheduled::Constant(0.1), ..Losses::default() };
    let passes = format!("lora{{{options}}};token_layout{{kind=global}};{sla};fp8{{mode=fake}}");
    config.student = Some(Student { passes, attentions: "kind=global".into() });
    let mut trainer = trainer(config);
    assert!(trainer.trained().len() > 8 && trainer.trained().iter().all(|t| t.name.contains(".lora_")));
    let reports: Vec<_> = (0..6).map(|_| trainer.learn(&[scene(1, 2), scene(2, 3)]).unwrap()).collect();
    assert!(reports[5].loss < reports[0].loss, "{reports:?}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapters.safetensors");
    trainer.export(&file, false).unwrap();

    let model =
        Model::Arch { name: "vggt-tiny".into(), scenes: 1, size: (SIZE, SIZE), weights: ArchWeights::Random(3) };
    let plan = |lora: bool, trained: bool| {
        let calls = lite3r_ir::text::parse_calls(&format!("lora{{{options}}}")).unwrap();
        let options = compile::Options {
            bind: vec![Bind { symbol: "S".into(), values: vec![2] }],
            lora: lora.then(|| calls[0].1.clone()),
            trained: if trained { vec![file.clone()] } else { Vec::new() },
            attention: vec!["global=sla{kept=1,block_q=4,block_k=4,form=centroid}".parse().unwrap()],
            precision: "fp8".parse().unwrap(),
            ..Default::default()
        };
        compile::plan(&compile::compile(&model, &options, &mut |_, _, _| true).unwrap(), &Cpu).unwrap()
    };
    let seen = |plan: lite3r::plan::Plan| {
        let kernels: Vec<String> = plan.entries()[0].steps.iter().map(|s| s.kernel.clone()).collect();
        let bytes = plan.weight_bytes();
        let mut session = session::Session::new(plan, &session::Options::default()).unwrap();
        let images = BTreeMap::from([("images".to_string(), scene(0, 2).tensors["images"].clone())]);
        (kernels, bytes, session.run(0, &images).unwrap())
    };
    let (without, untrained, trained) = (seen(plan(false, false)), seen(plan(true, false)), seen(plan(true, true)));
    assert_eq!(untrained, without);
    assert_eq!((&trained.0, trained.1), (&without.0, without.1));
    assert_ne!(trained.2["pose_enc"], without.2["pose_enc"]);
}

#[test]
fn what_is_computed_again_is_the_same() {
    let run = |memory: Option<usize>| {
        let mut config = settings(4);
        config.data.views = vec![3];
        config.run.activation_memory = memory;
        let mut trainer = trainer(config);
        let report = trainer.learn(&[scene(1, 3)]).unwrap();
        (report, trainer.weights(false).unwrap(), trainer.notes().join("; "))
    };
    let (all, less) = (run(None), run(Some(400_000)));
    assert_eq!((&all.0, &all.1), (&less.0, &less.1));
    assert!(less.2.contains("bytes are kept") && all.2.is_empty(), "{}", less.2);
    let mut config = settings(4);
    config.run.activation_memory = Some(1);
    let error = Trainer::new(config, &Cpu, &session::Options::default()).err().unwrap();
    assert!(error.code == "train.recipe" && error.to_string().contains("at least"), "{error}");
}

/// Sixteen layers of one width: what is kept is most of what there is.
#[test]
fn computing_again_saves_memory() {
    let mut text = String::from("graph @deep(%x: f32[512,64]) {\n");
    (0..16).for_each(|i| text += &format!("  param $w{i}: f32[64,64] {{init=\"normal:0.1\",state=true}}\n"));
    let mut last = "%x".to_string();
    for i in 0..16 {
        text += &format!("  %a{i} = linear({last}, $w{i})\n  %b{i} = tanh(%a{i})\n  %c{i} = sigmoid(%b{i})\n");
        last = format!("%c{i}");
    }
    text +=
        &format!("  %s = mul({last}, {last})\n  %l = reduce_sum(%s) {{axes=[0,1],keep=false}}\n  return loss=%l\n}}");
    let arena = |passes: &str| {
        let mut graph: Graph = text.parse().unwrap_or_else(|e| panic!("{e}"));
        let selected = passes::pipeline::select(passes, passes::ALL).unwrap();
        passes::pipeline::execute(&mut graph, &selected, true, &mut |_, _| true).unwrap();
        let source = lite3r::plan::EntrySource { bindings: Default::default(), graph };
        let plan = lite3r::plan::build(&[source], &Default::default(), &Cpu, Default::default()).unwrap();
        plan.entries()[0].arena_bytes
    };
    let layer = 512 * 64 * 4;
    let all = arena("grad{wrt=[\"w*\"]},canonicalize,cse,dce");
    let less = arena(&format!("grad{{wrt=[\"w*\"]}},canonicalize,cse,dce,recompute{{bytes={}}},cse,dce", 18 * layer));
    assert!(all > 32 * layer && less < 24 * layer, "{} and {} layers", all / layer, less / layer);
}

#[test]
fn gradients_that_are_not_finite_are_skipped_and_stop_a_run_at_last() {
    let mut config = settings(10);
    config.run.patience = 3;
    let mut trainer = trainer(config);
    let mut bad = scene(1, 2);
    let depth = bad.tensors["target.depth"].clone();
    bad.tensors.insert("target.depth".into(), Tensor::from_f32(depth.shape(), vec![f32::NAN; depth.len()]));
    let before = trainer.weights(false).unwrap();
    let report = trainer.learn(&[bad.clone()]).unwrap();
    assert!(report.skipped && trainer.made() == (1, 1));
    assert_eq!(trainer.weights(false).unwrap(), before);
    assert!(!trainer.learn(&[scene(1, 2)]).unwrap().skipped, "a good scene clears what a bad one left");
    assert!(trainer.learn(&[bad.clone()]).unwrap().skipped && trainer.learn(&[bad.clone()]).unwrap().skipped);
    let error = trainer.learn(&[bad]).unwrap_err();
    assert_eq!(error.code, "train.diverged");
}

#[test]
fn what_cannot_be_trained_is_told_in_full() {
    let (model, _) = tiny(1, 2);
    let code = |recipe: &Recipe| {
        let error = gradients(&model, recipe).err().unwrap();
        (error.code, error.problems.join("; "))
    };
    let (problem, text) = code(&Recipe { losses: vec![Loss::Attention], ..recipe(None) });
    assert!(problem == "train.recipe" && text.contains("student"), "{text}");
    let (problem, text) = code(&Recipe { train: vec!["nothing".into(), "proj_lin".into()], ..recipe(None) });
    assert!(problem == "train.recipe" && text.contains("`nothing`") && text.contains("`proj_lin`"), "{text}");
    let names = Recipe { losses: vec![Loss::Camera, Loss::Points], ..recipe(None) };
    let da3 = build(&Config::named("da3-tiny").unwrap(), &BuildOptions::new(2, SIZE, SIZE)).unwrap();
    let error = gradients(&da3, &names).err().unwrap();
    assert_eq!((error.code, error.problems.len()), ("train.model", 3), "{error}");
    let mut missing = settings(1);
    missing.data.views = vec![2];
    let mut trainer = trainer(missing);
    assert_eq!(trainer.learn(&[scene(0, 3)]).unwrap_err().code, "train.views");
}

#[test]
fn recipes_of_the_repository_are_sound() {
    let recipe = |name: &str| {
        let config = config::Config::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name)).unwrap();
        config.check().unwrap();
        config
    };
    recipe("teacher.toml");
    // Routers learn in the form that the student of the demo reads them in.
    let passes = recipe("router.toml").student.unwrap().passes;
    let mut learnt = BTreeMap::new();
    for pass in passes.split(';') {
        let Some(rule) = pass.strip_prefix("sla{kind=global,layers=[") else { continue };
        let (layers, options) = rule.split_once("],").unwrap();
        learnt.extend(layers.split(',').map(|layer| (format!("global.{layer}"), format!("sla{{{options}"))));
    }
    let read = demo::LITE.attention.iter().map(|rule| rule.split_once('=').unwrap());
    assert_eq!(learnt, read.map(|(layer, options)| (layer.to_string(), options.to_string())).collect());
}
