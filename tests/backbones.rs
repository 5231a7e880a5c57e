//! Native backbones against recorded outputs of exported ones, and against the published parameter counts.

use std::{collections::BTreeMap, fs, path::PathBuf};

use lite3r::{
    backbones::{BuildOptions, Config, ReferenceView, adopt, build},
    recon::pose::{decode_da3_encoding, decode_matrices},
    weights::{Weights, safetensors},
};
use lite3r_ir::{
    Dim, Graph, Op, Tensor,
    interpret::interpret,
    ops::attention::AttentionKind,
    passes::{self, Options, specialize::SPECIALIZE},
    text, verify,
};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read_npy(path: PathBuf) -> Tensor {
    let bytes = fs::read(&path).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    let shape: Vec<usize> = file.shape().iter().map(|d| *d as usize).collect();
    Tensor::from_f32(&shape, file.into_vec::<f32>().unwrap())
}

fn tiny_weights(name: &str) -> Weights {
    safetensors::open(&fixtures().join(format!("weights/{name}_tiny.safetensors"))).unwrap()
}

/// The configuration that the fixtures were made with; it is also the named one, but for one ε of the exporter's
/// modules.
fn tiny(name: &str) -> Config {
    let json = fs::read_to_string(fixtures().join(format!("weights/{name}_tiny.json"))).unwrap();
    let named = Config::named(&format!("{name}-tiny")).unwrap();
    match named {
        Config::Vggt(named) => {
            let mut config: lite3r::backbones::Vggt = serde_json::from_str(&json).unwrap();
            assert_eq!(config, named);
            config.camera_norm_eps = 1e-5;
            Config::Vggt(config)
        }
        Config::Da3(named) => {
            let config: lite3r::backbones::Da3 = serde_json::from_str(&json).unwrap();
            assert_eq!(config, named);
            Config::Da3(config)
        }
    }
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64(), b.to_f64());
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

fn evaluate(graph: &Graph, input: (&str, Tensor), weights: &Weights) -> BTreeMap<String, Tensor> {
    let adopted = adopt(graph, weights).unwrap();
    let inputs = BTreeMap::from([(input.0.to_string(), input.1)]);
    interpret(graph, &inputs, &|name| adopted.get(name).map(|w| w.tensor())).unwrap()
}

/// Builds for the recorded images and compares every output.
fn agrees(model: &str, fixture: &str, case: &str) {
    let config = tiny(model);
    let input = if model == "vggt" { "images" } else { "image" };
    let folder = fixtures().join("onnx").join(fixture);
    let images = read_npy(folder.join(format!("in_{case}{input}.npy")));
    let [_, views, _, height, width] = images.shape()[..] else { panic!("images are [1, S, 3, H, W]") };
    let graph = build(&config, &BuildOptions::new(views, height, width)).unwrap();
    verify(&graph).unwrap();
    let outputs = evaluate(&graph, (input, images), &tiny_weights(model));
    assert!(outputs.keys().map(String::as_str).eq({
        let mut known = config.outputs();
        known.sort_unstable();
        known
    }));
    for (name, value) in outputs {
        let error = distance(&value, &read_npy(folder.join(format!("out_{case}{name}.npy"))));
        println!("{fixture} {views} views {name}: {error:.1e}");
        assert!(error <= 1e-5, "{fixture} with {views} views: {name} is off by {error:e}");
    }
}

/// The cases of a fixture with symbolic views: "" and "S3_".
fn all_cases(model: &str, fixture: &str) {
    let folder = fixtures().join("onnx").join(fixture);
    let input = if model == "vggt" { "images.npy" } else { "image.npy" };
    let mut cases: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_prefix("in_")?.strip_suffix(input)?.to_string()))
        .collect();
    cases.sort();
    assert!(cases.contains(&String::new()));
    cases.iter().for_each(|case| agrees(model, fixture, case));
}

#[test]
fn vggt_agrees_where_the_position_grid_is_as_it_is() {
    all_cases("vggt", "vggt_ts17");
}

#[test]
fn vggt_agrees_for_every_number_of_views_and_a_resized_grid() {
    all_cases("vggt", "vggt_s_dyn18");
}

#[test]
fn vggt_agrees_upright() {
    all_cases("vggt", "vggt_dyn23");
}

#[test]
fn da3_agrees_with_its_choice_of_the_reference_view() {
    all_cases("da3", "da3_s_ts17");
}

