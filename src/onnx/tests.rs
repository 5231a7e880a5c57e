//! Files that are not what they should be, and operators that exporters of other models use.

use std::path::Path;

use lite3r_ir::{Bindings, DType, Tensor, interpret::interpret};
use proptest::prelude::*;
use prost::Message;

use super::{ImportOptions, import, import_with, proto::*};
use crate::{Error, Kind};

fn value(name: &str, elem_type: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| match text.parse() {
        Ok(size) => DimensionProto { dim_value: Some(size), dim_param: None },
        Err(_) => DimensionProto { dim_value: None, dim_param: Some(text.to_string()) },
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor_type = Some(TensorTypeProto { elem_type, shape: Some(shape) });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    NodeProto { op_type: op.into(), input: strings(input), output: strings(output), ..NodeProto::default() }
}

trait With: Sized {
    fn with(self, attribute: AttributeProto) -> Self;
    fn int(self, name: &str, i: i64) -> Self {
        self.with(AttributeProto { name: name.into(), i, r#type: attribute_type::INT, ..Default::default() })
    }
    fn text(self, name: &str, s: &'static str) -> Self {
        let s = bytes::Bytes::from_static(s.as_bytes());
        self.with(AttributeProto { name: name.into(), s, r#type: attribute_type::STRING, ..Default::default() })
    }
}

impl With for NodeProto {
    fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    let dims = vec![values.len() as i64];
    TensorProto { name: name.into(), dims, data_type: 7, int64_data: values.to_vec(), ..TensorProto::default() }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let (dims, float_data) = (dims.to_vec(), values.to_vec());
    TensorProto { name: name.into(), dims, data_type: 1, float_data, ..TensorProto::default() }
}

fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(k, v): &(&str, &str)| StringStringEntryProto { key: k.to_string(), value: v.to_string() };
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        data_location: EXTERNAL,
        external_data: entries.iter().map(entry).collect(),
        ..TensorProto::default()
    }
}

fn model(opset: i64, inputs: &[ValueInfoProto], tensors: &[TensorProto], nodes: &[NodeProto]) -> ModelProto {
    let graph = GraphProto {
        name: "g".into(),
        node: nodes.to_vec(),
        initializer: tensors.to_vec(),
        input: inputs.to_vec(),
        output: vec![value("y", 1, &[])],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        ..ModelProto::default()
    }
}

/// Writes a model to a folder of its own and imports it.
fn load(model: &ModelProto) -> Result<super::Imported, Error> {
    let folder = tempfile::tempdir().unwrap();
    load_in(folder.path(), model)
}

fn load_in(folder: &Path, model: &ModelProto) -> Result<super::Imported, Error> {
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    import(&path)
}

fn fails(model: &ModelProto, kind: Kind, code: &str, says: &[&str]) {
    let error = load(model).expect_err(code);
    assert_eq!((error.kind, error.code), (kind, code), "{error}");
    for part in says {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
}

/// The only output of a model on these inputs.
fn run(model: &ModelProto, inputs: &[(&str, Tensor)]) -> Tensor {
    let imported = load(model).unwrap_or_else(|e| panic!("{e}"));
    let inputs = inputs.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
    let weight = |name: &str| imported.weights.get(name).map(|w| w.tensor());
    interpret(&imported.graph, &inputs, &weight).unwrap().remove("y").unwrap()
}

#[test]
fn all_unsupported_operators_are_listed_at_once() {
    let nodes = [
        node("NonZero", &["x"], &["a"]),
        node("NonZero", &["a"], &["b"]),
        NodeProto { domain: "com.example".into(), name: "special".into(), ..node("Gelu", &["b"], &["c"]) },
        node("Gelu", &["c"], &["y"]),
        node("Loop", &["x"], &["unused"]),
    ];
    let model = model(17, &[value("x", 1, &["2"])], &[], &nodes);
    let error = load(&model).unwrap_err();
    assert_eq!((error.kind, error.code, error.exit_code()), (Kind::Unsupported, "onnx.unsupported_op", 3));
    assert_eq!(error.problems.len(), 4, "{error}");
    assert_eq!(error.problems[0], "1 x Gelu (domain ai.onnx, opset 17) at `y`",);
    assert!(
        error.problems[1].starts_with("2 x NonZero (domain ai.onnx, opset 17) at `a`, `b`; its shape depends on data")
    );
    assert_eq!(error.problems[2], "1 x Gelu (domain com.example, opset 17) at `special`");
    assert!(error.problems[3].starts_with("supported at opset 17: Abs Add And"));
}

#[test]
fn structure_is_checked_before_anything_else() {
    let x = [value("x", 1, &["2"])];
    let cycle = [node("Add", &["x", "b"], &["a"]), node("Neg", &["a"], &["b"]), node("Neg", &["b"], &["y"])];
    fails(&model(17, &x, &[], &cycle), Kind::BadFile, "onnx.structure", &["depend on each other"]);
    let own = [node("Add", &["x", "y"], &["y"])];
    fails(&model(17, &x, &[], &own), Kind::BadFile, "onnx.structure", &["depend on each other"]);
    let lost = [node("Add", &["x", "nowhere"], &["y"]), node("Neg", &["x"], &["y"])];
    let says = ["2 problems", "`nowhere`, which is defined nowhere", "`y` is defined twice"];
    fails(&model(17, &x, &[], &lost), Kind::BadFile, "onnx.structure", &says);
    fails(&model(17, &x, &[], &[]), Kind::BadFile, "onnx.structure", &["output `y` is computed nowhere"]);
    let neg = [node("Neg", &["x"], &["y"])];
    fails(&model(12, &x, &[], &neg), Kind::Unsupported, "onnx.unsupported_opset", &["13 to 24"]);
    fails(&model(25, &x, &[], &neg), Kind::Unsupported, "onnx.unsupported_opset", &["operator set 25"]);
    fails(&model(17, &[value("x", 8, &["2"])], &[], &neg), Kind::BadFile, "onnx.structure", &["string"]);
}

#[test]
fn every_node_that_does_not_fit_is_named() {
    let x = [value("x", 1, &["2", "3"]), value("i", 7, &["2"])];
    let nodes = [
        node("Add", &["x", "i"], &["a"]),
        node("Neg", &["a"], &["b"]),
        node("Transpose", &["x"], &["c"]).int("perm", 1),
        node("MatMul", &["x", "x"], &["d"]),
        node("Sum", &["b", "c", "d"], &["y"]),
    ];
    let says =
        ["3 problems", "Add `a`: add: operands must share", "Transpose `c`: attribute `perm` has type 2", "MatMul `d`"];
    fails(&model(17, &x, &[], &nodes), Kind::BadFile, "onnx.node", &says);
}

#[test]
fn tensors_must_hold_what_they_say() {
    let add = [node("Add", &["x", "w"], &["y"])];
    let x = [value("x", 1, &["2"])];
    let bad = |tensor: TensorProto, says: &str| {
        fails(&model(17, &x, &[tensor], &add), Kind::BadFile, "onnx.tensor", &["initializer `w`", says]);
    };
    bad(floats("w", &[2], &[1.0]), "1 elements of data");
    bad(floats("w", &[-2], &[1.0]), "cannot have size -2");
    bad(floats("w", &[i64::MAX, 0], &[]), "cannot have size 9223372036854775807");
    bad(floats("w", &[1 << 40, 1 << 40], &[1.0]), "larger than any file");
    bad(TensorProto { data_type: 8, ..floats("w", &[2], &[]) }, "string");
    bad(TensorProto { raw_data: Some(vec![0; 7].into()), ..floats("w", &[2], &[]) }, "7 bytes of data");
}

#[test]
fn external_data_stay_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("model");
    std::fs::create_dir_all(inner.join("sub")).unwrap();
    let values: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    for place in ["outside.bin", "model/inside.bin", "model/sub/deep.bin"] {
        std::fs::write(folder.path().join(place), &values).unwrap();
    }
    let absolute = folder.path().join("outside.bin").display().to_string();
    let with = |entries: &[(&str, &str)]| {
        let add = [node("Add", &["x", "w"], &["y"])];
        load_in(&inner, &model(17, &[value("x", 1, &["2"])], &[external("w", &[2], entries)], &add))
    };
    for entries in [
        &[("location", "inside.bin"), ("offset", "8"), ("length", "8")][..],
        &[("location", "sub/deep.bin")],
        &[("location", "./inside.bin"), ("offset", "4")],
    ] {
        let imported = with(entries).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(imported.weights.len(), 0, "two nameless numbers are a constant");
    }
    for (entries, says) in [
        (&[("location", "../outside.bin")][..], "not a path within the folder"),
        (&[("location", &*absolute)], "not a path within the folder"),
        (&[("location", "")], "not a path within the folder"),
        (&[("offset", "0")], "without a location"),
        (&[("location", "nowhere.bin")], "there is no file"),
        (&[("location", "inside.bin"), ("length", "4")], "length 4, but the tensor has 8 bytes"),
        (&[("location", "inside.bin"), ("offset", "12")], "8 bytes at 12 of `inside.bin`, which has 16"),
        (&[("location", "inside.bin"), ("offset", "18446744073709551615")], "which has 16"),
        (&[("location", "inside.bin"), ("offset", "-8")], "is no size"),
        (&[("location", "sub")], "not a regular file"),
    ] {
        let error = with(entries).expect_err(says);
        assert_eq!((error.kind, error.code), (Kind::BadFile, "onnx.external_data"), "{error}");
        assert!(error.to_string().contains(says), "`{says}` is not in: {error}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../outside.bin", inner.join("link.bin")).unwrap();
        let error = with(&[("location", "link.bin")]).unwrap_err();
        assert!(error.to_string().contains("a link out of the folder"), "{error}");
        std::os::unix::fs::symlink("sub/deep.bin", inner.join("inner.bin")).unwrap();
        assert!(with(&[("location", "inner.bin")]).is_ok());
    }
}

#[test]
fn missing_data_can_be_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let w = external("layer.weight", &[2, 2], &[("location", "nowhere.bin")]);
    let nodes = [node("MatMul", &["x", "layer.weight"], &["y"])];
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model(17, &[value("x", 1, &["1", "2"])], &[w], &nodes).encode_to_vec()).unwrap();
    let options = ImportOptions { allow_missing_data: true, ..ImportOptions::default() };
    let imported = import_with(&path, &options).unwrap();
    assert_eq!((imported.missing, imported.weights.len()), (1, 0));
    assert_eq!(crate::weights::random(&imported.graph, 0).len(), 1);
}

#[test]
fn identical_weights_are_stored_once() {
    let values: Vec<f32> = (0..32).map(|i| i as f32).collect();
    let tensors = [floats("t1", &[32], &values), floats("t2", &[32], &values), floats("a.t3", &[4, 8], &values)];
    let nodes = [
        node("Identity", &["t2"], &["copy"]),
        node("Mul", &["x", "t1"], &["a"]),
        node("Add", &["a", "copy"], &["b"]),
        node("Flatten", &["a.t3"], &["c"]).int("axis", 0),
        node("Add", &["b", "c"], &["y"]),
    ];
    let imported = load(&model(17, &[value("x", 1, &["32"])], &tensors, &nodes)).unwrap();
    let names: Vec<&str> = imported.weights.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a.t3", "t1"]);
}

#[test]
fn symbols_bind_before_or_after() {
    let x = [value("x", 1, &["S", "4"])];
    // Three elements in reverse order: needs S.
    let tensors = [ints("start", &[-1]), ints("end", &[i64::MIN]), ints("axis", &[0]), ints("step", &[-1])];
    let nodes = [node("Slice", &["x", "start", "end", "axis", "step"], &["y"])];
    let model = model(17, &x, &tensors, &nodes);
    fails(&model, Kind::Unsupported, "onnx.unsupported", &["Slice `y`", "--bind S=N"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let bind =
        |name: &str, n| ImportOptions { bindings: Bindings::from([(name.into(), n)]), ..ImportOptions::default() };
    let imported = import_with(&path, &bind("S", 3)).unwrap();
    assert_eq!(imported.graph.ty(imported.graph.outputs()[0].1).to_string(), "f32[3,4]");
    for options in [bind("T", 3), bind("S", 0)] {
        let error = import_with(&path, &options).unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::Usage, "onnx.unknown_symbol"), "{error}");
    }
    let outputs = ImportOptions { outputs: vec!["z".into()], ..ImportOptions::default() };
    assert_eq!(import_with(&path, &outputs).unwrap_err().code, "onnx.unknown_output");
}

#[test]
fn a_symbol_can_become_data() {
    // y = x[0] * S + eye(S)[0, 0]
    let nodes = [
        node("Shape", &["x"], &["shape"]),
        node("Cast", &["shape"], &["count"]).int("to", 1),
        node("Mul", &["x", "count"], &["y"]),
    ];
    let model = model(17, &[value("x", 1, &["S"])], &[], &nodes);
    let imported = load(&model).unwrap();
    let bound = lite3r_ir::passes::specialize::bind(&imported.graph, &Bindings::from([("S".into(), 3)])).unwrap();
    let inputs = [("x".to_string(), Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0]))].into();
    let y = interpret(&bound, &inputs, &|_| None).unwrap().remove("y").unwrap();
    assert_eq!(y.to_f32(), [3.0, 6.0, 9.0]);
}

