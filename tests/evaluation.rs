//! `lite3r eval` on rendered scenes written in the layouts of BlendedMVS and DTU: the tables are those of the same scenes
//! straight from the renderer, and what is special about a data set is said beside them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lite3r::{
    data::{Cam, pairs, splits},
    eval::mat,
    geometry::{Vec3, scale},
    recon::write_pfm,
    scenes::{Rendered, Scene},
};
use serde_json::Value;

const SIZE: usize = 224;

fn lite3r(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lite3r")).args(args).output().expect("the program starts")
}

fn succeeds(args: &[&str]) -> String {
    let output = lite3r(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A plan of the small backbone for two views.
fn plan(folder: &Path) -> String {
    let plan = folder.join("small.l3r").to_string_lossy().into_owned();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/small_backbone.onnx");
    let model = model.to_string_lossy();
    let args = [&model, "-o", plan.as_str(), "--bind", "S=2", "-q"];
    let status = Command::new(env!("CARGO_BIN_EXE_lite3r-compile")).args(args).status().expect("the program starts");
    assert!(status.success());
    plan
}

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn put_image(path: &Path, view: &Rendered) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_raw(SIZE as u32, SIZE as u32, view.rgb.clone()).unwrap().save(path).unwrap();
}

fn views(index: u64, count: usize) -> Vec<Rendered> {
    let scene = Scene::sample(1, index, count);
    (0..count).map(|v| scene.render(v, SIZE, SIZE)).collect()
}

/// A camera file; its range ends with four numbers, as those of BlendedMVS.
fn cam(view: &Rendered) -> String {
    Cam { camera: view.camera, near: 0.5, interval: 0.25, count: Some(128.0), far: 32.25 }.text()
}

/// Everything a view sees in a scene is also seen by all others, the nearer in number the better.
fn all_pairs(count: u32) -> pairs::Pairs {
    let others = |i: u32| (0..count).filter(move |j| *j != i).map(move |j| (j, f64::from(100 - j.abs_diff(i))));
    (0..count).map(|i| (i, others(i).collect())).collect()
}

/// Scenes in the layout of BlendedMVS; pictures are PNG, which loses nothing.
fn write_blendedmvs(root: &Path, names: &[&str], count: usize) {
    for (index, name) in names.iter().enumerate() {
        let folder = root.join(name);
        for (i, view) in views(index as u64, count).iter().enumerate() {
            put_image(&folder.join(format!("blended_images/{i:08}.png")), view);
            put(&folder.join(format!("cams/{i:08}_cam.txt")), cam(view));
            let depth = folder.join(format!("rendered_depth_maps/{i:08}.pfm"));
            fs::create_dir_all(depth.parent().unwrap()).unwrap();
            write_pfm(&depth, [SIZE as u32; 2], &view.depth).unwrap();
        }
        put(&folder.join("cams/pair.txt"), pairs::text(&all_pairs(count as u32)));
    }
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeeds(&[args, &["--json", "-q"]].concat())).expect("JSON")
}

fn rows(report: &Value, table: usize) -> BTreeMap<(String, String), f64> {
    let rows = report["runs"][0]["tables"][table]["rows"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_string();
    rows.iter()
        .map(|r| ((text(&r["protocol"]), text(&r["measure"])), r["mean"]["estimate"].as_f64().unwrap()))
        .collect()
}

#[test]
fn blendedmvs_gives_the_numbers_of_the_renderer() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let root = folder.path().join("BlendedMVS");
    write_blendedmvs(&root, &["first", "second"], 2);
    let data = format!("blendedmvs:{}", root.display());
    let protocols = ["--protocol", "standard,lite3r-compat", "--choice", "first"];
    let eval = |data: &str| json(&[&["eval", &plan, "--data", data, "--scenes", "2"], &protocols[..]].concat());
    let (files, rendered) = (eval(&data), eval("synthetic"));
    assert_eq!(
        files["samples"],
        serde_json::json!([
            { "scene": "first", "views": [0, 1] },
            { "scene": "second", "views": [0, 1] },
        ])
    );
    let (files, rendered) = (rows(&files, 0), rows(&rendered, 0));
    assert_eq!(files.len(), rendered.len());
    for (key, value) in &files {
        let other = rendered[key];
        // Rotations of the published code lose digits near zero by their arc cosine.
        let slack = if key.1 == "rot_err_deg" { 1e-4 } else { 1e-5 };
        assert!((value - other).abs() <= slack * other.abs().max(1.0), "{key:?}: {value} and {other}");
    }
    assert!(files.contains_key(&("lite3r-compat".into(), "fscore_5cm".into())));
    assert!(!files.contains_key(&("ate/sim3".into(), "ATE RMSE".into())), "two views have no trajectory");
}

