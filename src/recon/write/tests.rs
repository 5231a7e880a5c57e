//! Every format read back: by the crates that write it where they also read, otherwise by a parser of its
//! specification.

use std::fs;

use npyz::npz::NpzArchive;
use serde_json::Value;

use super::*;
use crate::recon::testing::scene;

fn written(formats: &str) -> (tempfile::TempDir, Reconstruction) {
    let (dir, scene) = (tempfile::tempdir().unwrap(), scene());
    let files = write_all(&scene, dir.path(), &Formats::parse(formats).unwrap()).unwrap();
    assert!(!files.is_empty() && files.iter().all(|f| f.is_file()));
    (dir, scene)
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} against {b}");
}

fn cloud(scene: &Reconstruction) -> Vec<Point> {
    scene.points(&PointOptions::default())
}

#[test]
fn cameras_and_16_bit_depth() {
    let (dir, scene) = written("depth-png");
    let json: Value = serde_json::from_slice(&fs::read(dir.path().join("cameras.json")).unwrap()).unwrap();
    let scale = json["depth_png_scale"].as_f64().unwrap();
    for (i, view) in scene.views.iter().enumerate() {
        let entry = &json["views"][i];
        assert_eq!(entry["name"], view.name.as_str());
        assert_eq!([&entry["width"], &entry["height"]].map(|v| v.as_u64().unwrap() as u32), view.size());
        for r in 0..3 {
            for c in 0..4 {
                close(entry["camera_from_world"][r][c].as_f64().unwrap(), view.pose.matrix()[r][c], 1e-15);
            }
        }
        close(entry["intrinsics"][1][2].as_f64().unwrap(), view.intrinsics.cy, 1e-15);
        let png = image::open(dir.path().join(entry["depth_png"].as_str().unwrap())).unwrap().into_luma16();
        assert_eq!(png.dimensions(), view.image.dimensions());
        for (v, d) in png.as_raw().iter().zip(&view.depth) {
            assert_eq!(*v == 0, *d == 0.0);
            close(*v as f64 * scale, *d as f64, scale);
        }
    }
}

#[test]
fn pfm_is_bottom_up_and_comes_back() {
    let (dir, scene) = written("depth-pfm");
    let view = &scene.views[0];
    let bytes = fs::read(dir.path().join("depth/view0.pfm")).unwrap();
    let header = b"Pf\n12 8\n-1.0\n";
    assert!(bytes.starts_with(header));
    // The first row of the file is the last of the image.
    assert_eq!(bytes[header.len()..][..4], view.depth[7 * 12].to_le_bytes());
    assert_eq!(read_pfm(&bytes).unwrap(), (view.size(), view.depth.clone()));
    let mut big = b"Pf 1 2 1\n".to_vec();
    big.extend([3f32, 4.0].iter().flat_map(|v| v.to_be_bytes()));
    assert_eq!(read_pfm(&big).unwrap(), ([1, 2], vec![4.0, 3.0]));
    for bad in [&bytes[..bytes.len() - 1], b"PF 1 1 -1\n", b"Pf 0 4 -1\n", b"Pf 1 1 x\n0000", b"", &[255; 200]] {
        assert_eq!(read_pfm(bad).unwrap_err().code, "recon.pfm");
    }
}

#[test]
fn npz_reads_back() {
    let (dir, scene) = written("npz");
    let read = |name: &str| {
        let mut npz = NpzArchive::open(dir.path().join("predictions.npz")).unwrap();
        let file = npz.by_name(name).unwrap().unwrap();
        (file.shape().to_vec(), file.into_vec::<f32>().unwrap())
    };
    // The views differ in size, so each has its own arrays.
    for (i, view) in scene.views.iter().enumerate() {
        let [w, h] = view.size().map(u64::from);
        assert_eq!(read(&format!("depth_{i}")), (vec![h, w], view.depth.clone()));
        assert_eq!(read(&format!("confidence_{i}")), (vec![h, w], view.confidence.clone()));
    }
    let (shape, extrinsics) = read("extrinsics");
    assert_eq!(shape, [2, 3, 4]);
    close(extrinsics[12 + 3] as f64, 0.4, 1e-6);
    assert_eq!(read("intrinsics").1[0], 10.0);

    let equal = Reconstruction { views: vec![scene.views[0].clone(), scene.views[0].clone()], dropped: 0 };
    write_all(&equal, dir.path(), &Formats::parse("npz").unwrap()).unwrap();
    assert_eq!(read("depth").0, [2, 8, 12]);
    let mut npz = NpzArchive::open(dir.path().join("predictions.npz")).unwrap();
    let images = npz.by_name("images").unwrap().unwrap();
    assert_eq!(images.shape(), [2, 8, 12, 3]);
    assert_eq!(images.into_vec::<u8>().unwrap()[..288], *scene.views[0].image.as_raw().as_slice());
}