fn grid(shape: &[usize]) -> Tensor {
    Tensor::from_f32(shape, (0..shape.iter().product::<usize>()).map(|i| i as f32).collect::<Vec<_>>())
}

#[test]
fn movements_agree_with_the_specification() {
    let x = [value("x", 1, &["1", "8", "1", "2"])];
    // From the examples of DepthToSpace in the specification.
    for (mode, expect) in [
        ("DCR", [0., 4., 1., 5., 8., 12., 9., 13., 2., 6., 3., 7., 10., 14., 11., 15.]),
        ("CRD", [0., 2., 1., 3., 4., 6., 5., 7., 8., 10., 9., 11., 12., 14., 13., 15.]),
    ] {
        let to = node("DepthToSpace", &["x"], &["y"]).int("blocksize", 2).text("mode", mode);
        let y = run(&model(17, &x, &[], &[to]), &[("x", grid(&[1, 8, 1, 2]))]);
        assert_eq!(y.shape(), [1, 2, 2, 4]);
        assert_eq!(y.to_f32(), expect, "{mode}");
    }
    let there = NodeProto { output: vec!["a".into()], ..node("DepthToSpace", &["x"], &["y"]).int("blocksize", 2) };
    let back = node("SpaceToDepth", &["a"], &["y"]).int("blocksize", 2);
    assert_eq!(run(&model(17, &x, &[], &[there, back]), &[("x", grid(&[1, 8, 1, 2]))]), grid(&[1, 8, 1, 2]));
    let tile = node("Tile", &["x", "n"], &["y"]);
    let y = run(&model(17, &[value("x", 1, &["2", "2"])], &[ints("n", &[2, 2])], &[tile]), &[("x", grid(&[2, 2]))]);
    assert_eq!(y.to_f32(), [0., 1., 0., 1., 2., 3., 2., 3., 0., 1., 0., 1., 2., 3., 2., 3.]);
    let reverse = node("Slice", &["x", "s", "e", "a", "t"], &["y"]);
    let bounds = [ints("s", &[5]), ints("e", &[-6]), ints("a", &[0]), ints("t", &[-2])];
    let y = run(&model(17, &[value("x", 1, &["5"])], &bounds, &[reverse]), &[("x", grid(&[5]))]);
    assert_eq!(y.to_f32(), [4., 2., 0.]);
    let hot = node("OneHot", &["i", "depth", "values"], &["y"]);
    let tensors = [ints("depth", &[3]), floats("values", &[2], &[0.0, 7.0])];
    let indices = Tensor::from_i64(DType::I64, &[2], &[1, -1]);
    let y = run(&model(17, &[value("i", 7, &["2"])], &tensors, &[hot]), &[("i", indices)]);
    assert_eq!(y.to_f32(), [0., 7., 0., 0., 0., 7.]);
}