#[test]
fn da3_agrees_upright() {
    all_cases("da3", "da3_s_dyn23");
}

#[test]
fn da3_encodings_are_those_of_its_matrices() {
    let images = read_npy(fixtures().join("onnx/da3_s_ts17/in_S3_image.npy"));
    let [_, views, _, height, width] = images.shape()[..] else { panic!("images are [1, S, 3, H, W]") };
    let outputs = ["pose", "extrinsics", "intrinsics"].map(String::from).into();
    let options = BuildOptions { outputs, ..BuildOptions::new(views, height, width) };
    let outputs = evaluate(&build(&tiny("da3"), &options).unwrap(), ("image", images), &tiny_weights("da3"));
    let decoded = decode_da3_encoding(&outputs["pose"], width as u32, height as u32).unwrap();
    let matrices = decode_matrices(&outputs["extrinsics"], &outputs["intrinsics"]).unwrap();
    assert_eq!((decoded.len(), matrices.len()), (views, views));
    for ((pose, k), (same, l)) in decoded.iter().zip(&matrices) {
        let numbers = pose.matrix().concat().into_iter().chain(k.matrix().concat());
        let expected = same.matrix().concat().into_iter().chain(l.matrix().concat());
        assert!(numbers.zip(expected).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0)), "{pose:?} {k:?}");
    }
}

/// Parameters of the graph and of what it leaves unread.
fn parameters(name: &str) -> (usize, usize) {
    let config = Config::named(name).unwrap();
    let graph = build(&config, &BuildOptions::new(2, 70, 56)).unwrap();
    let params = graph.node_ids().filter_map(|id| match graph.op(id) {
        Op::Param(param) => param.ty.elements(),
        _ => None,
    });
    (params.sum(), config.unread().iter().filter_map(|(_, ty)| ty.elements()).sum())
}

#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, total) in [
        // Without the track head of 65,941,396.
        ("vggt-1b", 1_256_537_516 - 65_941_396),
        ("da3-small", 34_299_463),
        ("da3-base", 135_366_599),
        ("da3-large", 410_941_767),
    ] {
        let (read, unread) = parameters(name);
        assert_eq!(read + unread, total, "{name}: {read} are read, {unread} are not");
    }
}

#[test]
fn checkpoints_hold_exactly_what_is_read_and_unread() {
    for model in ["vggt", "da3"] {
        let config = tiny(model);
        let graph = build(&config, &BuildOptions::new(3, 28, 42)).unwrap();
        let mut known: Vec<String> = config.unread().into_iter().map(|(name, _)| name).collect();
        known.extend(graph.node_ids().filter_map(|id| match graph.op(id) {
            Op::Param(param) => Some(param.name.clone()),
            _ => None,
        }));
        // A shared LayerNorm is stored once a level.
        let shared = |name: &str| (0..3).any(|level| name.contains(&format!("output_conv2_aux.{level}.2.")));
        known.sort_unstable();
        let weights = tiny_weights(model);
        let mut stored: Vec<&str> = weights.iter().map(|(name, _)| name.trim_start_matches("model.")).collect();
        stored.retain(|name| !shared(name));
        stored.sort_unstable();
        assert_eq!(stored, known);
    }
}

/// How many attentions of each kind there are: encoder, frame, global, camera, unknown.
fn kinds(graph: &Graph) -> [usize; 5] {
    let mut counts = [0; 5];
    for id in graph.node_ids() {
        if let Op::Attention(attention) = graph.op(id) {
            counts[match attention.kind {
                AttentionKind::Encoder => 0,
                AttentionKind::Frame => 1,
                AttentionKind::Global => 2,
                AttentionKind::Camera => 3,
                AttentionKind::Unknown => 4,
            }] += 1;
        }
    }
    counts
}

#[test]
fn attentions_know_what_they_look_over() {
    let build = |name, views| build(&Config::named(name).unwrap(), &BuildOptions::new(views, 70, 56)).unwrap();
    assert_eq!(kinds(&build("vggt-1b", 1)), [24, 24, 24, 16, 0]);
    assert_eq!(kinds(&build("vggt-small", 8)), [0, 6, 6, 4, 0]);
    assert_eq!(kinds(&build("da3-large", 3)), [8, 8, 8, 0, 0]);
}