#[test]
fn splits_and_missing_scenes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let root = folder.path().join("BlendedMVS");
    let (val, train) = (splits::blendedmvs(lite3r::data::Split::Val), splits::blendedmvs(lite3r::data::Split::Train));
    write_blendedmvs(&root, &[val[0], train[0]], 3);
    let data = format!("blendedmvs:{}", root.display());
    let eval = |more: &[&str]| lite3r(&[&["eval", &plan, "--data", &data, "--protocol", "pose/pairs"], more].concat());
    // Six of seven official scenes are missing, and all are named.
    let output = eval(&[]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(val[1..].iter().all(|name| errors.contains(name)) && !errors.contains(val[0]), "{errors}");
    let text = |more: &[&str]| {
        let output = eval(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let one = text(&["--scenes", "1"]);
    assert!(one.starts_with(&format!("{data}, 1 val scenes, seed 1")) && one.contains("missing: "), "{one}");
    let all = text(&["--split", "all"]);
    assert!(
        all.contains("1 are for training") && all.contains("scenes: train") && all.contains("scenes: val"),
        "{all}"
    );
    // A broken view is an error that names it, unless it may be left out, which is said.
    put(&root.join(val[0]).join("rendered_depth_maps/00000002.pfm"), "");
    let broken = eval(&["--scenes", "1", "--choice", "random", "--draws", "9"]);
    let errors = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert!(broken.status.code() == Some(4) && errors.contains("00000002.pfm"), "{errors}");
    let left = text(&["--scenes", "1", "--leave-out-broken"]);
    assert!(left.contains("left out:") && left.contains("00000002.pfm"), "{left}");
}

#[test]
fn dtu64_is_measured_by_poses_and_tells_who_has_seen_it() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let root = folder.path().join("dtu64");
    let views = views(0, 2);
    for (i, view) in views.iter().enumerate() {
        put(&root.join(format!("Cameras/{i:08}_cam.txt")), cam(view));
        splits::DTU64.iter().for_each(|n| put_image(&root.join(format!("scan{n}/image/{i:06}.png")), view));
    }
    let data = format!("dtu64:{}", root.display());
    let args = ["eval", &plan, "--data", &data, "--protocol", "standard,lite3r-compat"];
    let report = json(&args);
    let tables = report["runs"][0]["tables"].as_array().unwrap();
    let scenes: Vec<(&str, u64)> =
        tables.iter().map(|t| (t["scenes"].as_str().unwrap(), t["rows"][0]["scenes"].as_u64().unwrap())).collect();
    let expect = [
        ("all", 13),
        ("test scans of MVSNet's lists", 3),
        ("train scans of MVSNet's lists", 8),
        ("val scans of MVSNet's lists", 2),
    ];
    assert_eq!(scenes, expect);
    let all = rows(&report, 0);
    assert!(all.keys().all(|(protocol, _)| protocol == "pose/pairs" || protocol == "lite3r-compat"));
    let compat: Vec<&str> = all.keys().filter(|k| k.0 == "lite3r-compat").map(|k| k.1.as_str()).collect();
    assert_eq!(compat, ["rot_err_deg", "trans_err"], "poses only");
    let text = succeeds(&args);
    assert!(
        text.contains("8 of the 13 scans are training scans of MVSNet's lists (55 63 65 69 83 97 105 122)"),
        "{text}"
    );
    fs::remove_dir_all(root.join("scan65")).unwrap();
    let output = lite3r(&args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(4) && errors.contains("scan65"), "{errors}");
}

#[test]
fn the_generator_has_splits() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let eval =
        |data: &str| json(&["eval", &plan, "--data", data, "--scenes", "1", "--protocol", "depth/none,pose/pairs"]);
    let (test, val) = (eval("synthetic:test"), eval("synthetic:val"));
    assert_eq!(test["samples"], serde_json::json!([{ "scene": "test-1-000000", "views": [0, 1] }]));
    assert_eq!(val["samples"][0]["scene"], "val-1-000000");
    assert_ne!(rows(&test, 0), rows(&val, 0));
    assert_eq!(rows(&eval("synthetic:varied"), 0), rows(&test, 0));
    // What `lite3r data synth` writes is the same, without the losses of JPEG.
    let out = folder.path().join("made").to_string_lossy().into_owned();
    succeeds(&[
        "data", "synth", &out, "--scenes", "1", "--views", "2", "--split", "test", "--size", "224x224", "--images",
        "png", "-q",
    ]);
    let files = eval(&format!("blendedmvs:{out}"));
    assert_eq!(files["samples"][0]["scene"], "test-1-000000");
    for ((protocol, measure), value) in rows(&files, 0) {
        let other = rows(&test, 0)[&(protocol, measure.clone())];
        assert!((value - other).abs() < 1e-3 * other.abs().max(1.0), "{measure}: {value} and {other}");
    }
}