#[test]
fn einsum_is_a_sum_of_products() {
    let (a, b) = (Tensor::wave(DType::F32, &[2, 3, 4], 1), Tensor::wave(DType::F32, &[2, 5, 4], 2));
    let inputs = [value("a", 1, &["2", "3", "4"]), value("b", 1, &["2", "5", "4"])];
    let product = node("Einsum", &["a", "b"], &["y"]).text("equation", "bnd, bmd -> mbn");
    let y = run(&model(17, &inputs, &[], &[product]), &[("a", a.clone()), ("b", b.clone())]);
    assert_eq!(y.shape(), [5, 2, 3]);
    let (a, b, y) = (a.to_f64(), b.to_f64(), y.to_f64());
    for (m, i, n) in (0..30).map(|k| (k / 6, k / 3 % 2, k % 3)) {
        let sum: f64 = (0..4).map(|d| a[(i * 3 + n) * 4 + d] * b[(i * 5 + m) * 4 + d]).sum();
        assert!((y[(m * 2 + i) * 3 + n] - sum).abs() < 1e-6);
    }
    let strange = node("Einsum", &["a"], &["y"]).text("equation", "bii->b");
    fails(&model(17, &inputs, &[], &[strange]), Kind::Unsupported, "onnx.unsupported", &["bii->b"]);
}