#[test]
fn ply_reads_back() {
    let (dir, scene) = written("ply");
    let bytes = fs::read(dir.path().join("points.ply")).unwrap();
    let end = bytes.windows(11).position(|w| w == b"end_header\n").unwrap() + 11;
    let header = std::str::from_utf8(&bytes[..end]).unwrap();
    let points = cloud(&scene);
    assert!(header.starts_with("ply\nformat binary_little_endian 1.0\n"), "{header}");
    assert!(header.contains(&format!("\nelement vertex {}\n", points.len())), "{header}");
    let body = &bytes[end..];
    assert_eq!(body.len(), 19 * points.len());
    for (b, p) in body.chunks_exact(19).zip(&points) {
        let f = |i: usize| f32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        assert_eq!(([f(0), f(4), f(8)], [b[12], b[13], b[14]], f(15)), (p.position, p.color, p.confidence));
    }
}

#[test]
fn glb_is_valid_and_reads_back() {
    let (dir, scene) = written("glb");
    let bytes = fs::read(dir.path().join("points.glb")).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!((&bytes[..4], word(4), word(8), &bytes[16..20]), (&b"glTF"[..], 2, bytes.len(), &b"JSON"[..]));
    let json = &bytes[20..20 + word(12)];
    let binary = 20 + json.len();
    assert_eq!((word(binary), &bytes[binary + 4..binary + 8]), (bytes.len() - binary - 8, &b"BIN\0"[..]));
    let data = &bytes[binary + 8..];
    let root: gltf_json::Root = gltf_json::deserialize::from_slice(json).unwrap();
    let mut faults = Vec::new();
    gltf_json::validation::Validate::validate(&root, &root, gltf_json::Path::new, &mut |path, e| {
        faults.push(format!("{}: {e}", path()));
    });
    assert_eq!(faults, Vec::<String>::new());
    let json: Value = serde_json::from_slice(json).unwrap();
    let points = cloud(&scene);
    assert_eq!(json["accessors"][0]["count"], points.len());
    assert_eq!(
        (&json["meshes"][0]["primitives"][0]["mode"], &json["meshes"][1]["primitives"][0]["mode"]),
        (&0.into(), &1.into())
    );
    for (b, p) in data.chunks_exact(16).zip(&points) {
        let f = |i: usize| f32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        assert_eq!(([f(0), f(4), f(8)], b[15]), (p.position, 255));
    }
    // Two cameras of eight edges; the first apex is the first camera's centre.
    assert_eq!(json["accessors"][2]["count"], 32);
    let apex = &data[16 * points.len()..][..12];
    assert_eq!(apex, [0u8; 12]);
    assert_eq!(data.len(), 16 * (points.len() + 32));

    let nothing = Reconstruction { views: Vec::new(), dropped: 0 };
    assert!(glb_bytes(&nothing, &[]).is_ok());
}

/// Reads little-endian numbers one after the other.
struct Reader(Vec<u8>, usize);

impl Reader {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.1 += N;
        self.0[self.1 - N..self.1].try_into().unwrap()
    }

    fn int(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn double(&mut self) -> f64 {
        f64::from_le_bytes(self.take())
    }
}

/// Every line of `sparse_text` as the words it holds, in the order of the binary file.
fn text_numbers(text: &str) -> Vec<String> {
    text.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace).map(String::from).collect()
}

