//! The command lines as a user meets them: what they print, what they write, and what they exit with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const COMPILE: &str = env!("CARGO_BIN_EXE_lite3r-compile");
const LITE3R: &str = env!("CARGO_BIN_EXE_lite3r");

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx").join(name).to_string_lossy().into_owned()
}

fn model(name: &str) -> String {
    format!("{}/model.onnx", fixture(name))
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).env_remove("LITE3R_LOG").output().expect("the program starts")
}

fn succeeds(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The exit code, and the errors with what differs from machine to machine taken out.
fn fails(program: &str, args: &[&str], folder: &Path) -> String {
    let output = run(program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty(), "{args:?} prints results: {}", String::from_utf8_lossy(&output.stdout));
    let text = errors.replace(&*folder.to_string_lossy(), "TMP").replace(env!("CARGO_MANIFEST_DIR"), "REPO");
    format!("exit {}\n{text}", output.status.code().expect("no signal"))
}

/// A folder of the test, and paths in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder can be read");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("entries can be read").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn compile_inspect_compare_run() {
    let folder = Folder::new();
    let plan = folder.text("vggt.l3r");
    let printed =
        succeeds(COMPILE, &[&model("vggt_s_dyn18"), "-o", &plan, "--bind", "S=2,3", "--require", "attention=9"]);
    // The arena holds scratch for every thread, so its size is the machine's.
    let (recognised, sizes) = printed.split_once("\nentry ").expect("entries are listed");
    insta::assert_snapshot!("compile", recognised);
    assert_eq!(sizes.lines().count(), 3, "{sizes}");
    assert_eq!(folder.names(), ["vggt.l3r"]);

    let inspected = succeeds(LITE3R, &["inspect", &plan, "--json"]);
    let view: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(view["entries"].as_array().unwrap().len(), 2);
    assert!(succeeds(LITE3R, &["inspect", &plan, "--cost"]).contains("live MB"));

    let compared =
        succeeds(LITE3R, &["compare", &plan, "--ref", &fixture("vggt_s_dyn18"), "--tolerance", "2e-4", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&compared).unwrap();
    let outputs = rows["outputs"].as_array().unwrap();
    assert!(outputs.len() >= 6, "{compared}");
    assert!(outputs.iter().all(|r| r["error"].as_f64().unwrap() < 2e-4), "{compared}");
    let nodes = succeeds(LITE3R, &["compare", &plan, "--ref", &fixture("vggt_s_dyn18"), "--per-node"]);
    assert!(nodes.contains("origin"), "{nodes}");
    let refused = run(LITE3R, &["compare", &plan, "--ref", &fixture("vggt_s_dyn18"), "--tolerance", "1e-12"]);
    assert_eq!(refused.status.code(), Some(6));

    let input = format!("images=@{}/in_S2_images.npy", fixture("vggt_s_dyn18"));
    let saved = folder.text("out.npz");
    let ran = succeeds(LITE3R, &["run", &plan, "--input", &input, "--save-outputs", &saved]);
    assert!(ran.contains("pose_enc: f32[1,2,9]"), "{ran}");
    let outputs = lite3r::npy::read_archive(Path::new(&saved)).unwrap();
    assert_eq!(outputs["pose_enc"].shape(), [1, 2, 9]);
}

#[test]
fn text_of_the_graph() {
    let folder = Folder::new();
    let ir = succeeds(COMPILE, &[&model("op_block_ts17"), "--emit", "ir", "--quiet"]);
    lite3r_ir::verify(&ir.parse().expect("the text parses")).unwrap();
    let dumped = folder.text("dump");
    let sla = "global=sla{keep=0.5,block_q=2,block_k=2,form=centroid,layout=raw}";
    succeeds(COMPILE, &[&model("vggt_ts17"), "--emit", "ir", "-q", "--dump-dir", &dumped, "--attention", sla]);
    let files = fs::read_dir(&dumped).unwrap().count();
    assert!(files > 20, "{files} graphs");
    let stopped = succeeds(COMPILE, &[&model("vggt_ts17"), "-q", "--stop-after", "attention_kinds"]);
    assert_eq!(stopped.matches("kind=global").count(), 2, "{stopped}");
}

#[test]
fn pictures_become_geometry() {
    let folder = Folder::new();
    let demo = folder.text("demo");
    let printed = succeeds(LITE3R, &["demo", "-o", &demo, "--views", "2", "--json", "-q"]);
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let errors: Vec<f64> =
        report["runs"].as_array().unwrap().iter().map(|run| run["depth"]["abs_rel"].as_f64().unwrap()).collect();
    // The teacher, then its student.
    assert!(errors.len() == 2 && errors[0] > 0.0 && errors[0] < 0.12 && errors[1] < 1.2 * errors[0], "{printed}");
    let html = fs::read_to_string(folder.path("demo/report.html")).unwrap();
    assert!(!html.contains("http://") && !html.contains("https://"), "the page loads nothing");

    let plan = folder.text("small.l3r");
    let small = folder.text("demo/small_backbone.onnx");
    succeeds(COMPILE, &[&small, "-o", &plan, "--bind", "S=2", "-q"]);
    let (images, out) = (folder.text("demo/images"), folder.text("out"));
    let printed = succeeds(LITE3R, &["run", &plan, &images, "-o", &out, "--json", "-q"]);
    let result: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(result["views"], 2);
    for file in ["cameras.json", "predictions.npz", "points.ply", "points.glb", "sparse/0/cameras.bin"] {
        assert!(folder.path("out").join(file).is_file(), "{file} is missing");
    }
}

#[test]
fn plans_are_measured_by_named_protocols() {
    let folder = Folder::new();
    let (dense, lite, saved) = (folder.text("dense.l3r"), folder.text("lite.l3r"), folder.path("report.json"));
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/small_backbone.onnx");
    let small = small.to_string_lossy();
    succeeds(COMPILE, &[&small, "-o", &dense, "--bind", "S=3", "-q"]);
    let sla = "global=sla{keep=0.1,block_k=16,router=sub16,form=centroid}";
    succeeds(COMPILE, &[&small, "-o", &lite, "--bind", "S=3", "-q", "--attention", sla]);
    let data = ["--data", "synthetic", "--scenes", "2", "-q"];
    let eval = |args: &[&str]| succeeds(LITE3R, &[&["eval"], args, &data[..]].concat());
    let report = eval(&[&dense, &lite, "--protocol", "depth/none,pose/pairs,ate", "--json"]);
    fs::write(&saved, &report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    for run in report["runs"].as_array().unwrap() {
        let rows = run["tables"][0]["rows"].as_array().unwrap();
        let abs_rel = rows.iter().find(|r| r["protocol"] == "depth/none" && r["measure"] == "AbsRel").unwrap();
        let mean = abs_rel["mean"]["estimate"].as_f64().unwrap();
        assert!(mean > 0.0 && mean < 0.3 && abs_rel["scenes"] == 2 && abs_rel["failed"] == 0, "{abs_rel}");
        assert_eq!(run["samples"].as_array().unwrap().len(), 2);
    }
    assert_eq!(report["samples"][1]["views"], serde_json::json!([0, 1, 2]));
    let cost = |run: usize| &report["runs"][run]["costs"][0];
    assert!(cost(0)["seconds"].as_f64().unwrap() > 0.0 && cost(1)["weight_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(cost(0)["run_bytes"].as_u64().unwrap() > 1 << 20, "{}", cost(0));
    // Two plans as one row.
    let pair = eval(&[&format!("{dense},{lite}"), "--protocol", "depth/none", "--json"]);
    let pair: serde_json::Value = serde_json::from_str(&pair).unwrap();
    let abs_rel = |report: &serde_json::Value, run: usize| report["runs"][run]["tables"][0]["rows"][0].clone();
    let each = [0, 1].map(|run| abs_rel(&report, run)["mean"]["estimate"].clone());
    assert_eq!(abs_rel(&pair, 0)["seeds"]["estimates"], serde_json::json!(each));
    assert_eq!(pair["runs"][0]["costs"][1]["plan"], serde_json::json!(lite));
    // The frozen samples give the same numbers again, beside other protocols; the published code's faults are named.
    let text = eval(&[&dense, "--protocol", "depth/none,lite3r-compat", "--samples", &saved.to_string_lossy()]);
    let mean = report["runs"][0]["tables"][0]["rows"][0]["mean"]["estimate"].as_f64().unwrap();
    assert!(text.contains(&format!("{mean:.4}")[1..]) && text.contains("fault repeated: chamfer"), "{text}");
    let named = |line: &&str| line.starts_with("depth/none ") || line.starts_with("lite3r-compat ");
    assert_eq!(text.lines().filter(named).count(), 5 + 9, "{text}");
    let mut shown = String::new();
    for (what, args) in [
        ("unknown data", &["--data", "landscapes"][..]),
        ("unknown protocol", &["--data", "synthetic", "--protocol", "auc"]),
        ("unknown choice", &["--data", "synthetic", "--choice", "best"]),
        ("no report", &["--data", "synthetic", "--samples", &small]),
        ("views that the plan does not take", &["--data", "synthetic", "--scenes", "1", "--views", "2"]),
    ] {
        let args = [&["eval", &dense, "-q"], args].concat();
        shown += &format!("## {what}\n{}\n", fails(LITE3R, &args, folder.0.path()));
    }
    insta::assert_snapshot!("eval_errors", shown);
}

#[test]
fn data_sets_are_written_and_checked() {
    let folder = Folder::new();
    let scenes = folder.text("scenes");
    let synth = |args: &[&str]| {
        let fixed = ["data", "synth", &scenes, "--scenes", "2", "--views", "3", "--size", "48x36", "-q"];
        succeeds(LITE3R, &[&fixed, args].concat())
    };
    assert_eq!(synth(&["--split", "test"]), format!("{scenes}: 2 scenes of 3 views for test\n"));
    let printed: serde_json::Value = serde_json::from_str(&synth(&["--images", "png", "--json"])).unwrap();
    assert_eq!(printed["scenes"][1], "train-1-000001");
    for file in [
        "training_list.txt",
        "test_list.txt",
        "test-1-000000/cams/pair.txt",
        "train-1-000001/blended_images/00000002.png",
    ] {
        assert!(folder.path("scenes").join(file).is_file(), "{file} is missing");
    }
    let report = succeeds(LITE3R, &["data", "check", &scenes, "-q"]);
    for line in ["train: 2 scenes, 6 views, 6 with depth", "test: 2 scenes", "test-1-000001 3 views (3 of 48x36)"] {
        assert!(report.contains(line), "{line} in {report}");
    }
    fs::write(folder.path("scenes/train-1-000000/rendered_depth_maps/00000001.pfm"), "").unwrap();
    fs::remove_file(folder.path("scenes/test-1-000001/cams/00000000_cam.txt")).unwrap();
    let output = run(LITE3R, &["data", "check", &scenes, "-q"]);
    let errors = String::from_utf8_lossy(&output.stderr).replace(&scenes, "SCENES");
    let mut shown = format!("exit {}\n{errors}", output.status.code().expect("no signal"));
    for args in [&["data", "check", "missing", "-q"][..], &["data", "synth", "x", "--split", "all"]] {
        shown += &fails(LITE3R, args, folder.0.path());
    }
    insta::assert_snapshot!("data_errors", shown);
}

#[test]
fn errors_name_what_is_wrong() {
    let folder = Folder::new();
    let temporary = folder.0.path();
    let mut shown = String::new();
    let mut case = |what: &str, program: &str, args: &[&str]| {
        shown += &format!("## {what}\n{}\n", fails(program, args, temporary));
    };
    let (plan, text) = (folder.text("p.l3r"), folder.text("text.onnx"));
    fs::write(&text, "this is no model").unwrap();
    case("no such file", COMPILE, &[&folder.text("none.onnx"), "-o", &plan]);
    case("not a model", COMPILE, &[&text, "-o", &plan]);
    case("no output", COMPILE, &[&model("vggt_ts17")]);
    case("unknown target", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--target", "abacus"]);
    case("unbound symbol", COMPILE, &[&model("vggt_s_dyn18"), "-o", &plan]);
    case("bound twice", COMPILE, &[&model("vggt_s_dyn18"), "-o", &plan, "--bind", "S=2", "--bind", "S=3"]);
    case("unknown symbol", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--bind", "T=2"]);
    case("unknown output", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--outputs", "colour,depth"]);
    case("missing recognition", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--require", "attention=99"]);
    case("unknown pass", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--passes", "dce,polish"]);
    case("unknown option", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--attention", "global=sla{keeep=0.1}"]);
    case("no reference view", COMPILE, &[&model("vggt_ts17"), "-o", &plan, "--reference-view", "first"]);
    case("unknown backbone", COMPILE, &["--arch", "vggt-9b", "--size", "28x28", "--random-weights", "1", "-o", &plan]);
    assert_eq!(folder.names(), ["text.onnx"], "nothing is written half");

    succeeds(COMPILE, &[&model("vggt_ts17"), "-o", &plan, "-q"]);
    let bytes = fs::read(&plan).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        fs::write(folder.path(name), bytes).unwrap();
        folder.text(name)
    };
    let cut = put("cut.l3r", &bytes[..bytes.len() / 2]);
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    let flipped = put("flipped.l3r", &other);
    other = bytes.clone();
    other[8] = 77;
    let version = put("version.l3r", &other);
    case("plan cut short", LITE3R, &["run", &cut, "x.png", "-o", "out"]);
    case("plan with a flipped bit", LITE3R, &["run", &flipped, "x.png", "-o", "out"]);
    case("plan of another version", LITE3R, &["run", &version, "x.png", "-o", "out"]);
    case("not a plan", LITE3R, &["inspect", &text]);
    case("not a picture", LITE3R, &["run", &plan, &text, "-o", "out"]);
    case("no input", LITE3R, &["run", &plan]);
    case("wrong input", LITE3R, &["run", &plan, "--input", &format!("x=@{}/in_images.npy", fixture("vggt_ts17"))]);
    case("unknown device", LITE3R, &["run", &plan, "--device", "abacus", "x.png", "-o", "out"]);
    insta::assert_snapshot!("errors", shown);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = Folder::new();
    let plan = folder.text("p.l3r");
    succeeds(COMPILE, &[&model("vggt_ts17"), "-o", &plan, "-q"]);
    for args in
        [&["inspect", &plan, "--cost", "--ir"][..], &["inspect", &plan, "--json"], &["bench", &plan, "--runs", "1"]]
    {
        let mut command = Command::new(LITE3R);
        command.args(args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{args:?}: {errors}");
    }
}

#[test]
fn faults_of_the_device_have_codes_of_their_own() {
    let folder = Folder::new();
    let plan = folder.text("p.l3r");
    let clean = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).env_remove("LD_LIBRARY_PATH").output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, errors) =
        clean(COMPILE, &[&model("vggt_ts17"), "-o", &plan, "-q", "--target", "cuda:sm_90a", "--precision", "bf16"]);
    match code {
        Some(0) => eprintln!("skipped: NVRTC is installed for the whole system"),
        code => assert!(code == Some(13) && errors.contains("[cuda.nvrtc]"), "{code:?}: {errors}"),
    }
    succeeds(COMPILE, &[&model("vggt_ts17"), "-o", &plan, "-q"]);
    let input = format!("images=@{}/in_images.npy", fixture("vggt_ts17"));
    let (code, errors) = clean(LITE3R, &["run", &plan, "--device", "cuda:0", "--input", &input]);
    match errors.contains("[cuda.no_driver]") {
        false => eprintln!("skipped: there is a driver: {errors}"),
        true => assert_eq!(code, Some(10), "{errors}"),
    }
    let (code, errors) = clean(LITE3R, &["run", &plan, "--input", &input, "--check-finite", "--time"]);
    assert!(code == Some(0) && errors.contains("steps are finite") && errors.contains("plan"), "{errors}");
}

#[test]
fn help_teaches() {
    let compile = succeeds(COMPILE, &["--help"]);
    assert!(compile.contains("Examples:") && compile.contains("Exit codes:"), "{compile}");
    let run = succeeds(LITE3R, &["run", "--help"]);
    assert!(run.contains("Examples:"), "{run}");
    assert_eq!(self::run(LITE3R, &["nonsense"]).status.code(), Some(2));
    let devices = succeeds(LITE3R, &["devices"]);
    assert!(["cpu", "cuda", "wgsl"].iter().all(|name| devices.contains(name)), "{devices}");
}