#[test]
fn joined_heads_are_taken_apart() {
    let names = ["q", "k", "v"];
    let joined: Vec<ValueInfoProto> = names.iter().map(|n| value(n, 1, &["1", "3", "8"])).collect();
    let attention = |op: NodeProto| op.int("q_num_heads", 2).int("kv_num_heads", 2);
    let tensors: Vec<(&str, Tensor)> =
        names.iter().zip(1..).map(|(n, seed)| (*n, Tensor::wave(DType::F32, &[1, 3, 8], seed))).collect();
    let y = run(&model(23, &joined, &[], &[attention(node("Attention", &names, &["y"]))]), &tensors);
    assert_eq!(y.shape(), [1, 3, 8]);
    let x: Vec<Vec<f64>> = tensors.iter().map(|(_, t)| t.to_f64()).collect();
    for (n, h, d) in (0..24).map(|i| (i / 8, i / 4 % 2, i % 4)) {
        let dot = |m: usize| (0..4).map(|d| x[0][n * 8 + h * 4 + d] * x[1][m * 8 + h * 4 + d]).sum::<f64>() / 2.0;
        let weights: Vec<f64> = (0..3).map(|m| dot(m).exp()).collect();
        let sum: f64 = (0..3).map(|m| weights[m] * x[2][m * 8 + h * 4 + d]).sum();
        let expect = sum / weights.iter().sum::<f64>();
        assert!((y.to_f64()[n * 8 + h * 4 + d] - expect).abs() < 1e-6);
    }
    let causal = attention(node("Attention", &names, &["y"])).int("is_causal", 1);
    fails(&model(23, &joined, &[], &[causal]), Kind::Unsupported, "onnx.unsupported", &["is_causal=1"]);
}