#[test]
fn colmap_binary_reads_back_and_reprojects() {
    let (dir, scene) = written("colmap");
    let open = |name: &str| Reader(fs::read(dir.path().join("sparse/0").join(name)).unwrap(), 0);
    let points = cloud(&scene);

    let mut file = open("cameras.bin");
    assert_eq!(file.long(), 2);
    let mut cameras = Vec::new();
    for (i, view) in scene.views.iter().enumerate() {
        assert_eq!((file.int(), file.int()), (i as u32 + 1, 1));
        assert_eq!([file.long(), file.long()], view.size().map(u64::from));
        cameras.push([file.double(), file.double(), file.double(), file.double()]);
    }
    assert_eq!(file.1, file.0.len());

    let mut file = open("points3D.bin");
    assert_eq!(file.long(), points.len() as u64);
    let mut positions = Vec::new();
    for (i, p) in points.iter().enumerate() {
        assert_eq!(file.long(), i as u64 + 1);
        positions.push([file.double(), file.double(), file.double()]);
        assert_eq!((file.take::<3>(), file.double(), file.long(), file.int()), (p.color, 0.0, 1, p.view + 1));
        file.int();
    }
    assert_eq!(file.1, file.0.len());

    let mut file = open("images.bin");
    assert_eq!(file.long(), 2);
    let mut seen = 0;
    for (i, view) in scene.views.iter().enumerate() {
        assert_eq!(file.int(), i as u32 + 1);
        let [w, x, y, z] = [file.double(), file.double(), file.double(), file.double()];
        let t = [file.double(), file.double(), file.double()];
        let pose = crate::recon::Pose::from_quaternion([x, y, z, w], t);
        assert_eq!(file.int(), i as u32 + 1);
        let name: Vec<u8> = std::iter::from_fn(|| Some(file.take::<1>()[0]).filter(|b| *b > 0)).collect();
        assert_eq!(name, view.name.as_bytes());
        let [fx, fy, cx, cy] = cameras[i];
        for _ in 0..file.long() {
            let (u, v, point) = (file.double(), file.double(), file.long() as usize - 1);
            let [x, y, z] = pose.apply(positions[point]);
            close(x / z * fx + cx, u, 1e-5);
            close(y / z * fy + cy, v, 1e-5);
            seen += 1;
        }
    }
    assert_eq!((seen, file.1), (points.len(), file.0.len()));
}

#[test]
fn colmap_text_says_what_the_binary_says() {
    let (dir, scene) = written("colmap,colmap-text");
    let text = |name: &str| fs::read_to_string(dir.path().join("sparse_text/0").join(name)).unwrap();
    let mut file = Reader(fs::read(dir.path().join("sparse/0/cameras.bin")).unwrap(), 8);
    let words = text_numbers(&text("cameras.txt"));
    for camera in words.chunks_exact(8) {
        assert_eq!((file.int().to_string(), file.int(), "PINHOLE"), (camera[0].clone(), 1, camera[1].as_str()));
        assert_eq!([file.long().to_string(), file.long().to_string()], camera[2..4]);
        (4..8).for_each(|i| assert_eq!(file.double(), camera[i].parse::<f64>().unwrap()));
    }
    let mut file = Reader(fs::read(dir.path().join("sparse/0/points3D.bin")).unwrap(), 8);
    let words = text_numbers(&text("points3D.txt"));
    assert_eq!(words.len(), 10 * cloud(&scene).len());
    for point in words.chunks_exact(10) {
        assert_eq!(file.long().to_string(), point[0]);
        (1..4).for_each(|i| close(file.double(), point[i].parse().unwrap(), 1e-6));
        assert_eq!(file.take::<3>().map(|c| c.to_string()), point[4..7]);
        assert_eq!((file.double(), point[7].as_str(), file.long()), (0.0, "0", 1));
        assert_eq!([file.int().to_string(), file.int().to_string()], point[8..]);
    }
    let images = text("images.txt");
    let lines: Vec<&str> = images.lines().filter(|l| !l.starts_with('#')).collect();
    assert_eq!((lines.len(), lines[2].split(' ').next_back()), (4, Some("view1.png")));
    assert_eq!(lines[1].split(' ').count() % 3, 0);
}

#[test]
fn formats_are_words() {
    assert_eq!(Formats::parse("all").unwrap(), Formats::all());
    assert_eq!(Formats::parse("ply, glb,ply").unwrap().formats, [Format::Ply, Format::Glb]);
    let error = Formats::parse("ply,obj,xyz").unwrap_err();
    assert_eq!((error.code, error.exit_code(), error.problems.len()), ("recon.format", 2, 2), "{error}");
}

#[test]
fn a_name_that_colmap_cannot_hold_is_an_error_and_the_rest_is_written() {
    let (dir, mut scene) = (tempfile::tempdir().unwrap(), scene());
    scene.views[1].name = scene.views[0].name.clone();
    let error = write_all(&scene, dir.path(), &Formats::parse("ply,colmap").unwrap()).unwrap_err();
    assert!(error.to_string().contains("view0.png"), "{error}");
    assert!(dir.path().join("points.ply").is_file() && !dir.path().join("sparse").exists());
}

#[test]
fn the_same_result_makes_the_same_bytes() {
    let (a, scene) = written("all");
    let b = tempfile::tempdir().unwrap();
    for path in write_all(&scene, b.path(), &Formats::all()).unwrap() {
        let name = path.strip_prefix(b.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), fs::read(a.path().join(name)).unwrap(), "{}", name.display());
    }
}