#[test]
fn symbolic_views_bind_to_the_same_graph() {
    let config = tiny("vggt");
    let mut symbolic = build(&config, &BuildOptions::new(Dim::symbol("S"), 28, 42)).unwrap();
    verify(&symbolic).unwrap();
    passes::run(&SPECIALIZE, &mut symbolic, &Options::default().with("S", 3usize)).unwrap();
    let images = read_npy(fixtures().join("onnx/vggt_s_dyn18/in_images.npy"));
    let fixed = build(&config, &BuildOptions::new(3, 28, 42)).unwrap();
    let weights = tiny_weights("vggt");
    let bound = evaluate(&symbolic, ("images", images.clone()), &weights);
    assert_eq!(bound, evaluate(&fixed, ("images", images), &weights));
}

#[test]
fn a_fixed_reference_view_is_the_automatic_one_where_they_agree() {
    let config = tiny("da3");
    let images = read_npy(fixtures().join("onnx/da3_s_ts17/in_S3_image.npy"));
    let [_, views, _, height, width] = images.shape()[..] else { panic!("images are [1, S, 3, H, W]") };
    let weights = tiny_weights("da3");
    let with = |reference_view| {
        let options = BuildOptions { reference_view, ..BuildOptions::new(views, height, width) };
        evaluate(&build(&config, &options).unwrap(), ("image", images.clone()), &weights)
    };
    let automatic = with(ReferenceView::Auto);
    let fixed: Vec<_> = (0..views).map(|n| with(ReferenceView::View(n))).collect();
    assert_eq!(fixed.iter().filter(|outputs| **outputs == automatic).count(), 1);
    assert_eq!(with(ReferenceView::First), fixed[0]);
}

#[test]
fn only_what_wanted_outputs_need_is_built() {
    let config = Config::named("da3-tiny").unwrap();
    let all = build(&config, &BuildOptions::new(2, 28, 28)).unwrap();
    let options = BuildOptions { outputs: vec!["extrinsics".into()], ..BuildOptions::new(2, 28, 28) };
    let some = build(&config, &options).unwrap();
    assert_eq!(some.outputs().len(), 1);
    assert!(some.node_ids().all(|id| !matches!(some.op(id), Op::Conv2d(_)) || !some.node(id).origin.contains("head")));
    assert!(some.len() < all.len());
}

#[test]
fn text_round_trips() {
    for name in ["vggt-tiny", "da3-tiny"] {
        let graph = build(&Config::named(name).unwrap(), &BuildOptions::new(3, 28, 42)).unwrap();
        let printed = text::print(&graph);
        assert_eq!(text::print(&text::parse(&printed).unwrap()), printed);
    }
}

#[test]
fn every_problem_of_a_request_is_named() {
    let config = Config::named("da3-tiny").unwrap();
    let options = BuildOptions {
        outputs: vec!["world_points".into()],
        reference_view: ReferenceView::View(2),
        ..BuildOptions::new(2, 30, 0)
    };
    let error = build(&config, &options).unwrap_err();
    assert_eq!(error.code, "backbones.options");
    assert_eq!(
        error.problems,
        [
            "the height must be a positive multiple of 14, not 30",
            "the width must be a positive multiple of 14, not 0",
            "there is no output `world_points`; known: depth, depth_conf, ray, ray_conf, extrinsics, intrinsics",
            "there is no view 2 among 2",
        ]
    );
    let unbound = build(&config, &BuildOptions::new(Dim::symbol("S"), 28, 28)).unwrap_err();
    assert!(unbound.to_string().contains("bind S"), "{unbound}");
    let unknown = Config::named("vggt-2b").unwrap_err();
    assert_eq!(
        unknown.problems[0],
        "there is no architecture `vggt-2b`; known: vggt-tiny, vggt-small, vggt-small-points, vggt-1b, da3-tiny, da3-small, da3-base, da3-large"
    );
    let Config::Vggt(mut vggt) = Config::named("vggt-tiny").unwrap() else { panic!("a VGGT") };
    (vggt.heads, vggt.taps) = (3, [0, 1, 2, 3]);
    let error = build(&Config::Vggt(vggt), &BuildOptions::new(1, 14, 14)).unwrap_err();
    assert_eq!((error.code, error.problems.len()), ("backbones.config", 3));
    assert_eq!("2".parse::<ReferenceView>().unwrap(), ReferenceView::View(2));
    assert_eq!("last".parse::<ReferenceView>().unwrap_err().code, "backbones.reference_view");
}