proptest! {
    #[test]
    fn random_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, bytes).unwrap();
        prop_assert!(import(&path).is_err());
    }

    #[test]
    fn damaged_models_never_panic(
        which in 0usize..SMALL_MODELS.len(), cut in 0.0f64..1.0,
        damage in proptest::collection::vec((0.0f64..1.0, any::<u8>()), 1..4),
    ) {
        let good = SMALL_MODELS[which];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let mut bytes = good.to_vec();
        for (at, byte) in damage {
            let place = (at * bytes.len() as f64) as usize;
            bytes[place] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        // With some bytes changed it may still be a model; what matters is an answer.
        let _ = import(&path);
        std::fs::write(&path, &good[..(cut * good.len() as f64) as usize]).unwrap();
        let _ = import(&path);
    }
}

/// Models of a few kilobytes with many operators.
const SMALL_MODELS: [&[u8]; 6] = [
    include_bytes!("../../tests/fixtures/onnx/op_shapes_17/model.onnx"),
    include_bytes!("../../tests/fixtures/onnx/op_split_18/model.onnx"),
    include_bytes!("../../tests/fixtures/onnx/op_resize_ts17/model.onnx"),
    include_bytes!("../../tests/fixtures/onnx/op_scatter_gather_17/model.onnx"),
    include_bytes!("../../tests/fixtures/onnx/op_convolutions_ts17/model.onnx"),
    include_bytes!("../../tests/fixtures/onnx/op_rotary_23/model.onnx"),
];

#[test]
fn a_cut_model_is_an_error() {
    let good = SMALL_MODELS[0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for part in 1..8 {
        std::fs::write(&path, &good[..good.len() * part / 8]).unwrap();
        let error = import(&path).unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::BadFile, "onnx.decode"), "{error}");
    }
}

#[test]
fn sizes_that_no_tensor_has_are_refused() {
    let x = [value("x", 1, &["4"])];
    for (op, shape) in [("Reshape", &[-2, -2][..]), ("Expand", &[-4, 4]), ("Expand", &[i64::MAX, 4])] {
        let nodes = [node(op, &["x", "shape"], &["y"])];
        fails(&model(17, &x, &[ints("shape", shape)], &nodes), Kind::BadFile, "onnx.node", &["cannot have size"]);
    }
    let split = node("Split", &["x", "sizes"], &["y", "z"]);
    fails(&model(17, &x, &[ints("sizes", &[-1, 5])], &[split]), Kind::BadFile, "onnx.node", &["cannot have size -1"]);
    let reverse = [ints("s", &[3]), ints("e", &[i64::MIN]), ints("a", &[0]), ints("t", &[i64::MIN])];
    let slice = node("Slice", &["x", "s", "e", "a", "t"], &["y"]);
    assert_eq!(run(&model(17, &x, &reverse, &[slice]), &[("x", grid(&[4]))]).to_f32(), [3.0]);
}