/// The points behind every fourth pixel of the views.
fn surface(views: &[Rendered]) -> Vec<Vec3> {
    let pixels = |view: &Rendered| -> Vec<Vec3> {
        let valid = (0..SIZE * SIZE).filter(|i| view.valid[*i] && i % 4 == 0);
        valid
            .map(|i| {
                let (u, v) = ((i % SIZE) as f64 + 0.5, (i / SIZE) as f64 + 0.5);
                view.camera.unproject(u, v, f64::from(view.depth[i]))
            })
            .collect()
    };
    views.iter().flat_map(pixels).collect()
}

#[test]
fn dtu_is_measured_in_millimetres() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let root: PathBuf = folder.path().join("dtu");
    // A unit of the renderer becomes 10 mm, so that errors of some percent lie within the cut.
    let mm = 10.0;
    let mut views = views(0, 2);
    let points: Vec<Vec3> = surface(&views).into_iter().map(|p| scale(p, mm)).collect();
    for (i, view) in views.iter_mut().enumerate() {
        (0..3).for_each(|row| view.camera.extrinsic[row][3] *= mm);
        put_image(&root.join(format!("Rectified/scan1/rect_{:03}_3_r5000.png", i + 1)), view);
        put(&root.join(format!("Cameras/{i:08}_cam.txt")), cam(view));
    }
    let array = |shape: &[usize], values: Vec<f64>| mat::Array { shape: shape.to_vec(), values };
    let (low, high) = (-200.0, 200.0);
    let mask = BTreeMap::from([
        ("ObsMask".to_string(), array(&[41, 41, 41], vec![1.0; 41 * 41 * 41])),
        ("BB".to_string(), array(&[2, 3], [low, high].repeat(3))),
        ("Res".to_string(), array(&[1, 1], vec![10.0])),
    ]);
    put(&root.join("ObsMask/ObsMask1_10.mat"), mat::to_bytes(&mask));
    let plane = BTreeMap::from([("P".to_string(), array(&[4, 1], vec![0.0, 0.0, 1.0, 1.0]))]);
    put(&root.join("ObsMask/Plane1.mat"), mat::to_bytes(&plane));
    let mut ply = format!("ply\nformat ascii 1.0\nelement vertex {}\n", points.len());
    ply += "property float x\nproperty float y\nproperty float z\nend_header\n";
    points.iter().for_each(|[x, y, z]| ply += &format!("{x} {y} {z}\n"));
    put(&root.join("Points/stl/stl001_total.ply"), ply);
    let data = format!("dtu:{}", root.display());
    let all = rows(&json(&["eval", &plan, "--data", &data, "--scenes", "1"]), 0);
    let dtu = |measure: &str| all[&("dtu/acc-comp-mm".to_string(), measure.to_string())];
    let (accuracy, completeness) = (dtu("Acc mm"), dtu("Comp mm"));
    assert!((0.01..20.0).contains(&accuracy) && (0.01..20.0).contains(&completeness), "{all:?}");
    assert!((dtu("Overall mm") - (accuracy + completeness) / 2.0).abs() < 1e-12);
    fs::remove_file(root.join("ObsMask/Plane1.mat")).unwrap();
    let output = lite3r(&["eval", &plan, "--data", &data, "--scenes", "1"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Plane1.mat"));
}
